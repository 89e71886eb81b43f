//! The sockets of a network namespace over `sock_diag(7)`: listed with what the kernel programs keep
//! with them, and destroyed.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use ztseg_common::addr::{Addr, Port, proto};
use ztseg_common::state::SocketState;

use crate::discover::netlink::{self, attribute};

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// Length of `struct inet_diag_msg`.
const INET_DIAG_MSG: usize = 72;
/// Length of `struct inet_diag_sockid`, and where it stands in a message.
const SOCKID: usize = 48;
const SOCKID_AT: usize = 4;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What a socket is doing (`include/net/tcp_states.h`); the states that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has asked for a connection.
    Asking,
    /// It has one.
    Connected,
    /// It waits for others to ask.
    Listening,
}

impl Phase {
    const STATES: [(u8, Self); 7] = [
        (1, Self::Connected), // ESTABLISHED
        (2, Self::Asking),    // SYN_SENT
        (3, Self::Connected), // SYN_RECV
        (4, Self::Connected), // FIN_WAIT1
        (5, Self::Connected), // FIN_WAIT2
        (8, Self::Connected), // CLOSE_WAIT
        (10, Self::Listening),
    ];

    fn of(state: u8) -> Option<Self> {
        Self::STATES.iter().find(|(number, _)| *number == state).map(|(_, phase)| *phase)
    }

    fn mask() -> u32 {
        Self::STATES.iter().fold(0, |mask, (state, _)| mask | 1 << state)
    }
}

/// The states of sockets that a process may hold: all but `TIME_WAIT` and `NEW_SYN_RECV`, which are
/// no sockets yet or any more.
const HELD: u32 = !(1 << 6 | 1 << 12);
/// Where `struct inet_diag_msg` has the socket's cookie, owner and inode.
const COOKIE_AT: usize = 44;
const UID_AT: usize = 64;
const INODE_AT: usize = 68;

/// A socket that the kernel programs know nothing of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stranger {
    /// What `SO_COOKIE` says.
    pub(super) cookie: u64,
    /// By which a process' descriptors show it; zero: no process holds it (yet).
    pub(super) inode: u64,
    /// The id of its cgroup; zero where the kernel does not say.
    pub(super) cgroup: u64,
    /// The owner, in the initial user namespace.
    pub(super) uid: u32,
    pub(super) is_tcp: bool,
}

/// An address and a port.
pub(super) type End = (Addr, Port);

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TcpSocket {
    pub(super) family: u8,
    /// As the kernel names it: its ends, its device and its cookie, so that no other socket is
    /// meant that has the same ends later.
    pub(super) id: [u8; SOCKID],
    pub(super) phase: Phase,
    pub(super) local: End,
    pub(super) remote: End,
    /// The id of its cgroup; zero where the kernel does not say.
    pub(super) cgroup: u64,
    /// What the kernel programs keep with it.
    pub(super) state: Option<SocketState>,
}

/// Opens a way to the sockets of the network namespace that this thread is in.
pub(super) fn open() -> io::Result<OwnedFd> {
    netlink::open(SockProtocol::NetlinkSockDiag, 0)
}

/// Asks for what the sockets have in a storage map.
fn storages_in(map: BorrowedFd<'_>) -> Vec<u8> {
    let map = map.as_raw_fd().to_ne_bytes();
    let request = attribute_of(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map);
    attribute_of(INET_DIAG_REQ_SK_BPF_STORAGES, &request)
}

/// The TCP sockets, with what they have in the storage map `states`.
pub(super) fn tcp_sockets(diag: &OwnedFd, states: BorrowedFd<'_>) -> io::Result<Vec<TcpSocket>> {
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut body = request((family, proto::TCP), Phase::mask(), &[0; SOCKID]);
        body.extend(storages_in(states));
        netlink::dump_on(diag, SOCK_DIAG_BY_FAMILY, &body, SOCK_DIAG_BY_FAMILY, |payload| {
            sockets.extend(read(payload)?);
            Some(())
        })?;
    }
    Ok(sockets)
}

/// The TCP, UDP and raw sockets that have nothing in the storage map `states`. Not among them are
/// those that have neither port nor peer, which no packet finds.
pub(super) fn strangers(diag: &OwnedFd, states: BorrowedFd<'_>) -> io::Result<Vec<Stranger>> {
    let mut sockets = Vec::new();
    for (family, protocol) in [AF_INET, AF_INET6]
        .into_iter()
        .flat_map(|family| [proto::TCP, proto::UDP, RAW].map(|protocol| (family, protocol)))
    {
        let mut body = request((family, protocol), HELD, &[0; SOCKID]);
        body.extend(storages_in(states));
        let each = |payload: &[u8]| {
            sockets.extend(read_stranger(payload, protocol == proto::TCP)?);
            Some(())
        };
        match netlink::dump_on(diag, SOCK_DIAG_BY_FAMILY, &body, SOCK_DIAG_BY_FAMILY, each) {
            // This kernel does not list them (`CONFIG_INET_RAW_DIAG`).
            Err(e) if protocol == RAW && e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(sockets)
}

/// `IPPROTO_RAW`: raw sockets of every protocol.
const RAW: u8 = 255;

/// A socket without a state; `None` where the message is malformed.
#[expect(clippy::option_option, reason = "malformed and of no interest are two things")]
fn read_stranger(payload: &[u8], is_tcp: bool) -> Option<Option<Stranger>> {
    let attributes = payload.get(INET_DIAG_MSG..)?;
    let cgroup = attribute(attributes, INET_DIAG_CGROUP_ID).and_then(|v| v.first_chunk());
    let stranger = Stranger {
        cookie: u64::from_ne_bytes(*payload.get(COOKIE_AT..)?.first_chunk()?),
        inode: u64::from(netlink::word(payload, INODE_AT)?),
        cgroup: cgroup.map_or(0, |id| u64::from_ne_bytes(*id)),
        uid: netlink::word(payload, UID_AT)?,
        is_tcp,
    };
    Some(storage(attributes).is_none().then_some(stranger))
}

/// What a socket has in the storage map that was asked for.
fn storage(attributes: &[u8]) -> Option<&[u8]> {
    attribute(attributes, INET_DIAG_SK_BPF_STORAGES)
        .and_then(|all| attribute(all, SK_DIAG_BPF_STORAGE))
        .and_then(|one| attribute(one, SK_DIAG_BPF_STORAGE_MAP_VALUE))
}

/// Ends a connection at once: whoever waits on the socket gets ECONNABORTED. One that is gone is
/// fine.
pub(super) fn destroy(diag: &OwnedFd, socket: &TcpSocket) -> io::Result<bool> {
    let body = request((socket.family, proto::TCP), Phase::mask(), &socket.id);
    match netlink::change_on(diag, SOCK_DESTROY, &body) {
        Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whether this kernel destroys sockets (`CONFIG_INET_DIAG_DESTROY`). It is asked for one that cannot
/// be: nothing has port zero.
pub(super) fn can_destroy(diag: &OwnedFd) -> bool {
    let body = request((AF_INET, proto::TCP), Phase::mask(), &[0; SOCKID]);
    let refused =
        netlink::change_on(diag, SOCK_DESTROY, &body).err().and_then(|e| e.raw_os_error());
    refused == Some(Errno::ENOENT as i32)
}

/// `struct inet_diag_req_v2`
fn request((family, protocol): (u8, u8), states: u32, id: &[u8; SOCKID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// An attribute whose value is a multiple of four bytes.
fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}

/// A socket, unless its state is none of ours; `None` where the message is malformed.
#[expect(clippy::option_option, reason = "malformed and of no interest are two things")]
fn read(payload: &[u8]) -> Option<Option<TcpSocket>> {
    let (family, state) = (*payload.first()?, *payload.get(1)?);
    let id: [u8; SOCKID] = *payload.get(SOCKID_AT..)?.first_chunk()?;
    let attributes = payload.get(INET_DIAG_MSG..)?;
    let Some(phase) = Phase::of(state) else { return Some(None) };
    let end = |port: usize, address: usize| {
        let port = Port { octets: *id.get(port..)?.first_chunk()? };
        let octets: [u8; 16] = *id.get(address..)?.first_chunk()?;
        let [a, b, c, d, ..] = octets;
        let address = if family == AF_INET { Addr::v4([a, b, c, d]) } else { Addr::v6(octets) };
        Some((address, port))
    };
    let cgroup = attribute(attributes, INET_DIAG_CGROUP_ID).and_then(|v| v.first_chunk());
    Some(Some(TcpSocket {
        family,
        id,
        phase,
        local: end(0, 4)?,
        remote: end(2, 20)?,
        cgroup: cgroup.map_or(0, |id| u64::from_ne_bytes(*id)),
        state: storage(attributes).and_then(|value| bytemuck::try_pod_read_unaligned(value).ok()),
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::discover::netlink::write;
    use super::*;

    /// A socket as the judging of them wants it.
    pub(in super::super) fn socket(
        phase: Phase,
        local: (&str, u16),
        remote: (&str, u16),
    ) -> TcpSocket {
        let end = |(address, port): (&str, u16)| {
            let address: std::net::IpAddr = address.parse().expect("an address");
            (Addr::from(address), Port::new(port))
        };
        TcpSocket {
            family: AF_INET,
            id: [0; SOCKID],
            phase,
            local: end(local),
            remote: end(remote),
            cgroup: 0,
            state: None,
        }
    }

    fn message(family: u8, state: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = vec![family, state, 0, 0];
        payload.extend(443u16.to_be_bytes());
        payload.extend(50_000u16.to_be_bytes());
        payload.extend((1..=16).chain(101..=116));
        payload.resize(INET_DIAG_MSG, 0);
        payload.extend(attributes.concat());
        payload
    }

    #[test]
    fn a_socket_is_read_with_its_cgroup_and_state() {
        let kept = SocketState { stamp: 77, cgroup: 9, ..SocketState::default() };
        let value = write::attribute(SK_DIAG_BPF_STORAGE_MAP_VALUE, bytemuck::bytes_of(&kept));
        let storage = write::attribute(SK_DIAG_BPF_STORAGE, &value);
        let attributes = [
            write::attribute(8, &[0]),
            write::attribute(INET_DIAG_CGROUP_ID, &9u64.to_ne_bytes()),
            write::attribute(INET_DIAG_SK_BPF_STORAGES | 0x8000, &storage),
        ];
        let read_one = |family| read(&message(family, 1, &attributes)).expect("well-formed");
        let v4 = read_one(AF_INET).expect("connected");
        assert_eq!((v4.phase, v4.cgroup, v4.state), (Phase::Connected, 9, Some(kept)));
        assert_eq!(v4.local, (Addr::v4([1, 2, 3, 4]), Port::new(443)));
        assert_eq!(v4.remote, (Addr::v4([101, 102, 103, 104]), Port::new(50_000)));
        let v6 = read_one(AF_INET6).expect("connected");
        assert_eq!(v6.local.0.octets[15], 16);
        // TIME_WAIT is nobody's any more; a socket that no program has seen has no state.
        assert_eq!(read(&message(AF_INET, 6, &attributes)), Some(None));
        let bare = read(&message(AF_INET, 2, &[])).expect("well-formed").expect("asking");
        assert_eq!((bare.phase, bare.cgroup, bare.state), (Phase::Asking, 0, None));
    }

    #[test]
    fn a_socket_without_a_state_is_a_stranger() {
        let mut payload = message(AF_INET, 7, &[write::attribute(INET_DIAG_CGROUP_ID, &[9; 8])]);
        payload[COOKIE_AT..][..8].copy_from_slice(&5u64.to_ne_bytes());
        payload[UID_AT..][..4].copy_from_slice(&33u32.to_ne_bytes());
        payload[INODE_AT..][..4].copy_from_slice(&77u32.to_ne_bytes());
        let cgroup = u64::from_ne_bytes([9; 8]);
        let stranger = Stranger { cookie: 5, inode: 77, cgroup, uid: 33, is_tcp: false };
        assert_eq!(read_stranger(&payload, false), Some(Some(stranger)));
        for end in 0..INET_DIAG_MSG {
            assert_eq!(read_stranger(&payload[..end], false), None, "cut at {end}");
        }
        let value = write::attribute(SK_DIAG_BPF_STORAGE_MAP_VALUE, &[0; 8]);
        let storage = write::attribute(SK_DIAG_BPF_STORAGE, &value);
        let known = write::attribute(INET_DIAG_SK_BPF_STORAGES, &storage);
        assert_eq!(read_stranger(&message(AF_INET, 7, &[known]), false), Some(None));
    }

    #[test]
    fn every_cut_of_a_message_is_malformed_or_less_and_never_a_panic() {
        let whole = message(AF_INET, 1, &[write::attribute(INET_DIAG_CGROUP_ID, &[1; 8])]);
        for end in 0..INET_DIAG_MSG {
            assert_eq!(read(&whole[..end]), None, "cut at {end}");
        }
        for end in INET_DIAG_MSG..whole.len() {
            assert!(read(&whole[..end]).is_some_and(|s| s.is_some_and(|s| s.cgroup == 0)));
        }
    }
}
