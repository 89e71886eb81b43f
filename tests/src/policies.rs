//! Policies for tests that change them under traffic.

use std::fmt::Write as _;

/// A port that every policy of [`alternating`] allows, TCP and UDP.
pub const ALLOWED: u16 = 2000;
/// A port that each denies at the client's end.
pub const DENIED_OUT: u16 = 2001;
/// A port that each denies at the server's end.
pub const DENIED_IN: u16 = 2002;

/// Policies for the cgroups `/app` and `/open` and the guest of a [`crate::world::World`]. The same
/// flows are allowed and denied by each, but by other rules, ranks, classes and entries. Of each pair
/// of policies, mixed halves would allow what both deny, or deny what both allow: in the odd ones the
/// numbers of the even ones' allowed classes belong to what is denied.
pub fn alternating(number: u64) -> String {
    let odd = !number.is_multiple_of(2);
    let (mut segments, mut denied, mut allowed) = (String::new(), String::new(), String::new());
    for n in if odd { 0..40 } else { 0..0 } {
        // Writing to a string does not fail.
        let _ = writeln!(
            segments,
            "    aa{n}: {{ match: [ {{ cgroup: /other/n{n} }}, {{ cgroup: /app/n{n} }} ] }}"
        );
        let _ = writeln!(
            denied,
            "    - {{ name: no{n}, from: app, to: 203.0.113.{n}/32, ports: [udp/{}, tcp/1] }}",
            2100 + n
        );
        let _ = writeln!(
            allowed,
            "    - {{ name: yes{n}, from: aa{n}, to: 203.0.113.0/24, ports: [tcp/{}] }}",
            2000 + n + 3
        );
    }
    let peers = if odd { "[\"0.0.0.0/0\", \"::/0\", open]" } else { "any" };
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: alternating }}
spec:
  segments:
    app: {{ match: [ {{ cgroup: /app }} ] }}
    open: {{ isolation: [], match: [ {{ cgroup: /open }} ] }}
    guest: {{ match: [ {{ interface: zt-tap0 }} ] }}
{segments}  deny:
{denied}    - {{ name: out, from: [app, guest], to: any, ports: [tcp/{DENIED_OUT}, udp/{DENIED_OUT}] }}
  allow:
{allowed}    - {{ name: to, from: [app, guest], to: {peers}, ports: [tcp/{ALLOWED}, udp/{ALLOWED}] }}
    - {{ name: in, from: {peers}, to: [app, guest], ports: [tcp/{ALLOWED}, udp/{ALLOWED}] }}
    - {{ name: wide, from: [app, guest], to: {peers}, ports: [tcp/{DENIED_OUT}, udp/{DENIED_OUT}] }}
"
    )
}
