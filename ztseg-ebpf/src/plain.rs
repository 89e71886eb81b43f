//! The short way: plain TCP and UDP packets of flows that the table knows. The headers are read in
//! place, one lookup, nothing else. What is not plain, not known or not allowed takes the long way.

use ztseg_common::addr::{Port, proto};
use ztseg_common::key::{FlowKey4, FlowKey6, Place};
use ztseg_common::packet::{ethertype, tcp};
use ztseg_common::state::{
    FLOW_EXPIRES, FLOW_TRANSLATED, FlowState, Phase, SocketState, is_fresh, timeout_seconds,
};
use ztseg_common::value::Control;

use crate::denied;
use crate::flows::{may_be_spilled, now};
use crate::maps::{FLOWS4, FLOWS6};
use crate::policy::Policy;
use crate::skb::{Header, InPlace, Skb};

/// What the short way came to.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Answer {
    /// The flow is allowed; the packet is counted.
    Allow,
    /// The flow was denied just now; the packet is counted.
    Deny,
    /// The table does not have the flow, so that nobody needs to look again.
    NotThere,
    /// To be looked at again.
    Unknown,
}

/// Who sees the packet, and what is in force.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    pub control: &'a Control,
    pub stamp: u64,
    /// [`ztseg_common::key::scope`] of the workload.
    pub scope: u32,
    /// The low half of the network namespace cookie; zero at TC.
    pub netns: u32,
    pub outbound: bool,
}

/// Seconds for which the kernel keeps in mind for certain how it translates a flow.
const TRACKED: u32 = 10;

/// What is read besides the key.
#[derive(Clone, Copy)]
struct Rest {
    bytes: u16,
    /// Upper half of the TCP acknowledgement number.
    acknowledgement: u16,
    protocol: u8,
    kind: Kind,
}

/// What the transport header says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Data or an acknowledgement, which change nothing in a flow's state.
    Data,
    /// The first segment of a TCP flow.
    Syn,
    /// To be looked at in full.
    NotPlain,
}

/// Looks for the flow of a packet whose IP header begins at `offset`, a constant.
#[inline(always)]
pub fn answer(skb: &Skb, offset: u32, sight: Sight<'_>) -> Answer {
    match u16::from_be(skb.protocol() as u16) {
        ethertype::IPV4 => v4(skb, offset, sight),
        ethertype::IPV6 => v6(skb, offset, sight),
        _ => Answer::Unknown,
    }
}

/// Whether a datagram at a cgroup hook is one of the flow that its connected socket keeps the verdict
/// of; a connected socket can still send elsewhere, so the packet's ends count. Gives its length, zero
/// for no.
#[inline(always)]
pub fn is_of_connection(skb: &Skb, state: &SocketState, outbound: bool) -> u16 {
    let in_place = InPlace::new(skb);
    let (bytes, remote_matches, ports) = if state.remote.is_v4() {
        let Some(ip) = in_place.header(0, IPV4_HEADER + UDP_HEADER) else { return 0 };
        if ip.byte::<0>() != 0x45
            || u16::from_be_bytes(ip.half::<6>()) & FRAGMENT != 0
            || ip.byte::<9>() != proto::UDP
        {
            return 0;
        }
        let remote = if outbound { ip.word::<16>() } else { ip.word::<12>() };
        let bytes = u16::from_be_bytes(ip.half::<2>());
        if !holds_datagram::<IPV4_HEADER, { IPV4_HEADER + 4 }>(skb, 0, ip, bytes) {
            return 0;
        }
        (bytes, remote == state.remote.last_octets(), ip.word::<{ IPV4_HEADER }>())
    } else {
        let Some(ip) = in_place.header(0, IPV6_HEADER + UDP_HEADER) else { return 0 };
        if ip.byte::<0>() >> 4 != 6 || ip.byte::<6>() != proto::UDP {
            return 0;
        }
        let remote = if outbound { ip.addr6::<24>() } else { ip.addr6::<8>() };
        let bytes = u16::from_be_bytes(ip.half::<4>()).saturating_add(IPV6_HEADER as u16);
        if !holds_datagram::<IPV6_HEADER, { IPV6_HEADER + 4 }>(skb, 0, ip, bytes) {
            return 0;
        }
        (bytes, remote == state.remote, ip.word::<{ IPV6_HEADER }>())
    };
    let [local, remote] = [state.local_port.octets, state.remote_port.octets];
    let [[a, b], [c, d]] = if outbound { [local, remote] } else { [remote, local] };
    if remote_matches && ports == [a, b, c, d] { bytes } else { 0 }
}

/// Whether a UDP header says no more than there is, as the parser would: its length field, at
/// `LENGTH_AT`, within that of the packet and of the bytes that are there.
#[inline(always)]
fn holds_datagram<const IP: usize, const LENGTH_AT: usize>(
    skb: &Skb,
    offset: u32,
    ip: Header,
    bytes: u16,
) -> bool {
    let length = u32::from(u16::from_be_bytes(ip.half::<LENGTH_AT>()));
    length >= UDP_HEADER as u32
        && length + IP as u32 <= u32::from(bytes)
        && offset + IP as u32 + length <= skb.len()
}

/// In an IPv4 header: more fragments follow, or this is one.
const FRAGMENT: u16 = 0x3fff;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;

#[inline(always)]
fn v4(skb: &Skb, offset: u32, sight: Sight<'_>) -> Answer {
    let in_place = InPlace::new(skb);
    let Some(ip) = in_place.header(offset, IPV4_HEADER + UDP_HEADER) else {
        return Answer::Unknown;
    };
    let [version_length, _, length_high, length_low] = ip.word::<0>();
    let fragment = u16::from_be_bytes(ip.half::<6>());
    if version_length != 0x45 || fragment & FRAGMENT != 0 {
        return Answer::Unknown;
    }
    let bytes = u16::from_be_bytes([length_high, length_low]);
    let rest =
        transport::<IPV4_HEADER, { IPV4_HEADER + 4 }>(skb, offset, ip, bytes, ip.byte::<9>());
    if rest.kind == Kind::NotPlain {
        return Answer::Unknown;
    }
    let [source0, source1, destination0, destination1] = ip.word::<{ IPV4_HEADER }>();
    let source = (ip.word::<12>(), Port { octets: [source0, source1] });
    let destination = (ip.word::<16>(), Port { octets: [destination0, destination1] });
    let (local, remote) =
        if sight.outbound { (source, destination) } else { (destination, source) };
    let key = FlowKey4 {
        local: local.0,
        remote: remote.0,
        local_port: local.1,
        remote_port: remote.1,
        place: Place::of(sight.scope, sight.netns, rest.protocol),
    };
    if rest.kind == Kind::Syn {
        return if denied::again(&key, sight.stamp, sight.outbound, true) {
            Answer::Deny
        } else {
            Answer::Unknown
        };
    }
    match FLOWS4.get_ptr_mut(&key) {
        // SAFETY: a valid pointer from the lookup; words written by several CPUs are counts and
        // times.
        Some(state) => pass(unsafe { &mut *state }, sight, rest),
        None if denied::again(&key, sight.stamp, sight.outbound, false) => Answer::Deny,
        None => not_there(),
    }
}

/// A function of its own, since the keys of both families do not fit on the stack beside what the long
/// way needs.
#[inline(never)]
fn v6(skb: &Skb, offset: u32, sight: Sight<'_>) -> Answer {
    let in_place = InPlace::new(skb);
    let Some(ip) = in_place.header(offset, IPV6_HEADER + UDP_HEADER) else {
        return Answer::Unknown;
    };
    let [length_high, length_low, next, _] = ip.word::<4>();
    if ip.byte::<0>() >> 4 != 6 {
        return Answer::Unknown;
    }
    // A jumbogram has zero here and takes the long way.
    let payload = u16::from_be_bytes([length_high, length_low]);
    let bytes = payload.saturating_add(IPV6_HEADER as u16);
    let rest = transport::<IPV6_HEADER, { IPV6_HEADER + 4 }>(skb, offset, ip, bytes, next);
    if rest.kind != Kind::Data {
        return Answer::Unknown;
    }
    let [source0, source1, destination0, destination1] = ip.word::<{ IPV6_HEADER }>();
    let source_port = Port { octets: [source0, source1] };
    let destination_port = Port { octets: [destination0, destination1] };
    let place = Place::of(sight.scope, sight.netns, rest.protocol);
    // Written where it is used: the stack is small.
    let key = if sight.outbound {
        FlowKey6 {
            local: ip.addr6::<8>(),
            remote: ip.addr6::<24>(),
            local_port: source_port,
            remote_port: destination_port,
            place,
        }
    } else {
        FlowKey6 {
            local: ip.addr6::<24>(),
            remote: ip.addr6::<8>(),
            local_port: destination_port,
            remote_port: source_port,
            place,
        }
    };
    match FLOWS6.get_ptr_mut(&key) {
        // SAFETY: as in `v4`.
        Some(state) => pass(unsafe { &mut *state }, sight, rest),
        None => not_there(),
    }
}

#[inline(always)]
fn not_there() -> Answer {
    if may_be_spilled() { Answer::Unknown } else { Answer::NotThere }
}

/// Reads the transport header. `IP` is the length of the IP header, which begins at `ip`, and `bytes`
/// that of the packet. A length that says more than there is, is for the parser to refuse.
#[inline(always)]
fn transport<const IP: usize, const UDP_LENGTH_AT: usize>(
    skb: &Skb,
    offset: u32,
    ip: Header,
    bytes: u16,
    protocol: u8,
) -> Rest {
    let mut rest = Rest { bytes, acknowledgement: 0, protocol, kind: Kind::NotPlain };
    if protocol == proto::UDP {
        if holds_datagram::<IP, UDP_LENGTH_AT>(skb, offset, ip, bytes) {
            rest.kind = Kind::Data;
        }
    } else if protocol == proto::TCP
        && offset + u32::from(bytes) <= skb.len()
        && let Some(header) = InPlace::new(skb).header(offset + IP as u32, TCP_HEADER)
    {
        let [data_offset, flags] = header.half::<12>();
        let data_offset = u16::from(data_offset >> 4) * 4;
        rest.acknowledgement = u16::from_be_bytes(header.half::<8>());
        if data_offset >= TCP_HEADER as u16 && bytes >= IP as u16 + data_offset {
            rest.kind = match flags & (tcp::SYN | tcp::FIN | tcp::RST | tcp::ACK) {
                tcp::ACK => Kind::Data,
                tcp::SYN => Kind::Syn,
                _ => Kind::NotPlain,
            };
        }
    }
    rest
}

#[inline(always)]
fn pass(state: &mut FlowState, sight: Sight<'_>, rest: Rest) -> Answer {
    let now = now();
    let timeout = timeout_seconds(rest.protocol, Phase::Established as u8);
    if state.stamp != sight.stamp
        || state.phase != Phase::Established as u8
        || !is_fresh(state.last_seen, now, timeout, sight.control.hz)
        || (state.flags & FLOW_EXPIRES != 0 && Policy::of(sight.stamp).is_over(state.rule))
    {
        return Answer::Unknown;
    }
    // Whether and how it is translated is looked at again: for each packet of a flow that is, and for
    // any that was silent for so long that the kernel may have forgotten it (its own least is 30 s).
    if rest.protocol == proto::UDP
        && sight.outbound
        && sight.netns != 0
        && (state.flags & FLOW_TRANSLATED != 0
            || !is_fresh(state.last_seen, now, TRACKED, sight.control.hz))
    {
        return Answer::Unknown;
    }
    state.last_seen = now;
    if rest.protocol == proto::TCP {
        if sight.outbound {
            state.local_ack = rest.acknowledgement;
        } else {
            state.remote_ack = rest.acknowledgement;
        }
    }
    state.account(sight.outbound, rest.bytes);
    Answer::Allow
}
