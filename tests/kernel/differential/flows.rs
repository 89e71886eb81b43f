//! Random sequences, through the model and through the kernel.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use nix::sched::{CloneFlags, unshare};
use ztseg::clocks::Clocks;
use ztseg::datapath::Capacity;
use ztseg::image::Image;
use ztseg::policy::compile::compile;
use ztseg::policy::generate::{World, moment, seed, seeded, world};

use super::decisions;
use super::line::{Line, WORKLOADS, owners};
use super::model::{Fate, MARGIN, Model, Sight};
use super::packet::Packet;
use super::steps::{Step, Steps};
use crate::environment::Environment;

/// Decisions a run.
const DECISIONS: u32 = 100_000;
/// Steps of a sequence: some hundred packets, a few policies.
const STEPS: usize = 800;
/// A sequence takes a part of a second. One that is held up is left, since real time counts for the
/// kernel; timeouts are exact to [`MARGIN`].
const PATIENCE: Duration = Duration::from_secs(MARGIN - 1);
/// How long before the end of a rule a policy is put in force, and an end that is waited for.
const SOON: SignedDuration = SignedDuration::from_millis(25);
/// A flow may be silent for 5 days; the kernel's clock of it goes round after 397 days at most.
const LONGEST: u64 = 300 * 24 * 3600;

pub(super) fn flows_are_what_the_model_says(_: &Environment) -> Result<()> {
    let wanted = decisions(DECISIONS);
    let seed = seed();
    // A namespace belongs to a thread; this one's ends with it.
    let run = std::thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        let mut line = Line::new()?;
        let mut tally = Tally::default();
        let start = Instant::now();
        let mut case = 0;
        while tally.decisions < wanted {
            let rng = seeded(seed, case);
            let mut steps = Steps::new(rng);
            let policy = Step::Commit { number: case, soon: false };
            let steps: Vec<Step> =
                [policy].into_iter().chain((0..STEPS).map(|_| steps.next())).collect();
            match Sequence::run(&mut line, seed, case, &steps, &mut tally)? {
                None => {}
                Some(found) => {
                    let (steps, found) = shortest(&mut line, seed, case, steps, found)?;
                    let steps: Vec<_> = steps.iter().map(|step| format!("  {step:?}")).collect();
                    bail!(
                        "{found}\nZTSEG_SEED={seed}, sequence {case}, as short as it gets:\n{}",
                        steps.join("\n")
                    );
                }
            }
            case += 1;
        }
        println!(
            "{} decisions ({} passed) in {case} sequences, {} policies, {} workload changes, \
             {} clock steps, {} not certain, {} sequences left, {:.1} s, ZTSEG_SEED={seed}",
            tally.decisions,
            tally.passed,
            tally.policies,
            tally.changes,
            tally.clocks,
            tally.uncertain,
            tally.left,
            start.elapsed().as_secs_f64()
        );
        // What is left out must stay the exception.
        ensure!(tally.uncertain * 20 < tally.decisions, "too much is not certain");
        ensure!(tally.left * 20 < tally.policies, "this machine holds too many sequences up");
        Ok(())
    });
    run.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

/// What was done.
#[derive(Debug, Default)]
struct Tally {
    decisions: usize,
    passed: usize,
    policies: usize,
    changes: usize,
    clocks: usize,
    uncertain: usize,
    left: usize,
}

/// A sequence without the steps that do not matter, and what goes wrong in it.
fn shortest(
    line: &mut Line,
    seed: u64,
    case: u64,
    mut steps: Vec<Step>,
    mut found: String,
) -> Result<(Vec<Step>, String)> {
    let mut size = steps.len().div_ceil(2);
    loop {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            match Sequence::run(line, seed, case, &fewer, &mut Tally::default())? {
                Some(still) => (steps, found) = (fewer, still),
                None => at += size,
            }
        }
        if size == 1 {
            return Ok((steps, found));
        }
        size = size.div_ceil(2);
    }
}

/// A sequence on its way.
struct Sequence<'a> {
    line: &'a mut Line,
    model: Model,
    /// What is in force, as it was put in force.
    world: World,
    image: Image,
    /// The time of day, as the policies are told it.
    clocks: Clocks,
    begun: Instant,
    tally: &'a mut Tally,
    seed: u64,
}

/// How a step ended.
enum After {
    Goes,
    /// Where kernel and model are of two minds.
    Found(String),
    /// It was held up.
    Left,
}

impl Sequence<'_> {
    /// Runs the steps; what is wrong, if anything is.
    fn run(
        line: &mut Line,
        seed: u64,
        case: u64,
        steps: &[Step],
        tally: &mut Tally,
    ) -> Result<Option<String>> {
        line.forget()?;
        let mut rng = seeded(seed, !case);
        let world =
            World { resolved: ztseg::policy::resolved::Resolved::default(), workloads: Vec::new() };
        let image = compile(&world.resolved, &[], &Capacity::default())?;
        let mut model = Model::new(owners());
        model.members = vec![None; WORKLOADS];
        model.adopting = rng.u8(0..4) == 0;
        line.adopt(model.adopting)?;
        let clocks = Clocks { wall: moment(&mut rng), ..Clocks::now() };
        line.commit(&image, &clocks)?;
        let begun = Instant::now();
        let mut sequence = Sequence { line, model, world, image, clocks, begun, tally, seed };
        for (number, step) in steps.iter().enumerate() {
            let after = sequence.step(step).with_context(|| format!("step {number}: {step:?}"))?;
            match after {
                After::Goes => {}
                After::Found(what) => return Ok(Some(format!("step {number}: {what}"))),
                After::Left => {
                    sequence.tally.left += 1;
                    return Ok(None);
                }
            }
        }
        // What is denied is not kept, and nothing else is forgotten.
        let (known, kept) = (sequence.model.flows(), sequence.line.flows()?);
        Ok((known != kept).then(|| format!("{kept} flows in the tables, {known} in the model")))
    }

    fn step(&mut self, step: &Step) -> Result<After> {
        if self.begun.elapsed() > PATIENCE {
            return Ok(After::Left);
        }
        match step {
            Step::Packet { from, to, packet } => return self.packet(*from, *to, packet),
            Step::Commit { number, soon } => self.new_policy(*number, *soon)?,
            Step::Again => self.commit(self.wall())?,
            Step::Set { number } => self.commit(moment(&mut seeded(self.seed, *number)))?,
            Step::Put { workload, like } => self.put(*workload, *like)?,
            Step::Remove { workload } => self.remove(*workload)?,
            Step::Pass { seconds } => self.pass(*seconds)?,
            Step::Silence { flow, early } => self.silence(*flow, *early)?,
            Step::Wait => self.wait(),
        }
        let changes = matches!(
            step,
            Step::Commit { .. }
                | Step::Again
                | Step::Set { .. }
                | Step::Put { .. }
                | Step::Remove { .. }
        );
        self.model.changes += u64::from(changes);
        Ok(After::Goes)
    }

    /// A packet, at the workload that it comes from and at the one that it goes to.
    fn packet(&mut self, from: Option<usize>, to: Option<usize>, packet: &Packet) -> Result<After> {
        let frame = packet.frame();
        let ends = [(from, true), (to, false)];
        for (workload, outbound) in ends {
            let Some(workload) = workload else { continue };
            let peer = if outbound { to } else { from };
            let sight = Sight { workload, outbound, peer, packet };
            let before = self.wall();
            let expected = self.model.sight(before, sight);
            if expected == Fate::Open {
                self.tally.uncertain += 1;
                break;
            }
            let passes = self.line.passes(workload, outbound, from, &frame)?;
            if self.ends().any(|end| before < end && end <= self.wall()) {
                return Ok(After::Left);
            }
            self.tally.decisions += 1;
            self.tally.passed += usize::from(passes);
            if passes != (expected == Fate::Passes) {
                let end = if outbound { "that it leaves" } else { "that it goes to" };
                return Ok(After::Found(format!(
                    "kernel: passes is {passes}, model: {expected:?}, at workload {workload}, \
                     {end}: {packet:?}\n{:?}\n{:#?}",
                    self.model, self.world
                )));
            }
            if !passes {
                break;
            }
        }
        Ok(After::Goes)
    }

    /// The time of day.
    fn wall(&self) -> Timestamp {
        self.clocks.wall_at(ztseg::datapath::sys::boot_time_ns())
    }

    /// When rules of the policy end.
    fn ends(&self) -> impl Iterator<Item = Timestamp> {
        self.world.resolved.rules.iter().filter_map(|rule| rule.expires)
    }

    fn new_policy(&mut self, number: u64, soon: bool) -> Result<()> {
        let mut rng = seeded(self.seed, number);
        self.world = world(&mut rng);
        if rng.bool() {
            self.world.resolved.rules.iter_mut().for_each(|rule| rule.expires = None);
        }
        for (number, workload) in self.world.workloads.iter_mut().enumerate() {
            workload.key = self.line.key(number);
        }
        let capacity = Capacity { verdicts: 1 << 20, ..Capacity::default() };
        self.image = compile(&self.world.resolved, &self.world.workloads, &capacity)?;
        self.clocks = Clocks { wall: moment(&mut rng), ..Clocks::now() };
        let ends: Vec<_> = self.ends().collect();
        let end = rng.choice(ends);
        if soon && let Some(end) = end {
            self.clocks.wall = end - SOON;
        }
        self.model.resolved = self.world.resolved.clone();
        let members = self.world.workloads.iter().map(|workload| Some(workload.segments.clone()));
        self.model.members = members.chain(std::iter::repeat(None)).take(WORKLOADS).collect();
        self.line.commit(&self.image, &self.clocks)?;
        self.tally.policies += 1;
        Ok(())
    }

    /// The policy that is in force, once more, at a time of day; with the workloads as they are now.
    fn commit(&mut self, wall: Timestamp) -> Result<()> {
        self.clocks = Clocks { wall, ..Clocks::now() };
        let mut image = self.image.clone();
        image.workloads.clear();
        for (number, segments) in self.model.members.iter().enumerate() {
            let Some(segments) = segments else { continue };
            let like = self.world.workloads.iter().find(|other| other.segments == *segments);
            let like = like.context("segments that the image has no class for")?;
            image.workloads.insert(self.line.key(number), self.image.workloads[&like.key]);
        }
        self.line.commit(&image, &self.clocks)?;
        self.tally.policies += 1;
        Ok(())
    }

    fn put(&mut self, workload: usize, like: usize) -> Result<()> {
        let Some(like) = self.world.workloads.get(like) else { return Ok(()) };
        self.line.put(workload, self.image.workloads[&like.key])?;
        self.model.members[workload] = Some(like.segments.clone());
        self.tally.changes += 1;
        Ok(())
    }

    fn remove(&mut self, workload: usize) -> Result<()> {
        if self.model.members[workload].take().is_some() {
            self.line.remove(workload)?;
            self.tally.changes += 1;
        }
        Ok(())
    }

    /// Time passes, for flows; the time of day is set apart.
    fn pass(&mut self, seconds: u64) -> Result<()> {
        if self.model.now + seconds <= LONGEST {
            self.model.now += seconds;
            self.line.age(seconds)?;
            self.tally.clocks += 1;
        }
        Ok(())
    }

    /// A second too long, or as near to that as is certain.
    fn silence(&mut self, flow: usize, early: bool) -> Result<()> {
        let timeouts: Vec<u64> = self.model.timeouts().filter(|left| *left > 0).collect();
        if timeouts.is_empty() {
            return Ok(());
        }
        let left = timeouts[flow % timeouts.len()];
        self.pass(if early { left.saturating_sub(MARGIN) } else { left + 1 })
    }

    fn wait(&self) {
        let now = self.wall();
        let near = self.ends().filter(|end| *end > now && *end - SOON * 2 < now).min();
        if let Some(end) = near {
            let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
            std::thread::sleep(left + Duration::from_millis(1));
        }
    }
}
