//! Flows that no socket keeps: unconnected UDP, ICMP, raw sockets, and all of TC.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use ztseg_common::addr::proto;
use ztseg_common::eval::{Decision, Lookup};
use ztseg_common::key::{IDENTITY_NOBODY, Place, WorkloadKey};
use ztseg_common::packet::{IcmpKind, Packet, Reader, SctpKind, tcp};
use ztseg_common::state::{Chunk, FLOW_EXPIRES, FlowState, Phase, Segment, Step};
use ztseg_common::value::{Control, Isolation};
use ztseg_common::verdict::{Direction, Reason, Verdict};

use crate::flow::Flow;
use crate::flows::{self, Known, now, place};
use crate::judge::{Outcome, judge, report};
use crate::maps::control;
use crate::policy::Policy;
use crate::skb::{Skb, ztseg_parse_quoted};
use crate::{claim, denied};

/// Judges a packet by the table, and by the rules where that has no valid verdict; keeps what may be
/// kept. The flow has its subject and its packet; the role that it turns out to have is set in it.
/// `INTERFACE` says what kind of workload it is; `there` whether the table may have the flow.
#[inline(always)]
pub fn packet<const INTERFACE: bool>(skb: *mut __sk_buff, flow: &mut Flow, there: bool) -> Outcome {
    Outcome::from_bits(if INTERFACE {
        ztseg_interface_packet(skb, flow, u32::from(there))
    } else {
        ztseg_by_table(skb, flow)
    })
}

/// [`packet`] of a cgroup workload, verified once, whatever the caller knows of the flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_by_table(skb: *mut __sk_buff, flow: *mut Flow) -> u64 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    judge_packet::<false>(skb, flow, true).bits()
}

/// [`packet`] of an interface workload, likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_interface_packet(skb: *mut __sk_buff, flow: *mut Flow, there: u32) -> u64 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    judge_packet::<true>(skb, flow, there != 0).bits()
}

#[inline(always)]
fn judge_packet<const INTERFACE: bool>(
    skb: *mut __sk_buff,
    flow: &mut Flow,
    there: bool,
) -> Outcome {
    let Some(control) = control() else { return Outcome::once(Verdict::Deny) };
    // A flow that the table has; not one that a SYN opens anew between the same ends.
    let mut goes_on = false;
    if there && let Some(known) = flows::fresh(&flow.packet, flow.is_outbound(), place(flow)) {
        let Known { state, spilled } = known;
        let was_closing = state.phase == Phase::Closing as u8;
        goes_on = step(skb, flow, state) == Step::Continue;
        if goes_on
            && is_judged(state, flow.stamp)
            && (INTERFACE || !another_peer(skb, flow, state.peer))
        {
            state.last_seen = now();
            state.account(flow.is_outbound(), flow.packet.length);
            if spilled || (!was_closing && state.phase == Phase::Closing as u8) {
                flows::ztseg_rebalance(flow, u32::from(spilled));
            }
            return Outcome::allowed(state.rule, state.flags & FLOW_EXPIRES != 0);
        }
        if goes_on {
            flow.keep_role(state.role);
            flow.peer = state.peer;
        }
    }
    let before = flow.peer;
    let mut outcome = judge::<INTERFACE>(skb, flow);
    let mut adopted = false;
    if INTERFACE && outcome.verdict() == Verdict::Deny && !goes_on && adopting(control, flow) {
        // Older than our attachment: which end opened it is not known.
        adopted = true;
        flow.swap_role();
        flow.peer = before;
        outcome = judge::<INTERFACE>(skb, flow);
    }
    if outcome.verdict() == Verdict::Allow {
        // Who opened it must be known to its replies, also where its verdict is good for one packet. But
        // nobody replies from a port that nobody has.
        if outcome.keep() || flow.identity != IDENTITY_NOBODY {
            if goes_on {
                renew(flow, outcome);
            } else {
                flows::ztseg_insert(flow, outcome.bits());
                if is_midway(&flow.packet) {
                    ztseg_begin(skb, flow);
                }
            }
        }
    } else if goes_on {
        // A flow that was allowed under an older policy must not be found again.
        flows::ztseg_remove(flow);
    } else if INTERFACE && !adopted {
        denied::ztseg_remember_denial(flow, outcome.bits());
    }
    outcome
}

/// Whether the flow's verdict still holds.
#[inline(always)]
fn is_judged(state: &FlowState, stamp: u64) -> bool {
    state.stamp == stamp
        && (state.flags & FLOW_EXPIRES == 0 || !Policy::of(stamp).is_over(state.rule))
}

/// Whether a datagram on loopback goes to or comes from somebody else than the flow was judged for.
#[inline(always)]
fn another_peer(skb: *mut __sk_buff, flow: &Flow, peer: WorkloadKey) -> bool {
    flow.is_loopback()
        && flow.packet.protocol == proto::UDP
        && claim::ztseg_peer_changed(skb, core::ptr::from_ref(flow), peer) != 0
}

/// What the packet does to the flow that it belongs to.
#[inline(always)]
fn step(skb: *mut __sk_buff, flow: &Flow, state: &mut FlowState) -> Step {
    match ztseg_step(skb, flow, state) {
        0 => Step::New,
        _ => Step::Continue,
    }
}

/// As [`step`]: whether it is [`Step::Continue`]. Verified once for all who ask.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_step(skb: *mut __sk_buff, flow: *const Flow, state: *mut FlowState) -> u32 {
    // SAFETY: the verifier checks that the caller's flow and state are memory of these sizes.
    let (Some(flow), Some(state)) = (unsafe { (flow.as_ref(), state.as_mut()) }) else { return 0 };
    u32::from(take_step(skb, flow, state) == Step::Continue)
}

#[inline(always)]
fn take_step(skb: *mut __sk_buff, flow: &Flow, state: &mut FlowState) -> Step {
    let (packet, outbound) = (&flow.packet, flow.is_outbound());
    // A later fragment has no header that could say anything of the connection.
    if !matches!(packet.protocol, proto::TCP | proto::SCTP) || packet.is_later_fragment() {
        return Step::Continue;
    }
    // Sequence and acknowledgement number, or the verification tag. The parser has seen that the
    // header is there.
    let at = u32::from(packet.l4_offset) + 4;
    let Some([a, b, _, _, c, d, _, _]) = Skb::new(skb).read::<8>(at) else { return Step::New };
    if packet.protocol == proto::SCTP {
        let tag = u16::from_be_bytes([a, b]);
        return state.sctp(Chunk { kind: packet.message, outbound, tag });
    }
    state.tcp(Segment {
        flags: packet.tcp_flags,
        outbound,
        sequence: u16::from_be_bytes([a, b]),
        acknowledgement: u16::from_be_bytes([c, d]),
    })
}

/// The verdict on a packet that no rule is asked about: discovery, and ICMP errors.
#[inline(always)]
pub fn special<const INTERFACE: bool>(skb: *mut __sk_buff, flow: &mut Flow) -> Option<Verdict> {
    if flow.packet.is_icmp(IcmpKind::Discovery) {
        let passes = INTERFACE || !claim::leaves_the_link(&flow.packet, flow.is_outbound());
        return passes.then_some(Verdict::Allow);
    }
    if !flow.packet.is_icmp(IcmpKind::Error) {
        return None;
    }
    // Of a later fragment, the first one was an error that might pass.
    if flow.packet.is_later_fragment() || ztseg_quotes_flow(skb, flow) != 0 {
        return Some(Verdict::Allow);
    }
    Some(unreadable(&Skb::new(skb), flow, Reason::UnrelatedError))
}

const ICMP_HEADER: u32 = 8;

/// Keeps a flow that is known and allowed, with its new verdict where that may be kept.
#[inline(always)]
fn renew(flow: &Flow, outcome: Outcome) {
    let Some(state) = flows::again(flow) else { return };
    // The stamp is written last: a packet on another CPU that sees it sees the words before it, too
    // (x86 and BPF_ATOMIC-free stores of one CPU are seen in order; on weaker machines it is judged
    // again at worst).
    state.last_seen = now();
    state.peer = flow.peer;
    state.rule = outcome.rule();
    state.role = flow.role;
    state.reason = outcome.reason();
    state.flags = state.flags & !FLOW_EXPIRES | flows::expiry(outcome);
    state.account(flow.is_outbound(), flow.packet.length);
    state.stamp = outcome.stamp(flow.stamp);
}

/// Whether a packet is of a connection that stood before: it says more than that it opens one.
#[inline(always)]
fn is_midway(packet: &Packet) -> bool {
    match packet.protocol {
        proto::TCP => !tcp::is_request(packet.tcp_flags),
        proto::SCTP => !packet.is_sctp(SctpKind::Init),
        _ => false,
    }
}

/// What the first segment of a new flow acknowledges or ends counts, too. A function of its own for
/// its stack frame.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_begin(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(state) = flows::again(flow) else { return 0 };
    let _ = step(skb, flow, state);
    1
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
    let mut quoted = Packet::default();
    let offset = u32::from(flow.packet.l4_offset) + ICMP_HEADER;
    if ztseg_parse_quoted(skb, offset, &raw mut quoted) != 0 {
        return 0;
    }
    // An error goes to who sent what it quotes, and nobody else (RFC 1122 section 3.2.2).
    if quoted.src != flow.packet.dst {
        return 0;
    }
    // What an incoming error quotes went out.
    let place = Place::new(flow.workload, flow.netns, quoted.protocol);
    // What was judged by an older policy may be denied now; a packet of the flow that is still
    // allowed has renewed it before an error can come back.
    let known = flows::fresh(&quoted, !flow.is_outbound(), place);
    u32::from(known.is_some_and(|known| is_judged(known.state, flow.stamp)))
}

/// A packet that no rule can be asked about: denied where its direction is isolated or has rules,
/// and reported with its reason.
#[inline(always)]
pub fn unreadable(skb: &Skb, flow: &mut Flow, reason: Reason) -> Verdict {
    let outcome = Outcome::from_bits(ztseg_unreadable(flow, reason as u32));
    report(skb.raw, flow, outcome);
    outcome.verdict()
}

/// The [`Outcome::bits`] of [`unreadable`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_unreadable(flow: *mut Flow, reason: u32) -> u64 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let Some(reason) = Reason::from_u8(reason as u8) else { return 0 };
    if flow.subject == 0
        && let Some(workload) = flow.policy().workload(flow.workload)
    {
        flow.subject = workload.subject;
    }
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
    Outcome::new(&decision).bits()
}
