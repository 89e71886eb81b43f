//! From a decoded record to what people read: names for numbers, and the time of day.

use ztseg_common::addr::proto;
use ztseg_common::event::EventKind;
use ztseg_common::verdict::{Hook, Reason};

use super::decode::Record;
use super::names::Names;
use crate::api::types::{End, EventRecord, EventVerdict, Peer};
use crate::clocks::Clocks;

/// Gives a record its names.
pub fn enrich(record: &Record, names: &Names, clocks: &Clocks) -> EventRecord {
    let generation = record.generation;
    let verdict = match record.kind {
        EventKind::Dropped => EventVerdict::Dropped,
        EventKind::Audit => EventVerdict::Audit,
        EventKind::Forwarded => EventVerdict::Forwarded,
    };
    // A socket that is not made has no ends yet, and no protocol.
    let is_socket = record.hook == Hook::SocketCreate;
    let isolated_by = if matches!(record.reason, Reason::Isolation | Reason::PacketSocket) {
        let audit = verdict == EventVerdict::Audit;
        names.isolating(generation, record.subject, record.direction, audit)
    } else {
        Vec::new()
    };
    let rule = record.rule.map(|rank| {
        let forgotten = || format!("rule {rank} of generation {generation}");
        names.rule(generation, rank).unwrap_or_else(forgotten)
    });
    let icmp = !is_socket && [proto::ICMP, proto::ICMPV6].contains(&record.protocol);
    EventRecord {
        time: clocks.wall_at(record.time),
        verdict,
        direction: record.direction.name().into(),
        reason: record.reason.name().into(),
        rule,
        isolated_by,
        generation,
        workload: names.workload(record.workload),
        segments: names.subject_segments(generation, record.subject, record.workload),
        local: End { ip: record.local.0, port: record.local.1 },
        peer: Peer {
            ip: record.remote.0,
            port: record.remote.1,
            workload: record.peer.map(|key| names.workload(key)),
            // The address of a known workload makes it a member of nothing.
            segments: match record.peer {
                Some(key) => names.segments(key),
                None if is_socket => Vec::new(),
                None => names.address_segments(generation, record.remote.0),
            },
        },
        proto: if is_socket {
            family_name(record.protocol)
        } else {
            protocol_name(record.protocol)
        },
        tcp_flags: (!is_socket && record.protocol == proto::TCP)
            .then(|| tcp_flags(record.tcp_flags)),
        icmp_type: icmp.then_some(record.icmp_type),
        hook: record.hook.name().into(),
        pid: record.pid,
        comm: record.comm.clone(),
        count: record.count,
    }
}

/// The name of a protocol as policies write it; its number where they have none.
fn protocol_name(protocol: u8) -> String {
    match protocol {
        0 => "unknown".into(),
        proto::TCP => "tcp".into(),
        proto::UDP => "udp".into(),
        proto::SCTP => "sctp".into(),
        proto::ICMP => "icmp".into(),
        proto::ICMPV6 => "icmpv6".into(),
        other => other.to_string(),
    }
}

/// The name of an address family (linux/socket.h) whose sockets may be refused.
fn family_name(family: u8) -> String {
    match family {
        17 => "AF_PACKET".into(),
        44 => "AF_XDP".into(),
        other => format!("AF_{other}"),
    }
}

/// As tcpdump writes them: `S`, `S.`, `F.`, `R`, `P.`, `.`.
fn tcp_flags(flags: u8) -> String {
    const LETTERS: [(u8, char); 8] = [
        (0x01, 'F'),
        (0x02, 'S'),
        (0x04, 'R'),
        (0x08, 'P'),
        (0x20, 'U'),
        (0x40, 'E'),
        (0x80, 'W'),
        (0x10, '.'),
    ];
    LETTERS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::events::decode::{decode, tests::denied};
    use crate::events::names::WorkloadName;
    use crate::image::{Classes, Image};
    use crate::policy::load;
    use crate::policy::resolved::SegmentId;
    use crate::policy::source::Source;

    const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  segments:
    db: { match: [ { addresses: [192.0.2.9/32] } ] }
    web: { isolation: [egress], match: [ { cgroup: /shop/web } ] }
    tools: { isolation: [ingress], match: [ { cgroup: /shop } ] }
    trial: { mode: audit, match: [ { cgroup: /shop } ] }
  deny:
    - { name: no-db, from: web, to: db }
";

    fn names() -> Names {
        let source = Source { name: "t".into(), text: POLICY.into() };
        let resolved = load(&[source]).expect("valid").resolved;
        let id = |name: &str| {
            let at = resolved.segments.iter().position(|s| s.name == name).expect("there");
            SegmentId(u32::try_from(at).expect("few"))
        };
        let set = [id("web"), id("tools"), id("trial")].into();
        let mut image = Image::default();
        image.classes.insert(set, Classes { subject: 2, identity: 3 });
        let mut names = Names::default();
        names.commit(7, Arc::new(resolved), &image);
        let segments = vec!["web".to_owned()];
        names.put(42, WorkloadName { name: "/shop/web".into(), segments });
        names
    }

    fn clocks() -> Clocks {
        Clocks { wall: "2026-01-02T03:04:05Z".parse().expect("a time"), boot: 3_500_000_000 }
    }

    #[test]
    fn a_default_deny_names_the_segments_whose_isolation_it_met() {
        let record = decode(&denied()).expect("known");
        let event = enrich(&record, &names(), &clocks());
        assert_eq!(event.isolated_by, ["web"]);
        assert_eq!(event.time.to_string(), "2026-01-02T03:04:02.5Z");
        assert_eq!(event.workload, "/shop/web");
        assert_eq!(event.peer.segments, ["db"]);
        assert_eq!(event.tcp_flags.as_deref(), Some("S"));
        let mut segments = event.segments;
        segments.sort();
        assert_eq!(segments, ["tools", "trial", "web"]);
    }

    #[test]
    fn audit_names_the_segments_in_audit_mode_too() {
        let mut record = decode(&denied()).expect("known");
        record.kind = EventKind::Audit;
        let mut by = enrich(&record, &names(), &clocks()).isolated_by;
        by.sort();
        assert_eq!(by, ["trial", "web"]);
    }

    #[test]
    fn a_refused_socket_has_its_family_and_who_isolates() {
        let mut record = decode(&denied()).expect("known");
        (record.reason, record.hook) = (Reason::PacketSocket, Hook::SocketCreate);
        record.remote = ([0; 16].into(), 0);
        for (family, name) in [(17, "AF_PACKET"), (44, "AF_XDP"), (6, "AF_6"), (1, "AF_1")] {
            record.protocol = family;
            let event = enrich(&record, &names(), &clocks());
            assert_eq!((event.proto.as_str(), event.reason.as_str()), (name, "packet-socket"));
            assert_eq!((event.tcp_flags, event.icmp_type), (None, None));
            assert_eq!((event.isolated_by, event.pid), (vec!["web".to_owned()], Some(4711)));
        }
    }

    #[test]
    fn a_rule_is_named_and_an_old_one_keeps_its_number() {
        let mut record = decode(&denied()).expect("known");
        (record.reason, record.rule) = (Reason::Rule, Some(1));
        let event = enrich(&record, &names(), &clocks());
        assert_eq!(event.rule.as_deref(), Some("shop/no-db"));
        assert_eq!(event.isolated_by, [""; 0]);
        record.generation = 3;
        let event = enrich(&record, &names(), &clocks());
        assert_eq!(event.rule.as_deref(), Some("rule 1 of generation 3"));
        assert_eq!(event.segments, ["web"]);
    }

    #[test]
    fn a_known_workload_is_in_no_segment_by_its_address() {
        let mut record = decode(&denied()).expect("known");
        record.peer = Some(42);
        let peer = enrich(&record, &names(), &clocks()).peer;
        assert_eq!(
            (peer.workload.as_deref(), peer.segments),
            (Some("/shop/web"), vec!["web".into()])
        );
    }

    #[test]
    fn times_out_of_all_bounds_do_no_harm() {
        assert_eq!(clocks().wall_at(u64::MAX), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(tcp_flags(0x12), "S.");
        assert_eq!(protocol_name(47), "47");
    }

    #[test]
    fn the_json_line_has_the_documented_fields() {
        let mut record = decode(&denied()).expect("known");
        record.peer = Some(42);
        let json = serde_json::to_value(enrich(&record, &names(), &clocks())).expect("json");
        let fields: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
        for field in [
            "time",
            "verdict",
            "direction",
            "reason",
            "rule",
            "generation",
            "workload",
            "segments",
            "local",
            "peer",
            "proto",
            "tcpFlags",
            "hook",
            "pid",
            "comm",
            "count",
        ] {
            assert!(fields.iter().any(|f| f == field), "{field} in {fields:?}");
        }
        assert_eq!(json["verdict"], "DROPPED");
        assert_eq!(json["rule"], serde_json::Value::Null);
        assert_eq!(json["local"]["port"], 40000);
        assert_eq!(json["peer"]["workload"], "/shop/web");
    }
}
