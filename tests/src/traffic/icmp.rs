//! Echo requests, from a ping socket (`net/ipv4/ping.c`).
//!
//! The kernel gives such a socket its own replies only. A raw socket would overhear what every
//! other client on the host receives, until it is connected.

use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Types of messages: of ICMP (RFC 792) and `ICMPv6` (RFC 4443).
const ECHO: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// Sends one request and waits for its reply.
pub(super) fn ping(to: IpAddr, from: Option<IpAddr>, patience: Duration) -> io::Result<()> {
    let v6 = usize::from(to.is_ipv6());
    let families = [(Domain::IPV4, Protocol::ICMPV4), (Domain::IPV6, Protocol::ICMPV6)];
    let (domain, protocol) = families[v6];
    let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    if let Some(from) = from {
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
    // The kernel writes checksum and identifier.
    let request = [ECHO[v6], 0, 0, 0, 0, 0, 0, 1, b'z', b't', b's', b'g'];
    socket.send(&request)?;
    let deadline = Instant::now() + patience;
    let mut message = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let n = socket.read(&mut message)?;
        if n == request.len() && message[0] == ECHO_REPLY[v6] && message[6..n] == request[6..] {
            return Ok(());
        }
    }
}
