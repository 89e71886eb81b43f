//! The network interfaces of the agent's network namespace, over rtnetlink(7).
//!
//! `/sys/class/net` shows the namespace of whoever mounted it, so it is not asked. A notification
//! only says that something changed; the kernel's table is then read again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::socket::{MsgFlags, SockProtocol, recv};
use tokio::sync::mpsc::Sender;

use super::Discovered;
use super::netlink::{self, attribute, text, word};
use super::stop::{Stop, Thread, Woken};
use crate::datapath::InterfaceSide;

// linux/rtnetlink.h and linux/if_link.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTMGRP_LINK: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kernel's name of its kind (`veth`, `tun`, `bridge` …); empty for a network card.
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
        let socket = netlink::open(SockProtocol::NetlinkRoute, RTMGRP_LINK)?;
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

/// The interfaces that there are now, by index, without the loopback interface.
///
/// # Errors
/// What the kernel answers.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    // `struct ifinfomsg` of zeros, and no statistics please.
    let mut body = vec![0; IFINFOMSG];
    body.extend(8u16.to_ne_bytes());
    body.extend(IFLA_EXT_MASK.to_ne_bytes());
    body.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let mut found = Vec::new();
    netlink::dump(SockProtocol::NetlinkRoute, RTM_GETLINK, &body, RTM_NEWLINK, |payload| {
        if !is_loopback(payload)? {
            found.push(link(payload)?);
        }
        Some(())
    })?;
    found.sort();
    found.dedup_by_key(|i: &mut Interface| i.index);
    Ok(found)
}

/// The loopback interface is no workload, not even where a pattern names every interface: what
/// travels on it is judged at its sockets.
fn is_loopback(payload: &[u8]) -> Option<bool> {
    const FLAGS: usize = 8; // in `struct ifinfomsg`
    const IFF_LOOPBACK: u32 = 1 << 3; // linux/if.h
    Some(word(payload, FLAGS)? & IFF_LOOPBACK != 0)
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

#[cfg(test)]
mod tests {
    use super::super::netlink::write;
    use super::*;

    fn parse(datagram: &[u8], found: &mut Vec<Interface>) -> io::Result<bool> {
        netlink::parse(datagram, RTM_NEWLINK, &mut |payload| {
            found.push(link(payload)?);
            Some(())
        })
    }

    fn new_link(index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = vec![0; IFINFOMSG];
        payload[4..8].copy_from_slice(&index.to_ne_bytes());
        payload.extend(attributes.concat());
        write::message(RTM_NEWLINK, &payload)
    }

    fn kind(name: &str) -> Vec<u8> {
        write::attribute(IFLA_LINKINFO | 0x8000, &write::attribute(IFLA_INFO_KIND, name.as_bytes()))
    }

    #[test]
    fn names_and_kinds_are_read_among_unknown_attributes() {
        let mut datagram = new_link(
            7,
            &[
                write::attribute(77, &[1, 2, 3]),
                write::attribute(IFLA_IFNAME, b"tap-web\0"),
                kind("tun"),
            ],
        );
        datagram.extend(new_link(2, &[write::attribute(IFLA_IFNAME, b"eth0\0")]));
        let mut found = Vec::new();
        assert!(!parse(&datagram, &mut found).expect("well-formed"));
        assert_eq!(found[0], Interface { index: 7, name: "tap-web".into(), kind: "tun".into() });
        assert_eq!(found[0].side(), InterfaceSide::Far);
        assert_eq!(found[1], Interface { index: 2, name: "eth0".into(), kind: String::new() });
        assert_eq!(found[1].side(), InterfaceSide::Host);
    }

    #[test]
    fn every_cut_of_a_message_is_an_error_or_less_never_a_panic() {
        let whole = new_link(7, &[write::attribute(IFLA_IFNAME, b"veth0\0\0\0"), kind("veth")]);
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
    fn the_loopback_interface_is_left_out() {
        let found = interfaces().expect("netlink");
        assert!(found.iter().all(|i| i.name != "lo"), "{found:?}");
    }
}
