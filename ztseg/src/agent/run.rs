//! The loop around the core: whatever happens, happens here, one after the other.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::core::Core;
use super::enforcer::Enforcer;
use super::handle::Command;
use super::ring;
use super::sources::{self, PolicyFiles};
use super::watch::FileWatch;
use crate::api::types::{Applied, Origin};
use crate::clocks::Clocks;
use crate::discover::Discovered;
use crate::policy::source::Source;
use crate::sockets::ViewRequest;

/// How often the ring buffer is looked at when the kernel does not ask for it.
const DRAIN: Duration = Duration::from_millis(100);
/// How often the agent looks whether what it put into the kernel is still so: what somebody alters
/// is noticed within a second.
const GUARD: Duration = Duration::from_millis(500);
/// How often some thousand flows are looked at for dead ones.
const SWEEP: Duration = Duration::from_secs(1);
/// How long after a change of a policy file the files are read: editors and package managers
/// write several times.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// How many reports are taken in before the kernel follows.
const BATCH: usize = 4096;

/// Where the policy is.
#[derive(Clone, Debug, Default)]
pub struct PolicyPaths {
    /// Files and folders.
    pub paths: Vec<PathBuf>,
    /// Those that may be missing.
    pub optional: Vec<PathBuf>,
}

impl PolicyPaths {
    /// Reads them.
    ///
    /// # Errors
    /// Everything that cannot be read.
    pub fn read(&self) -> Result<PolicyFiles, String> {
        sources::read(&self.paths, &self.optional)
    }
}

/// What the loop listens to.
#[derive(Debug)]
pub struct Inputs {
    /// From the API.
    pub commands: mpsc::Receiver<Command>,
    /// From the watchers.
    pub reports: mpsc::Receiver<Discovered>,
    /// From the thread that tells local applications.
    pub views: mpsc::Receiver<ViewRequest>,
    /// Policy files; none when they cannot be watched.
    pub files: Option<FileWatch>,
    /// Each message asks for a reload (SIGHUP).
    pub reload: mpsc::Receiver<()>,
    /// A message, or its end, ends the loop.
    pub stop: mpsc::Receiver<()>,
}

/// Runs until told to stop, and gives the core back.
pub async fn run<E: Enforcer>(
    mut core: Core<E>,
    policy: PolicyPaths,
    mut last: Option<Vec<Source>>,
    mut inputs: Inputs,
) -> Core<E> {
    let ring = core.event_fd().ok().and_then(|fd| ring::register(fd).ok());
    let mut tick = interval(DRAIN);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut guard = interval(GUARD);
    guard.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reread: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = inputs.stop.recv() => break,
            Some(command) = inputs.commands.recv() => {
                handle(command, &mut core, &policy, &mut last, &mut inputs.files);
            }
            Some(report) = inputs.reports.recv() => {
                core.discovered(report);
                for _ in 1..BATCH {
                    let Ok(report) = inputs.reports.try_recv() else { break };
                    core.discovered(report);
                }
                core.settle();
            }
            Some(reply) = inputs.views.recv() => {
                // Who asked may be gone.
                let _ = reply.send(core.view());
            }
            Some(()) = inputs.reload.recv() => {
                // Whoever asked by a signal reads the answer in the log.
                let _ = reload(&mut core, &policy, &mut last, &mut inputs.files);
            }
            () = changed(&mut inputs.files), if reread.is_none() => {
                reread = Some(Instant::now() + DEBOUNCE);
            }
            () = sleep_until(reread.unwrap_or_else(Instant::now)), if reread.is_some() => {
                reread = None;
                reload_if_changed(&mut core, &policy, &mut last, &mut inputs.files);
            }
            () = readable(ring.as_ref()) => core.drain(),
            _ = tick.tick() => {
                core.drain();
                core.retry();
            }
            _ = guard.tick() => {
                core.guard();
                core.follow_clocks(&Clocks::now());
            }
            _ = sweep.tick() => core.sweep(),
        }
    }
    core.drain();
    core
}

async fn changed(files: &mut Option<FileWatch>) {
    match files {
        Some(files) => files.changed().await,
        None => std::future::pending().await,
    }
}

async fn readable(ring: Option<&AsyncFd<std::os::fd::OwnedFd>>) {
    match ring {
        // Cleared before the ring is drained, so that a record written meanwhile is told again.
        Some(ring) => match ring.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn handle<E: Enforcer>(
    command: Command,
    core: &mut Core<E>,
    policy: &PolicyPaths,
    last: &mut Option<Vec<Source>>,
    files: &mut Option<FileWatch>,
) {
    // Who asked may be gone by the time of the answer, which harms nobody.
    match command {
        Command::Apply { files: Some(sources), reply } => {
            let sent = PolicyFiles { sources, warnings: Vec::new() };
            let _ = reply.send(core.apply(&sent, Origin::Sent));
        }
        Command::Apply { files: None, reply } => {
            let _ = reply.send(reload(core, policy, last, files));
        }
        Command::Status(reply) => {
            let _ = reply.send(Box::new(core.status()));
        }
        Command::Understand { question, reply } => {
            let _ = reply.send(core.understand(&question));
        }
        Command::Policy(reply) => {
            let _ = reply.send(core.policy());
        }
        Command::Workloads(reply) => {
            let _ = reply.send(core.workloads());
        }
    }
}

fn reload<E: Enforcer>(
    core: &mut Core<E>,
    policy: &PolicyPaths,
    last: &mut Option<Vec<Source>>,
    files: &mut Option<FileWatch>,
) -> Result<Applied, String> {
    if let Some(files) = files {
        files.refresh(&policy.paths);
    }
    let found = read(core, policy, last)?;
    core.apply(&found, Origin::Configured)
}

/// A notification may be about nothing: a policy is applied when its text is another one.
fn reload_if_changed<E: Enforcer>(
    core: &mut Core<E>,
    policy: &PolicyPaths,
    last: &mut Option<Vec<Source>>,
    files: &mut Option<FileWatch>,
) {
    if let Some(files) = files {
        files.refresh(&policy.paths);
    }
    let before = last.take();
    // The log and `status` say what is wrong with it.
    if let Ok(found) = read(core, policy, last)
        && *last != before
    {
        let _ = core.apply(&found, Origin::Configured);
    }
}

/// Reads the files; `last` is what was read, or nothing when that failed, so that the same text is
/// applied again once it can be read.
fn read<E: Enforcer>(
    core: &mut Core<E>,
    policy: &PolicyPaths,
    last: &mut Option<Vec<Source>>,
) -> Result<PolicyFiles, String> {
    let found = policy.read();
    *last = found.as_ref().ok().map(|f| f.sources.clone());
    found.inspect_err(|text| core.refuse(text))
}
