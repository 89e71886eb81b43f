//! The network interfaces of the agent's network namespace, over rtnetlink(7).
//!
//! `/sys/class/net` shows the namespace of whoever mounted it, so it is not asked. A notification
//! only says that something changed; the kernel's table is then read again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};
use tokio::sync::mpsc::Sender;

use super::Discovered;
use super::stop::{Stop, Thread, Woken};
use crate::datapath::InterfaceSide;

// linux/rtnetlink.h, linux/if_link.h and linux/netlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTMGRP_LINK: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_EXT_MASK: u16 = 29;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Without the flags "nested" and "network byte order".
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// The kernel makes no datagram of a dump larger than 32 KiB (`netlink_dump`,
/// `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 64 * 1024;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kernel's name of its kind (`veth`, `tun`, `bridge` …); empty for a network card and for
    /// the loopback interface.
    pub kind: String,
}

impl Interface {
    /// Which side of it its workload is on. A tap is of the kind `tun`, too.
    pub fn side(&self) -> InterfaceSide {
        match self.kind.as_str() {
            "tun" | "veth" | "netkit" => InterfaceSide::Far,
            _ => InterfaceSide::Host,
        }
    }
}

/// The watcher; it ends when dropped.
#[derive(Debug)]
pub struct InterfaceWatcher {
    _thread: Thread,
}

impl InterfaceWatcher {
    /// Reads the table, and starts to watch it.
    ///
    /// # Errors
    /// When netlink cannot be used, or no thread can be had.
    pub fn start(reports: Sender<Discovered>) -> io::Result<(Self, Vec<Interface>)> {
        // Subscribed before the table is read, so that nothing in between is missed.
        let socket = open(RTMGRP_LINK)?;
        let now = interfaces()?;
        let stop = Stop::new()?;
        let (thread_stop, mut known) = (stop.clone(), now.clone());
        let thread = Thread::spawn("interfaces", stop, move || {
            while wait(&thread_stop, &socket) {
                match interfaces() {
                    Ok(now) if now != known => {
                        known.clone_from(&now);
                        if reports.blocking_send(Discovered::Interfaces(now)).is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(e) => tracing::warn!("reading the interfaces failed: {e}"),
                }
            }
        })?;
        Ok((Self { _thread: thread }, now))
    }
}

/// A netlink socket that hears `groups`.
fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkRoute;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Waits for a notification and takes all that are there; `false` is the end.
fn wait(stop: &Stop, socket: &OwnedFd) -> bool {
    match stop.wait(Some(socket.as_fd()), PollTimeout::NONE) {
        Ok(Woken::Stop) => return false,
        Ok(_) => {}
        Err(e) => {
            tracing::error!("waiting for interface changes failed: {e}");
            return false;
        }
    }
    // ENOBUFS says that notifications were lost; the table is read anyway.
    let mut buffer = [0; 64];
    while !matches!(
        recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT),
        Err(Errno::EAGAIN | Errno::EBADF)
    ) {}
    true
}

/// The interfaces that there are now, by index.
///
/// # Errors
/// What the kernel answers.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let socket = open(0)?;
    send(socket.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM];
    let mut found = Vec::new();
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if parse(&buffer[..length], &mut found)? {
            found.sort();
            found.dedup_by_key(|i| i.index);
            return Ok(found);
        }
    }
}

/// A dump request: header, `struct ifinfomsg` of zeros, and no statistics please.
fn request() -> Vec<u8> {
    let mut body = vec![0; IFINFOMSG];
    body.extend(8u16.to_ne_bytes());
    body.extend(IFLA_EXT_MASK.to_ne_bytes());
    body.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_GETLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Reads the messages of one datagram; whether the dump ends with it.
///
/// Only what is needed is read, so that an attribute of a newer kernel cannot hide an interface.
fn parse(datagram: &[u8], found: &mut Vec<Interface>) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed netlink message");
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = word(rest, 0).ok_or_else(malformed)? as usize;
        let kind = half(rest, 4).ok_or_else(malformed)?;
        let payload = rest.get(HEADER..length).ok_or_else(malformed)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = word(payload, 0).ok_or_else(malformed)?.cast_signed();
                return Err(Errno::from_raw(code.saturating_neg()).into());
            }
            RTM_NEWLINK => found.push(link(payload).ok_or_else(malformed)?),
            _ => {}
        }
        // Messages are aligned to four bytes; the last one's padding may be missing.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn link(payload: &[u8]) -> Option<Interface> {
    let attributes = payload.get(IFINFOMSG..)?;
    let kind = attribute(attributes, IFLA_LINKINFO).and_then(|i| attribute(i, IFLA_INFO_KIND));
    Some(Interface {
        index: word(payload, 4)?,
        name: text(attribute(attributes, IFLA_IFNAME)?),
        kind: kind.map(text).unwrap_or_default(),
    })
}

/// The value of the first attribute (`struct nlattr`) of a kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(half(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if half(attributes, 2)? & NLA_TYPE_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut out = length.to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).expect("short");
        let mut out = length.to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(payload);
        out
    }

    fn new_link(index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = vec![0; IFINFOMSG];
        payload[4..8].copy_from_slice(&index.to_ne_bytes());
        payload.extend(attributes.concat());
        message(RTM_NEWLINK, &payload)
    }

    fn kind(name: &str) -> Vec<u8> {
        attr(IFLA_LINKINFO | 0x8000, &attr(IFLA_INFO_KIND, name.as_bytes()))
    }

    #[test]
    fn names_and_kinds_are_read_among_unknown_attributes() {
        let mut datagram =
            new_link(7, &[attr(77, &[1, 2, 3]), attr(IFLA_IFNAME, b"tap-web\0"), kind("tun")]);
        datagram.extend(new_link(2, &[attr(IFLA_IFNAME, b"eth0\0")]));
        let mut found = Vec::new();
        assert!(!parse(&datagram, &mut found).expect("well-formed"));
        assert_eq!(found[0], Interface { index: 7, name: "tap-web".into(), kind: "tun".into() });
        assert_eq!(found[0].side(), InterfaceSide::Far);
        assert_eq!(found[1], Interface { index: 2, name: "eth0".into(), kind: String::new() });
        assert_eq!(found[1].side(), InterfaceSide::Host);
        assert!(parse(&message(NLMSG_DONE, &[0; 4]), &mut found).expect("well-formed"));
    }

    #[test]
    fn the_kernels_error_is_handed_on() {
        let refused = message(NLMSG_ERROR, &(-1i32).to_ne_bytes());
        let error = parse(&refused, &mut Vec::new()).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
    }

    #[test]
    fn every_cut_of_a_message_is_an_error_or_less_never_a_panic() {
        let whole = new_link(7, &[attr(IFLA_IFNAME, b"veth0\0\0\0"), kind("veth")]);
        for end in 1..whole.len() {
            assert!(parse(&whole[..end], &mut Vec::new()).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 4, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                let _ = parse(&broken, &mut Vec::new());
            }
        }
    }

    #[test]
    fn the_loopback_interface_is_there() {
        let found = interfaces().expect("netlink");
        let lo = found.iter().find(|i| i.name == "lo").expect("lo");
        assert_eq!((lo.kind.as_str(), lo.side()), ("", InterfaceSide::Host));
    }
}
