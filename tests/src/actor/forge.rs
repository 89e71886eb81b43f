//! Packets as an attacker makes them, with whatever addresses.

use std::net::{IpAddr, SocketAddr};

/// What marks a payload of ours, for an [`super::ear::Ear`].
pub(super) const MARK: &[u8] = b"zt-mark-";

/// Ethernet types (`include/uapi/linux/if_ether.h`).
pub const ETH_P_IP: u16 = 0x0800;
/// IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;

const IPV4_HEADER: usize = 20;
const TCP_HEADER: u8 = 20;
/// Protocol numbers (IANA).
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A payload that an ear counts as `mark/TEXT`; letters and digits.
pub fn mark(text: &str) -> Vec<u8> {
    [MARK, text.as_bytes(), b"."].concat()
}

/// An IP packet; what follows its header is `payload`.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    fragment(from, to, protocol, payload, 0)
}

/// As [`ip`]; for IPv4 with the fragment field as it is on the wire (offset in eights, flags above).
pub fn fragment(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8], field: u16) -> Vec<u8> {
    let mut packet = if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        let mut header = vec![0x45, 0];
        header.extend(be(IPV4_HEADER + payload.len()));
        header.extend([0x12, 0x34]);
        header.extend(field.to_be_bytes());
        header.extend([64, protocol, 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(be(payload.len()));
        header.extend([protocol, 64]);
        for address in [from, to] {
            header.extend(match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            });
        }
        header
    };
    packet.extend(payload);
    packet
}

/// A UDP datagram, without its IP header.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(be(8 + payload.len()));
    packet.extend([0, 0]);
    packet.extend(payload);
    seal(&mut packet, 6, from.ip(), to.ip(), UDP);
    packet
}

/// A TCP segment that asks for a connection, without its IP header.
pub fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, (TCP_HEADER / 4) << 4, 0x02, 0x10, 0, 0, 0, 0, 0]);
    seal(&mut packet, 16, from.ip(), to.ip(), TCP);
    packet
}

/// An IPv4 packet with a UDP datagram.
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    ip(from.ip(), to.ip(), UDP, &udp(from, to, payload))
}

/// An ICMP message: type, code, and what follows the checksum.
pub fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An IPv4 packet with an ICMP error (port unreachable) that quotes `quoted`.
pub fn icmp_error(from: IpAddr, to: IpAddr, quoted: &[u8]) -> Vec<u8> {
    ip(from, to, ICMP, &icmp(3, 3, &[&[0; 4], quoted].concat()))
}

fn be(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Writes the checksum of a transport header at `at`, over the pseudo header too (RFC 9293, 768).
fn seal(packet: &mut [u8], at: usize, from: IpAddr, to: IpAddr, protocol: u8) {
    let mut all = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => all.extend(address.octets()),
            IpAddr::V6(address) => all.extend(address.octets()),
        }
    }
    all.extend([0, protocol]);
    all.extend(be(packet.len()));
    all.extend(&*packet);
    packet[at..at + 2].copy_from_slice(&checksum(&all));
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|b| u32::from(b[0]) << 8 | u32::from(*b.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or_default().to_be_bytes()
}
