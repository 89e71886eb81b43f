//! The first two packets of an SCTP association (RFC 9260), on raw sockets: not every kernel has SCTP
//! sockets.
//!
//! Who asks sends an INIT with a tag of its own, and waits for the INIT ACK that has this tag. Where
//! the kernel knows SCTP, too, it answers by itself to a port that it knows nothing of (ABORT); that is
//! no answer here.

use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, sendto};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Types of chunks (RFC 9260 section 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Common header: ports, verification tag, checksum.
const HEADER: usize = 12;
/// The first of the ports for private use (RFC 6335).
const FIRST_PORT: u32 = 49152;

/// Sends an INIT and waits for its answer.
pub(super) fn ask(to: SocketAddr, from: Option<SocketAddr>, patience: Duration) -> io::Result<()> {
    let mut socket = raw(to.ip())?;
    if let Some(from) = from {
        socket.bind(&whole(from.ip()))?;
    }
    // From then on it receives from there only.
    socket.connect(&whole(to.ip()))?;
    // Every client is a process of its own.
    let tag = std::process::id();
    let port = u16::try_from(FIRST_PORT + tag % (1 + u32::from(u16::MAX) - FIRST_PORT))
        .map_err(io::Error::other)?;
    socket.send(&packet([port, to.port()], 0, INIT, tag))?;
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let n = socket.read(&mut buffer)?;
        let Some(answer) = Received::read(&buffer[..n], to.is_ipv4()) else { continue };
        if (answer.ports, answer.verification) == ([to.port(), port], tag)
            && answer.chunk == INIT_ACK
        {
            return Ok(());
        }
    }
}

/// Where INITs to an address arrive.
pub(super) fn bind(address: IpAddr) -> io::Result<Socket> {
    let socket = raw(address)?;
    socket.bind(&whole(address))?;
    Ok(socket)
}

/// Answers INITs to a port, and counts them.
pub(super) fn answer(socket: &Socket, address: SocketAddr, count: &AtomicU64) {
    let mut buffer = [0; 2048];
    loop {
        // An error is an ICMP error for an earlier answer.
        let Ok((n, Some(from))) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)
        else {
            continue;
        };
        let Some(init) = Received::read(&buffer[..n], address.is_ipv4()) else { continue };
        let [theirs, ours] = init.ports;
        if init.chunk == INIT && ours == address.port() {
            count.fetch_add(1, Ordering::Relaxed);
            let ack = packet([ours, theirs], init.initiate, INIT_ACK, !init.initiate);
            let _ = sendto(socket.as_raw_fd(), &ack, &from, MsgFlags::empty());
        }
    }
}

fn raw(address: IpAddr) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::SCTP))
}

/// An address as raw sockets take it: in place of the port IPv6 would have the protocol.
fn whole(address: IpAddr) -> SockAddr {
    SocketAddr::new(address, 0).into()
}

/// What matters of a packet.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    ports: [u16; 2],
    verification: u32,
    chunk: u8,
    /// The tag that its sender wants to be answered with.
    initiate: u32,
}

impl Received {
    /// Reads what a raw socket gives: an IPv4 packet from its header on, an IPv6 one behind it.
    fn read(bytes: &[u8], v4: bool) -> Option<Self> {
        let header = if v4 { usize::from(bytes.first()? & 0x0f) * 4 } else { 0 };
        let bytes = bytes.get(header..)?;
        let two = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let four = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            ports: [two(0)?, two(2)?],
            verification: four(4)?,
            chunk: *bytes.get(HEADER)?,
            initiate: four(HEADER + 4)?,
        })
    }
}

/// A packet with an INIT or an INIT ACK (RFC 9260 sections 3.3.2 and 3.3.3).
fn packet(ports: [u16; 2], verification: u32, chunk: u8, initiate: u32) -> Vec<u8> {
    const WINDOW: u32 = 1500;
    const STREAMS: [u8; 4] = [0, 1, 0, 1];
    /// A parameter of type 7, the State Cookie, which an INIT ACK must have.
    const COOKIE: [u8; 8] = [0, 7, 0, 8, 0, 0, 0, 0];
    let cookie: &[u8] = if chunk == INIT_ACK { &COOKIE } else { &[] };
    let mut packet = ports.map(u16::to_be_bytes).concat();
    packet.extend(verification.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, if cookie.is_empty() { 20 } else { 28 }]);
    packet.extend(initiate.to_be_bytes());
    packet.extend(WINDOW.to_be_bytes());
    packet.extend(STREAMS);
    packet.extend(initiate.to_be_bytes());
    packet.extend(cookie);
    let sum = crc32c(&packet);
    packet[8..HEADER].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// The checksum (RFC 9260 appendix A), which is sent with its low byte first.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 0 { 0 } else { 0x82f6_3b78 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 appendix B.4, and the customary check of a CRC.
    #[test]
    fn checksums_are_those_of_the_documents() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_packet_is_read_as_it_was_written() {
        let init = packet([50000, 38412], 0, INIT, 7);
        assert_eq!(init.len(), HEADER + 20);
        let expected =
            Received { ports: [50000, 38412], verification: 0, chunk: INIT, initiate: 7 };
        assert_eq!(Received::read(&init, false), Some(expected));
        let ack = packet([38412, 50000], 7, INIT_ACK, 8);
        assert_eq!(ack.len(), HEADER + 28);
        let mut with_header = vec![0x46; 24];
        with_header.extend(&ack);
        let expected =
            Received { ports: [38412, 50000], verification: 7, chunk: INIT_ACK, initiate: 8 };
        assert_eq!(Received::read(&with_header, true), Some(expected));
        assert_eq!(Received::read(&ack[..HEADER + 7], false), None);
    }
}
