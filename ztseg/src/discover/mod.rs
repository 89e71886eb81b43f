//! What is on this host: the cgroup tree and the network interfaces.
//!
//! Each watcher scans once before it returns, so that the first policy already knows every
//! workload, and then reports changes through a bounded channel. Kernel notifications are only
//! wake-ups; the truth is always read from the tree or the kernel's table.

pub mod cgroups;
pub mod interfaces;
pub mod mounts;
pub(crate) mod netlink;
mod stop;

use cgroups::CgroupEvent;
use interfaces::Interface;

/// How many reports may wait for the agent. A watcher that finds the channel full waits, and the
/// kernel's queues in front of it are made good by a full scan when they overflow.
pub const QUEUE: usize = 4096;

/// What a watcher reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovered {
    /// One cgroup came or went.
    Cgroup(CgroupEvent),
    /// The interfaces as they are now, all of them.
    Interfaces(Vec<Interface>),
    /// How cgroups are watched from now on.
    CgroupWatch(cgroups::WatchMode),
}
