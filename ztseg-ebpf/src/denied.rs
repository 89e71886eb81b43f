//! Denials of a moment ago, on this CPU: a sender that goes on costs no new judgement for each packet.
//!
//! A denial is remembered for one tick (some tens of milliseconds) at most, and only while the
//! stamp is the same. So what no epoch follows (a route, a new listener) takes effect after that.
//! Each packet is counted as if it had been judged.

use ztseg_common::addr::proto;
use ztseg_common::event::Counter;
use ztseg_common::key::{FlowKey4, Place};
use ztseg_common::packet::tcp;
use ztseg_common::verdict::Direction;

use crate::emit;
use crate::flow::Flow;
use crate::flows::now;
use crate::judge::Outcome;
use crate::maps::{DENIAL_SLOTS, DENIALS, Denial, FLOWS4, count};
use crate::plain::Sight;
use crate::policy::Policy;

/// Whether a flow was denied just now, and the packet is counted. False where a new record is due.
/// `opens`: it is a SYN, which the flow tables were not asked for. What has none may be of a connection
/// that is older than the attachment, and is not judged like one.
#[inline(always)]
pub fn again(key: &FlowKey4, sight: Sight<'_>, opens: bool) -> bool {
    let Some(denial) = DENIALS.get_ptr_mut(slot(key)) else { return false };
    // SAFETY: this CPU's slot. An interrupt may write it in between: at worst the key of one flow
    // meets the rule of another in the counts; both are denied.
    let denial = unsafe { &*denial };
    if denial.stamp != sight.stamp
        || denial.key != *key
        || denial.sender != sender(sight.outbound, opens)
        || denial.tick != now()
    {
        return false;
    }
    // The other end may have opened the flow since.
    if opens && FLOWS4.get_ptr(key).is_some() {
        return false;
    }
    if !emit::fold_again(denial.fold) {
        return false;
    }
    let ingress = denial.direction == Direction::Ingress as u16;
    count(if ingress { Counter::DroppedIngress } else { Counter::DroppedEgress });
    if denial.rule != 0 {
        Policy::of(sight.stamp).hit(denial.rule);
    }
    true
}

/// Remembers a denial whose packet came from the end that it was judged as opening the flow.
#[inline(never)]
pub fn remember(flow: &Flow, outcome: Outcome) {
    let packet = &flow.packet;
    if !packet.src.is_v4()
        || !packet.dst.is_v4()
        || !matches!(packet.protocol, proto::TCP | proto::UDP)
        || flow.is_initiator() != flow.is_outbound()
        || !outcome.keep()
        || outcome.expires()
    {
        return;
    }
    let key = FlowKey4 {
        local: flow.local().last_octets(),
        remote: flow.remote().last_octets(),
        local_port: flow.local_port(),
        remote_port: flow.remote_port(),
        place: Place::new(flow.workload, flow.netns, packet.protocol),
    };
    let Some(denial) = DENIALS.get_ptr_mut(slot(&key)) else { return };
    // SAFETY: as above.
    let denial = unsafe { &mut *denial };
    *denial = Denial {
        key,
        tick: now(),
        stamp: flow.stamp,
        fold: emit::fold_hash(flow, outcome.reason(), outcome.rule()),
        rule: outcome.rule(),
        direction: flow.direction() as u16,
        sender: sender(flow.is_outbound(), packet.tcp_flags & tcp::SYN != 0),
    };
}

/// [`Denial::sender`]
#[inline(always)]
fn sender(outbound: bool, opens: bool) -> u16 {
    u16::from(outbound) | u16::from(opens) << 1
}

/// Spreads what differs between the flows of a sender: addresses and ports.
#[inline(always)]
fn slot(key: &FlowKey4) -> u32 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let [a, b] = key.local_port.octets;
    let [c, d] = key.remote_port.octets;
    let ports = u32::from_ne_bytes([a, b, c, d]);
    let ends =
        u64::from(u32::from_ne_bytes(key.local)) << 32 | u64::from(u32::from_ne_bytes(key.remote));
    let hash = (ends ^ u64::from(ports).rotate_left(17)).wrapping_mul(MULTIPLIER);
    (hash >> 40) as u32 & (DENIAL_SLOTS - 1)
}
