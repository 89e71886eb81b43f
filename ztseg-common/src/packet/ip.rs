//! IPv4 and IPv6, up to the transport header.

use super::fragment::{self, Fragment};
use super::{Packet, Payload, Reader, be16};
use crate::addr::{Addr, proto};
use crate::verdict::Reason;

/// IPv6 extension headers (IANA "IPv6 Extension Header Types"). AH is one in IPv4, too.
pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const AUTHENTICATION: u8 = 51;
pub(super) const DESTINATION: u8 = 60;
/// Nothing follows (RFC 8200 section 4.7).
const NO_NEXT_HEADER: u8 = 59;
const IGMP: u8 = 2;

/// How many IPv6 extension headers are read. RFC 8200 section 4.1 names six kinds, destination
/// options twice.
pub(super) const MAX_EXTENSION_HEADERS: u32 = 8;

const V4_HEADER: u16 = 20;
const V6_HEADER: u16 = 40;
const FRAGMENT_HEADER: u16 = 8;
/// The longest IPv4 header, and so the most options that one can hold.
const V4_MAX_OPTIONS: u32 = 40;

const V4_MORE_FRAGMENTS: u16 = 0x2000;
const V4_OFFSET: u16 = 0x1fff;
const V6_MORE_FRAGMENTS: u16 = 1;
const V6_OFFSET: u16 = 0xfff8;

/// Whether a protocol number means nothing in this IP version: the other version's, or one that
/// IANA has not assigned.
#[inline(always)]
pub(super) fn is_unknown(protocol: u8, v6: bool) -> bool {
    match protocol {
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION | NO_NEXT_HEADER | proto::ICMPV6 => !v6,
        proto::ICMP | IGMP => v6,
        148..=252 | 255 => true,
        _ => false,
    }
}

#[inline(always)]
pub(super) fn parse_v4<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    offset: u32,
    first: u8,
    packet: &mut Packet,
) -> Result<Payload, Reason> {
    let header = u16::from(first & 0x0f) * 4;
    let mut total = be16(reader, offset + 2)?;
    if total == 0 && is_big::<R, QUOTED>(reader, offset) {
        total = u16::MAX;
    }
    if header < V4_HEADER || total < header {
        return Err(Reason::Malformed);
    }
    if R::PLAIN_ONLY && header != V4_HEADER {
        return Err(Reason::TooManyHeaders);
    }
    let header = if R::PLAIN_ONLY { V4_HEADER } else { header };
    let [id_high, id_low, field_high, field_low] =
        reader.read::<4>(offset + 4).ok_or(Reason::Truncated)?;
    let [mut protocol] = reader.read::<1>(offset + 9).ok_or(Reason::Truncated)?;
    packet.src = Addr::v4(reader.read::<4>(offset + 12).ok_or(Reason::Truncated)?);
    packet.dst = Addr::v4(reader.read::<4>(offset + 16).ok_or(Reason::Truncated)?);
    packet.length = total;
    if !R::PLAIN_ONLY && !QUOTED && header > V4_HEADER {
        #[expect(clippy::cast_possible_truncation, reason = "link headers are short")]
        let start = offset as u16;
        check_options(reader, start + V4_HEADER, start + header, packet)?;
    }
    let field = u16::from_be_bytes([field_high, field_low]);
    let mut headers = header;
    let fragment = Fragment {
        id: u32::from(u16::from_be_bytes([id_high, id_low])),
        offset: (field & V4_OFFSET) << 3,
        more: field & V4_MORE_FRAGMENTS != 0,
        data: total - header,
        before: header,
    };
    fragment.apply(protocol, QUOTED, packet)?;
    if !packet.is_later_fragment() && protocol == AUTHENTICATION {
        if R::PLAIN_ONLY {
            return Err(Reason::TooManyHeaders);
        }
        let at = offset + u32::from(header);
        let Some([next, length]) = reader.read::<2>(at) else {
            return Err(if fragment.more { Reason::TinyFragment } else { Reason::Truncated });
        };
        headers += authentication_length(length);
        protocol = next;
        if protocol == AUTHENTICATION {
            return Err(Reason::TooManyHeaders);
        }
    }
    payload::<R, QUOTED>(
        reader,
        packet,
        Payload {
            protocol,
            offset: offset + u32::from(headers),
            length: total,
            first_fragment: packet.is_first_fragment(),
            v6: false,
            hop_limit: 0,
            hop_by_hop: false,
        },
        headers,
    )
}

/// Refuses options that name further waypoints (RFC 791: loose and strict source route), and those
/// that do not fit into the header. On the way, `packet.l4_offset` is where the next one is.
#[inline(always)]
fn check_options<R: Reader + ?Sized>(
    reader: &R,
    start: u16,
    end: u16,
    packet: &mut Packet,
) -> Result<(), Reason> {
    packet.l4_offset = start;
    // One byte each at least.
    for _ in 0..V4_MAX_OPTIONS {
        forget(packet);
        if packet.l4_offset >= end {
            break;
        }
        reader.option(end, packet)?;
    }
    Ok(())
}

/// Reads the option at `packet.l4_offset` of a header that ends at `end`, and moves on to the next
/// one.
#[inline(always)]
pub fn option<R: Reader + ?Sized>(reader: &R, end: u16, packet: &mut Packet) -> Result<(), Reason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;

    let at = packet.l4_offset;
    let [kind] = reader.read::<1>(u32::from(at)).ok_or(Reason::Truncated)?;
    packet.l4_offset = match kind {
        END => end,
        NO_OPERATION => at.wrapping_add(1),
        LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Reason::SourceRoute),
        _ => {
            let [size] = reader.read::<1>(u32::from(at) + 1).ok_or(Reason::Truncated)?;
            if size < 2 || u16::from(size) > end.wrapping_sub(at) {
                return Err(Reason::Malformed);
            }
            at.wrapping_add(u16::from(size))
        }
    };
    Ok(())
}

#[inline(always)]
pub(super) fn parse_v6<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    offset: u32,
    packet: &mut Packet,
) -> Result<Payload, Reason> {
    let [length_high, length_low, mut next, hop_limit] =
        reader.read::<4>(offset + 4).ok_or(Reason::Truncated)?;
    packet.src = Addr::v6(reader.read::<16>(offset + 8).ok_or(Reason::Truncated)?);
    packet.dst = Addr::v6(reader.read::<16>(offset + 24).ok_or(Reason::Truncated)?);
    let mut announced = u16::from_be_bytes([length_high, length_low]);
    if announced == 0 && next != NO_NEXT_HEADER {
        // RFC 2675: the length is in an option, and no link carries such a packet. The kernel's own
        // have it before they are cut up, some with that option and some without.
        if !is_big::<R, QUOTED>(reader, offset) {
            return Err(Reason::Jumbogram);
        }
        announced = u16::MAX;
    }
    packet.length = announced.saturating_add(V6_HEADER);
    let mut read: u16 = 0;
    let start = offset + u32::from(V6_HEADER);
    let hop_by_hop = next == HOP_BY_HOP;
    if !R::PLAIN_ONLY && is_extension(next) {
        packet.protocol = next;
        let mut fragmented = false;
        for index in 0..MAX_EXTENSION_HEADERS {
            forget(packet);
            if packet.is_later_fragment() || !is_extension(packet.protocol) {
                break;
            }
            if packet.protocol == FRAGMENT {
                if fragmented {
                    return Err(Reason::BadFragment);
                }
                fragmented = true;
            }
            // RFC 8200 section 4.1: hop-by-hop options stand first or nowhere.
            if packet.protocol == HOP_BY_HOP && index != 0 {
                return Err(Reason::Malformed);
            }
            reader.extension::<QUOTED>(start, announced, packet)?;
        }
        forget(packet);
        (next, read) = (packet.protocol, packet.l4_offset);
    }
    if !packet.is_later_fragment() && is_extension(next) {
        return Err(Reason::TooManyHeaders);
    }
    payload::<R, QUOTED>(
        reader,
        packet,
        Payload {
            protocol: next,
            offset: start + u32::from(read),
            length: announced,
            first_fragment: packet.is_first_fragment(),
            v6: true,
            hop_limit,
            hop_by_hop,
        },
        read,
    )
}

/// Reads one extension header: `packet.protocol` is its kind and then what comes next, and
/// `packet.l4_offset` how many bytes of headers were read.
#[inline(always)]
pub fn extension<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    start: u32,
    announced: u16,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let (this, read) = (packet.protocol, packet.l4_offset);
    let short = if packet.is_first_fragment() { Reason::TinyFragment } else { Reason::Truncated };
    // None is shorter.
    let header = reader.read::<8>(start + u32::from(read)).ok_or(short)?;
    let [next, length, high, low, id @ ..] = header;
    let length = match this {
        FRAGMENT => {
            let field = u16::from_be_bytes([high, low]);
            let headers = read.saturating_add(FRAGMENT_HEADER);
            if announced < headers {
                return Err(Reason::Truncated);
            }
            let fragment = Fragment {
                id: u32::from_be_bytes(id),
                offset: field & V6_OFFSET,
                more: field & V6_MORE_FRAGMENTS != 0,
                data: announced - headers,
                before: read,
            };
            fragment.apply(next, QUOTED, packet)?;
            FRAGMENT_HEADER
        }
        AUTHENTICATION => authentication_length(length),
        _ => (u16::from(length) + 1) * 8,
    };
    // RFC 5095 for type 0. Any other with segments left has its real end somewhere in itself.
    if !QUOTED && this == ROUTING && (high == 0 || low != 0) {
        return Err(Reason::SourceRoute);
    }
    packet.protocol = next;
    // Eight headers of two kilobytes at most.
    packet.l4_offset = read.wrapping_add(length);
    Ok(())
}

/// For the verifier of the kernel, which follows whatever it knows of a number into every branch
/// behind: of eight headers of any kind it would look at each combination. Of what lies in memory
/// that was passed in, as `packet` was, it knows nothing.
#[inline(always)]
fn forget(packet: &mut Packet) {
    core::hint::black_box(packet);
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// RFC 4302 section 2.2: in words of four bytes, less two.
#[inline(always)]
fn authentication_length(field: u8) -> u16 {
    (u16::from(field) + 2) * 4
}

/// Whether there is more than a length field can say: then zero in it is no contradiction. Quoted
/// packets are cut, and nothing follows from it.
#[inline(always)]
fn is_big<R: Reader + ?Sized, const QUOTED: bool>(reader: &R, offset: u32) -> bool {
    !QUOTED && reader.length().saturating_sub(offset) > 0xffff
}

/// Takes the headers off the announced length, and compares what is left of a fragment with what is
/// there. For a whole packet its protocol does that.
#[inline(always)]
fn payload<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    packet: &Packet,
    mut payload: Payload,
    headers: u16,
) -> Result<Payload, Reason> {
    payload.holds(headers)?;
    payload.length -= headers;
    if packet.fragment != fragment::WHOLE {
        payload.check_length::<R, QUOTED>(reader)?;
    }
    Ok(payload)
}
