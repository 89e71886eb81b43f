//! The agent's state, and what may happen to it. No tasks, no channels: the loop in
//! [`super::run`] calls it, and so do the tests.

mod apply;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use ztseg_common::key::{WorkloadKey, interface_of};

use super::boot::First;
use super::enforcer::Enforcer;
use super::lastgood::LastGood;
use super::prepare;
use super::security::Security;
use super::telling::Telling;
use crate::api::types::{Origin, Problem};
use crate::clocks::Clocks;
use crate::datapath::{Capacity, DatapathError, InterfaceSide, Tampering};
use crate::discover::Discovered;
use crate::discover::cgroups::{CgroupEvent, WatchMode};
use crate::discover::interfaces::Interface;
use crate::events::decode::decode;
use crate::events::enrich::enrich;
use crate::events::log::EventLog;
use crate::events::names::{Names, WorkloadName};
use crate::image::Image;
use crate::inventory::{Change, InterfaceFacts, Inventory};
use crate::policy::failsafe::Failsafe;
use crate::policy::resolved::Resolved;
use crate::policy::source::Source;
use crate::present::compact::security_line;
use crate::sockets::adopt::{Adopter, Owners};

/// How long to wait before something that failed is tried again without a new reason.
const RETRY: Duration = Duration::from_secs(5);

/// How long the start waits for the sockets that are older than the programs to be known.
const ADOPTION: Duration = Duration::from_secs(5);

/// By how much the end of a rule may differ from the time of day that is written.
const TOLERANCE: SignedDuration = SignedDuration::from_millis(20);

/// What the core is told once.
#[derive(Clone, Debug)]
pub struct Options {
    /// Treat every rule and segment as in audit mode.
    pub audit: bool,
    /// Ceilings.
    pub capacity: Capacity,
    /// What stays open for the host.
    pub failsafe: Failsafe,
    /// Where the last good policy is kept; nowhere in tests.
    pub state_dir: Option<PathBuf>,
    /// To show.
    pub cgroup_root: PathBuf,
    /// To show.
    pub bpffs: PathBuf,
}

/// What was found on this host before the agent starts.
#[derive(Debug)]
pub struct Found {
    /// The cgroups.
    pub inventory: Inventory,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// How cgroups are watched.
    pub watch: WatchMode,
}

/// The policy in force.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) resolved: Arc<Resolved>,
    pub(super) image: Arc<Image>,
    pub(super) generation: u32,
    /// By which the kernel knows when rules end.
    clocks: Clocks,
    pub(super) applied_at: Timestamp,
    pub(super) origin: Origin,
    pub(super) files: Vec<Source>,
    pub(super) warnings: Vec<String>,
}

/// The agent's state.
#[derive(Debug)]
pub struct Core<E> {
    pub(super) options: Options,
    pub(super) enforcer: E,
    pub(super) inventory: Inventory,
    pub(super) interfaces: BTreeMap<u32, Interface>,
    /// Interfaces that the TC programs are attached to, with the name and side they had then.
    attached: BTreeMap<u32, (String, InterfaceSide)>,
    pub(super) watch: WatchMode,
    pub(super) running: Running,
    pub(super) names: Names,
    pub(super) events: Arc<EventLog>,
    pub(super) undecodable: u64,
    pub(super) security: Security,
    pub(super) telling: Telling,
    pub(super) adopter: Option<Adopter>,
    pub(super) started_at: Timestamp,
    /// Why the last load of a policy failed.
    pub(super) policy_error: Option<Problem>,
    /// Why some workload is not as the inventory says.
    pub(super) workload_error: Option<Problem>,
    /// Workloads that may be other in the kernel than in the inventory.
    dirty: BTreeSet<WorkloadKey>,
    /// Whether what another version left in force is gone.
    retired: bool,
    last_good: Option<LastGood>,
    /// Why the last good policy is not what is kept.
    pub(super) not_kept: Option<String>,
    retry_at: Option<Instant>,
    /// The last sweep failed, which was said.
    not_swept: bool,
}

impl<E: Enforcer> Core<E> {
    /// Commits the first policy and attaches.
    ///
    /// # Errors
    /// When the datapath refuses either.
    pub fn start(
        options: Options,
        mut enforcer: E,
        found: Found,
        first: First,
        events: Arc<EventLog>,
        adopter: Option<Adopter>,
    ) -> Result<Self, DatapathError> {
        let First { files, prepared, origin, error } = first;
        let last_good = options.state_dir.as_deref().map(LastGood::new);
        let clocks = Clocks::now();
        let generation = enforcer.commit(&prepared.image, &clocks)?.generation;
        if let Some(adopter) = &adopter {
            let is_workload = |key| prepared.image.workloads.contains_key(&key);
            let owners = Arc::new(prepared.inventory.owners(is_workload));
            let (stamp, _) = enforcer.stamp();
            if !adopter.adopt(Owners { stamp, owners }, ADOPTION) {
                tracing::warn!(
                    "there are more sockets than could be looked at within {} s; the agent starts, and \
                     those that are left are known later",
                    ADOPTION.as_secs()
                );
            }
        }
        let any_new = enforcer.attach_cgroup()?;
        let mut core = Self {
            options,
            enforcer,
            inventory: Inventory::new(),
            interfaces: found.interfaces.into_iter().map(|i| (i.index, i)).collect(),
            attached: BTreeMap::new(),
            watch: found.watch,
            running: Running {
                resolved: Arc::default(),
                image: Arc::default(),
                generation,
                clocks,
                applied_at: Timestamp::now(),
                origin: Origin::Configured,
                files: Vec::new(),
                warnings: Vec::new(),
            },
            names: Names::default(),
            events,
            undecodable: 0,
            security: Security::default(),
            telling: Telling::default(),
            adopter,
            started_at: Timestamp::now(),
            policy_error: None,
            workload_error: None,
            dirty: BTreeSet::new(),
            retired: false,
            last_good,
            not_kept: None,
            retry_at: None,
            not_swept: false,
        };
        core.accept((generation, clocks), prepared, origin, &files);
        match error {
            None => core.remember(&files.sources),
            Some(message) => {
                tracing::error!("{message}");
                core.policy_error = Some(Problem { at: Timestamp::now(), message });
            }
        }
        core.settle();
        core.retire_others();
        if any_new {
            // Those that were made before the programs saw it.
            core.adopt_sockets(ADOPTION);
        }
        Ok(core)
    }

    fn name_everything(&mut self) {
        for member in self.inventory.memberships() {
            let name = workload_name(&self.running.resolved, &member.name, &member.segments);
            self.names.put(member.key, name);
        }
    }

    /// Takes in a report; [`Self::settle`] makes the kernel follow.
    pub fn discovered(&mut self, report: Discovered) {
        self.telling.moved();
        let changes = match report {
            Discovered::Cgroup(CgroupEvent::Appeared(facts)) => self.inventory.insert_cgroup(facts),
            Discovered::Cgroup(CgroupEvent::Vanished { id, .. }) => {
                self.inventory.remove_cgroup(id)
            }
            Discovered::Interfaces(now) => {
                let changes = self.inventory.set_interfaces(interface_facts(&now));
                self.interfaces = now.into_iter().map(|i| (i.index, i)).collect();
                changes
            }
            Discovered::CgroupWatch(mode) => {
                if let WatchMode::Scanned(why) = &mode {
                    tracing::warn!("cgroups are found by scans, within seconds: {why}");
                }
                self.watch = mode;
                Vec::new()
            }
        };
        self.dirty.extend(changes.into_iter().map(|change| match change {
            Change::Put(member) => member.key,
            Change::Removed(key) => key,
        }));
    }

    /// Makes the kernel's workloads and attachments what the inventory says. What fails is kept
    /// for later, said in `status`, and never ends the agent.
    pub fn settle(&mut self) {
        let mut problem = None;
        let mut new_sets = false;
        for key in std::mem::take(&mut self.dirty) {
            match self.reconcile(key) {
                Ok(true) => {}
                Ok(false) => {
                    new_sets = true;
                    self.dirty.insert(key);
                }
                Err(e) => {
                    problem = Some(e);
                    self.dirty.insert(key);
                }
            }
        }
        if new_sets && self.retry_at.is_none_or(|at| at <= Instant::now()) {
            problem = self.recompile().err();
        } else if new_sets {
            problem = problem.or_else(|| self.workload_error.as_ref().map(|p| p.message.clone()));
        }
        problem = self.attach_interfaces().err().or(problem);
        match problem {
            None => (self.workload_error, self.retry_at) = (None, None),
            Some(message) => {
                if self.workload_error.as_ref().is_none_or(|p| p.message != message) {
                    tracing::error!("{message}");
                    self.workload_error = Some(Problem { at: Timestamp::now(), message });
                }
                if self.retry_at.is_none_or(|at| at <= Instant::now()) {
                    self.retry_at = Some(Instant::now() + RETRY);
                }
            }
        }
    }

    /// Tries again what failed, when it is time.
    pub fn retry(&mut self) {
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.settle();
            self.retire_others();
        }
    }

    /// Removes what an agent of another version left in force, once this one's programs are
    /// attached everywhere.
    fn retire_others(&mut self) {
        if self.retired {
            return;
        }
        if self.workload_error.is_some() {
            // Until it is, the policy that is in force by now must not wait.
            self.enforcer.decide_beside_others();
            return;
        }
        match self.enforcer.retire_others() {
            Ok(lines) => {
                for line in lines {
                    tracing::info!("{line}");
                }
                self.retired = true;
            }
            Err(e) => {
                let message = full(&e);
                tracing::error!("{message}");
                self.workload_error = Some(Problem { at: Timestamp::now(), message });
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Makes one workload in the kernel what the inventory says; `false` when its set of segments
    /// is new, so that a new generation must be compiled.
    fn reconcile(&mut self, key: WorkloadKey) -> Result<bool, String> {
        let image = &mut self.running.image;
        let Some(member) = self.inventory.get(key) else {
            if image.workloads.contains_key(&key) {
                self.enforcer.remove_workload(key).map_err(|e| full(&e))?;
                Arc::make_mut(image).workloads.remove(&key);
                self.telling.changed();
            }
            self.names.remove(key);
            return Ok(true);
        };
        self.names.put(key, workload_name(&self.running.resolved, &member.name, &member.segments));
        let Some(workload) = member.workload(image) else { return Ok(false) };
        if image.workloads.get(&key) == Some(&workload) {
            return Ok(true);
        }
        let limit = self.options.capacity.workloads;
        let new = !image.workloads.contains_key(&key);
        if new && image.workloads.len() >= limit as usize {
            return Err(format!(
                "there are more workloads on this host than capacity.workloads ({limit}), so some \
                 have only the segments of the cgroup above them; raise capacity.workloads"
            ));
        }
        self.enforcer.put_workload(key, member.level, workload).map_err(|e| full(&e))?;
        Arc::make_mut(image).workloads.insert(key, workload);
        self.telling.changed();
        Ok(true)
    }

    /// The same policy for the workloads that there are now, as a new generation.
    fn recompile(&mut self) -> Result<(), String> {
        let resolved = &self.running.resolved;
        let image = prepare::build(resolved, &self.inventory, &self.options.capacity)?;
        let generation = self.commit_again(image, &Clocks::now())?;
        tracing::info!("generation {generation} is in force: new workloads");
        self.name_everything();
        self.dirty.clear();
        Ok(())
    }

    /// Commits another image of the policy in force; gives its generation.
    fn commit_again(&mut self, image: Image, clocks: &Clocks) -> Result<u32, String> {
        let generation = self.enforcer.commit(&image, clocks).map_err(|e| full(&e))?.generation;
        let running = &mut self.running;
        self.names.commit(generation, running.resolved.clone(), &image);
        (running.generation, running.clocks) = (generation, *clocks);
        running.image = Arc::new(image);
        self.telling.commit(&self.running.image);
        Ok(generation)
    }

    /// Rules end at a time of day. Where somebody has set that, the kernel is told anew when that is
    /// on its own clock.
    pub fn follow_clocks(&mut self, now: &Clocks) {
        let set = now.set_since(&self.running.clocks);
        let expires = self.running.image.rules.iter().any(|rule| rule.expires != 0);
        if !expires || set.abs() < TOLERANCE {
            return;
        }
        match self.commit_again(Image::clone(&self.running.image), now) {
            Ok(generation) => tracing::warn!(
                "the time of day was set by {:.3} s; rules end by the new one from generation \
                 {generation} on",
                set.as_secs_f64()
            ),
            Err(e) => tracing::error!("rules still end by the time of day before it was set: {e}"),
        }
    }

    /// Attaches to the interfaces that are workloads, detaches from the others.
    fn attach_interfaces(&mut self) -> Result<(), String> {
        let mut wanted: BTreeMap<u32, (String, InterfaceSide)> = BTreeMap::new();
        for (index, interface) in &self.interfaces {
            let key = ztseg_common::key::workload_interface(*index);
            if self.inventory.get(key).is_some() {
                wanted.insert(*index, (interface.name.clone(), interface.side()));
            }
        }
        let mut problem = Ok(());
        let gone = self.attached.iter().filter(|(index, now)| wanted.get(index) != Some(now));
        let gone: Vec<u32> = gone.map(|(index, _)| *index).collect();
        for index in gone {
            match self.enforcer.detach_interface(index) {
                Ok(()) => drop(self.attached.remove(&index)),
                Err(e) => problem = Err(full(&e)),
            }
        }
        for (index, (name, side)) in wanted {
            if self.attached.contains_key(&index) {
                continue;
            }
            match self.enforcer.attach_interface(index, &name, side) {
                Ok(()) => drop(self.attached.insert(index, (name, side))),
                Err(e) => problem = Err(full(&e)),
            }
        }
        problem
    }

    /// Hands on the events that wait in the ring buffer.
    pub fn drain(&mut self) {
        let clocks = Clocks::now();
        let Self { enforcer, names, events, undecodable, telling, running, .. } = self;
        let mut unreadable = 0;
        let unknown = enforcer.drain_events(&mut |event| match decode(event) {
            Ok(record) => {
                telling.event(&record, running.generation, &running.image);
                events.publish(enrich(&record, names, &clocks));
            }
            Err(e) => {
                if *undecodable + unreadable == 0 {
                    tracing::error!("{e}; further ones are only counted (`ztseg status`)");
                }
                unreadable += 1;
            }
        });
        *undecodable += unreadable + unknown;
    }

    /// Looks whether what is in the kernel is still what this agent put there; what is not was put
    /// right, and is told.
    pub fn guard(&mut self) {
        let findings = self.enforcer.inspect();
        // Sockets that were made while a program was not attached.
        if findings
            .iter()
            .any(|f| matches!(f.what, Tampering::LinkDetached | Tampering::ProgramReplaced))
        {
            self.adopt_sockets(Duration::ZERO);
        }
        for record in self.security.note(findings, Timestamp::now()) {
            tracing::warn!("security: {}", security_line(&record));
            self.events.publish(record);
        }
    }

    /// Lets dead flows give their entries back.
    pub fn sweep(&mut self) {
        match self.enforcer.sweep() {
            Ok(_) => self.not_swept = false,
            Err(e) if !self.not_swept => {
                self.not_swept = true;
                tracing::error!("{}; it is tried again every second", full(&e));
            }
            Err(_) => {}
        }
    }

    /// The datapath's event descriptor.
    ///
    /// # Errors
    /// When it has none.
    pub fn event_fd(&self) -> Result<std::os::fd::OwnedFd, DatapathError> {
        self.enforcer.event_fd()
    }

    /// Gives the datapath back.
    pub fn into_enforcer(self) -> E {
        self.enforcer
    }
}

/// The inventory's view of interfaces.
pub fn interface_facts(interfaces: &[Interface]) -> Vec<InterfaceFacts> {
    let facts = |i: &Interface| InterfaceFacts {
        ifindex: i.index,
        name: i.name.clone(),
        host_side: i.side() == InterfaceSide::Host,
    };
    interfaces.iter().map(facts).collect()
}

/// Whether a key is an interface's or a cgroup's, as the API says it, and its number.
pub(super) fn kind_of(key: WorkloadKey) -> (&'static str, u64) {
    interface_of(key).map_or(("cgroup", key), |index| ("interface", index.into()))
}

fn workload_name(
    resolved: &Resolved,
    name: &str,
    segments: &crate::image::SegmentSet,
) -> WorkloadName {
    WorkloadName { name: name.to_owned(), segments: resolved.names(segments) }
}

/// An error with its causes.
pub(super) fn full(error: &DatapathError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
