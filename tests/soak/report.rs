//! What is printed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::disturb::{Disturbances, Done};
use crate::load::Outcome;

/// The numbers.
pub(crate) fn table(done: &Disturbances, seen: &Outcome, time: Duration) -> String {
    let mut text = format!("  {done}, {:.0} s\n", time.as_secs_f64());
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "  {:<16}{:>10}{:>10}{:>6}{:>9}{:>8}{:>7}{:>6}{:>8}{:>9}{:>7}",
        "UDP and TCP",
        "UDP sent",
        "received",
        "lost",
        "messages",
        "connects",
        "lost",
        "|",
        "denied:",
        "connects",
        "passed"
    );
    for way in &seen.ways {
        let stream = |kind: &str| way.streams.iter().find(|(name, _)| name == kind);
        let sent = |kind: &str| stream(kind).map_or(0, |(_, counts)| counts.sent);
        let of_flood = way.allowed.sent - way.allowed.received.min(way.allowed.sent);
        let _ = writeln!(
            text,
            "  {:<16}{:>10}{:>10}{:>6}{:>9}{:>8}{:>7}{:>6}{:>8}{:>9}{:>7}",
            way.name,
            way.allowed.sent,
            way.allowed.received,
            of_flood,
            sent("Tcp"),
            sent("TcpConnects"),
            way.lost() - of_flood,
            "|",
            way.denied.sent,
            way.connects.sent,
            way.passed(),
        );
    }
    for (name, of) in &seen.iperf {
        let gigabits = of.bytes.map(|bytes| bytes * 8.0 / 1e9 / of.seconds.max(0.001));
        let _ = writeln!(
            text,
            "  iperf3, {name}: {:.2} Gbit/s out, {:.2} Gbit/s in, {} retransmits, {} runs of 10 s",
            gigabits[0], gigabits[1], of.retransmits, of.runs
        );
    }
    let dropped: Vec<_> = seen.drops.iter().filter(|(_, n)| **n != 0).collect();
    if !dropped.is_empty() {
        let _ = writeln!(text, "  dropped by the kernel's queues: {dropped:?}");
    }
    let _ = writeln!(
        text,
        "  lost allowed packets {}, passed denied packets {}",
        seen.lost(),
        seen.passed()
    );
    text
}

/// Which messages were lost, and what happened just before.
pub(crate) fn losses(seen: &Outcome, done: &Done) -> String {
    let mut text = String::new();
    for way in &seen.ways {
        for lost in &way.allowed.lost {
            let at = way.begun + Duration::from_millis(lost.millis);
            let before = |when: &Instant| at.saturating_duration_since(*when);
            let last = done.when.iter().rev().find(|(when, _)| *when <= at);
            let last = last.map(|(when, what)| {
                format!("{} ms after a {what} began", before(when).as_millis())
            });
            let _ = writeln!(
                text,
                "  lost: {}, flow {}, message {}, at {} ms: {}",
                way.name,
                lost.flow,
                lost.number,
                lost.millis,
                last.unwrap_or_default()
            );
        }
        for (kind, counts) in &way.streams {
            if counts.sent != counts.received {
                let _ = writeln!(text, "  lost: {}, {kind}: {counts:?}", way.name);
            }
        }
    }
    text
}
