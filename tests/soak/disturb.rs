//! What happens beside the traffic: policies, and the ends of agents. Each is looked at: an agent that
//! was to end has ended, and another one has taken its place.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztseg_common::ABI_VERSION;
use ztseg_tests::agent::{Agent, OTHER_VERSION};
use ztseg_tests::policies::{ALLOWED, alternating};
use ztseg_tests::world::World;

/// How long an agent may take to the point where it is killed.
const CUT: Duration = Duration::from_secs(30);

/// How often what happens, or has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disturbances {
    pub(crate) applies: u32,
    pub(crate) restarts: u32,
    pub(crate) kills: u32,
    pub(crate) upgrades: u32,
    /// Upgrades in the middle of which the agent is killed.
    pub(crate) cut: u32,
}

impl fmt::Display for Disturbances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { applies, restarts, kills, upgrades, cut } = self;
        write!(f, "{applies} applies, {restarts} restarts, {kills} kills, {upgrades} upgrades")?;
        write!(f, ", {cut} upgrades cut off by a kill")
    }
}

/// What was done, and when it began.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) counts: Disturbances,
    /// Generations that the kernel programs had, as the agents said.
    pub(crate) generations: u64,
    /// Processes that were agents.
    pub(crate) agents: u32,
    /// On both clocks: the second in milliseconds since 1970.
    pub(crate) when: Vec<(Instant, u64, &'static str)>,
    /// Denials of what is allowed that the agents reported.
    pub(crate) wrong: Vec<Value>,
    /// Policies applied since the last look at the generation, and that.
    applied: u64,
    generation: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Restart,
    Kill,
    Upgrade,
    Cut,
}

/// Does all of `plan`: the ends of agents evenly among the policies, the kinds of ends evenly among
/// each other.
pub(crate) fn disturb(world: &World, agent: &mut Agent, plan: &Disturbances) -> Result<Done> {
    let mut ends: Vec<(f64, End)> = Vec::new();
    for (count, end) in [
        (plan.restarts, End::Restart),
        (plan.kills, End::Kill),
        (plan.upgrades, End::Upgrade),
        (plan.cut, End::Cut),
    ] {
        let at = |n: u32| (f64::from(n) + 0.5) / f64::from(count);
        ends.extend((0..count).map(|n| (at(n), end)));
    }
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut ends = ends.into_iter().peekable();
    let mut done = Done { agents: 1, ..Done::default() };
    done.generation = generation(agent)?;
    for number in 1..=plan.applies {
        done.begins("apply");
        agent.apply(&alternating(number.into())).with_context(|| format!("apply {number}"))?;
        done.counts.applies += 1;
        done.applied += 1;
        while let Some((_, end)) =
            ends.next_if(|(at, _)| *at <= f64::from(number) / f64::from(plan.applies))
        {
            done.look(agent).with_context(|| format!("after apply {number}"))?;
            // What the next one finds configured is not what is in force.
            agent.write_policy(&alternating(u64::from(number) + 1))?;
            self::end(world, agent, end, &mut done).with_context(|| format!("after {number}"))?;
        }
    }
    done.look(agent)?;
    Ok(done)
}

impl Done {
    fn begins(&mut self, what: &'static str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.when.push((Instant::now(), now, what));
    }

    /// Sees that each policy was a generation of its own, and whether the programs have denied a packet
    /// of a flow that is allowed: a sender of TCP does not tell.
    fn look(&mut self, agent: &Agent) -> Result<()> {
        let now = generation(agent)?;
        let made = now.saturating_sub(self.generation);
        ensure!(made >= self.applied, "{made} generations of {} policies", self.applied);
        self.generations += made;
        (self.generation, self.applied) = (now, 0);
        let is_allowed = |event: &Value| {
            let port = |end: &str| event[end]["port"] == ALLOWED;
            event["verdict"] == "DROPPED" && (port("local") || port("peer"))
        };
        self.wrong.extend(agent.events()?.into_iter().filter(is_allowed));
        Ok(())
    }
}

fn generation(agent: &Agent) -> Result<u64> {
    agent.status()?["generation"].as_u64().context("no generation in the status")
}

fn end(world: &World, agent: &mut Agent, end: End, done: &mut Done) -> Result<()> {
    let before = agent.pid().context("no agent runs")?;
    let name = match end {
        End::Restart => "restart",
        End::Kill => "kill",
        End::Upgrade => "upgrade",
        End::Cut => "upgrade that is cut off",
    };
    done.begins(name);
    match end {
        End::Kill | End::Cut => agent.kill9(),
        End::Restart | End::Upgrade => agent.stop()?,
    }
    ensure!(!Path::new(&format!("/proc/{before}")).exists(), "the agent {before} still runs");
    if matches!(end, End::Upgrade | End::Cut) {
        Agent::become_another_version(world)?;
    }
    if end == End::Cut {
        cut(world, agent, done.counts.cut)?;
        done.agents += 1;
    }
    agent.run(&[]).with_context(|| format!("the agent after a {name}"))?;
    let now = agent.pid().context("no agent runs")?;
    ensure!(now != before, "it is the same agent as before the {name}");
    done.agents += 1;
    let pins = world.pins();
    ensure!(!pins.join(OTHER_VERSION).exists(), "the other version is still there");
    done.generation = generation(agent)?;
    let count = match end {
        End::Restart => &mut done.counts.restarts,
        End::Kill => &mut done.counts.kills,
        End::Upgrade => &mut done.counts.upgrades,
        End::Cut => &mut done.counts.cut,
    };
    *count += 1;
    Ok(())
}

/// Lets an agent of the other version begin to take over, and kills it on the way. Every other time the
/// next agent is of the version that it was to take over from.
fn cut(world: &World, agent: &mut Agent, number: u32) -> Result<()> {
    let there = |pin: &str| world.pins().join(pin).exists();
    let new = |link: &str| there(&format!("v{ABI_VERSION}/links/{link}"));
    let old = |pin: &str| there(&format!("{OTHER_VERSION}/{pin}"));
    let reached = || match number / 2 % 8 {
        0 => new("ztseg_create"),
        1 => new("ztseg_ingress"),
        2 => new("ztseg_egress"),
        3 => new("ztseg_sendmsg6"),
        4 => !old("links/ztseg_ingress"),
        5 => !old("links/ztseg_egress"),
        6 => !old("links/ztseg_create"),
        _ => !old("maps/CONTROL"),
    };
    agent.run_until(CUT, reached)?;
    // It may have come to its end before it was killed.
    if number % 2 == 1 && world.pins().join(OTHER_VERSION).exists() {
        Agent::swap_versions(world)?;
    }
    Ok(())
}
