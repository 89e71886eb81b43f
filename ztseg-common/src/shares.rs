//! How much of the flow tables a workload may have, so that one that opens flows without end takes
//! nothing from another.
//!
//! Every workload is guaranteed some entries; what all guarantees together leave over is for whoever
//! comes first, up to a limit for each. What goes beyond that goes into smaller tables in which the
//! flow that was silent for longest makes room.

use bytemuck::{Pod, Zeroable};

/// What the agent sets, by the capacity of a table and the number of workloads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Shares {
    /// So many entries each workload can have, whatever the others do.
    pub guaranteed: u32,
    /// So many it can have at most.
    pub limit: u32,
    /// As long as so many entries are in use, more than the guaranteed ones can be had.
    pub free_until: u32,
    /// Zero.
    pub zero: u32,
}

impl Shares {
    /// For tables of `capacity` entries and so many workloads.
    ///
    /// Half of a table is guaranteed, in equal parts; with two workloads or more, one of them can
    /// have a quarter. All guaranteed entries fit: others are given out only while so many are free.
    pub const fn new(capacity: u32, workloads: u32) -> Self {
        let workloads = if workloads == 0 { 1 } else { workloads };
        let guaranteed = capacity / 2 / workloads;
        let limit = if workloads == 1 { capacity } else { capacity / 4 };
        Self {
            guaranteed,
            limit: if limit < guaranteed { guaranteed } else { limit },
            free_until: capacity - guaranteed * workloads,
            zero: 0,
        }
    }

    /// Whether a new flow of a workload that has `used` entries gets one, where `total` are in use
    /// by all. `answered`: both ends have spoken. A flood of questions has no answers, so those
    /// wait elsewhere once the guaranteed entries are used up.
    #[inline(always)]
    pub const fn admit(&self, used: i64, total: i64, answered: bool) -> bool {
        used < self.guaranteed as i64
            || (answered && used < self.limit as i64 && total < self.free_until as i64)
    }
}

/// How many entries of the flow tables are in use: by one workload, or by all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Usage {
    /// Of the table for IPv4. Off by some for a moment, so it may be negative.
    pub v4: i64,
    /// Of the table for IPv6.
    pub v6: i64,
}

/// Usage by all, and whether the tables for what goes beyond the shares have anything.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Totals {
    /// By all workloads.
    pub usage: Usage,
    /// Flows put there since the agent has last found them empty.
    pub spilled: u64,
    /// The time of the last run of the sweeping program, in [`crate::state::ticks`].
    pub now: u32,
    /// Zero.
    pub zero: u32,
}

/// What the sweeping program, which the agent runs, is to do: the first byte of its packet. Whatever
/// it is, the time is noted ([`Totals::now`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sweep {
    /// Only that.
    Time = 1,
    /// Take [`Totals::spilled`] down by the number at [`SWEEP_OPERAND`]: so many were put there, and
    /// none of them is alive.
    Unspill = 2,
    /// Add [`Credit`]s at [`SWEEP_OPERAND`]: the agent has put flows into the tables.
    Credit = 3,
    /// Remove those of [`SWEEP`] IPv4 flows, with their keys at [`SWEEP_OPERAND`], that have been
    /// silent for too long.
    Flows4 = 4,
    /// The same with IPv6 flows.
    Flows6 = 6,
}

/// How many flows one run of the sweeping program looks at.
pub const SWEEP: usize = 32;

/// Where in its packet the rest begins, behind what a link header would be.
pub const SWEEP_OPERAND: usize = 16;

/// Entries that a workload has got.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Credit {
    /// [`crate::key::Place::scope`]
    pub scope: u32,
    /// Of the table for IPv4.
    pub v4: u32,
    /// Of the table for IPv6.
    pub v6: u32,
}

const _: () = {
    assert!(size_of::<Shares>() == 16);
    assert!(size_of::<Usage>() == 16);
    assert!(size_of::<Totals>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guaranteed_entries_are_always_there() {
        for (capacity, workloads) in
            [(1, 0), (1, 1), (7, 2), (131_072, 1), (131_072, 2), (131_072, 5_000), (1024, 5_000)]
        {
            let shares = Shares::new(capacity, workloads);
            let sum = u64::from(shares.guaranteed) * u64::from(workloads.max(1));
            assert_eq!(u64::from(shares.free_until) + sum, u64::from(capacity), "{shares:?}");
            assert!(sum <= u64::from(capacity / 2), "{shares:?}");
            assert!(shares.limit >= shares.guaranteed && shares.limit <= capacity, "{shares:?}");
        }
    }

    #[test]
    fn a_flood_stops_at_what_is_guaranteed_and_answered_flows_at_the_limit() {
        let shares = Shares::new(1000, 10);
        assert_eq!((shares.guaranteed, shares.limit, shares.free_until), (50, 250, 500));
        assert!(shares.admit(49, 999, false), "a guaranteed entry is there in a full table");
        assert!(!shares.admit(50, 50, false));
        assert!(shares.admit(50, 499, true));
        assert!(!shares.admit(50, 500, true));
        assert!(!shares.admit(250, 250, true));
        assert!(shares.admit(-3, 0, false), "a count that is off for a moment");
    }
}
