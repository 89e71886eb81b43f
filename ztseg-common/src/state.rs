//! What a flow keeps between packets: in its socket, or in the flow table.

mod flow;
mod mapping;

use bytemuck::{Pod, Zeroable};

pub use self::flow::{
    Chunk, FIN_LOCAL, FIN_REMOTE, FLOW_EXPIRES, FLOW_MAPPING, FLOW_TRANSLATED, FlowState, Phase,
    Segment, Step, timeout_seconds,
};
pub use self::mapping::Mapping;
use crate::addr::{Addr, Port};
use crate::key::WorkloadKey;

/// Which end of a flow the subject is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// It opened the flow: egress rules decide.
    Initiator = 1,
    /// The peer opened it: ingress rules decide.
    Responder = 2,
}

impl Role {
    /// From its number in a state; zero and unknown numbers are `None`.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Initiator),
            2 => Some(Self::Responder),
            _ => None,
        }
    }
}

/// Packets and bytes (of the IP packet) both ways.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Traffic {
    /// Packets that the subject sent.
    pub tx_packets: u64,
    /// Bytes that the subject sent.
    pub tx_bytes: u64,
    /// Packets that it received.
    pub rx_packets: u64,
    /// Bytes that it received.
    pub rx_bytes: u64,
}

/// Flag of [`SocketState`]: `sock_create` saw this socket, so it is younger than the agent.
pub const SOCKET_CREATED: u8 = 1;
/// Flag of [`SocketState`]: it has been listening. A child inherits the state of its listener, so
/// on a connected socket the flag means "accepted".
pub const SOCKET_LISTENED: u8 = 2;

/// Flag of [`SocketState`]: a TCP socket. That never changes, and asking the socket costs a packet
/// more than this.
pub const SOCKET_TCP: u8 = 4;
/// Flag of [`SocketState`]: the rule that decided expires, and its verdict with it.
pub const SOCKET_EXPIRES: u8 = 8;

/// The state in a socket's storage.
///
/// The first 64 bytes are all that a packet of a judged flow reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct SocketState {
    /// The stamp that judged the flow ([`crate::value::Control::stamp`]); zero: not judged.
    pub stamp: u64,
    /// The peer's address that the verdict is for.
    pub remote: Addr,
    /// The peer's port.
    pub remote_port: Port,
    /// The subject's port.
    pub local_port: Port,
    /// A [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// A [`Role`].
    pub role: u8,
    /// [`SOCKET_CREATED`], [`SOCKET_LISTENED`], [`SOCKET_TCP`], [`SOCKET_EXPIRES`].
    pub flags: u8,
    /// A [`crate::verdict::Reason`].
    pub reason: u8,
    /// Packets and bytes of all flows of this socket.
    pub traffic: Traffic,
    /// The cgroup that the socket was made in.
    pub cgroup: u64,
    /// The workload that owns it: the nearest ancestor of `cgroup` that is one.
    pub workload: WorkloadKey,
    /// The stamp under which `workload` was found.
    pub workload_stamp: u64,
    /// The workload that owned it before, when that was another one: the socket's older flows are
    /// known under its name. Zero: none.
    pub former: WorkloadKey,
    /// The peer's workload on this host; zero when it is not known.
    pub peer: WorkloadKey,
    /// Network namespace cookie of the socket.
    pub netns: u64,
    /// User id of the maker, in the initial user namespace.
    pub uid: u32,
    /// Rank of the rule that decided; zero for none.
    pub rule: u32,
    /// The peer's address as the packets carry it; differs from `remote` where this host
    /// translates after the socket (a service address). `::` when no packet told yet.
    pub wire_remote: Addr,
    /// The peer's port as the packets carry it.
    pub wire_port: Port,
    /// Zero.
    pub zero: [u16; 3],
}

/// The unit of [`FlowState::last_seen`]: sixteen jiffies, so that 32 bits go round after two years
/// at the least (a thousand jiffies a second) and not while a flow may be silent.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it goes round")]
pub const fn ticks(jiffies: u64) -> u32 {
    (jiffies >> TICK_SHIFT) as u32
}

const TICK_SHIFT: u32 = 4;

/// Whether a flow whose last packet came at `last_seen` may still be silent at `now`; both in
/// [`ticks`]. `hz` is jiffies a second.
#[inline(always)]
pub const fn is_fresh(last_seen: u32, now: u32, timeout_seconds: u32, hz: u32) -> bool {
    // Another CPU may have seen a later packet already.
    let silent = now.wrapping_sub(last_seen).cast_signed();
    silent <= 0
        || silent.cast_unsigned() as u64 <= (timeout_seconds as u64 * hz as u64) >> TICK_SHIFT
}

const _: () = {
    assert!(size_of::<SocketState>() == 144);
    assert!(core::mem::offset_of!(SocketState, cgroup) == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_may_go_round() {
        assert!(is_fresh(u32::MAX - 5, 5, 1, 250));
        assert!(!is_fresh(u32::MAX - 5, 30, 1, 250));
        assert!(is_fresh(10, 9, 1, 250), "another CPU is ahead");
        assert!(is_fresh(0, (120 * 1000) >> TICK_SHIFT, 120, 1000));
        assert!(!is_fresh(0, ((120 * 1000) >> TICK_SHIFT) + 1, 120, 1000));
    }
}
