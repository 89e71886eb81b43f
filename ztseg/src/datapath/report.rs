//! What is in the kernel, for `status` and metrics.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use ztseg_common::event::Counter;
use ztseg_common::value::Rule;

use super::programs::{self, LSM_PROGRAM, TC_PROGRAMS, kernel};
use super::{Datapath, DatapathError, PacketSockets, memory, open_map, sys};

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

impl Datapath {
    /// The per-CPU counters, summed.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>, DatapathError> {
        let doing = "reading the counters";
        let map = open_map(&self.pins, "COUNTERS")?;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| kernel(doing, e))?;
        let mut values = vec![0u64; cpus];
        Counter::ALL
            .into_iter()
            .map(|counter| {
                sys::map_lookup(map.as_fd(), &(counter as u32), &mut values)
                    .map_err(|e| kernel(doing, e))?;
                Ok((counter, values.iter().sum()))
            })
            .collect()
    }

    /// Hits by rank in the generation that is in force; index zero is never used.
    pub fn rule_hits(&self) -> Result<Vec<u64>, DatapathError> {
        let Some(generation) = &self.generation else { return Ok(Vec::new()) };
        (0..u32::try_from(generation.rule_count).unwrap_or(u32::MAX))
            .map(|rank| {
                let mut rule = [Rule::default()];
                sys::map_lookup(generation.rules(), &rank, &mut rule)
                    .map_err(|e| kernel("reading rule hits", e))?;
                Ok(rule[0].hits)
            })
            .collect()
    }

    /// The programs and where they are attached.
    pub fn programs(&self) -> Result<Vec<ProgramStatus>, DatapathError> {
        let attached = |name: &str| {
            if TC_PROGRAMS.contains(&name) {
                self.interfaces.values().map(|i| i.name.clone()).collect()
            } else if name == LSM_PROGRAM.0 && self.packet_sockets != PacketSockets::Refused {
                Vec::new()
            } else if self.cgroup_attached {
                vec![self.options.cgroup_root.display().to_string()]
            } else {
                Vec::new()
            }
        };
        programs::status(&self.ebpf, attached).map_err(|e| kernel("reading program info", e))
    }

    /// The maps and their memory: those that are pinned, and the generation in force.
    pub fn maps(&self) -> Result<Vec<MapStatus>, DatapathError> {
        memory::maps(&self.pins).map_err(|e| kernel("reading map info", e))
    }
}
