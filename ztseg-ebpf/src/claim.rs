//! What a packet claims about itself, held against what the kernel knows better. Only packets that a
//! program writes itself can lie: from raw sockets, from behind an interface, or with a source
//! address chosen by the sender.

use aya_ebpf::bindings::__sk_buff;
use ztseg_common::addr::proto;
use ztseg_common::key::{Place, WorkloadKey};
use ztseg_common::packet::{IcmpKind, Packet, ethertype};

use crate::flow::Flow;
use crate::maps::{SOCKETS, control};
use crate::peer::Held;
use crate::socket::LOOPBACK;
use crate::skb::{Skb, Sock};
use crate::{table, workload};

/// Whether nothing below can be amiss with a datagram of a flow that was judged: on loopback sockets
/// are who they are, not addresses, and the kernel's copies for this host are the sender's, too.
#[inline(always)]
pub fn needs_no_second_look(skb: &Skb) -> bool {
    skb.ifindex() != LOOPBACK
}

/// Whether the header's IP version is the one that the packet is carried as: who is asked reads the
/// bytes by that one. And no IPv6 packet has IPv4 addresses in it: RFC 4291 section 2.5.5.2 gives
/// them to sockets, not to wires, and an address class must not be had by another spelling.
#[inline(always)]
pub fn is_one_version(packet: &Packet, ethertype: u16) -> bool {
    let v4 = ethertype == ethertype::IPV4;
    packet.src.is_v4() == v4 && packet.dst.is_v4() == v4
}

/// As [`is_one_version`], for a packet that has no VLAN tag in it.
#[inline(always)]
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
        // `IP_PKTINFO` gives a datagram any address of this host as its source.
        packet.protocol == proto::UDP
            && !(sk.local_port() == packet.src_port && sk.may_send_from(&packet.src))
    };
    may_lie && ztseg_source_is_anothers(skb.raw, core::ptr::from_ref(flow)) != 0
}

/// Whether a packet that arrives for the source of this one would arrive at another workload.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_source_is_anothers(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 1 };
    let Some(control) = control() else { return 1 };
    let (from, to) = ((flow.remote(), flow.remote_port()), (flow.local(), flow.local_port()));
    let Some(held) = Held::lookup(skb.cast(), flow.packet.protocol, from, to) else { return 0 };
    let found = workload::of_socket(control, flow.policy(), held.sock());
    held.release();
    u32::from(found.is_none_or(|found| found.key != flow.workload))
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
    let Some(control) = control() else { return 1 };
    let (from, to) = ((flow.local(), flow.local_port()), (flow.remote(), flow.remote_port()));
    let Some(held) = Held::lookup(skb.cast(), flow.packet.protocol, from, to) else { return 0 };
    let found = workload::of_socket(control, flow.policy(), held.sock());
    held.release();
    u32::from(found.map_or(0, |found| found.key) != peer)
}

/// Whether a socket that could have sent this datagram, which arrives over loopback, did: its egress
/// hook has judged the flow. A port can be shared (`SO_REUSEADDR`, `SO_REUSEPORT`), and then the one
/// that is found may be innocent.
#[inline(always)]
pub fn has_sent(sk: Sock, flow: &Flow, sender: WorkloadKey) -> bool {
    if flow.packet.protocol != proto::UDP || flow.is_outbound() {
        return true;
    }
    let mut netns = 0;
    if let Some(state) = SOCKETS.get(sk.raw, false) {
        netns = state.netns as u32;
        if state.stamp == flow.stamp
            && state.remote_port == flow.local_port()
            && state.remote == *flow.local()
        {
            return true;
        }
    }
    table::has(&flow.packet, Place::new(sender, netns, proto::UDP))
}
