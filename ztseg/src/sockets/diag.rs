//! The TCP sockets of a network namespace over `sock_diag(7)`: listed with what the kernel programs
//! keep with them, and destroyed.

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

/// The TCP sockets, with what they have in the storage map `states`.
pub(super) fn tcp_sockets(diag: &OwnedFd, states: BorrowedFd<'_>) -> io::Result<Vec<TcpSocket>> {
    let map = states.as_raw_fd().to_ne_bytes();
    let storages = attribute_of(
        INET_DIAG_REQ_SK_BPF_STORAGES,
        &attribute_of(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map),
    );
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut body = request(family, Phase::mask(), &[0; SOCKID]);
        body.extend(&storages);
        netlink::dump_on(diag, SOCK_DIAG_BY_FAMILY, &body, SOCK_DIAG_BY_FAMILY, |payload| {
            sockets.extend(read(payload)?);
            Some(())
        })?;
    }
    Ok(sockets)
}

/// Ends a connection at once: whoever waits on the socket gets ECONNABORTED. One that is gone is
/// fine.
pub(super) fn destroy(diag: &OwnedFd, socket: &TcpSocket) -> io::Result<bool> {
    let body = request(socket.family, Phase::mask(), &socket.id);
    match netlink::change_on(diag, SOCK_DESTROY, &body) {
        Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whether this kernel destroys sockets (`CONFIG_INET_DIAG_DESTROY`). It is asked for one that cannot
/// be: nothing has port zero.
pub(super) fn can_destroy(diag: &OwnedFd) -> bool {
    let body = request(AF_INET, Phase::mask(), &[0; SOCKID]);
    let refused =
        netlink::change_on(diag, SOCK_DESTROY, &body).err().and_then(|e| e.raw_os_error());
    refused == Some(Errno::ENOENT as i32)
}

/// `struct inet_diag_req_v2`
fn request(family: u8, states: u32, id: &[u8; SOCKID]) -> Vec<u8> {
    let mut body = vec![family, proto::TCP, 0, 0];
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
    let value = attribute(attributes, INET_DIAG_SK_BPF_STORAGES)
        .and_then(|all| attribute(all, SK_DIAG_BPF_STORAGE))
        .and_then(|one| attribute(one, SK_DIAG_BPF_STORAGE_MAP_VALUE));
    Some(Some(TcpSocket {
        family,
        id,
        phase,
        local: end(0, 4)?,
        remote: end(2, 20)?,
        cgroup: cgroup.map_or(0, |id| u64::from_ne_bytes(*id)),
        state: value.and_then(|value| bytemuck::try_pod_read_unaligned(value).ok()),
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
