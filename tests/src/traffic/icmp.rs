//! Echo requests, from a raw socket (RFC 792, RFC 4443).

use std::io::{self, ErrorKind, Read as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const ECHO: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// Sends one request and waits for its reply.
pub(super) fn ping(to: IpAddr, from: Option<IpAddr>, patience: Duration) -> io::Result<()> {
    let v6 = to.is_ipv6();
    let (domain, protocol) =
        if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    if let Some(from) = from {
        socket.bind(&SockAddr::from(std::net::SocketAddr::new(from, 0)))?;
    }
    socket.connect(&SockAddr::from(std::net::SocketAddr::new(to, 0)))?;
    // Process ids are more than 16 bits wide, but no two clients of one world are so far apart.
    let [.., high, low] = std::process::id().to_be_bytes();
    let mut request = [ECHO[usize::from(v6)], 0, 0, 0, high, low, 0, 1, b'z', b't', b's', b'g'];
    if !v6 {
        // The kernel computes that of ICMPv6.
        let sum = checksum(&request).to_be_bytes();
        request[2..4].copy_from_slice(&sum);
    }
    socket.send(&request)?;
    let deadline = Instant::now() + patience;
    let mut packet = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let n = socket.read(&mut packet)?;
        // A raw IPv4 socket gives the IP header, too.
        let start = if v6 { 0 } else { usize::from(packet[0] & 0xf) * 4 };
        let message = packet.get(start..n).unwrap_or_default();
        if message.len() == request.len()
            && message[0] == ECHO_REPLY[usize::from(v6)]
            && message[4..] == request[4..]
        {
            return Ok(());
        }
    }
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    let sum = sum as u16;
    !sum
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
