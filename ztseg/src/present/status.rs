//! The agent's state, for people.

use std::fmt::Write as _;

use super::compact::security_line;
use super::safe;
use super::table::{bytes, table};
use crate::api::types::{Failsafe, Origin, Status};

/// The status as text of several lines.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{:<16}{}", format!("{name}:"), safe(value));
    };
    let mode =
        if status.audit { ", the whole agent in audit mode: nothing is dropped" } else { "" };
    field("agent", &format!("ztseg {}, process {}{mode}", status.version, status.pid));
    field("kernel", &format!("{}, layouts {}", status.kernel, status.abi));
    field("started", &seconds(status.started_at));
    let applied = seconds(status.applied_at);
    field("generation", &format!("{}, applied {applied}", status.generation));
    let origin = match status.origin {
        Origin::Configured => "",
        Origin::Sent => " (sent by `ztseg apply`; the configured files come back with a reload)",
        Origin::LastGood => " (THE LAST GOOD ONE: the configured files are broken, see below)",
        Origin::Closed => " (CLOSED: no policy could be loaded, see below)",
    };
    field("policy", &format!("{} segments, {} rules{origin}", status.segments, status.rules));
    for file in &status.policies {
        field("  file", file);
    }
    for line in failsafe(&status.failsafe) {
        field("failsafe", &line);
    }
    field("cgroup root", &status.cgroup_root);
    field("pins", &status.bpffs);
    let watch = &status.cgroup_watch;
    field("cgroups", &format!("{}, watched by {watch}", status.cgroups));
    field("workloads", &status.workloads.to_string());
    for (segment, count) in &status.workloads_by_segment {
        field("  segment", &format!("{segment}: {count}"));
    }
    for warning in &status.warnings {
        field("warning", warning);
    }
    if let Some(problem) = &status.last_error {
        let at = seconds(problem.at);
        let _ = writeln!(out, "\nlast error, at {at} (what ran before still runs):");
        for line in problem.message.lines() {
            let _ = writeln!(out, "  {}", safe(line));
        }
    }
    if !status.security.is_empty() {
        out.push_str("\naltered from outside, last:\n");
        for record in &status.security {
            let _ = writeln!(out, "  {} {}", seconds(record.time), security_line(record));
        }
    }
    out.push('\n');
    out.push_str(&hooks(status));
    out.push('\n');
    out.push_str(&counters(status));
    out.push('\n');
    out.push_str(&maps(status));
    out.push_str("\nwhat cannot be promised here:\n");
    for limit in &status.limits {
        let _ = writeln!(out, "  {}: {}; {}", limit.id, safe(&limit.what), safe(&limit.instead));
    }
    out
}

/// What stays open, a line for each direction, and for whom.
fn failsafe(failsafe: &Failsafe) -> Vec<String> {
    let Failsafe { inbound, outbound, workloads, .. } = failsafe;
    if inbound.is_empty() && outbound.is_empty() {
        return vec!["off: no port stays open for the host whatever the policy says".into()];
    }
    let line = |name: &str, list: &[String], says: &str| match list {
        [] => format!("{name} off"),
        some => format!("{name} {} always {says}", some.join(", ")),
    };
    vec![
        line("inbound", inbound, "reached"),
        line("outbound", outbound, "allowed"),
        format!("for {}", workloads.join(", ")),
    ]
}

fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn hooks(status: &Status) -> String {
    let rows = status.hooks.iter().map(|hook| {
        let attached = if hook.attached.is_empty() { "-".into() } else { hook.attached.join(", ") };
        [hook.name.clone(), hook.id.to_string(), hook.verified_instructions.to_string(), attached]
    });
    table(["program", "id", "verified", "attached to"], &rows.collect::<Vec<_>>())
}

fn counters(status: &Status) -> String {
    let kernel = status.counters.iter().map(|(name, n)| [name.clone(), n.to_string()]);
    let agent = [
        ("events_undecodable", status.events_undecodable),
        ("events_lost_by_readers", status.events_lost_by_readers),
        ("sockets_destroyed", status.sockets_destroyed),
        ("sockets_adopted", status.sockets_adopted),
        ("sockets_unknown", status.sockets_unknown),
    ];
    let tampering = status.tampering.iter();
    let tampering = tampering.map(|(what, n)| [format!("tampering {what}"), n.to_string()]);
    let agent = agent.into_iter().map(|(name, n)| [name.to_owned(), n.to_string()]);
    let agent = agent.chain(tampering);
    table(["counter", "value"], &kernel.chain(agent).collect::<Vec<_>>())
}

fn maps(status: &Status) -> String {
    let fills = status.capacity.iter().map(|fill| {
        let percent = fill.used as u64 * 100 / u64::from(fill.limit.max(1));
        [fill.option.clone(), fill.used.to_string(), fill.limit.to_string(), format!("{percent} %")]
    });
    let mut out = table(["capacity", "used", "limit", "fill"], &fills.collect::<Vec<_>>());
    out.push('\n');
    let maps = status.maps.iter();
    let maps = maps.map(|m| [m.name.clone(), m.max_entries.to_string(), bytes(m.bytes)]);
    out.push_str(&table(["map", "entries", "memory"], &maps.collect::<Vec<_>>()));
    let _ = writeln!(out, "map memory: {}", bytes(status.map_bytes));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Fill, Limit, Map, Problem, Program, SecurityKind, SecurityRecord};

    #[test]
    fn failsafe_says_what_is_open_and_for_whom() {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let off = text(&Status::default());
        assert!(off.contains("failsafe:       off: no port"), "{off}");
        let failsafe = Failsafe {
            inbound: list(&["tcp:22", "udp:68"]),
            workloads: list(&["host", "/system.slice/ssh.service"]),
            ..Failsafe::default()
        };
        let some = text(&Status { failsafe, ..Status::default() });
        for part in [
            "failsafe:       inbound tcp:22, udp:68 always reached\n",
            "failsafe:       outbound off\n",
            "failsafe:       for host, /system.slice/ssh.service\n",
        ] {
            assert!(some.contains(part), "{part:?} in:\n{some}");
        }
    }

    #[test]
    fn everything_in_it_is_shown() {
        let status = Status {
            version: "1.2.3".into(),
            kernel: "6.1.0".into(),
            generation: 7,
            audit: true,
            origin: Origin::Sent,
            policies: vec!["/etc/x.yaml".into()],
            warnings: vec!["a warning".into()],
            last_error: Some(Problem {
                at: jiff::Timestamp::UNIX_EPOCH,
                message: "first\nsecond".into(),
            }),
            workloads_by_segment: [("web".into(), 3)].into(),
            cgroup_watch: "inotify".into(),
            hooks: vec![Program {
                name: "connect4".into(),
                id: 11,
                attached: vec!["/sys/fs/cgroup".into()],
                verified_instructions: 1234,
            }],
            counters: [("dropped_ingress".into(), 99)].into(),
            tampering: [("link-detached".into(), 4)].into(),
            security: vec![SecurityRecord {
                time: jiff::Timestamp::UNIX_EPOCH,
                kind: SecurityKind::Security,
                what: "link-detached".into(),
                object: "ztseg_egress at /x".into(),
                repaired: false,
                error: Some("gone".into()),
            }],
            capacity: vec![Fill { option: "verdicts".into(), used: 10, limit: 40 }],
            maps: vec![Map { name: "FLOWS".into(), max_entries: 5, bytes: 2048 }],
            limits: vec![Limit {
                id: "sctp".into(),
                what: "not seen".into(),
                instead: "use TC".into(),
            }],
            ..Status::default()
        };
        let text = text(&status);
        for part in [
            "1.2.3",
            "6.1.0",
            "audit mode",
            "generation:     7",
            "sent by",
            "/etc/x.yaml",
            "a warning",
            "  first\n  second",
            "web: 3",
            "inotify",
            "connect4  11  1234",
            "dropped_ingress",
            "99",
            "25 %",
            "2.0 KiB",
            "  1970-01-01T00:00:00Z link-detached: ztseg_egress at /x (not repaired: gone)",
            "tampering link-detached",
            "sctp: not seen; use TC",
        ] {
            assert!(text.contains(part), "{part:?} in:\n{text}");
        }
    }
}
