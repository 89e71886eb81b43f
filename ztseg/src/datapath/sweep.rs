//! Keeps the flow tables and the workloads' accounts of them in order: flows that have been silent for
//! too long give their entries back.
//!
//! Nothing in the kernel waits for it. Without an agent the tables fill with dead flows, and new ones
//! go into the spill tables, where the one that was silent for longest makes room.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytemuck::{Pod, bytes_of};
use ztseg_common::key::{FlowKey4, FlowKey6, Place};
use ztseg_common::shares::{Credit, SWEEP, SWEEP_OPERAND, Shares, Sweep, Totals, Usage};
use ztseg_common::state::{FlowState, is_fresh, timeout_seconds};

use super::programs::{FLOW_TABLES, Pins, SPILL_TABLES};
use super::sys::{self, Walk};

/// A key of a flow table.
pub trait Key: Pod {
    /// Where the flow was seen.
    fn place(&self) -> Place;
    /// What removes such flows.
    const SWEEP: Sweep;
}

impl Key for FlowKey4 {
    fn place(&self) -> Place {
        self.place
    }
    const SWEEP: Sweep = Sweep::Flows4;
}

impl Key for FlowKey6 {
    fn place(&self) -> Place {
        self.place
    }
    const SWEEP: Sweep = Sweep::Flows6;
}

/// A table and how far the sweep is in it.
#[derive(Debug)]
struct Table<K> {
    flows: OwnedFd,
    spill: OwnedFd,
    walk: Walk<K, FlowState>,
}

impl<K: Key> Table<K> {
    fn open(pins: &Pins, flows: &str, spill: &str) -> io::Result<Self> {
        let open = |name| sys::open_pinned(&pins.maps().join(name));
        Ok(Self { flows: open(flows)?, spill: open(spill)?, walk: Walk::default() })
    }

    /// Looks at some more flows; how many were removed.
    fn step(&mut self, program: &Program, now: u32, hz: u32) -> io::Result<u64> {
        let stale: Vec<K> = self
            .walk
            .step(self.flows.as_fd())?
            .filter(|(key, state)| !is_alive(*key, state, now, hz))
            .map(|(key, _)| *key)
            .collect();
        let mut removed = 0;
        for keys in stale.chunks(SWEEP) {
            removed += u64::from(program.run(K::SWEEP, bytemuck::cast_slice(keys))?);
        }
        Ok(removed)
    }

    /// Whether some flow of the spill table is alive.
    fn has_spilled(&self, now: u32, hz: u32) -> io::Result<bool> {
        let flows = sys::map_dump::<K, FlowState>(self.spill.as_fd())?;
        Ok(flows.iter().any(|(key, state)| is_alive(key, state, now, hz)))
    }
}

fn is_alive<K: Key>(key: &K, state: &FlowState, now: u32, hz: u32) -> bool {
    is_fresh(state.last_seen, now, timeout_seconds(key.place().protocol(), state.phase), hz)
}

/// The sweeping program.
#[derive(Debug)]
struct Program(OwnedFd);

impl Program {
    fn run(&self, what: Sweep, operand: &[u8]) -> io::Result<u32> {
        let mut packet = [0; SWEEP_OPERAND].to_vec();
        packet[0] = what as u8;
        packet.extend(operand);
        Ok(sys::test_run(self.0.as_fd(), &packet, &[], 1)?.value)
    }
}

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that gave their entries back.
    pub removed: u64,
    /// Entries in use by all workloads.
    pub usage: Usage,
    /// Whether some flow beyond a share is alive.
    pub spilled: bool,
}

/// The sweep.
#[derive(Debug)]
pub struct Sweeper {
    program: Program,
    v4: Table<FlowKey4>,
    v6: Table<FlowKey6>,
    usage: OwnedFd,
    totals: OwnedFd,
    hz: u32,
}

impl Sweeper {
    /// With the sweeping program, and jiffies a second.
    pub fn open(pins: &Pins, program: OwnedFd, hz: u32) -> io::Result<Self> {
        let [flows4, flows6] = FLOW_TABLES;
        let [spill4, spill6] = SPILL_TABLES;
        let open = |name| sys::open_pinned(&pins.maps().join(name));
        Ok(Self {
            program: Program(program),
            v4: Table::open(pins, flows4, spill4)?,
            v6: Table::open(pins, flows6, spill6)?,
            usage: open("USAGE")?,
            totals: open("TOTALS")?,
            hz,
        })
    }

    fn totals(&self) -> io::Result<Totals> {
        let mut totals = [Totals::default()];
        sys::map_lookup(self.totals.as_fd(), &0u32, &mut totals)?;
        Ok(totals[0])
    }

    /// Looks at some thousand flows of each table, the next ones each time.
    pub fn step(&mut self) -> io::Result<Swept> {
        self.program.run(Sweep::Time, &[])?;
        // What is put into the spill tables from here on is not taken off.
        let Totals { now, spilled, .. } = self.totals()?;
        let mut removed = 0;
        removed += self.v4.step(&self.program, now, self.hz)?;
        removed += self.v6.step(&self.program, now, self.hz)?;
        if spilled != 0
            && !self.v4.has_spilled(now, self.hz)?
            && !self.v6.has_spilled(now, self.hz)?
        {
            self.program.run(Sweep::Unspill, bytes_of(&spilled))?;
        }
        let totals = self.totals()?;
        Ok(Swept { removed, usage: totals.usage, spilled: totals.spilled != 0 })
    }

    /// Whether both tables were looked at from end to end.
    pub fn is_over(&self) -> bool {
        self.v4.walk.is_over() && self.v6.walk.is_over()
    }

    /// Closes the accounts of workloads that are gone and have no flows any more.
    pub fn close_accounts(&self, alive: &HashSet<u32>) -> io::Result<()> {
        for (scope, usage) in sys::map_dump::<u32, Usage>(self.usage.as_fd())? {
            if !alive.contains(&scope) && usage.v4 <= 0 && usage.v6 <= 0 {
                sys::map_delete(self.usage.as_fd(), &scope)?;
            }
        }
        Ok(())
    }

    /// Puts entries that the agent has written itself on their workloads' accounts.
    pub fn credit(&self, credits: &BTreeMap<u32, Credit>) -> io::Result<()> {
        for credit in credits.values() {
            self.program.run(Sweep::Credit, bytes_of(credit))?;
        }
        Ok(())
    }

    /// By [`Place::scope`], what each workload has.
    pub fn usage(&self) -> io::Result<HashMap<u32, Usage>> {
        Ok(sys::map_dump::<u32, Usage>(self.usage.as_fd())?.into_iter().collect())
    }
}

/// The shares for tables of `capacity` entries and so many workloads.
pub fn shares(capacity: u32, workloads: usize) -> Shares {
    Shares::new(capacity, u32::try_from(workloads).unwrap_or(u32::MAX))
}
