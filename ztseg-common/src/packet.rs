//! The one packet parser. The kernel programs and userspace (tests, fuzzing) compile this file.
//!
//! It reads IPv4 (RFC 791), IPv6 with extension headers (RFC 8200), TCP (RFC 9293), UDP (RFC 768),
//! SCTP (RFC 9260), ICMP (RFC 792) and `ICMPv6` (RFC 4443). What it cannot read is an error with a
//! named reason, and the caller denies.

use crate::addr::{Addr, Port, proto};
use crate::verdict::Reason;

/// Bytes of a packet, by offset.
pub trait Reader {
    /// Reads only what nearly all packets are: IPv4 without options, IPv6 without extension
    /// headers. Anything else is an error, and to be parsed with another reader.
    const PLAIN_ONLY: bool = false;

    /// `N` bytes at `offset`, or `None` when the packet ends before.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Reader for [u8] {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// TCP flag bits (RFC 9293 section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

/// What an ICMP or `ICMPv6` message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IcmpKind {
    /// An echo request: opens a flow.
    EchoRequest = 1,
    /// An echo reply: the answer in a flow.
    EchoReply = 2,
    /// An error that quotes the packet it is about.
    Error = 3,
    /// Neighbour or router discovery with the hop limit that RFC 4861 section 7.1 demands.
    Discovery = 4,
    /// Any other message: a flow of its own, one way.
    Other = 5,
}

/// A parsed packet: the fields that a verdict needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port; for an ICMP echo its identifier; else zero.
    pub src_port: Port,
    /// Destination port; for ICMP zero.
    pub dst_port: Port,
    /// IP protocol number, after the extension headers.
    pub protocol: u8,
    /// TCP flags, else zero.
    pub tcp_flags: u8,
    /// ICMP type, else zero.
    pub icmp_type: u8,
    /// For ICMP and `ICMPv6`; zero otherwise. An [`IcmpKind`].
    pub icmp_kind: u8,
    /// Offset of the transport header.
    pub l4_offset: u16,
    /// Length of the IP packet in bytes, as its header says.
    pub length: u16,
}

impl Packet {
    /// (protocol, port) that rules match: the destination port, or the ICMP type.
    ///
    /// `reply` says that the packet answers the one that opened the flow.
    #[inline(always)]
    pub const fn service(&self, reply: bool) -> u16 {
        match self.protocol {
            proto::ICMP | proto::ICMPV6 => self.icmp_type as u16,
            _ if reply => self.src_port.get(),
            _ => self.dst_port.get(),
        }
    }

    /// Whether it is an ICMP message of this kind.
    #[inline(always)]
    pub const fn is_icmp(&self, kind: IcmpKind) -> bool {
        self.icmp_kind == kind as u8
    }

    /// The (local, remote) ports of the flow table's key.
    ///
    /// An echo flow is known by its identifier and by which end asks, so that a request of the
    /// peer is never taken for an answer. Other ICMP messages are known by their type.
    #[inline(always)]
    pub const fn flow_ports(&self, outbound: bool) -> (Port, Port) {
        const LOCAL_ASKS: u16 = 1;
        const PEER_ASKS: u16 = 2;
        match self.protocol {
            proto::ICMP | proto::ICMPV6 => {
                if self.is_icmp(IcmpKind::EchoRequest) || self.is_icmp(IcmpKind::EchoReply) {
                    let asks = self.is_icmp(IcmpKind::EchoRequest) == outbound;
                    (self.src_port, Port::new(if asks { LOCAL_ASKS } else { PEER_ASKS }))
                } else {
                    let way = if outbound { 0x100 } else { 0x200 };
                    (Port::new(way), Port::new(way | self.icmp_type as u16))
                }
            }
            _ if outbound => (self.src_port, self.dst_port),
            _ => (self.dst_port, self.src_port),
        }
    }
}

/// Ethernet types (IEEE 802 numbers), host order.
pub mod ethertype {
    /// IPv4
    pub const IPV4: u16 = 0x0800;
    /// ARP
    pub const ARP: u16 = 0x0806;
    /// 802.1Q tag
    pub const VLAN: u16 = 0x8100;
    /// IPv6
    pub const IPV6: u16 = 0x86dd;
    /// 802.1ad tag
    pub const QINQ: u16 = 0x88a8;
}

const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_OFFSET: u16 = 0x1fff;
/// How many IPv6 extension headers are read; RFC 8200 section 4.1 names six kinds, once each.
const MAX_EXTENSION_HEADERS: u32 = 6;

/// Parses the IP packet at `offset`; the version nibble says which.
pub fn parse<R: Reader + ?Sized>(reader: &R, offset: u32) -> Result<Packet, Reason> {
    let mut packet = Packet::default();
    parse_into(reader, offset, &mut packet)?;
    Ok(packet)
}

/// As [`parse`], field by field into `packet`, so that nothing is copied twice in the kernel. After
/// an error the fields are not to be used.
#[inline(always)]
pub fn parse_into<R: Reader + ?Sized>(
    reader: &R,
    offset: u32,
    packet: &mut Packet,
) -> Result<(), Reason> {
    parse_ip::<R, false>(reader, offset, packet)
}

/// Parses the packet that an ICMP error quotes: of the transport header only the first eight bytes
/// need be there (RFC 792, RFC 1812 section 4.3.2.3).
#[inline(always)]
pub fn parse_quoted<R: Reader + ?Sized>(
    reader: &R,
    offset: u32,
    packet: &mut Packet,
) -> Result<(), Reason> {
    parse_ip::<R, true>(reader, offset, packet)
}

#[inline(always)]
fn parse_ip<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    offset: u32,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let [first] = reader.read::<1>(offset).ok_or(Reason::Truncated)?;
    let l4 = match first >> 4 {
        4 => parse_v4(reader, offset, first, packet)?,
        6 => parse_v6(reader, offset, packet)?,
        _ => return Err(Reason::Malformed),
    };
    l4.parse::<R, QUOTED>(reader, packet)
}

#[inline(always)]
fn be16<R: Reader + ?Sized>(reader: &R, offset: u32) -> Result<u16, Reason> {
    reader.read::<2>(offset).map(u16::from_be_bytes).ok_or(Reason::Truncated)
}

#[inline(always)]
fn parse_v4<R: Reader + ?Sized>(
    reader: &R,
    offset: u32,
    first: u8,
    packet: &mut Packet,
) -> Result<Transport, Reason> {
    let header_length = u16::from(first & 0x0f) * 4;
    let total_length = be16(reader, offset + 2)?;
    if header_length < 20 || total_length < header_length {
        return Err(Reason::Malformed);
    }
    if R::PLAIN_ONLY && header_length != 20 {
        return Err(Reason::TooManyHeaders);
    }
    let header_length = if R::PLAIN_ONLY { 20 } else { header_length };
    let fragment = be16(reader, offset + 6)?;
    if fragment & IPV4_OFFSET != 0 {
        return Err(Reason::FragmentWithoutFirst);
    }
    let [protocol] = reader.read::<1>(offset + 9).ok_or(Reason::Truncated)?;
    packet.src = Addr::v4(reader.read::<4>(offset + 12).ok_or(Reason::Truncated)?);
    packet.dst = Addr::v4(reader.read::<4>(offset + 16).ok_or(Reason::Truncated)?);
    packet.length = total_length;
    Ok(Transport {
        protocol,
        offset: offset + u32::from(header_length),
        length: total_length - header_length,
        first_fragment: fragment & IPV4_MORE_FRAGMENTS != 0,
        hop_limit: 0,
    })
}

#[inline(always)]
fn parse_v6<R: Reader + ?Sized>(
    reader: &R,
    offset: u32,
    packet: &mut Packet,
) -> Result<Transport, Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let payload_length = be16(reader, offset + 4)?;
    let [mut next, hop_limit] = reader.read::<2>(offset + 6).ok_or(Reason::Truncated)?;
    packet.src = Addr::v6(reader.read::<16>(offset + 8).ok_or(Reason::Truncated)?);
    packet.dst = Addr::v6(reader.read::<16>(offset + 24).ok_or(Reason::Truncated)?);
    packet.length = payload_length.saturating_add(40);
    let mut extensions: u16 = 0;
    let mut first_fragment = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if R::PLAIN_ONLY
            || !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
        {
            break;
        }
        let at = offset + 40 + u32::from(extensions);
        let h = reader.read::<4>(at).ok_or(Reason::Truncated)?;
        let length = match next {
            FRAGMENT => {
                let field = u16::from_be_bytes([h[2], h[3]]);
                if field & 0xfff8 != 0 {
                    return Err(Reason::FragmentWithoutFirst);
                }
                first_fragment = field & 1 != 0;
                8
            }
            AUTHENTICATION => (u16::from(h[1]) + 2) * 4,
            _ => (u16::from(h[1]) + 1) * 8,
        };
        next = h[0];
        extensions += length;
    }
    if matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
        return Err(Reason::TooManyHeaders);
    }
    // Zero is a jumbogram (RFC 2675): no link below carries one, and its length is elsewhere.
    // The kernel's own GSO packets above 64 KiB have it too, with TCP right behind.
    let length = if payload_length == 0 { u16::MAX } else { payload_length };
    if length < extensions {
        return Err(Reason::Malformed);
    }
    Ok(Transport {
        protocol: next,
        offset: offset + 40 + u32::from(extensions),
        length: length - extensions,
        first_fragment,
        hop_limit,
    })
}

struct Transport {
    protocol: u8,
    offset: u32,
    /// Bytes that the IP header announces from `offset` on.
    length: u16,
    first_fragment: bool,
    hop_limit: u8,
}

impl Transport {
    #[inline(always)]
    fn parse<R: Reader + ?Sized, const QUOTED: bool>(
        &self,
        reader: &R,
        packet: &mut Packet,
    ) -> Result<(), Reason> {
        packet.protocol = self.protocol;
        #[expect(clippy::cast_possible_truncation, reason = "headers end far below 64 KiB")]
        {
            packet.l4_offset = self.offset as u16;
        }
        let announced = match self.protocol {
            proto::TCP => 20,
            proto::UDP | proto::ICMP | proto::ICMPV6 => 8,
            proto::SCTP => 12,
            _ => return Ok(()),
        };
        if self.length < announced {
            // A first fragment that stops inside the header would hide ports (RFC 1858, RFC 8200
            // section 4.5).
            return Err(if self.first_fragment { Reason::Malformed } else { Reason::Truncated });
        }
        if matches!(self.protocol, proto::ICMP | proto::ICMPV6) {
            // The whole fixed header must be there, although only two fields are read.
            let [icmp_type] = reader.read::<1>(self.offset).ok_or(Reason::Truncated)?;
            let identifier = reader.read::<4>(self.offset + 4).ok_or(Reason::Truncated)?;
            let kind = if self.protocol == proto::ICMP {
                icmp_kind_v4(icmp_type)
            } else {
                icmp_kind_v6(icmp_type, self.hop_limit)
            };
            packet.icmp_type = icmp_type;
            packet.icmp_kind = kind as u8;
            if matches!(kind, IcmpKind::EchoRequest | IcmpKind::EchoReply) {
                packet.src_port = Port { octets: [identifier[0], identifier[1]] };
            }
            return Ok(());
        }
        let ports = reader.read::<4>(self.offset).ok_or(Reason::Truncated)?;
        packet.src_port = Port { octets: [ports[0], ports[1]] };
        packet.dst_port = Port { octets: [ports[2], ports[3]] };
        if self.protocol == proto::TCP && !QUOTED {
            let [data_offset, flags] =
                reader.read::<2>(self.offset + 12).ok_or(Reason::Truncated)?;
            let data_offset = u16::from(data_offset >> 4) * 4;
            if data_offset < 20 || data_offset > self.length {
                return Err(Reason::Malformed);
            }
            packet.tcp_flags = flags;
        }
        Ok(())
    }
}

/// RFC 792: 3 destination unreachable, 4 source quench, 5 redirect, 11 time exceeded,
/// 12 parameter problem.
#[inline(always)]
fn icmp_kind_v4(icmp_type: u8) -> IcmpKind {
    match icmp_type {
        8 => IcmpKind::EchoRequest,
        0 => IcmpKind::EchoReply,
        3 | 4 | 5 | 11 | 12 => IcmpKind::Error,
        _ => IcmpKind::Other,
    }
}

/// RFC 4443: types below 128 are errors. RFC 4861: 133 to 137, only with hop limit 255.
#[inline(always)]
fn icmp_kind_v6(icmp_type: u8, hop_limit: u8) -> IcmpKind {
    match icmp_type {
        128 => IcmpKind::EchoRequest,
        129 => IcmpKind::EchoReply,
        0..=127 => IcmpKind::Error,
        133..=137 if hop_limit == 255 => IcmpKind::Discovery,
        _ => IcmpKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;

    fn v4(protocol: u8, fragment: u16, l4: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + l4.len()).expect("short");
        let mut p = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        p[2..4].copy_from_slice(&total.to_be_bytes());
        p[6..8].copy_from_slice(&fragment.to_be_bytes());
        p.extend_from_slice(l4);
        p
    }

    fn v6(next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, 0, 0, next, hop_limit];
        p[4..6].copy_from_slice(&u16::try_from(payload.len()).expect("short").to_be_bytes());
        p.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        p.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        p.extend_from_slice(payload);
        p
    }

    fn tcp_header(flags: u8) -> Vec<u8> {
        let mut h = vec![0x04, 0xd2, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0];
        h[15] = 1;
        h
    }

    #[test]
    fn reads_tcp_in_both_families() {
        for bytes in [v4(6, 0, &tcp_header(tcp::SYN)), v6(6, 64, &tcp_header(tcp::SYN))] {
            let p = parse(bytes.as_slice(), 0).expect("parses");
            assert_eq!((p.src_port.get(), p.dst_port.get()), (1234, 80));
            assert_eq!((p.protocol, p.tcp_flags), (proto::TCP, tcp::SYN));
            assert_eq!(usize::from(p.length), bytes.len());
        }
    }

    #[test]
    fn every_cut_of_a_packet_is_refused() {
        for whole in [v4(6, 0, &tcp_header(2)), v6(6, 64, &tcp_header(2))] {
            let needed = whole.len() - 6; // window, checksum and urgent pointer are not read
            for n in 0..needed {
                assert_eq!(parse(&whole[..n], 0), Err(Reason::Truncated), "{n} bytes");
            }
            assert!(parse(&whole[..needed], 0).is_ok());
        }
    }

    #[test]
    fn contradictions_are_malformed() {
        let mut short_ihl = v4(6, 0, &tcp_header(2));
        short_ihl[0] = 0x44;
        assert_eq!(parse(short_ihl.as_slice(), 0), Err(Reason::Malformed));
        let mut total = v4(6, 0, &tcp_header(2));
        total[3] = 10;
        assert_eq!(parse(total.as_slice(), 0), Err(Reason::Malformed));
        let mut data_offset = v4(6, 0, &tcp_header(2));
        data_offset[32] = 0x40;
        assert_eq!(parse(data_offset.as_slice(), 0), Err(Reason::Malformed));
        let mut version = v4(6, 0, &tcp_header(2));
        version[0] = 0x55;
        assert_eq!(parse(version.as_slice(), 0), Err(Reason::Malformed));
    }

    struct Plain<'a>(&'a [u8]);

    impl Reader for Plain<'_> {
        const PLAIN_ONLY: bool = true;

        fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            self.0.read(offset)
        }
    }

    #[test]
    fn a_plain_reader_agrees_or_gives_up() {
        let mut options = v4(6, 0, &[0, 0, 0, 0]);
        options[0] = 0x46;
        options.extend_from_slice(&tcp_header(tcp::SYN));
        options[3] = 44;
        let extended = v6(0, 64, &[17, 0, 0, 0, 0, 0, 0, 0, 0, 53, 0, 99, 0, 8, 0, 0]);
        for bytes in [&options, &extended] {
            assert!(parse(bytes.as_slice(), 0).is_ok());
            assert!(parse(&Plain(bytes), 0).is_err());
        }
        for bytes in [v4(6, 0, &tcp_header(2)), v6(6, 64, &tcp_header(2))] {
            assert_eq!(parse(&Plain(&bytes), 0), parse(bytes.as_slice(), 0));
        }
    }

    #[test]
    fn a_quoted_header_may_stop_after_the_ports() {
        let whole = v4(6, 0, &tcp_header(tcp::SYN));
        assert_eq!(parse(&whole[..28], 0), Err(Reason::Truncated));
        let mut p = Packet::default();
        parse_quoted(&whole[..28], 0, &mut p).expect("parses");
        assert_eq!((p.src_port.get(), p.dst_port.get()), (1234, 80));
    }

    #[test]
    fn later_fragments_have_no_ports() {
        assert_eq!(parse(v4(17, 100, &[0; 8]).as_slice(), 0), Err(Reason::FragmentWithoutFirst));
        let tiny_first = v4(6, IPV4_MORE_FRAGMENTS, &[0; 8]);
        assert_eq!(parse(tiny_first.as_slice(), 0), Err(Reason::Malformed));
        let later = [17, 0, 0, 8 << 3, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(v6(44, 64, &later).as_slice(), 0), Err(Reason::FragmentWithoutFirst));
    }

    #[test]
    fn extension_headers_are_walked_and_bounded() {
        let mut payload = vec![60, 0, 0, 0, 0, 0, 0, 0]; // hop-by-hop, then destination options
        payload.extend_from_slice(&[17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend_from_slice(&[0, 53, 0, 99, 0, 8, 0, 0]);
        let p = parse(v6(0, 64, &payload).as_slice(), 0).expect("parses");
        assert_eq!((p.protocol, p.src_port.get(), p.l4_offset), (17, 53, 64));
        let mut endless = Vec::new();
        for _ in 0..7 {
            endless.extend_from_slice(&[60, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(parse(v6(60, 64, &endless).as_slice(), 0), Err(Reason::TooManyHeaders));
    }

    #[test]
    fn discovery_needs_hop_limit_255() {
        let solicit = [135, 0, 0, 0, 0, 0, 0, 0];
        let near = parse(v6(58, 255, &solicit).as_slice(), 0).expect("parses");
        assert!(near.is_icmp(IcmpKind::Discovery));
        let routed = parse(v6(58, 64, &solicit).as_slice(), 0).expect("parses");
        assert!(routed.is_icmp(IcmpKind::Other));
    }

    #[test]
    fn an_echo_request_of_the_peer_is_not_an_answer() {
        let request = parse(v4(1, 0, &[8, 0, 0, 0, 7, 7, 0, 1]).as_slice(), 0).expect("parses");
        let reply = parse(v4(1, 0, &[0, 0, 0, 0, 7, 7, 0, 1]).as_slice(), 0).expect("parses");
        assert_eq!(request.flow_ports(true), reply.flow_ports(false));
        assert_ne!(request.flow_ports(true), request.flow_ports(false));
    }
}
