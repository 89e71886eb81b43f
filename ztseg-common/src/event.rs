//! The record that the kernel programs write into the ring buffer.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};
use crate::key::WorkloadKey;

/// [`Event::version`] of this layout.
pub const EVENT_VERSION: u8 = 1;

/// What an event reports. Numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventKind {
    /// A packet or a system call was denied.
    Dropped = 1,
    /// It passed, but would have been denied if every policy enforced.
    Audit = 2,
    /// It passed, and its rule asks for a report.
    Forwarded = 3,
}

impl EventKind {
    /// From its number in a record.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Dropped),
            2 => Some(Self::Audit),
            3 => Some(Self::Forwarded),
            _ => None,
        }
    }
}

/// One record, 112 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Event {
    /// [`EVENT_VERSION`].
    pub version: u8,
    /// An [`EventKind`].
    pub kind: u8,
    /// A [`crate::verdict::Reason`].
    pub reason: u8,
    /// A [`crate::verdict::Hook`].
    pub hook: u8,
    /// A [`crate::verdict::Direction`]: of the flow, not of the packet.
    pub direction: u8,
    /// IP protocol number; zero when the packet could not be read so far. At
    /// [`crate::verdict::Hook::SocketCreate`] the address family (`AF_PACKET`, `AF_XDP`) instead.
    pub protocol: u8,
    /// TCP flags of the packet (RFC 9293 section 3.1, CWR to FIN), zero otherwise.
    pub tcp_flags: u8,
    /// ICMP type, zero otherwise.
    pub icmp_type: u8,
    /// How many packets this record stands for: this one and those folded into it.
    pub count: u32,
    /// The generation that judged.
    pub generation: u32,
    /// Boot time (`CLOCK_BOOTTIME`) in nanoseconds.
    pub time: u64,
    /// The subject.
    pub workload: WorkloadKey,
    /// The cgroup of the subject's socket, at or below the workload's; zero at TC.
    pub cgroup: u64,
    /// The peer's workload, where it is on this host and known; else zero.
    pub peer: WorkloadKey,
    /// Rank of the deciding rule in that generation; zero for none.
    pub rule: u32,
    /// Process id at the system call hooks; zero where no process can be named.
    pub pid: u32,
    /// Command name of the process, zero-padded.
    pub comm: [u8; 16],
    /// The subject's address.
    pub local: Addr,
    /// The peer's address.
    pub remote: Addr,
    /// The subject's port.
    pub local_port: Port,
    /// The peer's port.
    pub remote_port: Port,
    /// Subject class in that generation.
    pub subject: u32,
}

/// What the per-CPU counters count. Each is an index into the counter map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Counter {
    /// Packets and system calls denied on ingress flows.
    DroppedIngress = 0,
    /// … on egress flows.
    DroppedEgress = 1,
    /// New decisions to allow, on ingress flows.
    AllowedIngress = 2,
    /// … on egress flows.
    AllowedEgress = 3,
    /// Decisions that audit mode alone let pass.
    Audited = 4,
    /// Records written into the ring buffer.
    EventsSent = 5,
    /// Occurrences folded into a record of the same second.
    EventsFolded = 6,
    /// Records not written because their workload's budget was used up.
    EventsOverBudget = 7,
    /// Records lost because the ring buffer was full.
    EventsLost = 8,
    /// Flows judged but not stored, because the flow table refused them.
    FlowsNotStored = 9,
    /// Sockets without storage: each of their packets was judged.
    SocketsWithoutState = 10,
    /// Flows beyond the share of their workload, in tables where the oldest makes room.
    FlowsSpilled = 11,
}

impl Counter {
    /// Every counter, in the order of their indexes.
    pub const ALL: [Self; 12] = [
        Self::DroppedIngress,
        Self::DroppedEgress,
        Self::AllowedIngress,
        Self::AllowedEgress,
        Self::Audited,
        Self::EventsSent,
        Self::EventsFolded,
        Self::EventsOverBudget,
        Self::EventsLost,
        Self::FlowsNotStored,
        Self::SocketsWithoutState,
        Self::FlowsSpilled,
    ];

    /// The stable name that `status` and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DroppedIngress => "dropped_ingress",
            Self::DroppedEgress => "dropped_egress",
            Self::AllowedIngress => "allowed_ingress",
            Self::AllowedEgress => "allowed_egress",
            Self::Audited => "audited",
            Self::EventsSent => "events_sent",
            Self::EventsFolded => "events_folded",
            Self::EventsOverBudget => "events_over_budget",
            Self::EventsLost => "events_lost",
            Self::FlowsNotStored => "flows_not_stored",
            Self::SocketsWithoutState => "sockets_without_state",
            Self::FlowsSpilled => "flows_spilled",
        }
    }
}

const _: () = {
    assert!(size_of::<Event>() == 112);
    assert!(core::mem::offset_of!(Event, time) == 16);
    assert!(core::mem::offset_of!(Event, comm) == 56);
};
