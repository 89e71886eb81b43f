//! Random policies: segments, groups and rules.

use fastrand::Rng;
use ztseg_common::addr::proto;

use super::match_entry::entry;
use super::{Entry, Group, NETWORKS, Peer, Policy, Port, Rule, Segment, Tier, pick, some};
use crate::policy::generate::moment;

/// Around each other's bounds.
pub(crate) const PORTS: [u16; 6] = [1, 80, 81, 443, 8080, u16::MAX];
pub(crate) const NAMED_PORTS: [&str; 2] = ["http", "web-2"];
const TYPES: [(u8, u16, &str); 5] = [
    (proto::ICMP, 0, "echo-reply"),
    (proto::ICMP, 8, "echo-request"),
    (proto::ICMPV6, 1, "destination-unreachable"),
    (proto::ICMPV6, 128, "echo-request"),
    (proto::ICMPV6, 129, "echo-reply"),
];
const GROUPS: [(&[&str], &[&str]); 5] = [
    (&["10.0.0.0/8"], &["10.1.0.0/16"]),
    (&["10.1.0.0/16", "10.1.2.0/24"], &["10.1.2.128/25", "10.1.2.3"]),
    (&["2001:db8::/32", "192.0.2.7"], &["2001:db8:1:2::/64"]),
    (&["0.0.0.0/0", "::/0"], &["10.1.2.129", "192.0.2.0/29", "2001:db8:1:2::3"]),
    (&["10.1.2.129", "fd00::1"], &[]),
];

const SEGMENT_NAMES: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s5"];
const GROUP_NAMES: [&str; 3] = ["g0", "g1", "g2"];

/// The names that rules may use.
struct Names {
    segments: &'static [&'static str],
    /// Segments that ask for pods.
    of_pods: Vec<&'static str>,
    groups: &'static [&'static str],
}

/// Random policies; what one defines the others use.
pub(super) fn policies(rng: &mut Rng) -> Vec<Policy> {
    const TIERS: [Tier; 5] =
        [Tier::Application, Tier::Application, Tier::Admin, Tier::Admin, Tier::Baseline];
    let mut priorities: Vec<u32> = (0..rng.u32(1..6)).map(|n| n * 7).collect();
    rng.shuffle(&mut priorities);
    let mut policies = Vec::new();
    for (number, priority) in priorities.into_iter().enumerate() {
        let tier = pick(rng, &TIERS);
        // In the application tier it means nothing, and may be there twice.
        let of_application = (rng.u8(0..4) == 0).then_some(5);
        policies.push(Policy {
            name: format!("policy-{number}"),
            tier,
            priority: if tier == Tier::Application { of_application } else { Some(priority) },
            audit: rng.u8(0..4) == 0,
            reject: rng.u8(0..4) == 0,
            ..Policy::default()
        });
    }
    let mut names = Names {
        segments: &SEGMENT_NAMES[..rng.usize(1..=SEGMENT_NAMES.len())],
        of_pods: Vec::new(),
        groups: &GROUP_NAMES[..rng.usize(0..=GROUP_NAMES.len())],
    };
    for name in names.segments {
        let (segment, of_pods) = segment(rng, name);
        names.of_pods.extend(of_pods.then_some(name));
        pick_mut(rng, &mut policies).segments.push(segment);
    }
    for name in names.groups {
        let (cidrs, except) = pick(rng, &GROUPS);
        let except = some(rng, except);
        pick_mut(rng, &mut policies).groups.push(Group { name, cidrs: cidrs.to_vec(), except });
    }
    for number in 0..rng.usize(2..18) {
        let policy = pick_mut(rng, &mut policies);
        let kinds = if policy.tier == Tier::Application { 2 } else { 3 };
        let kind = rng.u8(0..kinds);
        let mut rule = rule(rng, &names, number);
        // Of a pass rule nothing is reported, and only a deny rule rejects.
        rule.log &= kind != 2;
        rule.reject = rule.reject.filter(|reject| kind == 0 || !reject);
        match kind {
            0 => policy.deny.push(rule),
            1 => policy.allow.push(rule),
            _ => policy.pass.push(rule),
        }
    }
    policies
}

fn pick_mut<'a, T>(rng: &mut Rng, list: &'a mut [T]) -> &'a mut T {
    &mut list[rng.usize(0..list.len())]
}

/// A segment, and whether it asks for pods.
fn segment(rng: &mut Rng, name: &'static str) -> (Segment, bool) {
    let of_pods = rng.u8(0..3) == 0;
    let mut entries: Vec<Entry> = (0..rng.usize(1..4)).map(|_| entry(rng, false)).collect();
    if of_pods {
        entries.push(entry(rng, true));
    }
    let asks = |entry: &Entry| matches!(entry, Entry::Workloads(asked) if asked.pod.is_some());
    let asks_for_pods = entries.iter().any(asks);
    let segment = Segment {
        name,
        audit: (rng.u8(0..4) == 0).then(|| rng.bool()),
        isolation: (rng.u8(0..3) == 0).then(|| [rng.bool(), rng.bool()]),
        entries,
    };
    (segment, asks_for_pods)
}

fn rule(rng: &mut Rng, names: &Names, number: usize) -> Rule {
    let mut from = side(rng, names);
    // Named ports want pods in `to`, which would be rare by chance.
    let of_pods = !names.of_pods.is_empty() && rng.bool();
    let to = if of_pods { pods(rng, names) } else { side(rng, names) };
    if !has_segment(names, &from) && !has_segment(names, &to) {
        from = vec![Peer::Name(pick(rng, names.segments))];
    }
    let may_name = to.iter().all(|peer| match peer {
        Peer::Any => true,
        Peer::Name(name) => names.of_pods.contains(name),
        Peer::Network(_) => false,
    });
    let ports = match rng.u8(0..4) {
        0 => Vec::new(),
        _ => (0..rng.usize(1..4)).map(|_| port(rng, may_name)).collect(),
    };
    Rule {
        name: (rng.u8(0..4) != 0).then(|| format!("rule-{number}")),
        from,
        to,
        ports,
        log: rng.u8(0..4) == 0,
        reject: (rng.u8(0..3) == 0).then(|| rng.bool()),
        expires: (rng.u8(0..4) == 0).then(|| moment(rng)),
    }
}

fn has_segment(names: &Names, side: &[Peer]) -> bool {
    side.iter().any(|peer| matches!(peer, Peer::Name(name) if names.segments.contains(name)))
}

fn pods(rng: &mut Rng, names: &Names) -> Vec<Peer> {
    if rng.u8(0..5) == 0 {
        return vec![Peer::Any];
    }
    (0..rng.usize(1..3)).map(|_| Peer::Name(pick(rng, &names.of_pods))).collect()
}

fn side(rng: &mut Rng, names: &Names) -> Vec<Peer> {
    if rng.u8(0..6) == 0 {
        return vec![Peer::Any];
    }
    let peer = |rng: &mut Rng| match rng.u8(0..12) {
        0 => Peer::Any,
        1 | 2 => Peer::Network(pick(rng, &NETWORKS)),
        3 | 4 if !names.groups.is_empty() => Peer::Name(pick(rng, names.groups)),
        _ => Peer::Name(pick(rng, names.segments)),
    };
    (0..pick(rng, &[1, 1, 1, 2, 3])).map(|_| peer(rng)).collect()
}

fn port(rng: &mut Rng, may_name: bool) -> Port {
    const PROTOCOLS: [u8; 4] = [proto::TCP, proto::TCP, proto::UDP, proto::SCTP];
    if may_name && rng.u8(0..3) != 0 {
        // Of SCTP no pod here has one.
        return Port::Named(pick(rng, &PROTOCOLS), pick(rng, &NAMED_PORTS));
    }
    let protocol = pick(rng, &PROTOCOLS);
    let (a, b) = (pick(rng, &PORTS), pick(rng, &PORTS));
    match rng.u8(0..9) {
        0 => Port::Any,
        1 => Port::Protocol(pick(rng, &[proto::TCP, proto::UDP, proto::SCTP])),
        2 => Port::Protocol(pick(rng, &[proto::ICMP, proto::ICMPV6])),
        3 => {
            let (protocol, number, name) = pick(rng, &TYPES);
            Port::Type(protocol, number, name)
        }
        4 => {
            let (protocol, number, _) = pick(rng, &TYPES);
            Port::Range(protocol, number, number)
        }
        5 | 6 => Port::Range(protocol, a.min(b), a.max(b)),
        _ => Port::Range(protocol, a, a),
    }
}
