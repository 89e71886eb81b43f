//! The datapath: the kernel programs and their maps, as the agent uses them.
//!
//! This is the contract that the agent is written against; everything below it talks to the
//! kernel. One [`Datapath`] is owned by one task.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ztseg_common::event::{Counter, Event};
use ztseg_common::key::WorkloadKey;
use ztseg_common::value::Workload;

use crate::image::Image;

/// Ceilings for the maps, in entries; configuration key `capacity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Flows kept in the flow table.
    pub flows: u32,
    /// Verdict entries of one policy.
    pub verdicts: u32,
    /// Addresses and prefixes of one policy.
    pub peers: u32,
    /// Workloads on this host.
    pub workloads: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { flows: 131_072, verdicts: 65_536, peers: 262_144, workloads: 16_384 }
    }
}

/// What [`Datapath::open`] needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder for the pins, on a bpffs.
    pub bpffs: PathBuf,
    /// The cgroup that the cgroup programs attach to.
    pub cgroup_root: PathBuf,
    /// Ceilings.
    pub capacity: Capacity,
    /// Load the programs with their debug lines (aya-log).
    pub debug: bool,
}

/// Which side of an interface its workload is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceSide {
    /// Taps and veths: the workload is on the far side, what comes in is what it sends.
    Far,
    /// Network cards: the workload is this host's side, what goes out is what it sends.
    Host,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The generation that is in force now.
    pub generation: u32,
}

/// An error of the datapath, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The binary was built without the kernel object.
    #[error("this binary was built without the kernel programs; build it with `cargo xtask build`")]
    NoObject,
    /// The process may not use BPF.
    #[error(
        "no permission to load BPF programs ({0}); run ztseg as root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON)"
    )]
    NoPermission(String),
    /// Another agent holds the same pins.
    #[error(
        "another ztseg agent already runs with {0}; stop it, or give this one its own --bpffs, --state-dir, --socket and --cgroup-root"
    )]
    SecondAgent(PathBuf),
    /// The policy needs more than a ceiling allows; nothing was changed.
    #[error(
        "the policy needs {needed} {what}, but capacity.{option} is {limit}; raise capacity.{option} to at least {needed}"
    )]
    Capacity {
        /// What there is too much of.
        what: &'static str,
        /// How much of it the policy needs.
        needed: usize,
        /// The ceiling.
        limit: u32,
        /// The key below `capacity`.
        option: &'static str,
    },
    /// The kernel refused something.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: anyhow::Error,
    },
}

/// A program in the kernel, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// The kernel's program id.
    pub id: u32,
    /// Where it is attached: the cgroup's path or the interface's name; none for one that waits.
    pub attached: Vec<String>,
    /// Instructions that the verifier processed.
    pub verified_instructions: u32,
}

/// A map in the kernel, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapStatus {
    /// Its name.
    pub name: String,
    /// Entries it may hold.
    pub max_entries: u32,
    /// Bytes of kernel memory, as the kernel accounts for it (`memlock` in fdinfo).
    pub bytes: u64,
}

/// The kernel programs and their maps.
#[derive(Debug)]
pub struct Datapath {
    _private: (),
}

impl Datapath {
    /// Loads the programs, adopting what is pinned. Attaches nothing that is not attached.
    pub fn open(_options: &Options) -> Result<Self, DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Puts `image` in force as a new generation: fills the idle slot, switches, waits until no
    /// program reads the old one. On an error the old generation stays.
    pub fn commit(&mut self, _image: &Image) -> Result<Committed, DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Attaches the cgroup programs to the cgroup root; does nothing when they are.
    pub fn attach_cgroup(&mut self) -> Result<(), DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Attaches the TC programs to an interface of the agent's network namespace.
    pub fn attach_interface(
        &mut self,
        _ifindex: u32,
        _name: &str,
        _side: InterfaceSide,
    ) -> Result<(), DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Forgets an interface that is no longer a workload, or no longer there.
    pub fn detach_interface(&mut self, _ifindex: u32) -> Result<(), DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Adds a workload, or changes its classes, in the generation that is in force. `level` is the
    /// depth of a cgroup below the root of the cgroup hierarchy. After it returns every flow of
    /// this workload is judged by the new classes.
    pub fn put_workload(
        &mut self,
        _key: WorkloadKey,
        _level: Option<u32>,
        _workload: Workload,
    ) -> Result<(), DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Removes a workload; its cgroups belong to the next ancestor that is one.
    pub fn remove_workload(&mut self, _key: WorkloadKey) -> Result<(), DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Hands out every record in the ring buffer; does not wait.
    pub fn drain_events(&mut self, _each: &mut dyn FnMut(&Event)) {}

    /// A descriptor that becomes readable when the kernel asks for the ring to be drained early.
    pub fn event_fd(&self) -> Result<OwnedFd, DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// The per-CPU counters, summed.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>, DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Hits by rank in the generation that is in force; index zero is never used.
    pub fn rule_hits(&self) -> Result<Vec<u64>, DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// The programs and where they are attached.
    pub fn programs(&self) -> Result<Vec<ProgramStatus>, DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// The maps and their memory.
    pub fn maps(&self) -> Result<Vec<MapStatus>, DatapathError> {
        Err(DatapathError::NoObject)
    }

    /// Detaches everything that is pinned under the folder and removes the pins. Says what it
    /// removed, one line each. Needs no running agent.
    pub fn detach_all(_options: &Options) -> Result<Vec<String>, DatapathError> {
        Err(DatapathError::NoObject)
    }
}
