//! `ztseg events`

use std::ops::ControlFlow;

use clap::{Args, ValueEnum};

use super::output::{print, print_json};
use super::{Agent, Failure};
use crate::api::types::{EventLine, EventRecord};
use crate::present::compact::{because, line, security_line, verdict};
use crate::present::table::{list, table};

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// At most this many of the last events (the agent keeps 1000) [default: all; with -f none]
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = EventFormat::Compact)]
    output: EventFormat,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EventFormat {
    /// One line an event, for people
    Compact,
    /// For people, with columns; not with -f
    Table,
    /// One JSON document; with -f as jsonl
    Json,
    /// One JSON document a line
    Jsonl,
}

impl Events {
    pub(super) async fn execute(self) -> Result<(), Failure> {
        if self.follow && self.output == EventFormat::Table {
            return Err(Failure::input(
                "a table has no end with --follow; use -o compact or -o jsonl",
            ));
        }
        let last = self.last.map(|n| format!("&last={n}")).unwrap_or_default();
        let path = format!("/v1/events?follow={}{last}", u8::from(self.follow));
        let whole = !self.follow && matches!(self.output, EventFormat::Table | EventFormat::Json);
        let mut kept = Vec::new();
        let mut result = Ok(());
        let each = |bytes: &[u8]| {
            let parsed = serde_json::from_slice::<EventLine>(bytes);
            result = match parsed {
                Ok(line @ (EventLine::Event(_) | EventLine::Security(_))) if whole => {
                    kept.push(line);
                    Ok(())
                }
                Ok(parsed) => self.print_line(&parsed, bytes),
                Err(e) => Err(Failure::refused(format!(
                    "the agent sent an event that this ztseg cannot read ({e}); are they of the \
                     same version?"
                ))),
            };
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        self.agent.client().lines(&path, each).await?;
        result?;
        match self.output {
            EventFormat::Json if whole => print_json(&kept),
            EventFormat::Table => print(&as_table(&kept)),
            _ => Ok(()),
        }
    }

    fn print_line(&self, parsed: &EventLine, bytes: &[u8]) -> Result<(), Failure> {
        let text = match (parsed, self.output) {
            (EventLine::Event(event), EventFormat::Compact) => line(event),
            (EventLine::Security(record), EventFormat::Compact) => {
                format!("{}: SECURITY {}", milliseconds(record.time), security_line(record))
            }
            (EventLine::Lost { lost }, EventFormat::Compact) => {
                format!("({lost} events lost: this reader was too slow)")
            }
            _ => String::from_utf8_lossy(bytes).into_owned(),
        };
        print(&format!("{text}\n"))
    }
}

fn milliseconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

fn as_table(events: &[EventLine]) -> String {
    let row = |line: &EventLine| match line {
        EventLine::Event(event) => Some(event_row(event)),
        EventLine::Security(record) => {
            let mut row = [const { String::new() }; 11].map(|_| "-".to_owned());
            row[0] = milliseconds(record.time);
            row[1] = "SECURITY".into();
            row[9] = security_line(record);
            row[10] = "1".into();
            Some(row)
        }
        EventLine::Lost { .. } => None,
    };
    let rows: Vec<_> = events.iter().filter_map(row).collect();
    let header = [
        "time",
        "verdict",
        "direction",
        "workload",
        "segments",
        "peer",
        "peer segments",
        "proto",
        "port",
        "reason",
        "count",
    ];
    table(header, &rows)
}

fn event_row(e: &EventRecord) -> [String; 11] {
    let peer = e.peer.workload.clone().unwrap_or_else(|| e.peer.ip.to_string());
    [
        milliseconds(e.time),
        verdict(e.verdict).into(),
        e.direction.clone(),
        e.workload.clone(),
        list(&e.segments),
        peer,
        list(&e.peer.segments),
        e.proto.clone(),
        if e.direction == "ingress" { e.local.port } else { e.peer.port }.to_string(),
        because(e),
        e.count.to_string(),
    ]
}
