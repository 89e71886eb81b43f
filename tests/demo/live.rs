//! A change of policy, seen from a connection that stands.

use std::io::{Write as _, stdout};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::interrupt::Interrupt;
use crate::scene::{Scene, Who};
use crate::talk::Talk;

/// How long an answer is waited for that should not come.
const IN_VAIN: Duration = Duration::from_millis(500);
/// How long one may take that should: what was dropped is sent again at growing intervals.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the demo's deny rules begin, and what is put in there.
const DENY: &str = "  deny:\n";
const LOCKDOWN: &str = "    - { name: lockdown, from: office, to: web }\n";
/// Where its tests begin: they are about the policy without the lockdown.
const TESTS: &str = "  tests:\n";

pub(crate) fn run(scene: &Scene, interrupt: &Interrupt) -> Result<()> {
    let agent = scene.agent()?;
    let to = scene.address(Who::Office, Who::Web, false);
    let mut talk = Talk::start(&scene.place(Who::Office)?, (to, 443).into())?;

    step("office opens a connection to web tcp/443", &answered(&mut talk, PATIENCE, "1/1")?)?;

    let (rules, _) = scene.policy().split_once(TESTS).context("the policy has no tests")?;
    let locked = rules.replacen(DENY, &format!("{DENY}{LOCKDOWN}"), 1);
    ensure!(locked != rules, "the policy has no deny rules");
    let generation = generation(&agent.apply(&locked)?)?;
    step("ztseg apply, with a deny rule `lockdown`", &format!("generation {generation}"))?;

    interrupt.check()?;
    let seen = answered(&mut talk, IN_VAIN, "1/2")?;
    let event = agent.wait_for_event(|event| {
        event["verdict"] == "DROPPED"
            && event["generation"] == json!(generation)
            && event["local"]["port"] == 443
            && event["rule"] == "demo/lockdown"
    })?;
    let direction = event["direction"].as_str().unwrap_or_default();
    let said = format!("{seen}: {direction} by rule demo/lockdown");
    step("the same connection, the next packet", &said)?;

    interrupt.check()?;
    let generation = self::generation(&agent.apply(scene.policy())?)?;
    step("ztseg apply, with the first policy", &format!("generation {generation}"))?;
    step("the same connection", &answered(&mut talk, PATIENCE, "3/3")?)
}

/// Says something on the connection, and checks how many answers there are then.
fn answered(talk: &mut Talk, patience: Duration, expected: &str) -> Result<String> {
    let answers = talk.say(patience)?;
    ensure!(
        answers == expected,
        "on an open connection {answers} messages were answered, not {expected}"
    );
    Ok(format!("{answers} messages answered"))
}

/// The number in what `ztseg apply` prints.
fn generation(printed: &str) -> Result<u64> {
    printed
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("`ztseg apply` gives no generation: {printed}"))
}

fn step(what: &str, seen: &str) -> Result<()> {
    let mut out = stdout();
    writeln!(out, "  {what:<42} {seen}")?;
    Ok(out.flush()?)
}
