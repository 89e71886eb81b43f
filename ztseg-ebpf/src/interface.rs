//! TC: workloads behind an interface.

use aya_ebpf::bindings::__sk_buff;
use ztseg_common::addr::proto;
use ztseg_common::key::{scope, workload_interface};
use ztseg_common::packet::{Packet, Reader, ethertype};
use ztseg_common::value::{CONTROL_WHOLE_HIERARCHY, Control, WORKLOAD_HOST_SIDE};
use ztseg_common::verdict::{Hook, Reason, Verdict};

use crate::claim;
use crate::flow::Flow;
use crate::judge::Outcome;
use crate::maps::{self, SOCKETS};
use crate::peer::Held;
use crate::plain::{self, Answer, Sight};
use crate::policy::Policy;
use crate::skb::{Skb, Sock};
use crate::{fragments, reject, skb, table, turn};

/// Length of an Ethernet header without tags.
pub const ETHERNET: u32 = 14;
/// Tunnels: packets begin with their IP header.
pub const RAW_IP: u32 = 0;
const VLAN_TAG: u32 = 4;

/// What becomes of a packet.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// It goes on.
    Passes,
    /// It ends here.
    Dropped,
    /// It is answered: back out by the interface.
    AnsweredOut,
    /// It is answered: back into this host.
    AnsweredIn,
}

impl Fate {
    #[inline(always)]
    fn of(verdict: Verdict) -> Self {
        if verdict == Verdict::Allow { Self::Passes } else { Self::Dropped }
    }
}

/// Judges a packet that an interface workload sends (`TcFromWorkload`) or is sent. `LINK_HEADER` is
/// the length of what stands before the network header, tags not counted.
#[inline(always)]
pub fn packet<const LINK_HEADER: u32>(skb: &Skb, hook: Hook) -> Fate {
    let Some(control) = maps::control() else { return Fate::Dropped };
    let stamp = maps::stamp(control);
    let scope = scope(workload_interface(skb.ifindex()));
    let outbound = matches!(hook, Hook::TcFromWorkload);
    let sight = Sight { control, stamp, scope, netns: 0, outbound };
    match plain::answer(skb, LINK_HEADER, sight) {
        Answer::Allow => Fate::Passes,
        Answer::Deny => Fate::Dropped,
        answer => match long_way::<LINK_HEADER>(skb, hook, stamp, answer) {
            // Behind the long way, whose stack it would not fit under.
            Fate::AnsweredOut | Fate::AnsweredIn if turn::stands_back_at_interface() => {
                Fate::Dropped
            }
            fate @ (Fate::AnsweredOut | Fate::AnsweredIn) => {
                let into_host = u32::from(fate == Fate::AnsweredIn);
                let answered = reject::ztseg_reject(skb.raw, LINK_HEADER, into_host) != 0;
                if answered { fate } else { Fate::Dropped }
            }
            fate => fate,
        },
    }
}

#[inline(never)]
fn long_way<const LINK_HEADER: u32>(skb: &Skb, hook: Hook, stamp: u64, answer: Answer) -> Fate {
    let mut flow = Flow::new(stamp, hook);
    flow.workload = workload_interface(skb.ifindex());
    // No longer a workload: about to be detached.
    let Some(workload) = Policy::of(stamp).workload(flow.workload) else { return Fate::Passes };
    flow.subject = workload.subject;
    let host_side = workload.flags & WORKLOAD_HOST_SIDE != 0;
    let failure = match ethertype_of(skb) {
        ethertype::IPV4 | ethertype::IPV6 => parse_untagged::<LINK_HEADER>(skb, &mut flow.packet),
        ethertype::ARP => return Fate::Passes,
        ethertype::VLAN | ethertype::QINQ => parse_tagged(skb, LINK_HEADER, &mut flow.packet),
        _ => Reason::UnknownEthertype as u8,
    };
    if let Some(reason) = Reason::from_u8(failure) {
        return Fate::of(table::unreadable(skb, &mut flow, reason));
    }
    if reject::is_answer(skb, &flow.packet) {
        return Fate::Passes;
    }
    // A later fragment is known to the table by its first one's ports.
    let later = flow.packet.is_later_fragment();
    let lost = if later { fragments::follow(&mut flow) } else { 0 };
    let outcome = if host_side && ztseg_at_socket(skb.raw, &raw const flow) != 0 {
        Outcome::once(Verdict::Allow)
    } else if let Some(reason) = Reason::from_u8(lost) {
        Outcome::once(table::unreadable(skb, &mut flow, reason))
    } else if claim::is_refused_source(skb, &flow) {
        Outcome::once(Verdict::Deny)
    } else if let Some(verdict) = table::special::<true>(skb.raw, &mut flow) {
        Outcome::once(verdict)
    } else {
        table::packet::<true>(skb.raw, &mut flow, later || answer != Answer::NotThere)
    };
    if outcome.verdict() == Verdict::Allow {
        fragments::ztseg_remember_fragment(&raw const flow);
        return Fate::Passes;
    }
    // What a workload on the far side sends comes in here, what this host sends goes out.
    match (outcome.is_rejected(), flow.is_outbound() == host_side) {
        (false, _) => Fate::Dropped,
        (true, false) => Fate::AnsweredOut,
        (true, true) => Fate::AnsweredIn,
    }
}

/// The Ethernet type, host order; of the outermost tag that is still in the packet.
#[inline(always)]
fn ethertype_of(skb: &Skb) -> u16 {
    u16::from_be(skb.protocol() as u16)
}

#[inline(always)]
fn parse_untagged<const LINK_HEADER: u32>(skb: &Skb, packet: &mut Packet) -> u8 {
    let failure = if LINK_HEADER == ETHERNET {
        ztseg_parse_ethernet(skb.raw, packet)
    } else {
        ztseg_parse_raw(skb.raw, packet)
    };
    failure as u8
}

/// Parses behind an Ethernet header. A function of its own for its stack frame.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_parse_ethernet(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    u32::from(parse_carried(&Skb::new(skb), ETHERNET, packet))
}

/// As [`ztseg_parse_ethernet`], where there is no link header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_parse_raw(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    u32::from(parse_carried(&Skb::new(skb), RAW_IP, packet))
}

#[inline(always)]
fn parse_carried(skb: &Skb, offset: u32, packet: &mut Packet) -> u8 {
    match skb::parse(skb, offset, packet) {
        0 if !claim::is_what_it_is_carried_as(skb, packet) => Reason::Malformed as u8,
        failure => failure,
    }
}

/// Parses behind at most two VLAN tags. A function of its own for its stack frame, too.
#[inline(never)]
fn parse_tagged(skb: &Skb, link_header: u32, packet: &mut Packet) -> u8 {
    let mut offset = link_header;
    let mut ethertype = ethertype::VLAN;
    for _ in 0..2 {
        if matches!(ethertype, ethertype::VLAN | ethertype::QINQ) {
            let Some(tag) = skb.read::<4>(offset) else { return Reason::Truncated as u8 };
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            offset += VLAN_TAG;
        }
    }
    match ethertype {
        ethertype::IPV4 | ethertype::IPV6 => {
            match skb::ztseg_parse(skb.raw, offset, packet) as u8 {
                0 if !claim::is_one_version(packet, ethertype) => Reason::Malformed as u8,
                failure => failure,
            }
        }
        _ => Reason::UnknownEthertype as u8,
    }
}

/// Whether a socket of a local cgroup workload sends or receives this packet: then the cgroup hooks
/// judge it, who know the workload, and nothing is enforced twice.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_at_socket(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(control) = maps::control() else { return 0 };
    if flow.is_outbound() {
        return u32::from(Skb::new(skb).socket().is_some_and(|sk| covered(control, sk)));
    }
    if !matches!(flow.packet.protocol, proto::TCP | proto::UDP) {
        return 0;
    }
    let from = (flow.remote(), flow.remote_port());
    let to = (flow.local(), flow.local_port());
    let Some(held) = Held::lookup(skb.cast(), flow.packet.protocol, from, to) else { return 0 };
    let found = covered(control, held.sock());
    held.release();
    u32::from(found)
}

/// Whether the cgroup hooks see this socket's packets: they see all where they are attached to the
/// whole hierarchy, else those of sockets that they have marked.
#[inline(always)]
fn covered(control: &Control, sk: Sock) -> bool {
    control.flags & CONTROL_WHOLE_HIERARCHY != 0 || SOCKETS.get(sk.raw, false).is_some()
}
