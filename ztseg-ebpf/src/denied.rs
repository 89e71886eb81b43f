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
use crate::maps::{DENIAL_SLOTS, DENIALS, FLOWS4, count};
use crate::policy::Policy;
use crate::turn;

/// Whether a flow was denied just now, and the packet is counted. False where a new record is due.
/// `opens`: it is a SYN, which the flow tables were not asked for. What has none may be of a connection
/// that is older than the attachment, and is not judged like one.
///
/// A function of its own for its stack frame.
#[inline(never)]
pub fn again(key: &FlowKey4, stamp: u64, outbound: bool, opens: bool) -> bool {
    let Some(denial) = DENIALS.get_ptr_mut(slot(key)) else { return false };
    // SAFETY: this CPU's slot. An interrupt may write it in between: at worst the key of one flow
    // meets the rule of another in the counts; both are denied.
    let denial = unsafe { &*denial };
    if denial.stamp != stamp
        || denial.key != *key
        || denial.sender != sender(outbound, opens)
        || denial.tick != now()
    {
        return false;
    }
    // To be judged as everything else is then; nothing is counted.
    if turn::stands_back_at_interface() {
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
        Policy::of(stamp).hit(denial.rule);
    }
    true
}

/// Remembers a denial whose packet came from the end that it was judged as opening the flow.
/// `outcome` is its [`Outcome::bits`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_remember_denial(flow: *const Flow, outcome: u64) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let outcome = Outcome::from_bits(outcome);
    let packet = &flow.packet;
    if !packet.src.is_v4()
        || !packet.dst.is_v4()
        || !matches!(packet.protocol, proto::TCP | proto::UDP)
        || flow.is_initiator() != flow.is_outbound()
        || !outcome.keep()
        || outcome.expires()
    {
        return 0;
    }
    let key = FlowKey4 {
        local: flow.local().last_octets(),
        remote: flow.remote().last_octets(),
        local_port: flow.local_port(),
        remote_port: flow.remote_port(),
        place: Place::new(flow.workload, flow.netns, packet.protocol),
    };
    let Some(denial) = DENIALS.get_ptr_mut(slot(&key)) else { return 0 };
    // SAFETY: as above.
    let denial = unsafe { &mut *denial };
    // Field by field: another one of it on the stack would not fit.
    denial.key = key;
    denial.tick = now();
    denial.stamp = flow.stamp;
    denial.fold = emit::fold_hash(flow, outcome.reason(), outcome.rule());
    denial.rule = outcome.rule();
    denial.direction = flow.direction() as u16;
    denial.sender = sender(flow.is_outbound(), packet.tcp_flags & tcp::SYN != 0);
    1
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
