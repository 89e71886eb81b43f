//! The agent on a real host: finds things, takes locks, starts the tasks, and stops cleanly.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::boot::first;
use super::core::{Core, Found, Options as CoreOptions, full, interface_facts};
use super::enforcer::Enforcer;
use super::handle::Handle;
use super::lastgood::LastGood;
use super::prepare::prepare;
use super::run::{Inputs, PolicyPaths, run};
use super::watch::FileWatch;
use crate::api::server::{self, Bound};
use crate::config::{Boot, Config, OnExit};
use crate::datapath::{DatapathError, Options};
use crate::discover;
use crate::discover::cgroups::CgroupWatcher;
use crate::discover::interfaces::InterfaceWatcher;
use crate::discover::mounts::cgroup_root;
use crate::events::log::EventLog;
use crate::inventory::Inventory;
use crate::policy::source::Source;
use crate::sockets::adopt::Adopter;
use crate::sockets::{Teller, ViewRequest};

/// Everything that `ztseg run` can be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration, flags included.
    pub config: Config,
    /// Where the policy is.
    pub policy: PolicyPaths,
    /// Treat every rule and segment as in audit mode.
    pub audit: bool,
    /// Load the programs with their debug lines.
    pub debug: bool,
}

/// Why the agent does not run, as text for people.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The policy or a setting is wrong.
    #[error("{0}")]
    Input(String),
    /// This host, this user or another agent does not allow it.
    #[error("{0}")]
    Refused(String),
}

impl From<DatapathError> for StartError {
    fn from(error: DatapathError) -> Self {
        match error {
            DatapathError::Capacity { .. } => Self::Input(full(&error)),
            _ => Self::Refused(full(&error)),
        }
    }
}

fn refused(doing: &str) -> impl Fn(&dyn std::fmt::Display) -> StartError {
    move |error| StartError::Refused(format!("{doing}: {error}"))
}

/// Runs an agent until SIGTERM or SIGINT.
///
/// # Errors
/// Why it does not start. What a previous agent left in the kernel is not touched then.
pub fn agent<E: Enforcer>(
    settings: &Settings,
    open: impl FnOnce(&Options) -> Result<E, DatapathError>,
) -> Result<(), StartError> {
    let config = &settings.config;
    let closed = config.boot == Boot::Closed;
    let mut policy = settings.policy.clone();
    if closed {
        // A folder that is missing is no policy to boot with.
        policy.optional.clear();
    }
    let files = match policy.read() {
        Err(text) if !closed => return Err(StartError::Input(text)),
        files => files,
    };
    permitted()?;
    let root = cgroup_root(config.cgroup_root.as_deref())
        .map_err(|e| StartError::Refused(e.to_string()))?;
    let bound = server::bind(&config.socket).map_err(|e| StartError::Refused(e.to_string()))?;
    let _lock = lock(&config.state_dir)?;

    let (reports_tx, reports) = mpsc::channel(discover::QUEUE);
    let (_cgroups, facts, watch) = CgroupWatcher::start(&root, reports_tx.clone())
        .map_err(|e| refused("the cgroups cannot be read")(&e))?;
    let (_interfaces, interfaces) = InterfaceWatcher::start(reports_tx)
        .map_err(|e| refused("the network interfaces cannot be read")(&e))?;
    let mut inventory = Inventory::new();
    for facts in facts {
        inventory.insert_cgroup(facts);
    }
    inventory.set_interfaces(interface_facts(&interfaces));
    let failsafe = &config.failsafe;
    let last_good = LastGood::new(&config.state_dir);
    let prepare = |sources: &[Source]| {
        prepare(sources, settings.audit, failsafe, &inventory, &config.capacity)
    };
    let first =
        first(files, config.boot, || last_good.load(), prepare).map_err(StartError::Input)?;

    let options = Options {
        bpffs: config.bpffs.clone(),
        cgroup_root: root.path.clone(),
        capacity: config.capacity,
        debug: settings.debug,
    };
    let enforcer = open(&options)?;
    let verdicts = enforcer.verdicts()?;
    let found = Found { inventory, interfaces, watch };
    let core_options = CoreOptions {
        audit: settings.audit,
        capacity: config.capacity,
        failsafe: failsafe.clone(),
        state_dir: Some(config.state_dir.clone()),
        cgroup_root: root.path,
        bpffs: config.bpffs.clone(),
    };
    let events = Arc::new(EventLog::default());
    // What is in force is not what is configured: whatever is found there next is applied.
    let last = first.error.is_none().then(|| first.files.sources.clone());
    for warning in &first.files.warnings {
        tracing::warn!("{warning}");
    }
    let adopter = Adopter::start(enforcer.verdicts()?, options.cgroup_root.clone())
        .map_err(|e| refused("no thread")(&e))?;
    let events_too = events.clone();
    let mut core = Core::start(core_options, enforcer, found, first, events_too, Some(adopter))?;
    // What waits is one request: the thread asks for the next one when it has the answer.
    let (views_tx, views) = mpsc::channel(1);
    let teller = Teller::start(verdicts, options.cgroup_root.clone(), views_tx);
    core.tell_by(teller.map_err(|e| refused("no thread")(&e))?);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| refused("no runtime")(&e))?;
    let core =
        runtime.block_on(until_stopped(policy, core, last, bound, events, (reports, views)))?;
    if config.on_exit == OnExit::Detach {
        for line in core.into_enforcer().detach(&options)? {
            tracing::info!("{line}");
        }
    }
    Ok(())
}

async fn until_stopped<E: Enforcer>(
    policy: PolicyPaths,
    core: Core<E>,
    last: Option<Vec<Source>>,
    bound: Bound,
    events: Arc<EventLog>,
    (reports, views): (mpsc::Receiver<discover::Discovered>, mpsc::Receiver<ViewRequest>),
) -> Result<Core<E>, StartError> {
    let (handle, commands) = Handle::new(events);
    let (stop_api, stopped) = oneshot::channel();
    let api = serve(bound, handle, stopped)?;
    let watch = FileWatch::start(&policy.paths)
        .inspect_err(|e| {
            tracing::warn!("policy files are not watched ({e}); after a change run `ztseg apply`");
        })
        .ok();
    let signals = |e: std::io::Error| refused("signals cannot be received")(&e);
    let (reload_tx, reload) = mpsc::channel(1);
    let (stop_tx, stop) = mpsc::channel(1);
    let mut hangup = signal(SignalKind::hangup()).map_err(signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                // One reload that waits is enough: it reads what is there when its turn comes.
                _ = hangup.recv() => drop(reload_tx.try_send(())),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        let _ = stop_tx.send(()).await;
    });
    eprintln!("ready");
    notify(NotifyState::Ready);
    let inputs = Inputs { commands, reports, views, files: watch, reload, stop };
    let core = run(core, policy, last, inputs).await;
    notify(NotifyState::Stopping);
    tracing::info!("stopping");
    drop(stop_api);
    if api.join().is_err() {
        tracing::error!("the API ended with a panic");
    }
    Ok(core)
}

/// Tells systemd, where it asked for that.
fn notify(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!("systemd cannot be told: {e}");
    }
}

/// Serves the API on a thread of its own, so that a large compile does not hold it up.
fn serve(
    bound: Bound,
    handle: Handle,
    stopped: oneshot::Receiver<()>,
) -> Result<JoinHandle<()>, StartError> {
    let failed = |e: std::io::Error| refused("the API cannot be served")(&e);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let serve = async move {
        tokio::select! {
            served = server::serve(bound, handle) => {
                if let Err(e) = served {
                    tracing::error!("the API has ended: {e}");
                }
            }
            _ = stopped => {}
        }
    };
    let thread = std::thread::Builder::new().name("api".into());
    thread.spawn(move || runtime.block_on(serve)).map_err(failed)
}

/// One agent per state folder.
fn lock(state_dir: &Path) -> Result<Flock<fs::File>, StartError> {
    let at = |e: &dyn std::fmt::Display| {
        refused(&format!("the state folder {} cannot be used", state_dir.display()))(e)
    };
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700).create(state_dir).map_err(|e| at(&e))?;
    let file = fs::File::create(state_dir.join("agent.lock")).map_err(|e| at(&e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            StartError::Refused(DatapathError::SecondAgent(state_dir.to_owned()).to_string())
        } else {
            at(&errno)
        }
    })
}

/// `CAP_SYS_ADMIN` and `CAP_BPF`, linux/capability.h.
const CAPABILITIES: u64 = 1 << 21 | 1 << 39;

/// Says early and plainly what would otherwise fail at the first file.
fn permitted() -> Result<(), StartError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let set = set.and_then(|s| u64::from_str_radix(s.trim(), 16).ok());
    if set.is_some_and(|set| set & CAPABILITIES == 0) {
        let text = "no permission to load BPF programs; run this as root (`sudo ztseg run`, or \
                    `systemctl start ztseg`)";
        return Err(StartError::Refused(text.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_has_one_agent() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("a/b");
        let first = lock(&state).expect("the first");
        let second = lock(&state).expect_err("the second");
        assert!(second.to_string().contains("another ztseg agent"), "{second}");
        drop(first);
        lock(&state).expect("the next");
    }
}
