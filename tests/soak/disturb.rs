//! What happens beside the traffic: policies, and the ends of agents.

use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result};
use ztseg_tests::agent::Agent;
use ztseg_tests::policies::alternating;
use ztseg_tests::world::World;

/// How often what happens, or has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disturbances {
    pub(crate) applies: u32,
    pub(crate) restarts: u32,
    pub(crate) kills: u32,
    pub(crate) upgrades: u32,
}

impl fmt::Display for Disturbances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { applies, restarts, kills, upgrades } = self;
        write!(f, "{applies} applies, {restarts} restarts, {kills} kills, {upgrades} upgrades")
    }
}

/// What was done, and when it began.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) counts: Disturbances,
    pub(crate) when: Vec<(Instant, &'static str)>,
}

#[derive(Clone, Copy)]
enum End {
    Restart,
    Kill,
    Upgrade,
}

/// Does all of `plan`: the ends of agents evenly among the policies, the kinds of ends evenly among
/// each other.
pub(crate) fn disturb(world: &World, agent: &mut Agent, plan: &Disturbances) -> Result<Done> {
    let mut ends: Vec<(f64, End)> = Vec::new();
    for (count, end) in
        [(plan.restarts, End::Restart), (plan.kills, End::Kill), (plan.upgrades, End::Upgrade)]
    {
        let at = |n: u32| (f64::from(n) + 0.5) / f64::from(count);
        ends.extend((0..count).map(|n| (at(n), end)));
    }
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut ends = ends.into_iter().peekable();
    let mut done = Done { counts: Disturbances::default(), when: Vec::new() };
    for number in 1..=plan.applies {
        done.when.push((Instant::now(), "apply"));
        agent.apply(&alternating(number.into())).with_context(|| format!("apply {number}"))?;
        done.counts.applies += 1;
        while let Some((_, end)) =
            ends.next_if(|(at, _)| *at <= f64::from(number) / f64::from(plan.applies))
        {
            // What the next one finds configured is not what is in force.
            agent.write_policy(&alternating(u64::from(number) + 1))?;
            self::end(world, agent, end, &mut done).with_context(|| format!("after {number}"))?;
        }
    }
    Ok(done)
}

fn end(world: &World, agent: &mut Agent, end: End, done: &mut Done) -> Result<()> {
    let Done { counts, when } = done;
    let (name, count) = match end {
        End::Restart => ("restart", &mut counts.restarts),
        End::Kill => ("kill", &mut counts.kills),
        End::Upgrade => ("upgrade", &mut counts.upgrades),
    };
    when.push((Instant::now(), name));
    match end {
        End::Kill => agent.kill9(),
        End::Restart | End::Upgrade => agent.stop()?,
    }
    if matches!(end, End::Upgrade) {
        Agent::become_another_version(world)?;
    }
    agent.run(&[]).with_context(|| format!("the agent after a {name}"))?;
    *count += 1;
    Ok(())
}
