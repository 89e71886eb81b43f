//! The inventory: from the cgroups and interfaces of this host to workloads and their segments.
//!
//! Pure: facts come in one by one, and each gives the changes that it makes. ARCHITECTURE.md says
//! what a workload is. A cgroup's segments follow from its own path and the policy alone, so a fact
//! costs the depth of its path, and the order in which facts come does not matter.

mod attributes;
pub mod facts;
mod glob;
mod selectors;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use ztseg_common::key::{MAX_CGROUP_LEVEL, WorkloadKey, workload_interface};
use ztseg_common::value::Workload;

use self::facts::WorkloadFacts;
use self::selectors::{Placement, Selectors};
use crate::image::{Image, SegmentSet};
use crate::policy::resolved::Resolved;

/// The name of the workload of everything that is in no other.
const HOST: &str = "host";

/// A cgroup of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFacts {
    /// Its id in the kernel: the number of its kernfs node, which is never given out twice.
    pub id: u64,
    /// Path below the cgroup root with a leading slash; the root itself is `/`.
    pub path: String,
    /// Depth below the root of the cgroup hierarchy (not below the cgroup root of this agent).
    pub level: u32,
}

/// A network interface of the agent's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its workload is this host's side of it, as of a network card.
    pub host_side: bool,
}

/// A workload and the segments that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its key in the maps.
    pub key: WorkloadKey,
    /// The cgroup's path, `host`, or `interface:NAME`.
    pub name: String,
    /// [`CgroupFacts::level`]; none for interfaces.
    pub level: Option<u32>,
    /// Its segments; none is fine: a unit is a workload, and so is the host.
    pub segments: SegmentSet,
}

impl Membership {
    /// Its value (without the datapath's flags) in the map of workloads under the policy that `image` is made of; `None` when the
    /// image has no classes for this set of segments, so that a new one must be compiled.
    pub fn workload(&self, image: &Image) -> Option<Workload> {
        let classes = image.classes.get(&self.segments)?;
        Some(Workload {
            subject: classes.subject,
            identity: classes.identity,
            ..Workload::default()
        })
    }
}

/// What a fact changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new workload, or one whose name or segments are new.
    Put(Membership),
    /// No longer a workload, or no longer there. What is left of a cgroup belongs to the next
    /// ancestor that is a workload.
    Removed(WorkloadKey),
}

/// A cgroup or an interface, workload or not.
#[derive(Clone, Debug)]
struct Member {
    source: Source,
    membership: Option<Membership>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Cgroup { path: String, level: u32 },
    Interface { name: String, host_side: bool },
}

/// The inventory of this host.
///
/// To try a policy that may be refused, clone the inventory, give the clone the policy, and keep
/// the clone once the policy is in force.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    selectors: Selectors,
    cgroups: HashMap<u64, Member>,
    interfaces: BTreeMap<u32, Member>,
}

impl Inventory {
    /// An inventory of nothing, under a policy without segments.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cgroup is there. A second call with the same id replaces what was known of it.
    pub fn insert_cgroup(&mut self, facts: CgroupFacts) -> Vec<Change> {
        let CgroupFacts { id, path, level } = facts;
        let source = Source::Cgroup { path, level };
        let member = self.cgroups.entry(id).or_insert_with(|| Member::new(source.clone()));
        member.source = source;
        member.place(id, &self.selectors).into_iter().collect()
    }

    /// A cgroup is gone.
    pub fn remove_cgroup(&mut self, id: u64) -> Vec<Change> {
        let gone = self.cgroups.remove(&id).and_then(|member| member.membership);
        gone.map(|m| Change::Removed(m.key)).into_iter().collect()
    }

    /// These interfaces are there, and no others.
    pub fn set_interfaces(
        &mut self,
        interfaces: impl IntoIterator<Item = InterfaceFacts>,
    ) -> Vec<Change> {
        let mut old = std::mem::take(&mut self.interfaces);
        let mut changes = Vec::new();
        for InterfaceFacts { ifindex, name, host_side } in interfaces {
            let source = Source::Interface { name, host_side };
            let member = old.remove(&ifindex).unwrap_or_else(|| Member::new(source.clone()));
            let member = self.interfaces.entry(ifindex).or_insert(member);
            member.source = source;
            let key = workload_interface(ifindex);
            changes.extend(member.place(key, &self.selectors));
        }
        let gone = old.into_values().filter_map(|member| member.membership);
        changes.extend(gone.map(|m| Change::Removed(m.key)));
        changes
    }

    /// Another policy is to be in force. Looks at every cgroup and interface once.
    pub fn set_policy(&mut self, resolved: &Resolved) -> Vec<Change> {
        self.selectors = Selectors::new(resolved);
        let Self { selectors, cgroups, interfaces } = self;
        let cgroups = cgroups.iter_mut().map(|(id, member)| (*id, member));
        let interfaces = interfaces.iter_mut().map(|(i, m)| (workload_interface(*i), m));
        cgroups.chain(interfaces).filter_map(|(key, member)| member.place(key, selectors)).collect()
    }

    /// Every workload, in no particular order.
    pub fn memberships(&self) -> impl Iterator<Item = &Membership> {
        let members = self.cgroups.values().chain(self.interfaces.values());
        members.filter_map(|member| member.membership.as_ref())
    }

    /// The workload under a key.
    pub fn get(&self, key: WorkloadKey) -> Option<&Membership> {
        let member = match ztseg_common::key::interface_of(key) {
            Some(ifindex) => self.interfaces.get(&ifindex),
            None => self.cgroups.get(&key),
        };
        member?.membership.as_ref()
    }

    /// The path of a cgroup, workload or not.
    pub fn cgroup_path(&self, id: u64) -> Option<&str> {
        match &self.cgroups.get(&id)?.source {
            Source::Cgroup { path, .. } => Some(path),
            Source::Interface { .. } => None,
        }
    }

    /// The workload that each cgroup belongs to: the nearest of itself and its ancestors that
    /// `is_workload`, as the kernel programs find it. A cgroup without one is left out.
    pub fn owners(&self, is_workload: impl Fn(WorkloadKey) -> bool) -> HashMap<u64, WorkloadKey> {
        let path = |member: &Member| match &member.source {
            Source::Cgroup { path, .. } => path.trim_end_matches('/').to_owned(),
            Source::Interface { .. } => String::new(),
        };
        let is_found = |id: u64, member: &Member| {
            matches!(&member.source, Source::Cgroup { level, .. } if *level <= MAX_CGROUP_LEVEL)
                && is_workload(id)
        };
        let workloads: HashMap<String, u64> = self
            .cgroups
            .iter()
            .filter(|(id, member)| is_found(**id, member))
            .map(|(id, member)| (path(member), *id))
            .collect();
        let owner = |member: &Member| {
            let path = path(member);
            let mut rest = path.as_str();
            loop {
                if let Some(id) = workloads.get(rest) {
                    return Some(*id);
                }
                rest = &rest[..rest.rfind('/')?];
            }
        };
        self.cgroups.iter().filter_map(|(id, member)| Some((*id, owner(member)?))).collect()
    }

    /// The name and the segments of the workload that a cgroup at `path` belongs to, or would if it
    /// were there.
    pub fn owner_of(&self, path: &str) -> (String, SegmentSet) {
        let (owner, segments) = owner(path, |path| self.selectors.cgroup(path));
        (if owner.is_empty() { HOST } else { owner }.to_owned(), segments)
    }

    /// The segments of what is behind an interface of this name, or would be if it were there.
    pub fn interface(&self, name: &str) -> SegmentSet {
        let is_there = |member: &&Member| matches!(&member.source, Source::Interface { name: known, .. } if known == name);
        let there = self.interfaces.values().find(is_there).and_then(|m| m.membership.as_ref());
        there.map_or_else(|| self.selectors.interface(name, false), |m| m.segments.clone())
    }

    /// The segments of a workload of which this is known, whether it is there or not.
    pub fn described(&self, facts: &WorkloadFacts) -> SegmentSet {
        if let Some(name) = &facts.interface {
            return self.interface(name);
        }
        let system_unit = || Some(format!("/system.slice/{}", facts.unit.as_ref()?));
        let Some(path) = facts.cgroup.clone().or_else(system_unit) else {
            return self.selectors.workload(facts, None).segments;
        };
        let place = |path: &str| self.selectors.workload(facts, Some(path));
        // A container or a pod is a workload wherever it is; anything else belongs to one.
        if facts.container.is_some() || facts.pod.is_some() {
            place(&path).segments
        } else {
            owner(&path, place).1
        }
    }

    /// Number of cgroups that are there, workloads or not.
    pub fn cgroup_count(&self) -> usize {
        self.cgroups.len()
    }
}

/// The nearest of a cgroup and its ancestors that is a workload, by its path, and its segments. The
/// path of the host has nothing in it.
fn owner(path: &str, place: impl Fn(&str) -> Placement) -> (&str, SegmentSet) {
    let mut rest = path.trim_end_matches('/');
    loop {
        let Placement { segments, workload } = place(rest);
        match rest.rfind('/') {
            Some(at) if !workload => rest = &rest[..at],
            _ => return (rest, segments),
        }
    }
}

impl Member {
    fn new(source: Source) -> Self {
        Self { source, membership: None }
    }

    /// Finds its workload anew; says what changed.
    fn place(&mut self, key: WorkloadKey, selectors: &Selectors) -> Option<Change> {
        let found = match &self.source {
            Source::Cgroup { path, level } => {
                let Placement { segments, workload } = selectors.cgroup(path);
                let name = if path.trim_matches('/').is_empty() { HOST } else { path };
                workload.then(|| (name.to_owned(), Some(*level), segments))
            }
            Source::Interface { name, host_side } => {
                let segments = selectors.interface(name, *host_side);
                (!segments.is_empty()).then(|| (format!("interface:{name}"), None, segments))
            }
        };
        let new = found.map(|(name, level, segments)| Membership { key, name, level, segments });
        if new == self.membership {
            return None;
        }
        self.membership.clone_from(&new);
        Some(new.map_or(Change::Removed(key), Change::Put))
    }
}
