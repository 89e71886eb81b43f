//! What a denied packet is answered with, where its rule says `reject`: a TCP reset (RFC 9293 section
//! 3.5.2), else the ICMP error "communication administratively prohibited" (RFC 1812 section 5.2.7.1,
//! RFC 4443 section 3.1). It comes from where the packet was going.

use crate::addr::{Addr, proto};
use crate::packet::{IcmpKind, Packet, fragment, tcp};

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
/// How much of the transport header an error quotes: the ports (RFC 792).
const QUOTED: usize = 8;

/// An IPv4 packet with a TCP reset.
pub const RESET4: usize = IPV4_HEADER + TCP_HEADER;
/// An IPv6 packet with a TCP reset.
pub const RESET6: usize = IPV6_HEADER + TCP_HEADER;
/// What an IPv4 error quotes.
pub const QUOTE4: usize = IPV4_HEADER + QUOTED;
/// What an IPv6 error quotes.
pub const QUOTE6: usize = IPV6_HEADER + QUOTED;
/// An IPv4 packet with an error.
pub const ERROR4: usize = IPV4_HEADER + ICMP_HEADER + QUOTE4;
/// An IPv6 packet with an error.
pub const ERROR6: usize = IPV6_HEADER + ICMP_HEADER + QUOTE6;

/// As Linux' default (`IPDEFTTL`, `include/uapi/linux/ip.h`).
const HOPS: u8 = 64;

/// Who writes the checksum of the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It must be right already.
    Whole,
    /// The device, or nobody on this host, from where the denied packet's transport header was
    /// (`CHECKSUM_PARTIAL`, `include/linux/skbuff.h`). It adds up what is there, so the field must
    /// hold the sum over the pseudo header.
    Offloaded,
}

/// Whether a packet is answered at all: never one that may be an answer itself, never one to or from
/// many, never a part of one (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
#[inline(always)]
pub fn is_answered(packet: &Packet) -> bool {
    let is_reset = packet.protocol == proto::TCP && packet.tcp_flags & tcp::RST != 0;
    let is_message = packet.is_icmp(IcmpKind::Error) || packet.is_icmp(IcmpKind::Discovery);
    packet.fragment == fragment::WHOLE
        && !is_reset
        && !is_message
        && is_of_one(&packet.src)
        && is_of_one(&packet.dst)
}

/// Whether an address is that of one host: not multicast, broadcast or nobody's.
#[inline(always)]
fn is_of_one(addr: &Addr) -> bool {
    let o = &addr.octets;
    if addr.is_v4() {
        o[12] != 0 && o[12] < 224
    } else {
        o[0] != 0xff && *addr != Addr::UNSPECIFIED
    }
}

/// What a reset needs to know of the segment that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its header, up to the flags.
    pub header: [u8; 16],
    /// Bytes behind its header.
    pub payload: u32,
}

/// The header of a reset: without the checksum.
#[inline(always)]
fn reset(segment: &Segment) -> [u8; TCP_HEADER] {
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, _, flags, ..] = segment.header;
    let counted = |flag: u8| u32::from(flags & flag != 0);
    // A reset of a connection that does not exist, RFC 9293 section 3.10.7.1.
    let (sequence, acknowledgement, flags) = if flags & tcp::ACK != 0 {
        (u32::from_be_bytes([a0, a1, a2, a3]), 0, tcp::RST)
    } else {
        let next = u32::from_be_bytes([q0, q1, q2, q3])
            .wrapping_add(segment.payload)
            .wrapping_add(counted(tcp::SYN) + counted(tcp::FIN));
        (0, next, tcp::RST | tcp::ACK)
    };
    let ([q0, q1, q2, q3], [a0, a1, a2, a3]) =
        (sequence.to_be_bytes(), acknowledgement.to_be_bytes());
    [d0, d1, s0, s1, q0, q1, q2, q3, a0, a1, a2, a3, 0x50, flags, 0, 0, 0, 0, 0, 0]
}

/// An IPv4 reset for a segment of `packet`.
#[inline(always)]
pub fn reset4(bytes: &mut [u8; RESET4], packet: &Packet, segment: &Segment, checksum: Checksum) {
    ipv4(bytes, packet, proto::TCP);
    bytes[IPV4_HEADER..].copy_from_slice(&reset(segment));
    let pseudo = pseudo_header(&bytes[12..IPV4_HEADER], proto::TCP, TCP_HEADER);
    seal(bytes, IPV4_HEADER, IPV4_HEADER + 16, pseudo, checksum);
}

/// An IPv6 reset for a segment of `packet`.
#[inline(always)]
pub fn reset6(bytes: &mut [u8; RESET6], packet: &Packet, segment: &Segment, checksum: Checksum) {
    ipv6(bytes, packet, proto::TCP);
    bytes[IPV6_HEADER..].copy_from_slice(&reset(segment));
    let pseudo = pseudo_header(&bytes[8..IPV6_HEADER], proto::TCP, TCP_HEADER);
    seal(bytes, IPV6_HEADER, IPV6_HEADER + 16, pseudo, checksum);
}

/// Where an offloaded checksum of a UDP datagram goes, from the start of its header: inside an ICMP
/// header, into bytes that mean nothing there (RFC 792, RFC 4443 section 3.1). Whatever stands in the
/// ICMP checksum, the sum over all comes out right.
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;

/// Where the quote is in an IPv4 error.
pub const QUOTE4_AT: usize = ERROR4 - QUOTE4;
/// Where the quote is in an IPv6 error.
pub const QUOTE6_AT: usize = ERROR6 - QUOTE6;

/// An IPv4 error for `packet`, whose first bytes are in it already, as the quote.
#[inline(always)]
pub fn error4(bytes: &mut [u8; ERROR4], packet: &Packet, checksum: Checksum) {
    const UNREACHABLE: u8 = 3;
    const PROHIBITED: u8 = 13;
    ipv4(bytes, packet, proto::ICMP);
    bytes[IPV4_HEADER..QUOTE4_AT].copy_from_slice(&[UNREACHABLE, PROHIBITED, 0, 0, 0, 0, 0, 0]);
    let field = match checksum {
        Checksum::Whole => ICMP_CHECKSUM,
        Checksum::Offloaded => UDP_CHECKSUM,
    };
    seal(bytes, IPV4_HEADER, IPV4_HEADER + field, 0, checksum);
}

/// As [`error4`], for IPv6.
#[inline(always)]
pub fn error6(bytes: &mut [u8; ERROR6], packet: &Packet, checksum: Checksum) {
    const UNREACHABLE: u8 = 1;
    const PROHIBITED: u8 = 1;
    ipv6(bytes, packet, proto::ICMPV6);
    bytes[IPV6_HEADER..QUOTE6_AT].copy_from_slice(&[UNREACHABLE, PROHIBITED, 0, 0, 0, 0, 0, 0]);
    let pseudo = pseudo_header(&bytes[8..IPV6_HEADER], proto::ICMPV6, ICMP_HEADER + QUOTE6);
    let field = match checksum {
        Checksum::Whole => ICMP_CHECKSUM,
        Checksum::Offloaded => UDP_CHECKSUM,
    };
    seal(bytes, IPV6_HEADER, IPV6_HEADER + field, pseudo, checksum);
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
fn ipv4(bytes: &mut [u8], packet: &Packet, protocol: u8) {
    const DONT_FRAGMENT: u8 = 0x40;
    let [high, low] = (bytes.len() as u16).to_be_bytes();
    bytes[..12].copy_from_slice(&[
        0x45,
        0,
        high,
        low,
        0,
        0,
        DONT_FRAGMENT,
        0,
        HOPS,
        protocol,
        0,
        0,
    ]);
    bytes[12..16].copy_from_slice(&packet.dst.last_octets());
    bytes[16..20].copy_from_slice(&packet.src.last_octets());
    let sum = !fold(sum(&bytes[..IPV4_HEADER]));
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
fn ipv6(bytes: &mut [u8], packet: &Packet, protocol: u8) {
    let [high, low] = ((bytes.len() - IPV6_HEADER) as u16).to_be_bytes();
    bytes[..8].copy_from_slice(&[0x60, 0, 0, 0, high, low, protocol, HOPS]);
    bytes[8..24].copy_from_slice(&packet.dst.octets);
    bytes[24..40].copy_from_slice(&packet.src.octets);
}

/// Writes the checksum at `field` over the transport header and all behind it, from `start` on.
#[inline(always)]
fn seal(bytes: &mut [u8], start: usize, field: usize, pseudo: u32, checksum: Checksum) {
    let value = match checksum {
        Checksum::Whole => !fold(pseudo + sum(&bytes[start..])),
        Checksum::Offloaded => fold(pseudo),
    };
    bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum over the pseudo header: addresses, protocol and length (RFC 9293 section 3.1, RFC 8200
/// section 8.1).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u32 {
    sum(addresses) + u32::from(protocol) + length as u32
}

/// The sum of 16-bit words (RFC 1071), of an even number of bytes and few of them.
#[inline(always)]
fn sum(bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum = 0;
    for word in words {
        sum += u32::from(u16::from_be_bytes(*word));
    }
    sum
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half is folded in")]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use crate::packet::tcp::{ACK, FIN, RST, SYN};
    use std::vec::Vec;

    fn packet(v6: bool) -> Packet {
        let addr = |last: u8| {
            if v6 {
                let mut octets = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                octets[15] = last;
                Addr::v6(octets)
            } else {
                Addr::v4([192, 0, 2, last])
            }
        };
        Packet { src: addr(1), dst: addr(2), protocol: proto::TCP, ..Packet::default() }
    }

    fn segment(flags: u8, payload: u32) -> Segment {
        let header = [0x9c, 0x40, 0, 80, 0, 0, 0, 10, 0, 0, 0, 20, 0x50, flags, 0, 0];
        Segment { header, payload }
    }

    fn made_reset(packet: &Packet, segment: &Segment, checksum: Checksum) -> Vec<u8> {
        let (mut bytes4, mut bytes6) = ([0; RESET4], [0; RESET6]);
        if packet.src.is_v4() {
            reset4(&mut bytes4, packet, segment, checksum);
            bytes4.to_vec()
        } else {
            reset6(&mut bytes6, packet, segment, checksum);
            bytes6.to_vec()
        }
    }

    fn made_error4(quote: &[u8; QUOTE4], checksum: Checksum) -> Vec<u8> {
        let mut bytes = [0xff; ERROR4];
        bytes[QUOTE4_AT..].copy_from_slice(quote);
        error4(&mut bytes, &packet(false), checksum);
        bytes.to_vec()
    }

    fn made_error6(quote: &[u8; QUOTE6], checksum: Checksum) -> Vec<u8> {
        let mut bytes = [0xff; ERROR6];
        bytes[QUOTE6_AT..].copy_from_slice(quote);
        error6(&mut bytes, &packet(true), checksum);
        bytes.to_vec()
    }

    /// The sum over a whole packet's transport header, pseudo header included: all ones when right.
    fn verify(bytes: &[u8]) -> u16 {
        let v6 = bytes[0] >> 4 == 6;
        let header = if v6 { IPV6_HEADER } else { IPV4_HEADER };
        let (addresses, protocol) =
            if v6 { (&bytes[8..40], bytes[6]) } else { (&bytes[12..20], bytes[9]) };
        let pseudo = if protocol == proto::ICMP {
            0
        } else {
            pseudo_header(addresses, protocol, bytes.len() - header)
        };
        fold(pseudo + sum(&bytes[header..]))
    }

    /// What a device does with an offloaded checksum (`skb_checksum_help`, net/core/dev.c).
    fn finish(bytes: &mut [u8], field: usize) {
        let header = if bytes[0] >> 4 == 6 { IPV6_HEADER } else { IPV4_HEADER };
        let value = !fold(sum(&bytes[header..]));
        bytes[header + field..header + field + 2].copy_from_slice(&value.to_be_bytes());
    }

    #[test]
    fn a_reset_goes_back_with_numbers_that_the_sender_takes() {
        for (flags, payload, sequence, acknowledgement, answer) in [
            (SYN, 0, 0, 11, RST | ACK),
            (SYN, 5, 0, 16, RST | ACK),
            (FIN, 3, 0, 14, RST | ACK),
            (ACK, 100, 20, 0, RST),
            (SYN | ACK, 0, 20, 0, RST),
        ] {
            for v6 in [false, true] {
                let (packet, segment) = (packet(v6), segment(flags, payload));
                let bytes = made_reset(&packet, &segment, Checksum::Whole);
                let read = parse(&bytes[..], 0).expect("a packet");
                assert_eq!((read.src, read.dst), (packet.dst, packet.src));
                assert_eq!((read.src_port.get(), read.dst_port.get()), (80, 40_000));
                assert_eq!(read.tcp_flags, answer);
                let tcp = &bytes[usize::from(read.l4_offset)..];
                assert_eq!(tcp[4..8], u32::to_be_bytes(sequence), "flags {flags:#x}");
                assert_eq!(tcp[8..12], u32::to_be_bytes(acknowledgement), "flags {flags:#x}");
                assert_eq!(verify(&bytes), 0xffff);
                if !v6 {
                    assert_eq!(fold(sum(&bytes[..IPV4_HEADER])), 0xffff);
                }
            }
        }
    }

    #[test]
    fn an_error_quotes_the_packet() {
        let mut quote4 = [0; QUOTE4];
        quote4[..10].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]);
        quote4[20..].copy_from_slice(&[0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
        let bytes = made_error4(&quote4, Checksum::Whole);
        let read = parse(&bytes[..], 0).expect("a packet");
        assert!(read.is_icmp(IcmpKind::Error));
        assert_eq!((bytes[20], bytes[21]), (3, 13));
        assert_eq!(bytes[28..], quote4);
        assert_eq!(verify(&bytes), 0xffff);
        let quote6 = [6; QUOTE6];
        let bytes = made_error6(&quote6, Checksum::Whole);
        let read = parse(&bytes[..], 0).expect("a packet");
        assert!(read.is_icmp(IcmpKind::Error));
        assert_eq!((bytes[40], bytes[41]), (1, 1));
        assert_eq!(bytes[48..], quote6);
        assert_eq!(verify(&bytes), 0xffff);
    }

    #[test]
    fn a_checksum_that_a_device_writes_comes_out_right() {
        let quote4 = core::array::from_fn(|i| u8::try_from(i).unwrap() ^ 0x5a);
        let quote6 = core::array::from_fn(|i| u8::try_from(i).unwrap() ^ 0x5a);
        let offloaded = Checksum::Offloaded;
        let mut all = [
            (made_reset(&packet(false), &segment(SYN, 0), offloaded), 16),
            (made_reset(&packet(true), &segment(ACK, 9), offloaded), 16),
            (made_error4(&quote4, offloaded), UDP_CHECKSUM),
            (made_error6(&quote6, offloaded), UDP_CHECKSUM),
        ];
        for (bytes, field) in &mut all {
            finish(bytes, *field);
            assert_eq!(verify(bytes), 0xffff);
        }
    }

    #[test]
    fn answers_fragments_and_what_is_for_many_are_not_answered() {
        let plain = packet(false);
        assert!(is_answered(&plain) && is_answered(&packet(true)));
        let many = [[224, 0, 0, 1], [255, 255, 255, 255], [0, 0, 0, 0], [240, 0, 0, 1]];
        for addr in many.map(Addr::v4) {
            assert!(!is_answered(&Packet { dst: addr, ..plain }));
            assert!(!is_answered(&Packet { src: addr, ..plain }));
        }
        assert!(!is_answered(&Packet { src: Addr::UNSPECIFIED, ..packet(true) }));
        let mut group = [0; 16];
        group[0] = 0xff;
        assert!(!is_answered(&Packet { dst: Addr::v6(group), ..packet(true) }));
        assert!(!is_answered(&Packet { tcp_flags: RST | ACK, ..plain }));
        assert!(!is_answered(&Packet { fragment: fragment::FIRST | 8, ..plain }));
        let icmp = Packet { protocol: proto::ICMP, message: IcmpKind::Error as u8, ..plain };
        assert!(!is_answered(&icmp));
        assert!(is_answered(&Packet { message: IcmpKind::EchoRequest as u8, ..icmp }));
    }
}
