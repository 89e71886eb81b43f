//! What is printed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::disturb::Done;
use crate::load::{Outcome, Seen};

/// The numbers.
pub(crate) fn table(done: &Done, seen: &Outcome, time: Duration) -> String {
    let mut text = format!("  done: {}, {:.0} s\n", done.counts, time.as_secs_f64());
    if done.agents != 0 {
        let _ = writeln!(
            text,
            "  {} agents ran one after the other; policies in force: {} generations",
            done.agents, done.generations
        );
        let _ = writeln!(
            text,
            "  denials of allowed flows that the agents reported: {}",
            done.wrong.len()
        );
        for event in done.wrong.iter().take(10) {
            let _ = writeln!(text, "    {event}");
        }
    }
    // Writing to a string does not fail.
    let mut line = |cells: [String; 11]| {
        let [name, cells @ ..] = cells;
        let _ = write!(text, "  {name:<15}");
        for cell in cells {
            let _ = write!(text, "{cell:>10}");
        }
        text.push('\n');
    };
    line(
        [
            "", "UDP sent", "received", "lost", "messages", "connects", "sockets", "lost",
            "denied", "connects", "passed",
        ]
        .map(str::to_owned),
    );
    for way in &seen.ways {
        let sent = |kind: &str| {
            let stream = way.streams.iter().find(|(name, _)| name == kind);
            stream.map_or(0, |(_, counts)| counts.sent).to_string()
        };
        let flood = &way.allowed;
        let of_flood = flood.sent - flood.received.min(flood.sent);
        line([
            way.name.to_owned(),
            flood.sent.to_string(),
            flood.received.to_string(),
            of_flood.to_string(),
            sent("Tcp"),
            sent("TcpConnects"),
            sent("UdpEach"),
            (way.lost() - of_flood).to_string(),
            way.denied.sent.to_string(),
            way.connects.sent.to_string(),
            way.passed().to_string(),
        ]);
    }
    for (name, of) in &seen.iperf {
        let gigabits = of.bytes.map(|bytes| bytes * 8.0 / 1e9 / of.seconds.max(0.001));
        let _ = writeln!(
            text,
            "  iperf3, {name}: {:.2} Gbit/s out, {:.2} Gbit/s in, {} retransmits, {} runs of 10 s",
            gigabits[0], gigabits[1], of.retransmits, of.runs
        );
    }
    let _ = writeln!(text, "  TCP, all connections: {:?}", seen.tcp);
    let dropped: Vec<_> = seen.drops.iter().filter(|(_, n)| **n != 0).collect();
    let _ = writeln!(
        text,
        "  full queues of this machine dropped {} packets{}",
        seen.dropped(),
        if dropped.is_empty() { String::new() } else { format!(": {dropped:?}") }
    );
    let late: usize = seen.ways.iter().map(Seen::late).sum();
    if late != 0 {
        let _ = writeln!(text, "  {late} answers came after more than 0.6 s");
    }
    let waited: u64 = seen.ways.iter().map(|way| way.allowed.waited).sum();
    let refused: u64 = seen.ways.iter().map(|way| way.allowed.refused).sum();
    if waited + refused != 0 {
        let _ = writeln!(text, "  senders had to wait {waited} times; {refused} were refused");
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
    let dropped = seen.dropped();
    if seen.lost() != 0 {
        let _ = match dropped {
            0 => writeln!(text, "  no queue of this machine was full: each loss is ztseg's"),
            _ if dropped >= seen.lost() => writeln!(
                text,
                "  full queues of this machine dropped as many: the run says nothing; try a smaller \
                 --rate"
            ),
            _ => writeln!(
                text,
                "  full queues of this machine dropped {dropped}: at least {} losses are ztseg's",
                seen.lost() - dropped
            ),
        };
    }
    for way in &seen.ways {
        for lost in &way.allowed.lost {
            let at = way.begun + Duration::from_millis(lost.millis);
            let before = |when: &Instant| at.saturating_duration_since(*when);
            let last = done.when.iter().rev().find(|(when, _, _)| *when <= at);
            let last = last.map(|(when, _, what)| {
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
                let (sent, received) = (counts.sent, counts.received);
                let _ = writeln!(text, "  lost: {}, {kind}: {received} of {sent}", way.name);
            }
            for late in &counts.late {
                let began = done.when.iter().rev().find(|(_, at, _)| *at <= late.at);
                let began = began.map_or(String::new(), |(_, at, what)| {
                    format!("{} ms after a {what} began", late.at - at)
                });
                let _ = writeln!(text, "  {}, {kind}: {late:?}: {began}", way.name);
            }
        }
    }
    text
}
