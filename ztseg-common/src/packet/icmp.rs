//! ICMP and `ICMPv6`.

use super::{Packet, Payload, Reader};
use crate::addr::{Addr, Port};
use crate::verdict::Reason;

const HEADER: u16 = 8;

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
    /// Discovery of neighbours and routers (RFC 4861) or of multicast listeners (RFC 2710, RFC
    /// 3810), with all that these demand of one that comes from this very link. One that lacks
    /// any of it is [`Self::Other`].
    Discovery = 4,
    /// Any other message: a flow of its own, one way.
    Other = 5,
}

#[inline(always)]
pub(super) fn parse<R: Reader + ?Sized, const QUOTED: bool>(
    reader: &R,
    payload: &Payload,
    packet: &mut Packet,
) -> Result<(), Reason> {
    payload.holds(HEADER)?;
    // The whole fixed header must be there.
    let header = reader.read::<8>(payload.offset).ok_or(Reason::Truncated)?;
    let [icmp_type, code, _, _, id_high, id_low, ..] = header;
    let kind =
        if payload.v6 { kind_v6(icmp_type, code, payload, packet) } else { kind_v4(icmp_type) };
    packet.icmp_type = icmp_type;
    packet.message = kind as u8;
    if matches!(kind, IcmpKind::EchoRequest | IcmpKind::EchoReply) {
        packet.src_port = Port { octets: [id_high, id_low] };
    }
    payload.check_length::<R, QUOTED>(reader)
}

/// RFC 792: 3 destination unreachable, 4 source quench, 5 redirect, 11 time exceeded,
/// 12 parameter problem.
#[inline(always)]
fn kind_v4(icmp_type: u8) -> IcmpKind {
    match icmp_type {
        8 => IcmpKind::EchoRequest,
        0 => IcmpKind::EchoReply,
        3 | 4 | 5 | 11 | 12 => IcmpKind::Error,
        _ => IcmpKind::Other,
    }
}

/// RFC 4443: types below 128 are errors.
#[inline(always)]
fn kind_v6(icmp_type: u8, code: u8, payload: &Payload, packet: &Packet) -> IcmpKind {
    match icmp_type {
        128 => IcmpKind::EchoRequest,
        129 => IcmpKind::EchoReply,
        0..=127 => IcmpKind::Error,
        130..=137 | 143 if is_discovery(icmp_type, code, payload, packet) => IcmpKind::Discovery,
        _ => IcmpKind::Other,
    }
}

/// RFC 4861 sections 6.1, 7.1 and 8.1: hop limit 255, code 0, a least length, and for what routers
/// say a link-local source. RFC 2710 section 3 and RFC 3810 section 5: hop limit 1, hop-by-hop
/// options (for the router alert), a link-local source, or none for a report. RFC 6980: never a
/// fragment.
#[inline(always)]
fn is_discovery(icmp_type: u8, code: u8, payload: &Payload, packet: &Packet) -> bool {
    const LISTENER_QUERY: u8 = 130;
    const LISTENER_REPORT: u8 = 131;
    const LISTENER_DONE: u8 = 132;
    const ROUTER_SOLICITATION: u8 = 133;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const REDIRECT: u8 = 137;
    const LISTENER_REPORT_2: u8 = 143;

    let least = match icmp_type {
        ROUTER_SOLICITATION | LISTENER_REPORT_2 => HEADER,
        ROUTER_ADVERTISEMENT => 16,
        REDIRECT => 40,
        _ => 24,
    };
    if payload.first_fragment || payload.length < least {
        return false;
    }
    let link_local = packet.src.octets[0] == 0xfe && packet.src.octets[1] & 0xc0 == 0x80;
    match icmp_type {
        LISTENER_QUERY => payload.hop_limit == 1 && payload.hop_by_hop && link_local,
        LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_2 => {
            let nobody = packet.src == Addr::UNSPECIFIED;
            payload.hop_limit == 1 && payload.hop_by_hop && (link_local || nobody)
        }
        ROUTER_ADVERTISEMENT | REDIRECT => payload.hop_limit == 255 && code == 0 && link_local,
        _ => payload.hop_limit == 255 && code == 0,
    }
}
