//! Flows that no socket keeps: unconnected UDP, ICMP, raw sockets, and all of TC.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use ztseg_common::addr::proto;
use ztseg_common::eval::{Decision, Lookup};
use ztseg_common::event::Counter;
use ztseg_common::key::FlowKey;
use ztseg_common::packet::{IcmpKind, Packet, tcp};
use ztseg_common::state::{FlowState, Traffic, timeout_seconds};
use ztseg_common::value::{Control, Isolation};
use ztseg_common::verdict::{Direction, Reason, Verdict};

use crate::flow::{Flow, table_key};
use crate::judge::{Outcome, judge, report};
use crate::maps::{FLOWS, control, count};
use crate::skb::{Skb, ztseg_parse_quoted};

/// What the table knows of a packet's flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Judged by what is in force: only flows that are allowed are in the table.
    Allowed,
    /// Judged by something older, or silent for too long.
    Stale,
    /// Nothing, so that nobody needs to look again.
    Nothing,
}

/// Looks for a verdict, and counts the packet where there is a valid one.
#[inline(always)]
pub fn known(control: &Control, stamp: u64, key: &FlowKey, outbound: bool, bytes: u16) -> Known {
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_jiffies64() };
    let Some(state) = state(key) else { return Known::Nothing };
    if state.stamp != stamp || !is_fresh(state, key, control, now) {
        return Known::Stale;
    }
    state.last_seen = now;
    account(&mut state.traffic, outbound, bytes);
    Known::Allowed
}

#[inline(always)]
fn state(key: &FlowKey) -> Option<&'static mut FlowState> {
    let state = FLOWS.get_ptr_mut(key)?;
    // SAFETY: a valid pointer from the lookup; words written by several CPUs are counts and times.
    Some(unsafe { &mut *state })
}

/// Whether the flow has not been silent for too long.
#[inline(always)]
fn is_fresh(state: &FlowState, key: &FlowKey, control: &Control, now: u64) -> bool {
    let timeout = u64::from(timeout_seconds(key.protocol)) * u64::from(control.hz);
    now.wrapping_sub(state.last_seen) <= timeout
}

/// The flow's state, unless it has been silent for too long.
#[inline(always)]
fn fresh(key: &FlowKey, control: &Control, now: u64) -> Option<&'static mut FlowState> {
    state(key).filter(|state| is_fresh(state, key, control, now))
}

/// Adds a packet to a flow's counts.
#[inline(always)]
pub fn account(traffic: &mut Traffic, outbound: bool, bytes: u16) {
    if outbound {
        traffic.tx_packets += 1;
        traffic.tx_bytes += u64::from(bytes);
    } else {
        traffic.rx_packets += 1;
        traffic.rx_bytes += u64::from(bytes);
    }
}

/// Judges a packet that has no valid verdict, and keeps what may be kept. The flow has its subject
/// and its packet; the role that it turns out to have is set in it. `INTERFACE` says what kind of
/// workload it is; `found` whether the table has the flow, if not in force.
///
/// Not a global subprogram, as those below: kernels before 6.2 take no map key from an argument of
/// one, and `key` must be on the caller's stack.
#[inline(never)]
pub fn packet<const INTERFACE: bool>(
    skb: *mut __sk_buff,
    flow: &mut Flow,
    key: &FlowKey,
    found: bool,
) -> Verdict {
    let Some(control) = control() else { return Verdict::Deny };
    if found {
        // SAFETY: a plain helper call.
        if let Some(state) = fresh(key, control, unsafe { bpf_jiffies64() }) {
            flow.keep_role(state.role);
            flow.peer = state.peer;
        }
    }
    let before = flow.peer;
    let mut outcome = judge::<INTERFACE>(skb, flow);
    if INTERFACE && outcome.verdict() == Verdict::Deny && adopting(control, flow) {
        // Older than our attachment: which end opened it is not known.
        flow.swap_role();
        flow.peer = before;
        outcome = judge::<INTERFACE>(skb, flow);
    }
    keep(flow, key, outcome, found);
    outcome.verdict()
}

/// Whether a packet needs no verdict by rules, and what it is then.
#[inline(always)]
pub fn special(skb: &Skb, flow: &mut Flow) -> Option<Verdict> {
    if flow.packet.is_icmp(IcmpKind::Discovery) {
        return Some(Verdict::Allow);
    }
    if flow.packet.is_icmp(IcmpKind::Error) {
        if ztseg_quotes_flow(skb.raw, flow) != 0 {
            return Some(Verdict::Allow);
        }
        return Some(unreadable(skb, flow, Reason::UnrelatedError));
    }
    None
}

const ICMP_HEADER: u32 = 8;

/// Keeps a verdict that may be kept, and forgets a flow that is denied.
#[inline(never)]
fn keep(flow: &Flow, key: &FlowKey, outcome: Outcome, found: bool) {
    let bytes = flow.packet.length;
    if outcome.verdict() == Verdict::Deny {
        if found {
            // A flow that was allowed under an older policy must not be found again.
            let _ = FLOWS.remove(key);
        }
        return;
    }
    if !outcome.keep() {
        return;
    }
    // SAFETY: a plain helper call.
    let last_seen = unsafe { bpf_jiffies64() };
    if let Some(state) = if found { state(key) } else { None } {
        // The stamp is written last: a packet on another CPU that sees it sees the words before
        // it, too (x86 and BPF_ATOMIC-free stores of one CPU are seen in order; on weaker machines
        // it is judged again at worst).
        state.last_seen = last_seen;
        state.peer = flow.peer;
        state.rule = outcome.rule();
        state.role = flow.role;
        state.reason = outcome.reason();
        account(&mut state.traffic, flow.is_outbound(), bytes);
        state.stamp = flow.stamp;
        return;
    }
    let mut state = FlowState {
        stamp: flow.stamp,
        last_seen,
        peer: flow.peer,
        rule: outcome.rule(),
        role: flow.role,
        reason: outcome.reason(),
        zero: [0; 2],
        traffic: Traffic::default(),
    };
    account(&mut state.traffic, flow.is_outbound(), bytes);
    if FLOWS.insert(key, state, 0).is_err() {
        count(Counter::FlowsNotStored);
    }
}

#[inline(always)]
fn adopting(control: &Control, flow: &Flow) -> bool {
    flow.packet.protocol == proto::TCP
        && flow.packet.tcp_flags & tcp::SYN == 0
        // SAFETY: a plain helper call.
        && unsafe { bpf_ktime_get_boot_ns() } < control.adopt_until
}

/// Whether an ICMP error quotes a packet of a flow that is allowed: then it passes, and only then.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_quotes_flow(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(control) = control() else { return 0 };
    let mut quoted = Packet::default();
    let offset = u32::from(flow.packet.l4_offset) + ICMP_HEADER;
    if ztseg_parse_quoted(skb, offset, &raw mut quoted) != 0 {
        return 0;
    }
    // What an incoming error quotes went out.
    let key = table_key(&quoted, !flow.is_outbound(), flow.workload, flow.netns);
    // What was judged by an older policy may be denied now; a packet of the flow that is still
    // allowed has renewed it before an error can come back.
    // SAFETY: a plain helper call.
    let known = fresh(&key, control, unsafe { bpf_jiffies64() });
    u32::from(known.is_some_and(|state| state.stamp == flow.stamp))
}

/// A packet that no rule can be asked about: denied where its direction is isolated or has rules,
/// and reported with its reason.
#[inline(always)]
pub fn unreadable(skb: &Skb, flow: &mut Flow, reason: Reason) -> Verdict {
    let subject = flow.policy().subject(flow.subject).unwrap_or_default();
    let (isolation, shapes) = match flow.direction() {
        Direction::Ingress => (subject.ingress, subject.ingress_shapes),
        Direction::Egress => (subject.egress, subject.egress_shapes),
    };
    let decision = match Isolation::from_u8(isolation) {
        Isolation::Open if shapes == 0 => Decision::fixed(Verdict::Allow, Reason::NoIsolation),
        Isolation::Audit => Decision { audit: true, ..Decision::fixed(Verdict::Allow, reason) },
        Isolation::Open | Isolation::Enforce => Decision::fixed(Verdict::Deny, reason),
    };
    report(skb.raw, flow, Outcome::new(&decision));
    decision.verdict
}
