//! Later fragments follow the first one of their packet.

use ztseg_common::event::Counter;
use ztseg_common::fragments::{FRAGMENT_TIMEOUT_SECONDS, FragmentState, fragment_key};
use ztseg_common::key::Place;
use ztseg_common::packet::IcmpKind;
use ztseg_common::state::is_fresh;
use ztseg_common::verdict::Reason;

use crate::flow::Flow;
use crate::flows::now;
use crate::maps::{FRAGMENTS, control, count};

/// Gives a later fragment the ports of its first one, so that it can be judged as a packet of that
/// flow. Returns zero, or the number of the reason why it cannot.
#[inline(never)]
pub fn follow(flow: &mut Flow) -> u8 {
    let Some(control) = control() else { return Reason::FragmentWithoutFirst as u8 };
    let key = fragment_key(&flow.packet, place(flow));
    let Some(first) = FRAGMENTS.get_ptr_mut(&key) else {
        return Reason::FragmentWithoutFirst as u8;
    };
    // SAFETY: a valid pointer from the lookup; words written by several CPUs are times.
    let first = unsafe { &mut *first };
    if !is_fresh(first.last_seen, now(), FRAGMENT_TIMEOUT_SECONDS, control.hz) {
        return Reason::FragmentWithoutFirst as u8;
    }
    if first.is_overlapped_by(&flow.packet) {
        // RFC 5722: nothing of such a packet is to arrive.
        let _ = FRAGMENTS.remove(key);
        return Reason::OverlappingFragment as u8;
    }
    first.last_seen = now();
    first.complete(&mut flow.packet);
    // What an error quotes is in its first fragment; that one's verdict is all there is.
    if flow.packet.is_icmp(IcmpKind::Error) && first.stamp != flow.stamp {
        return Reason::FragmentWithoutFirst as u8;
    }
    0
}

/// Keeps what the later fragments of a packet need, where this is its first one and was let through.
#[inline(never)]
pub fn remember(flow: &Flow) {
    if !flow.packet.is_first_fragment() {
        return;
    }
    let key = fragment_key(&flow.packet, place(flow));
    if FRAGMENTS.insert(key, FragmentState::of(&flow.packet, flow.stamp, now()), 0).is_err() {
        count(Counter::FlowsNotStored);
    }
}

/// The protocol of a fragment stands elsewhere in its key.
#[inline(always)]
fn place(flow: &Flow) -> Place {
    Place::new(flow.workload, flow.netns, 0)
}
