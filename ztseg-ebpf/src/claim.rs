//! What a packet claims about itself, held against what the kernel knows better. Only packets that a
//! program writes itself can lie: from raw sockets, from behind an interface, or with a source
//! address chosen by the sender.

use aya_ebpf::bindings::__sk_buff;
use ztseg_common::addr::{Addr, proto};
use ztseg_common::eval::Decision;
use ztseg_common::key::{Place, WorkloadKey, workload_interface};
use ztseg_common::packet::{IcmpKind, Packet, ethertype};
use ztseg_common::value::{WORKLOAD_HOST_SIDE, Workload};
use ztseg_common::verdict::{Hook, Reason, Verdict};

use crate::flow::Flow;
use crate::judge::{Outcome, report, ztseg_decide};
use crate::peer::{self, HAS_FLOW, Owner, Route, TO_PEER, TO_SUBJECT, route, ztseg_by_address};
use crate::skb::{COPY, Skb, Sock, ztseg_parse_socket};
use crate::socket::LOOPBACK;
use crate::{flows, translation};

/// Whether nothing below can be amiss with a datagram of a flow that was judged: on loopback sockets
/// are who they are, not addresses, and the kernel's copies for this host are the sender's, too.
#[inline(always)]
pub fn needs_no_second_look(skb: &Skb) -> bool {
    skb.ifindex() != LOOPBACK && skb.pkt_type() != COPY
}

/// Whether the header's IP version is the one that the packet is carried as: who is asked reads the
/// bytes by that one. And no IPv6 packet has IPv4 addresses in it: RFC 4291 section 2.5.5.2 gives
/// them to sockets, not to wires, and an address class must not be had by another spelling.
#[inline(never)]
pub fn is_one_version(packet: &Packet, ethertype: u16) -> bool {
    let v4 = ethertype == ethertype::IPV4;
    packet.src.is_v4() == v4 && packet.dst.is_v4() == v4
}

/// As [`is_one_version`], for a packet that has no VLAN tag in it. A function of its own for its stack
/// frame.
#[inline(never)]
pub fn is_what_it_is_carried_as(skb: &Skb, packet: &Packet) -> bool {
    is_one_version(packet, u16::from_be(skb.protocol() as u16))
}

/// Whether a discovery message stays on its link: what leaves a workload's own socket for elsewhere
/// is no discovery, whatever its hop limit says (RFC 4861 section 7.1 is for the receiver).
#[inline(always)]
pub fn leaves_the_link(packet: &Packet, outbound: bool) -> bool {
    let o = &packet.dst.octets;
    // fe80::/10 and ff02::/16, RFC 4291 sections 2.5.6 and 2.7.
    let of_the_link = (o[0] == 0xfe && o[1] & 0xc0 == 0x80) || (o[0] == 0xff && o[1] == 0x02);
    outbound && packet.is_icmp(IcmpKind::Discovery) && !of_the_link
}

/// Whether the packet of a cgroup workload has a source that is another workload's socket. Only on
/// loopback does that make it somebody else.
#[inline(always)]
pub fn has_borrowed_source(skb: &Skb, sk: Sock, flow: &Flow) -> bool {
    let packet = &flow.packet;
    if !flow.is_outbound() || !flow.is_loopback() {
        return false;
    }
    let may_lie = if sk.is_raw() {
        matches!(packet.protocol, proto::TCP | proto::UDP)
    } else {
        // `IP_PKTINFO` gives a datagram any address of this host as its source. (Another port is the
        // work of a translation.) And a socket that is connected elsewhere is not found as its sender.
        packet.protocol == proto::UDP
            && sk.local_port() == packet.src_port
            && (!sk.may_send_from(&packet.src) || is_connected_elsewhere(sk, packet))
    };
    may_lie && ztseg_source_is_anothers(skb.raw, core::ptr::from_ref(flow)) != 0
}

/// Whether a datagram goes elsewhere than its socket is connected to: then nobody who looks for its
/// sender finds that socket.
#[inline(always)]
pub fn is_connected_elsewhere(sk: Sock, packet: &Packet) -> bool {
    sk.is_connected_udp() && !(sk.has_remote(&packet.dst) && sk.remote_port() == packet.dst_port)
}

/// Whether a packet that arrives for the source of this one would arrive at another workload.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_source_is_anothers(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 1 };
    let Some(owner) = Owner::of(skb, flow, TO_SUBJECT) else {
        // What is translated on its way has ends, before and behind, that no socket has.
        let sender = translation::ztseg_sender(flow, 0);
        return u32::from(sender != 0 && sender != flow.workload)
            | translation::ztseg_answers_for_another(skb, flow);
    };
    u32::from(owner.key != flow.workload)
}

/// Whether the socket at the other end of a loopback flow is now another workload's than `peer`,
/// which it was judged for: ports are used again, and the flow outlives its sockets.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_peer_changed(
    skb: *mut __sk_buff,
    flow: *const Flow,
    peer: WorkloadKey,
) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 1 };
    let Some(owner) = Owner::of(skb, flow, TO_PEER) else {
        // Its last packets are on the way; or it is another's, whose socket is connected elsewhere.
        let sender = if flow.is_outbound() { 0 } else { translation::ztseg_sender(flow, 0) };
        return u32::from(sender != 0 && sender != peer);
    };
    u32::from(owner.key != peer)
}

/// Whether a socket that could have sent this datagram, which arrives over loopback, did: its egress
/// hook has judged the flow. A port can be shared (`SO_REUSEADDR`, `SO_REUSEPORT`), and then the one
/// that is found may be innocent.
#[inline(always)]
pub fn has_sent(owner: &Owner, flow: &Flow) -> bool {
    flow.packet.protocol != proto::UDP
        || flow.is_outbound()
        || owner.flags & HAS_FLOW != 0
        || flows::has(&flow.packet, Place::new(owner.key, owner.netns, proto::UDP))
}

/// Whether a packet of an interface workload is refused for its source; reports it. A function of its
/// own for its stack frame.
#[inline(never)]
pub fn is_refused_source(skb: &Skb, flow: &Flow) -> bool {
    let is_far = |workload: Workload| workload.flags & WORKLOAD_HOST_SIDE == 0;
    if !flow.is_outbound()
        || !flow.policy().workload(flow.workload).is_some_and(is_far)
        || ztseg_forged_source(skb.raw, core::ptr::from_ref(flow)) == 0
    {
        return false;
    }
    let decision = Decision::fixed(Verdict::Deny, Reason::BorrowedSource);
    report(skb.raw, flow, Outcome::new(&decision));
    true
}

/// Whether a packet of an interface workload has a source that the routing table puts elsewhere for
/// certain: behind the interface of another workload, or on this host. (Any other source may be that
/// of a machine behind a bridge; `rp_filter` is for those.)
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_forged_source(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 1 };
    let source = &flow.packet.src;
    // Who has no address yet says so; addresses of a link are on every link.
    let o = &source.octets;
    let of_the_link = o[0] == 0xfe && o[1] & 0xc0 == 0x80;
    // What is said to come from this host's inside (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    if source.is_loopback() {
        return 1;
    }
    if of_the_link || *source == Addr::UNSPECIFIED || *source == Addr::v4([0; 4]) {
        return 0;
    }
    let nobody = if source.is_v4() { Addr::v4([0; 4]) } else { Addr::UNSPECIFIED };
    match route(skb, &nobody, source) {
        Route::Forwarded(ifindex) => {
            let key = workload_interface(ifindex);
            let is_anothers = key != flow.workload
                && flow.policy().workload(key).is_some_and(|w| w.flags & WORKLOAD_HOST_SIDE == 0);
            u32::from(is_anothers)
        }
        Route::NotForwarded => u32::from(peer::is_of_this_host(skb, source)),
        Route::Unknown => 0,
    }
}

/// Judges the copy of a multicast or broadcast datagram for the receivers on this host by the
/// sender's egress rules: the kernel makes it before the sender's egress hook, which never sees it
/// (`ip_mc_output`, `net/ipv4/ip_output.c`). True: denied, and reported.
#[inline(never)]
pub fn is_denied_copy(skb: &Skb, stamp: u64) -> bool {
    // What cannot be read is for the receiver to judge.
    let mut flow = Flow::new(stamp, Hook::CgroupEgress);
    if ztseg_parse_socket(skb.raw, &raw mut flow.packet) != 0
        || flow.packet.protocol != proto::UDP
        || ztseg_copy_sender(skb.raw, &raw mut flow) == 0
    {
        return false;
    }
    let outcome = Outcome::from_bits(ztseg_decide(&raw mut flow));
    if outcome.verdict() == Verdict::Allow {
        return false;
    }
    report(skb.raw, &flow, outcome);
    true
}

/// Finds who sent a datagram to many, and who is asked. Zero: the sender is not found.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_copy_sender(skb: *mut __sk_buff, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let Some(owner) = Owner::of(skb, flow, TO_SUBJECT) else { return 0 };
    let Some(sender) = flow.policy().workload(owner.key) else { return 0 };
    flow.workload = owner.key;
    flow.subject = sender.subject;
    ztseg_by_address(flow)
}
