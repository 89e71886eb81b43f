//! One event a line, for people.

use std::fmt::Write as _;
use std::net::IpAddr;

use ztseg_common::verdict::Hook;

use super::safe;
use crate::api::types::{EventRecord, EventVerdict, SecurityRecord};

/// The line, without a line end: time, source, destination, protocol, verdict, and in brackets
/// everything else.
pub fn line(event: &EventRecord) -> String {
    let ports = matches!(event.proto.as_str(), "tcp" | "udp" | "sctp");
    let workload = Some(event.workload.as_str());
    let local = end(workload, event.local.ip, event.local.port, ports, &event.segments);
    let peer = &event.peer;
    let remote = end(peer.workload.as_deref(), peer.ip, peer.port, ports, &peer.segments);
    let (from, to) = if event.direction == "ingress" { (remote, local) } else { (local, remote) };
    let mut proto = event.proto.clone();
    if let Some(kind) = event.icmp_type {
        // Writing to a string does not fail.
        let _ = write!(proto, "/{kind}");
    }
    if let Some(flags) = event.tcp_flags.as_deref().filter(|f| !f.is_empty()) {
        let _ = write!(proto, " {flags}");
    }
    let time = event.time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
    let verdict = verdict(event.verdict);
    let mut line = if event.hook == Hook::SocketCreate.name() {
        let segments = list(&event.segments);
        let workload = &event.workload;
        format!("{time}: {workload} ({segments}) {proto} socket {verdict} ({}", event.direction)
    } else {
        format!("{time}: {from} -> {to} {proto} {verdict} ({}", event.direction)
    };
    let _ = write!(line, " {}; {}", because(event), event.hook);
    if event.pid.is_some() || event.comm.is_some() {
        let comm = event.comm.as_deref().unwrap_or("process");
        let _ = write!(line, "; {comm}");
        if let Some(pid) = event.pid {
            let _ = write!(line, "[{pid}]");
        }
    }
    let _ = write!(line, "; generation {}", event.generation);
    if event.count > 1 {
        let _ = write!(line, "; {} times", event.count);
    }
    line.push(')');
    safe(&line)
}

/// The line of a security event, without its time: `link-detached: ztseg_ingress at /sys/fs/cgroup
/// (repaired)`.
pub fn security_line(record: &SecurityRecord) -> String {
    let SecurityRecord { what, object, error, .. } = record;
    let outcome = match error {
        None => "repaired".to_owned(),
        Some(error) => format!("not repaired: {error}"),
    };
    safe(&format!("{what}: {object} ({outcome})"))
}

/// The name of a verdict, as the JSON has it.
pub const fn verdict(verdict: EventVerdict) -> &'static str {
    match verdict {
        EventVerdict::Dropped => "DROPPED",
        EventVerdict::Audit => "AUDIT",
        EventVerdict::Forwarded => "FORWARDED",
    }
}

/// What decided: `by rule shop/x`, `by isolation of segment web`, or the reason's name.
pub fn because(event: &EventRecord) -> String {
    match (&event.rule, event.reason.as_str(), &event.isolated_by[..]) {
        (Some(rule), ..) => format!("by rule {rule}"),
        (None, "isolation", []) => "by isolation".into(),
        (None, "isolation", [one]) => format!("by isolation of segment {one}"),
        (None, "isolation", some) => format!("by isolation of segments {}", some.join(", ")),
        (None, reason, _) => format!("because of {reason}"),
    }
}

fn list(segments: &[String]) -> String {
    if segments.is_empty() { "-".into() } else { segments.join(", ") }
}

fn end(workload: Option<&str>, ip: IpAddr, port: u16, ports: bool, segments: &[String]) -> String {
    let segments = list(segments);
    // A socket that connects has no address of its own yet.
    if let (Some(workload), true, 0) = (workload, ip.is_unspecified(), port) {
        return format!("{workload} ({segments})");
    }
    let mut text = workload.map(|w| format!("{w} ")).unwrap_or_default();
    let _ = match (ports, ip) {
        (true, IpAddr::V6(ip)) => write!(text, "[{ip}]:{port}"),
        (true, IpAddr::V4(ip)) => write!(text, "{ip}:{port}"),
        (false, ip) => write!(text, "{ip}"),
    };
    format!("{text} ({segments})")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::types::{End, Peer};

    pub(crate) fn event() -> EventRecord {
        EventRecord {
            time: "2026-01-02T03:04:05.6789Z".parse().expect("a time"),
            verdict: EventVerdict::Dropped,
            direction: "egress".into(),
            reason: "rule".into(),
            rule: Some("shop/no-metadata".into()),
            isolated_by: vec![],
            generation: 7,
            workload: "/shop/web".into(),
            segments: vec!["web".into()],
            local: End { ip: [192, 0, 2, 7].into(), port: 40000 },
            peer: Peer {
                ip: [169, 254, 169, 254].into(),
                port: 80,
                workload: None,
                segments: vec![],
            },
            proto: "tcp".into(),
            tcp_flags: Some("S".into()),
            icmp_type: None,
            hook: "connect4".into(),
            pid: Some(4711),
            comm: Some("curl".into()),
            count: 1,
        }
    }

    #[test]
    fn an_egress_flow_starts_at_the_workload() {
        assert_eq!(
            line(&event()),
            "2026-01-02T03:04:05.678Z: /shop/web 192.0.2.7:40000 (web) -> 169.254.169.254:80 (-) \
             tcp S DROPPED (egress by rule shop/no-metadata; connect4; curl[4711]; generation 7)"
        );
    }

    #[test]
    fn an_ingress_flow_starts_at_the_peer() {
        let mut event = event();
        event.direction = "ingress".into();
        (event.rule, event.reason) = (None, "isolation".into());
        event.isolated_by = vec!["db".into(), "web".into()];
        event.peer.ip = "2001:db8::1".parse().expect("an address");
        event.peer.workload = Some("/batch".into());
        event.peer.segments = vec!["batch".into()];
        (event.pid, event.comm, event.count) = (None, None, 12);
        assert_eq!(
            line(&event),
            "2026-01-02T03:04:05.678Z: /batch [2001:db8::1]:80 (batch) -> /shop/web \
             192.0.2.7:40000 (web) tcp S DROPPED (ingress by isolation of segments db, web; \
             connect4; generation 7; 12 times)"
        );
    }

    #[test]
    fn a_socket_without_an_address_shows_none() {
        let mut event = event();
        event.local = End { ip: [0; 16].into(), port: 0 };
        assert!(
            line(&event).contains("Z: /shop/web (web) -> 169.254.169.254:80"),
            "{}",
            line(&event)
        );
    }

    #[test]
    fn a_refused_socket_has_no_ends() {
        let mut event = event();
        (event.hook, event.proto) = ("socket-create".into(), "AF_PACKET".into());
        (event.rule, event.reason, event.tcp_flags) = (None, "packet-socket".into(), None);
        assert_eq!(
            line(&event),
            "2026-01-02T03:04:05.678Z: /shop/web (web) AF_PACKET socket DROPPED (egress because of \
             packet-socket; socket-create; curl[4711]; generation 7)"
        );
    }

    #[test]
    fn icmp_has_a_type_and_no_ports() {
        let mut event = event();
        (event.proto, event.icmp_type, event.tcp_flags) = ("icmp".into(), Some(8), None);
        event.verdict = EventVerdict::Audit;
        let line = line(&event);
        assert!(line.contains("192.0.2.7 (web) -> 169.254.169.254 (-) icmp/8 AUDIT"), "{line}");
    }

    #[test]
    fn every_reason_says_something() {
        let mut event = event();
        (event.rule, event.reason) = (None, "truncated".into());
        assert_eq!(because(&event), "because of truncated");
        event.reason = "isolation".into();
        assert_eq!(because(&event), "by isolation");
        event.isolated_by = vec!["web".into()];
        assert_eq!(because(&event), "by isolation of segment web");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        let mut event = event();
        event.comm = Some("\u{1b}[2J".into());
        event.workload = "/a\nb".into();
        assert!(!line(&event).contains(char::is_control));
    }
}
