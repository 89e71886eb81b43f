//! The one packet parser. The kernel programs and userspace (tests, fuzzing) compile this module.
//!
//! * `ip`: IPv4 (RFC 791) with options, IPv6 (RFC 8200) with extension headers, AH (RFC 4302) in both,
//!   fragments
//! * `transport`: TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260)
//! * `icmp`: ICMP (RFC 792) and `ICMPv6` (RFC 4443), with the discovery that IPv6 needs
//!
//! What it cannot read is an error with a named reason, and the caller denies. A later fragment is
//! no error: it has no ports, and [`Packet::fragment`] says which first fragment it belongs to.

pub mod fragment;
mod icmp;
mod ip;
#[cfg(test)]
mod tests;
mod transport;

pub use icmp::IcmpKind;
pub use ip::{extension, option};
pub use transport::SctpKind;

use crate::addr::{Addr, Port, proto};
use crate::verdict::Reason;

/// Bytes of a packet, by offset.
pub trait Reader {
    /// Reads only what nearly all packets are: IPv4 without options, IPv6 without extension
    /// headers. Anything else is an error, and to be parsed with another reader.
    const PLAIN_ONLY: bool = false;

    /// `N` bytes at `offset`, or `None` when the packet ends before. `N` is 1, 2 or a multiple of 4.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// How many bytes there are, from offset zero.
    fn length(&self) -> u32;

    /// Reads one option of an IPv4 header that ends at `end`. The reader in the kernel overrides it
    /// with a subprogram, which the verifier follows once and not once for each option in a row.
    #[inline(always)]
    fn option(&self, end: u16, packet: &mut Packet) -> Result<(), Reason> {
        option(self, end, packet)
    }

    /// Reads one IPv6 extension header, of a packet whose extension headers begin at `start` and
    /// that announces so many bytes from there on; overridden as [`Self::option`] is.
    #[inline(always)]
    fn extension<const QUOTED: bool>(
        &self,
        start: u32,
        announced: u16,
        packet: &mut Packet,
    ) -> Result<(), Reason> {
        extension::<Self, QUOTED>(self, start, announced, packet)
    }

    /// Reads the transport header; overridden as [`Self::option`] is, so that it is not followed for
    /// each way through the headers before it.
    #[inline(always)]
    fn transport<const QUOTED: bool>(
        &self,
        payload: &Payload,
        packet: &mut Packet,
    ) -> Result<(), Reason> {
        transport::<Self, QUOTED>(self, payload, packet)
    }
}

impl Reader for [u8] {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }

    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
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

    /// Whether a segment with these flags asks for a connection.
    #[inline(always)]
    pub const fn is_request(flags: u8) -> bool {
        flags & (SYN | ACK | RST) == SYN
    }
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
    /// IP protocol number, after the extension headers. Of a later fragment only what it claims:
    /// the first one decides.
    pub protocol: u8,
    /// TCP flags, else zero.
    pub tcp_flags: u8,
    /// ICMP type, else zero.
    pub icmp_type: u8,
    /// An [`IcmpKind`] or a [`SctpKind`]; zero for anything else.
    pub message: u8,
    /// Offset of the transport header; of a later fragment, that of its data.
    pub l4_offset: u16,
    /// Length of the IP packet in bytes, as its header says. 65535 for a larger one, which only the
    /// kernel itself makes and cuts up before it leaves (BIG TCP).
    pub length: u16,
    /// A fragment's identification; zero for a whole packet. The 32 bits of IPv6 are folded: should
    /// two packets between the same two ends meet here, a later fragment may follow the wrong
    /// first one, and its receiver has no first one to put it to.
    pub fragment_id: u16,
    /// [`Self::fragment_edge`], and one of [`fragment`] in the lowest three bits.
    pub fragment: u16,
}

const _: () = assert!(size_of::<Packet>() == 48);

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
        self.message == kind as u8
    }

    /// The type of the ICMP message that opened the flow of this one, which `opens` says whether the
    /// same end has sent.
    #[inline(always)]
    pub const fn icmp_type_of_flow(&self, opens: bool) -> u8 {
        if opens {
            return self.icmp_type;
        }
        // An echo's answer comes from the other end.
        match (self.protocol, self.icmp_type) {
            (proto::ICMP, 0) => 8,
            (proto::ICMP, 8) => 0,
            (proto::ICMPV6, 128) => 129,
            (proto::ICMPV6, 129) => 128,
            (_, icmp_type) => icmp_type,
        }
    }

    /// Whether it is an SCTP packet whose first chunk is of this kind.
    #[inline(always)]
    pub const fn is_sctp(&self, kind: SctpKind) -> bool {
        self.message == kind as u8
    }

    /// Whether it is a first fragment, and more are to follow.
    #[inline(always)]
    pub const fn is_first_fragment(&self) -> bool {
        self.fragment & fragment::KIND == fragment::FIRST
    }

    /// Whether it is a later fragment, which has no ports.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment & fragment::KIND == fragment::LATER
    }

    /// Where in the fragmented data, in bytes, a first fragment ends and a later one begins. A later
    /// one that begins before its first ends overlaps it (RFC 1858, RFC 5722).
    #[inline(always)]
    pub const fn fragment_edge(&self) -> u16 {
        self.fragment & !fragment::KIND
    }

    /// What tells fragments of one packet from others beside addresses and identification: in IPv4
    /// the protocol (RFC 791), in IPv6 always 44, since only the first fragment's next header counts
    /// (RFC 8200 section 4.5).
    #[inline(always)]
    pub fn fragment_protocol(&self) -> u8 {
        if self.src.is_v4() { self.protocol } else { ip::FRAGMENT }
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

/// Parses the IP packet at `offset`; the version nibble says which.
pub fn parse<R: Reader + ?Sized>(reader: &R, offset: u32) -> Result<Packet, Reason> {
    let mut packet = Packet::default();
    parse_into(reader, offset, &mut packet)?;
    Ok(packet)
}

/// As [`parse`], field by field into `packet`, so that nothing is copied twice in the kernel.
/// `packet` is to be [`Packet::default`] before. After an error, an address in it that is not
/// [`Addr::UNSPECIFIED`] was read; nothing else is to be relied on.
#[inline(always)]
pub fn parse_into<R: Reader + ?Sized>(
    reader: &R,
    offset: u32,
    packet: &mut Packet,
) -> Result<(), Reason> {
    parse_ip::<R, false>(reader, offset, packet)
}

/// Parses the packet that an ICMP error quotes: of the transport header only the first eight bytes
/// need be there (RFC 792, RFC 1812 section 4.3.2.3), and no length is compared with what is there.
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
    let payload = match first >> 4 {
        4 => ip::parse_v4::<R, QUOTED>(reader, offset, first, packet)?,
        6 => ip::parse_v6::<R, QUOTED>(reader, offset, packet)?,
        _ => return Err(Reason::Malformed),
    };
    packet.protocol = payload.protocol;
    #[expect(clippy::cast_possible_truncation, reason = "headers end far below 64 KiB")]
    {
        packet.l4_offset = payload.offset as u16;
    }
    if packet.is_later_fragment() {
        return Ok(());
    }
    reader.transport::<QUOTED>(&payload, packet)
}

/// See [`Reader::transport`].
#[inline(always)]
pub fn transport<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    payload: &Payload,
    packet: &mut Packet,
) -> Result<(), Reason> {
    match payload.protocol {
        proto::TCP => transport::parse_tcp::<R, QUOTED>(reader, payload, packet),
        proto::UDP => transport::parse_udp::<R, QUOTED>(reader, payload, packet),
        proto::SCTP => transport::parse_sctp::<R, QUOTED>(reader, payload, packet),
        proto::ICMP if !payload.v6 => icmp::parse::<R, QUOTED>(reader, payload, packet),
        proto::ICMPV6 if payload.v6 => icmp::parse::<R, QUOTED>(reader, payload, packet),
        protocol if ip::is_unknown(protocol, payload.v6) => Err(Reason::UnknownProtocol),
        _ => payload.check_length::<R, QUOTED>(reader),
    }
}

/// What follows the IP header and its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    protocol: u8,
    offset: u32,
    /// Bytes that the IP header announces from `offset` on.
    length: u16,
    first_fragment: bool,
    v6: bool,
    /// IPv6: the hop limit.
    hop_limit: u8,
    /// IPv6: whether there are hop-by-hop options.
    hop_by_hop: bool,
}

impl Payload {
    /// What of it is not in the packet, in one number.
    #[inline(always)]
    #[must_use]
    pub const fn rest(&self) -> u32 {
        let flags = (self.v6 as u8) << 1 | self.hop_by_hop as u8;
        let [low, high] = self.length.to_le_bytes();
        u32::from_le_bytes([low, high, self.hop_limit, flags])
    }

    /// The payload of a packet that has been read so far, with [`Self::rest`].
    #[inline(always)]
    #[must_use]
    pub fn of(packet: &Packet, rest: u32) -> Self {
        let [low, high, hop_limit, flags] = rest.to_le_bytes();
        Self {
            protocol: packet.protocol,
            offset: u32::from(packet.l4_offset),
            length: u16::from_le_bytes([low, high]),
            first_fragment: packet.is_first_fragment(),
            v6: flags & 2 != 0,
            hop_limit,
            hop_by_hop: flags & 1 != 0,
        }
    }

    /// Why a header that is not all there is refused. A first fragment that stops inside a header
    /// hides what rules ask for (RFC 1858, RFC 7112).
    #[inline(always)]
    fn short(&self) -> Reason {
        if self.first_fragment { Reason::TinyFragment } else { Reason::Truncated }
    }

    /// Refuses a payload that announces less than `header` bytes.
    #[inline(always)]
    fn holds(&self, header: u16) -> Result<(), Reason> {
        if self.length < header { Err(self.short()) } else { Ok(()) }
    }

    /// Refuses a payload that announces more than there is. Less is padding of the link.
    #[inline(always)]
    fn check_length<R: Reader + ?Sized, const QUOTED: bool>(
        &self,
        reader: &R,
    ) -> Result<(), Reason> {
        if !QUOTED && self.offset + u32::from(self.length) > reader.length() {
            return Err(Reason::LengthBeyondPacket);
        }
        Ok(())
    }
}

#[inline(always)]
fn be16<R: Reader + ?Sized>(reader: &R, offset: u32) -> Result<u16, Reason> {
    reader.read::<2>(offset).map(u16::from_be_bytes).ok_or(Reason::Truncated)
}
