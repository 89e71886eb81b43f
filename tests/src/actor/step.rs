//! What a test and its actor say to each other, one line of JSON each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6, and over IPv4 where an address is mapped.
    Tcp6,
    /// Multipath TCP over IPv4.
    Mptcp4,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6, and over IPv4 where an address is mapped.
    Udp6,
    /// Raw IPv4 with this protocol.
    Raw4(u8),
    /// Raw IPv6 with this protocol.
    Raw6(u8),
    /// Packets of a link, without their Ethernet header.
    Packet,
    /// Packets of a link, with it.
    PacketRaw,
    /// The same by the obsolete `SOCK_PACKET` of `AF_INET`.
    PacketObsolete,
    /// `AF_XDP`
    Xdp,
}

/// A socket option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Set {
    /// `SO_REUSEADDR`
    ReuseAddress,
    /// `SO_REUSEPORT`
    ReusePort,
    /// `SO_BROADCAST`
    Broadcast,
    /// `SO_BINDTODEVICE`
    Device(String),
    /// `IP_HDRINCL`
    HeaderIncluded,
    /// `IPV6_HDRINCL`
    HeaderIncluded6,
    /// `IPV6_UNICAST_HOPS`
    HopLimit(u32),
    /// `UDP_CORK`
    Cork(bool),
    /// `TCP_FASTOPEN`: a listener takes data with the first segment.
    FastOpen,
    /// `IP_ADD_MEMBERSHIP`: group and the interface's address.
    Join(Ipv4Addr, Ipv4Addr),
    /// `IP_MULTICAST_IF`
    MulticastFrom(Ipv4Addr),
}

/// What an actor does. Sockets have numbers that the test gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// `socket(2)`
    Socket { socket: u32, kind: Kind },
    /// `IORING_OP_SOCKET`; by a thread of the kernel's where `elsewhere` says so
    SocketByRing { socket: u32, kind: Kind, elsewhere: bool },
    /// `setsockopt(2)`
    Set { socket: u32, set: Set },
    /// `bind(2)`
    Bind { socket: u32, to: SocketAddr },
    /// `connect(2)`, and waits until it is decided.
    Connect { socket: u32, to: SocketAddr, millis: u64 },
    /// `connect(2)` to `AF_UNSPEC`
    Disconnect { socket: u32 },
    /// `listen(2)`
    Listen { socket: u32 },
    /// `accept(2)`
    Accept { socket: u32, child: u32 },
    /// `send(2)` or `sendto(2)`
    Send { socket: u32, to: Option<SocketAddr>, bytes: Vec<u8>, flags: i32 },
    /// `sendmsg(2)` with a source address
    SendFrom { socket: u32, from: IpAddr, to: SocketAddr, bytes: Vec<u8> },
    /// `IORING_OP_SEND`
    SendByRing { socket: u32, bytes: Vec<u8> },
    /// `sendfile(2)`, or `splice(2)` from a pipe
    SendFile { socket: u32, bytes: Vec<u8>, splice: bool },
    /// `sendto(2)` to a link
    SendFrame { socket: u32, interface: String, to_mac: [u8; 6], ethertype: u16, bytes: Vec<u8> },
    /// `recv(2)`
    Receive { socket: u32, millis: u64 },
    /// `getsockname(2)`
    Port { socket: u32 },
    /// Listens on a Unix socket.
    Await { path: PathBuf },
    /// Sends a socket to who listens there.
    Hand { socket: u32, path: PathBuf },
    /// Receives a socket.
    Take { socket: u32 },
    /// `unshare(2)`
    Unshare { user: bool, network: bool },
    /// `close(2)`
    Close { socket: u32 },
}

/// What an actor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Answer {
    /// The kernel did it.
    Done { number: u64 },
    /// The kernel did not.
    Errno { errno: i32 },
    /// The step makes no sense.
    Failed { message: String },
}
