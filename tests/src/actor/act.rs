//! The child's side.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _, stdin};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::{SpliceFFlags, splice};
use nix::sched::CloneFlags;
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};
use nix::unistd::{getegid, geteuid, pipe};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::forge::ETH_P_IP;
use super::step::{Answer, Kind, Set, Step};
use crate::traffic::tool::say;

/// Reads steps until its test closes the standard input.
pub(crate) fn run() -> Result<()> {
    say(&"ready")?;
    let mut actor = Sockets::default();
    for line in stdin().lock().lines() {
        let step: Step = serde_json::from_str(&line?)?;
        say(&match actor.act(step) {
            Ok(number) => Answer::Done { number },
            Err(error) => {
                let io = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
                let nix = error.downcast_ref::<nix::Error>().map(|errno| *errno as i32);
                match io.or(nix) {
                    Some(errno) => Answer::Errno { errno },
                    None => Answer::Failed { message: format!("{error:#}") },
                }
            }
        })?;
    }
    Ok(())
}

#[derive(Default)]
struct Sockets {
    sockets: BTreeMap<u32, Socket>,
    listener: Option<UnixListener>,
}

impl Sockets {
    fn of(&mut self, number: u32) -> Result<&mut Socket> {
        self.sockets.get_mut(&number).context("no such socket")
    }

    fn act(&mut self, step: Step) -> Result<u64> {
        let mut number = 0;
        match step {
            Step::Socket { socket, kind } => drop(self.sockets.insert(socket, make(kind)?)),
            Step::SocketByRing { socket, kind, elsewhere } => {
                self.sockets.insert(socket, make_by_ring(kind, elsewhere)?);
            }
            Step::Set { socket, set } => set_option(self.of(socket)?, &set)?,
            Step::Bind { socket, to } => self.of(socket)?.bind(&to.into())?,
            Step::Connect { socket, to, millis } => {
                let connected = self
                    .of(socket)?
                    .connect_timeout(&to.into(), Duration::from_millis(millis.max(1)));
                // Without the number of an error, since no system call gave it.
                connected.map_err(|e| timed_out(e, nix::Error::ETIMEDOUT))?;
            }
            Step::Disconnect { socket } => rustix::net::connect_unspec(self.of(socket)?)
                .map_err(|e| io::Error::from_raw_os_error(e.raw_os_error()))?,
            Step::Listen { socket } => self.of(socket)?.listen(16)?,
            Step::Accept { socket, child } => {
                let accepted = self.of(socket)?.accept()?.0;
                self.sockets.insert(child, accepted);
            }
            Step::Send { socket, to, bytes, flags } => {
                let socket = self.of(socket)?;
                number = match to {
                    Some(to) => socket.send_to_with_flags(&bytes, &to.into(), flags)?,
                    None => socket.send_with_flags(&bytes, flags)?,
                } as u64;
            }
            Step::SendFrom { socket, from, to, bytes } => {
                number = send_from(self.of(socket)?, from, to, &bytes)? as u64;
            }
            Step::SendByRing { socket, bytes } => {
                number = send_by_ring(self.of(socket)?, &bytes)? as u64;
            }
            Step::SendFile { socket, bytes, splice } => {
                number = send_file(self.of(socket)?, &bytes, splice)? as u64;
            }
            Step::SendFrame { socket, interface, to_mac, ethertype, bytes } => {
                let to = link_address(&interface, to_mac, ethertype)?;
                number = self.of(socket)?.send_to(&bytes, &to)? as u64;
            }
            Step::Receive { socket, millis } => {
                let socket = self.of(socket)?;
                socket.set_read_timeout(Some(Duration::from_millis(millis.max(1))))?;
                number = socket.read(&mut [0; 2048])? as u64;
            }
            Step::Port { socket } => {
                let local = self.of(socket)?.local_addr()?;
                number = local.as_socket().context("not an IP socket")?.port().into();
            }
            Step::Await { path } => self.listener = Some(UnixListener::bind(path)?),
            Step::Hand { socket, path } => {
                let file = self.of(socket)?.as_raw_fd();
                let stream = UnixStream::connect(&path)?;
                let rights = [ControlMessage::ScmRights(&[file])];
                let bytes = [IoSlice::new(b"-")];
                sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None)?;
                fs::remove_file(path)?;
            }
            Step::Take { socket } => {
                let stream = self.listener.take().context("not awaited")?.accept()?.0;
                self.sockets.insert(socket, take(&stream)?);
            }
            Step::Unshare { user, network } => unshare(user, network)?,
            Step::Close { socket } => drop(self.sockets.remove(&socket).context("no such socket")?),
        }
        Ok(number)
    }
}

/// An error without a number is that of a time limit.
fn timed_out(error: io::Error, errno: nix::Error) -> io::Error {
    if error.kind() == io::ErrorKind::TimedOut { errno.into() } else { error }
}

fn make(kind: Kind) -> io::Result<Socket> {
    let (domain, kind, protocol) = arguments(kind);
    let socket = Socket::new(domain, kind, Some(protocol))?;
    // What is denied in silence is not waited for.
    socket.set_write_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

fn make_by_ring(kind: Kind, elsewhere: bool) -> Result<Socket> {
    let (domain, kind, protocol) = arguments(kind);
    let mut ring = io_uring::IoUring::new(2)?;
    let entry = io_uring::opcode::Socket::new(domain.into(), kind.into(), protocol.into());
    let mut entry = entry.build();
    if elsewhere {
        entry = entry.flags(io_uring::squeue::Flags::ASYNC);
    }
    // SAFETY: the request has no pointers.
    unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().context("nothing is complete")?.result();
    if done < 0 {
        return Err(io::Error::from_raw_os_error(-done).into());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(Socket::from(unsafe { OwnedFd::from_raw_fd(done) }))
}

/// `SOCK_PACKET` (linux/net.h), which libc warns of.
const SOCK_PACKET: libc::c_int = 10;

/// What `socket(2)` is called with.
fn arguments(kind: Kind) -> (Domain, Type, Protocol) {
    let (v4, v6) = (Domain::IPV4, Domain::IPV6);
    let ip = Protocol::from(i32::from(ETH_P_IP.to_be()));
    match kind {
        Kind::Tcp4 => (v4, Type::STREAM, Protocol::TCP),
        Kind::Tcp6 => (v6, Type::STREAM, Protocol::TCP),
        Kind::Mptcp4 => (v4, Type::STREAM, Protocol::MPTCP),
        Kind::Udp4 => (v4, Type::DGRAM, Protocol::UDP),
        Kind::Udp6 => (v6, Type::DGRAM, Protocol::UDP),
        Kind::Raw4(protocol) => (v4, Type::RAW, i32::from(protocol).into()),
        Kind::Raw6(protocol) => (v6, Type::RAW, i32::from(protocol).into()),
        Kind::Packet => (Domain::PACKET, Type::DGRAM, ip),
        Kind::PacketRaw => (Domain::PACKET, Type::RAW, ip),
        Kind::PacketObsolete => (v4, Type::from(SOCK_PACKET), ip),
        Kind::Xdp => (Domain::from(libc::AF_XDP), Type::RAW, 0.into()),
    }
}

fn set_option(socket: &Socket, set: &Set) -> Result<()> {
    match set {
        Set::ReuseAddress => socket.set_reuse_address(true)?,
        Set::ReusePort => socket.set_reuse_port(true)?,
        Set::Broadcast => socket.set_broadcast(true)?,
        Set::Device(name) => socket.bind_device(Some(name.as_bytes()))?,
        Set::HeaderIncluded => socket.set_header_included_v4(true)?,
        Set::HeaderIncluded6 => socket.set_header_included_v6(true)?,
        Set::HopLimit(hops) => socket.set_unicast_hops_v6(*hops)?,
        Set::Cork(on) => set_number(socket, libc::SOL_UDP, libc::UDP_CORK, i32::from(*on))?,
        Set::FastOpen => set_number(socket, libc::SOL_TCP, libc::TCP_FASTOPEN, 16)?,
        Set::Join(group, interface) => socket.join_multicast_v4(group, interface)?,
        Set::MulticastFrom(interface) => {
            socket.set_multicast_if_v4(interface)?;
            socket.set_multicast_loop_v4(true)?;
        }
    }
    Ok(())
}

fn set_number(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or_default();
    // SAFETY: the value lives during the call and has the size that is said.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn send_from(socket: &Socket, from: IpAddr, to: SocketAddr, bytes: &[u8]) -> Result<usize> {
    let (file, bytes) = (socket.as_raw_fd(), [IoSlice::new(bytes)]);
    let to = SockaddrStorage::from(to);
    let flags = MsgFlags::empty();
    Ok(match from {
        IpAddr::V4(from) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            sendmsg(file, &bytes, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&to))?
        }
        IpAddr::V6(from) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                ipi6_ifindex: 0,
            };
            sendmsg(file, &bytes, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&to))?
        }
    })
}

fn send_by_ring(socket: &Socket, bytes: &[u8]) -> Result<usize> {
    let mut ring = io_uring::IoUring::new(2)?;
    let length = u32::try_from(bytes.len())?;
    let file = io_uring::types::Fd(socket.as_raw_fd());
    let entry = io_uring::opcode::Send::new(file, bytes.as_ptr(), length).build();
    // SAFETY: socket and bytes outlive the request, whose completion is waited for.
    unsafe { ring.submission().push(&entry) }.context("the ring is full")?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().context("nothing is complete")?.result();
    usize::try_from(done).map_err(|_| io::Error::from_raw_os_error(-done).into())
}

fn send_file(socket: &Socket, bytes: &[u8], with_splice: bool) -> Result<usize> {
    if with_splice {
        let (from, to) = pipe()?;
        File::from(to).write_all(bytes)?;
        return Ok(splice(from, None, socket, None, bytes.len(), SpliceFFlags::empty())?);
    }
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(sendfile(socket, file, None, bytes.len())?)
}

/// The address of a neighbour on a link, for packets of an Ethernet type.
fn link_address(interface: &str, mac: [u8; 6], protocol: u16) -> Result<SockAddr> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain and fits into any address storage (packet(7)).
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = u16::try_from(libc::AF_PACKET)?;
    link.sll_protocol = protocol.to_be();
    link.sll_ifindex = i32::try_from(index)?;
    link.sll_halen = 6;
    link.sll_addr[..6].copy_from_slice(&mac);
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: the storage holds an address of this size.
    Ok(unsafe { SockAddr::new(storage, size) })
}

fn take(stream: &UnixStream) -> Result<Socket> {
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
    let file = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(files) => files.first().copied(),
        _ => None,
    });
    let file = file.context("no socket came")?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(Socket::from(unsafe { OwnedFd::from_raw_fd(file) }))
}

/// With a user namespace: becomes its root.
fn unshare(user: bool, network: bool) -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWUSER, user);
    flags.set(CloneFlags::CLONE_NEWNET, network);
    nix::sched::unshare(flags)?;
    if user {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}
