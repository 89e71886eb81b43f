//! What a flow keeps between packets: in its socket, or in the flow table.

use bytemuck::{Pod, Zeroable};

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
    /// [`SOCKET_CREATED`], [`SOCKET_LISTENED`].
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

/// The state of a flow in the flow table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowState {
    /// The stamp that judged the flow.
    pub stamp: u64,
    /// Jiffies at the last packet.
    pub last_seen: u64,
    /// The peer's workload on this host; zero when it is not known.
    pub peer: WorkloadKey,
    /// Rank of the rule that decided; zero for none.
    pub rule: u32,
    /// A [`Role`].
    pub role: u8,
    /// A [`crate::verdict::Reason`].
    pub reason: u8,
    /// Zero.
    pub zero: [u8; 2],
    /// Packets and bytes.
    pub traffic: Traffic,
}

/// Seconds without a packet after which a flow of the table is a new flow.
///
/// TCP as Linux' conntrack treats an established connection that nothing ends, RFC 5382 REQ-5 asks
/// for at least 2 h 4 min; UDP RFC 4787 REQ-5 asks for at least 2 min.
pub const fn timeout_seconds(protocol: u8) -> u32 {
    match protocol {
        crate::addr::proto::TCP => 5 * 24 * 3600,
        crate::addr::proto::UDP => 180,
        crate::addr::proto::SCTP => 210,
        _ => 30,
    }
}

const _: () = {
    assert!(size_of::<SocketState>() == 136);
    assert!(core::mem::offset_of!(SocketState, cgroup) == 64);
    assert!(size_of::<FlowState>() == 64);
};
