//! A flow that has no valid verdict: find the peer, evaluate, count, report.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::SkBuffContext;
use ztseg_common::eval::{self, Decision, Keep, Query};
use ztseg_common::key::port_slot;
use ztseg_common::verdict::{Reason, Verdict};

use crate::emit::ztseg_report;
use crate::flow::Flow;
use crate::peer::{ztseg_by_address, ztseg_interface_peer, ztseg_peer};

/// The outcome of a judgement, as one word: it crosses calls in a register.
///
/// Zero denies.
#[must_use]
#[derive(Clone, Copy)]
pub struct Outcome(u64);

impl Outcome {
    const ALLOW: u64 = 1;
    const KEEP: u64 = 1 << 1;
    const AUDIT: u64 = 1 << 2;
    const LOG: u64 = 1 << 3;
    const EXPIRES: u64 = 1 << 4;
    const REJECT: u64 = 1 << 5;
    const REASON: u32 = 8;
    const RULE: u32 = 32;

    #[inline(always)]
    pub fn new(decision: &Decision) -> Self {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        Self(
            u64::from(decision.rule) << Self::RULE
                | u64::from(decision.reason as u8) << Self::REASON
                | flag(decision.verdict == Verdict::Allow, Self::ALLOW)
                | flag(decision.keep != Keep::Never, Self::KEEP)
                | flag(decision.keep == Keep::UntilExpired, Self::EXPIRES)
                | flag(decision.reject, Self::REJECT)
                | flag(decision.audit, Self::AUDIT)
                | flag(decision.log, Self::LOG),
        )
    }

    /// What was kept with a flow that is allowed.
    #[inline(always)]
    pub fn allowed(rule: u32, expires: bool) -> Self {
        let expires = if expires { Self::EXPIRES } else { 0 };
        Self(u64::from(rule) << Self::RULE | Self::ALLOW | Self::KEEP | expires)
    }

    /// A verdict for this packet alone, that was counted and reported.
    #[inline(always)]
    pub fn once(verdict: Verdict) -> Self {
        Self(if matches!(verdict, Verdict::Allow) { Self::ALLOW } else { 0 })
    }

    /// A denial that was kept with its flow.
    #[inline(always)]
    pub fn denied(reason: u8, rule: u32) -> Self {
        Self(u64::from(rule) << Self::RULE | u64::from(reason) << Self::REASON | Self::KEEP)
    }

    #[inline(always)]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub fn bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub fn verdict(self) -> Verdict {
        if self.0 & Self::ALLOW != 0 { Verdict::Allow } else { Verdict::Deny }
    }

    /// Whether the verdict may be kept with the flow.
    #[inline(always)]
    pub fn keep(self) -> bool {
        self.0 & Self::KEEP != 0
    }

    /// The stamp that a flow gets which is judged under `stamp`: zero, which is none, where each of its
    /// packets is to be judged.
    #[inline(always)]
    pub fn stamp(self, stamp: u64) -> u64 {
        if self.keep() { stamp } else { 0 }
    }

    /// Whether it ends with the rule that decided.
    #[inline(always)]
    pub fn expires(self) -> bool {
        self.0 & Self::EXPIRES != 0
    }

    /// Whether who is denied is told so.
    #[inline(always)]
    pub fn is_rejected(self) -> bool {
        self.0 & Self::REJECT != 0
    }

    #[inline(always)]
    pub fn is_audit(self) -> bool {
        self.0 & Self::AUDIT != 0
    }

    #[inline(always)]
    pub fn is_logged(self) -> bool {
        self.0 & Self::LOG != 0
    }

    /// Number of the reason.
    #[inline(always)]
    pub fn reason(self) -> u8 {
        (self.0 >> Self::REASON) as u8
    }

    /// Rank of the rule, zero for none.
    #[inline(always)]
    pub fn rule(self) -> u32 {
        (self.0 >> Self::RULE) as u32
    }
}

/// Judges a flow of a cgroup workload or, with `INTERFACE`, of an interface workload, and reports the
/// outcome. The helpers of their hooks differ. Sets the peer's workload and classes in it.
#[inline(always)]
pub fn judge<const INTERFACE: bool>(skb: *mut __sk_buff, flow: &mut Flow) -> Outcome {
    ztseg_by_address(flow);
    if INTERFACE {
        ztseg_interface_peer(skb, flow);
    } else {
        ztseg_peer(skb, flow);
    }
    let outcome = Outcome::from_bits(ztseg_decide(flow));
    report(skb, flow, outcome);
    outcome
}

/// Counts an outcome, and reports it where it is to be reported.
#[inline(always)]
pub fn report(skb: *mut __sk_buff, flow: &Flow, outcome: Outcome) {
    ztseg_report(flow, outcome.bits());
    if crate::debug() {
        debug_line(skb, flow, outcome);
    }
}

/// Evaluates the policy for a flow whose peer is known. Returns [`Outcome::bits`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_decide(flow: *mut Flow) -> u64 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    if flow.peer != 0 && flow.peer == flow.workload {
        return Outcome::new(&Decision::fixed(Verdict::Allow, Reason::SelfTraffic)).bits();
    }
    let policy = flow.policy();
    if flow.subject == 0
        && let Some(workload) = policy.workload(flow.workload)
    {
        flow.subject = workload.subject;
    }
    let query = Query {
        subject: flow.subject,
        peer: flow.peer_classes(),
        port_slot: ztseg_port_slot(flow),
        direction: flow.direction(),
    };
    Outcome::new(&eval::decide(&policy, &query)).bits()
}

/// The slot of what rules ask for beside the peer. Verified on its own, so that nothing behind it is
/// followed for each protocol.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_port_slot(flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    port_slot(flow.packet.protocol, flow.service())
}

/// One line for a decision, through aya-log.
#[inline(never)]
fn debug_line(skb: *mut __sk_buff, flow: &Flow, outcome: Outcome) {
    aya_log_ebpf::debug!(
        &SkBuffContext::new(skb),
        "hook {} workload {} role {} protocol {} port {}: allow {} reason {} rule {}",
        flow.hook,
        flow.workload,
        flow.role,
        flow.packet.protocol,
        flow.service(),
        u8::from(outcome.verdict() == Verdict::Allow),
        outcome.reason(),
        outcome.rule()
    );
}
