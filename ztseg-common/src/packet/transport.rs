//! TCP, UDP and SCTP.

use super::{Packet, Payload, Reader};
use crate::addr::Port;
use crate::verdict::Reason;

const TCP_HEADER: u16 = 20;
const UDP_HEADER: u16 = 8;
const SCTP_HEADER: u16 = 12;
const SCTP_CHUNK_HEADER: u16 = 4;

/// What the first chunk of an SCTP packet is (RFC 9260 section 3.2). The numbers go on where those
/// of [`super::IcmpKind`] end: one field of [`Packet`] holds either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SctpKind {
    /// Opens an association.
    Init = 16,
    /// Answers the opening.
    InitAck = 17,
    /// Ends an association at once.
    Abort = 18,
    /// Asks for an orderly end.
    Shutdown = 19,
    /// Answers that.
    ShutdownAck = 20,
    /// The end of an orderly end.
    ShutdownComplete = 21,
    /// Brings the answer's cookie back: the association stands.
    CookieEcho = 22,
    /// Answers that.
    CookieAck = 23,
    /// Data, heartbeats and everything else.
    Other = 24,
}

#[inline(always)]
fn sctp_kind(chunk: u8) -> SctpKind {
    match chunk {
        1 => SctpKind::Init,
        2 => SctpKind::InitAck,
        6 => SctpKind::Abort,
        7 => SctpKind::Shutdown,
        8 => SctpKind::ShutdownAck,
        10 => SctpKind::CookieEcho,
        11 => SctpKind::CookieAck,
        14 => SctpKind::ShutdownComplete,
        _ => SctpKind::Other,
    }
}

#[inline(always)]
fn set_ports(packet: &mut Packet, ports: [u8; 4]) {
    packet.src_port = Port { octets: [ports[0], ports[1]] };
    packet.dst_port = Port { octets: [ports[2], ports[3]] };
}

#[inline(always)]
pub(super) fn parse_tcp<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    payload: &Payload,
    packet: &mut Packet,
) -> Result<(), Reason> {
    payload.holds(TCP_HEADER)?;
    let ports = reader.read::<4>(payload.offset).ok_or(Reason::Truncated)?;
    set_ports(packet, ports);
    if QUOTED {
        return Ok(());
    }
    let [data_offset, flags] = reader.read::<2>(payload.offset + 12).ok_or(Reason::Truncated)?;
    let header = u16::from(data_offset >> 4) * 4;
    packet.tcp_flags = flags;
    if header < TCP_HEADER {
        return Err(Reason::Malformed);
    }
    if header > payload.length {
        return Err(if payload.first_fragment {
            Reason::TinyFragment
        } else {
            Reason::LengthBeyondPacket
        });
    }
    payload.check_length::<R, QUOTED>(reader)
}

#[inline(always)]
pub(super) fn parse_udp<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    payload: &Payload,
    packet: &mut Packet,
) -> Result<(), Reason> {
    payload.holds(UDP_HEADER)?;
    let header = reader.read::<8>(payload.offset).ok_or(Reason::Truncated)?;
    let [a, b, c, d, high, low, ..] = header;
    set_ports(packet, [a, b, c, d]);
    let length = u16::from_be_bytes([high, low]);
    if length < UDP_HEADER {
        return Err(Reason::Malformed);
    }
    // A first fragment carries the length of the whole datagram. Where the packet is whole, the
    // datagram may end before it does (RFC 9868 puts options there), and at the cgroup hooks what
    // follows the datagram is cut off already, whatever the IP header says (`pskb_trim_rcsum` in
    // net/ipv4/udp.c).
    if !QUOTED
        && !payload.first_fragment
        && (length > payload.length || payload.offset + u32::from(length) > reader.length())
    {
        return Err(Reason::LengthBeyondPacket);
    }
    Ok(())
}

#[inline(always)]
pub(super) fn parse_sctp<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    payload: &Payload,
    packet: &mut Packet,
) -> Result<(), Reason> {
    payload.holds(SCTP_HEADER + SCTP_CHUNK_HEADER)?;
    let ports = reader.read::<4>(payload.offset).ok_or(Reason::Truncated)?;
    set_ports(packet, ports);
    if QUOTED {
        return Ok(());
    }
    let chunk = payload.offset + u32::from(SCTP_HEADER);
    let [kind, _, high, low] = reader.read::<4>(chunk).ok_or(Reason::Truncated)?;
    packet.message = sctp_kind(kind) as u8;
    let length = u16::from_be_bytes([high, low]);
    if length < SCTP_CHUNK_HEADER {
        return Err(Reason::Malformed);
    }
    if !payload.first_fragment && length > payload.length - SCTP_HEADER {
        return Err(Reason::LengthBeyondPacket);
    }
    payload.check_length::<R, QUOTED>(reader)
}
