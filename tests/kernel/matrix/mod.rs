//! Each protocol, family, place, case and direction: what the client saw, and what the event said.
//!
//! The segments isolate both directions and each row allows one, so an answer that comes back shows
//! that replies pass. All rows run once, for the first trial that asks; each trial judges its own.
#![expect(clippy::trivially_copy_pass_by_ref, reason = "a row is eight bytes by chance")]

mod policy;
mod row;
mod run;

use std::sync::OnceLock;

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use self::row::{ExpectedEvent, Kind, Row, rows};
use self::run::{Results, run};
use crate::environment::Environment;

static RESULTS: OnceLock<Result<Results, String>> = OnceLock::new();

/// What came of all rows.
fn results() -> Result<&'static Results> {
    let run = || run().map_err(|error| format!("{error:?}"));
    RESULTS.get_or_init(run).as_ref().map_err(|error| anyhow!("the matrix did not run: {error}"))
}

/// The trials, with their names.
pub(crate) fn tests() -> Vec<(String, impl FnOnce(&Environment) -> Result<()> + Send + 'static)> {
    let rows = rows().into_iter().enumerate();
    rows.map(|(at, row)| (row.name(), move |_: &Environment| judge(at, &row))).collect()
}

/// What no hook sees passes, whatever the policy says, and `status` says so.
pub(crate) fn the_status_lists_what_no_hook_sees(_: &Environment) -> Result<()> {
    let limits = &results()?.status["limits"];
    let ids: Vec<&Value> = limits.as_array().into_iter().flatten().map(|l| &l["id"]).collect();
    ensure!(ids.contains(&&json!("icmp-to-cgroup")), "status lists only {ids:?}");
    Ok(())
}

fn judge(at: usize, row: &Row) -> Result<()> {
    let results = results()?;
    let (report, expected) = (&results.reports[at], row.expected());
    let own: Vec<&Value> = results.events.iter().filter(|event| is_of(event, row)).collect();
    let events = || own.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    ensure!(
        expected.outcomes.contains(&report.outcome),
        "the client saw {report:?}, expected one of {:?}; events:\n{}",
        expected.outcomes,
        events()
    );
    match (&expected.event, own.as_slice()) {
        (None, []) => Ok(()),
        (None, _) => bail!("no event expected, but there are:\n{}", events()),
        (Some(expected), []) => bail!("no event; expected {expected:?}"),
        (Some(expected), own) => {
            own.iter().try_for_each(|event| check(event, row, expected))?;
            let first = |event: &&Value| {
                let hook = event["hook"].as_str().unwrap_or_default();
                hook == row.hooks()[0] || hook.starts_with("connect") || hook.starts_with("sendmsg")
            };
            ensure!(own.iter().any(first), "no event of {}:\n{}", row.hooks()[0], events());
            Ok(())
        }
    }
}

/// Whether an event is of a row's flow: by its port, or by the peer's address.
fn is_of(event: &Value, row: &Row) -> bool {
    if event["proto"] != row.protocol() {
        return false;
    }
    if row.kind != Kind::Icmp {
        return event["local"]["port"] == row.port() || event["peer"]["port"] == row.port();
    }
    let peer = match (row.place, row.v6) {
        (row::Place::Loopback, false) => format!("127.0.0.{}", row.host_number()),
        (row::Place::Loopback, true) => format!("2001:db8:99::{:x}", row.host_number()),
        (_, false) => format!("192.0.2.{}", row.host_number()),
        (_, true) => format!("2001:db8:1::{:x}", row.host_number()),
    };
    // Other rows have the same peer, at other workloads.
    event["peer"]["ip"] == peer && event["workload"] == row.workload()
}

fn check(event: &Value, row: &Row, expected: &ExpectedEvent) -> Result<()> {
    let isolated_by = expected.isolated_by.map_or(Value::Null, |segment| json!([segment]));
    for (field, expected) in [
        ("verdict", json!(expected.verdict)),
        ("reason", json!(expected.reason)),
        ("rule", json!(expected.rule)),
        ("isolatedBy", isolated_by),
        ("direction", json!(row.direction_name())),
        ("workload", json!(row.workload())),
        ("segments", json!([row.segment()])),
        ("proto", json!(row.protocol())),
    ] {
        ensure!(event[field] == expected, "`{field}` is not {expected} in {event:#}");
    }
    let hook = event["hook"].as_str().unwrap_or_default();
    ensure!(row.hooks().contains(&hook), "`hook` is none of {:?} in {event:#}", row.hooks());
    if row.place == row::Place::Loopback && row.kind != Kind::Icmp {
        ensure!(event["peer"]["segments"] == json!(["plain"]), "not the peer's segment: {event:#}");
        ensure!(event["peer"]["workload"] == "/plain", "not the peer's workload: {event:#}");
    }
    Ok(())
}
