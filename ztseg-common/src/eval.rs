//! The evaluator: one piece of code for the kernel programs, `ztseg check` and the tests.
//!
//! A new flow costs at most twelve entry lookups, however many rules there are: {identity class,
//! address class, any} × {port class, any} for its subject class and for "every subject". The
//! subject's mask says which of these shapes are in use, in practice one to three. Nothing here
//! loops over rules.

use crate::key::{EntryKey, IDENTITY_NOBODY, PORT_ANY, PeerKind, SHAPES, SUBJECT_ANY};
use crate::value::{
    Action, Entry, Fallback, Isolation, MAX_FALLBACKS, Peer, RANK_EXPIRES, RULE_LOG, RULE_REJECT,
    Rule, SUBJECT_FAILSAFE, Subject, Tier, WORKLOAD_HOST, Workload,
};
use crate::verdict::{Direction, Reason, Verdict};

/// Where the evaluator reads a compiled policy: BPF maps in the kernel, an image elsewhere.
///
/// `None` from [`Lookup::subject`] or [`Lookup::rule`] means that the policy is incomplete, and
/// denies.
pub trait Lookup {
    /// The subject class's row.
    fn subject(&self, class: u32) -> Option<Subject>;
    /// The port class of a slot ([`crate::key::port_slot`]); zero when it is not initialised.
    fn port_class(&self, slot: u32) -> u16;
    /// The entry under `key`, if any rule gave one.
    fn entry(&self, key: &EntryKey) -> Option<&Entry>;
    /// The rule of a rank.
    fn rule(&self, rank: u32) -> Option<&Rule>;
    /// What stands behind a rule that expires.
    fn fallback(&self, index: u32) -> Option<Fallback>;
    /// The time, on the clock of [`Rule::expires`].
    fn now(&self) -> u64;

    /// The rule that holds now under a field of [`crate::value::Ranks`]; zero for none. The kernel
    /// programs override it with a subprogram, since hardly any rule expires.
    #[inline(always)]
    fn alive(&self, rank: u32) -> u32 {
        alive(self, rank)
    }

    /// Takes what the entry of one shape has that is better; overridden as [`Self::alive`] is.
    #[inline(always)]
    fn look(&self, best: &mut Best, shape: u32) {
        best.look(self, shape);
    }

    /// What the best rules come to; overridden as [`Self::alive`] is.
    #[inline(always)]
    fn outcome(&self, best: &Best, shadow: bool, isolated: bool) -> Outcome {
        best.outcome(self, shadow, isolated)
    }
}

/// See [`Lookup::alive`]. At most [`MAX_FALLBACKS`] steps, which is what the compiler makes.
#[inline(always)]
pub fn alive<L: Lookup + ?Sized>(policy: &L, mut rank: u32) -> u32 {
    for _ in 0..MAX_FALLBACKS {
        if rank & RANK_EXPIRES == 0 {
            return rank;
        }
        let Some(fallback) = policy.fallback(rank & !RANK_EXPIRES) else { return NOT_A_RANK };
        let Some(rule) = policy.rule(fallback.rank) else { return NOT_A_RANK };
        if !rule.is_over(policy.now()) {
            return fallback.rank;
        }
        rank = fallback.next;
    }
    if rank & RANK_EXPIRES == 0 { rank } else { NOT_A_RANK }
}

/// No rule has it, so that the policy is found to be incomplete.
const NOT_A_RANK: u32 = RANK_EXPIRES - 1;

/// How long a verdict may be kept with its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Until the policy or a workload changes.
    UntilChanged,
    /// The same, and not beyond the end of the rule that decided.
    UntilExpired,
    /// Not at all: it depends on what no epoch follows (whether a local port has a listener), or
    /// on the end of another rule than the one that decided.
    Never,
}

/// One question: may `subject` have this flow with `peer`?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Subject class.
    pub subject: u32,
    /// The peer's classes.
    pub peer: Peer,
    /// Slot of (protocol, port), see [`crate::key::port_slot`].
    pub port_slot: u32,
    /// Which end opened the flow.
    pub direction: Direction,
}

/// The answer.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Rank of the rule that decided, zero for none.
    pub rule: u32,
    /// The flow passes, but would be denied if every policy enforced; `reason` and `rule` then say
    /// what would deny it.
    pub audit: bool,
    /// The deciding rule asks for a report of what it allows.
    pub log: bool,
    /// The deciding rule, or the segment whose isolation denies, asks for an answer to that.
    pub reject: bool,
    /// How long the verdict is good.
    pub keep: Keep,
}

impl Decision {
    /// A verdict that no rule gave.
    pub const fn fixed(verdict: Verdict, reason: Reason) -> Self {
        let keep = Keep::UntilChanged;
        Self { verdict, reason, rule: 0, audit: false, log: false, reject: false, keep }
    }
}

/// Decides whether a workload may have a packet socket: its frames pass no hook at which a rule could
/// be asked, and it hears everybody's, so one direction that is isolated is enough to refuse it. `None`:
/// it may, and nobody has to know. Else what to do and report, and the direction whose isolation it is.
///
/// The host and failsafe units keep theirs, for DHCP.
#[inline(always)]
pub fn packet_socket(
    workload: &Workload,
    subject: Option<Subject>,
) -> Option<(Decision, Direction)> {
    let Some(subject) = subject else {
        let decision = Decision::fixed(Verdict::Deny, Reason::NotInitialised);
        return Some((decision, Direction::Egress));
    };
    if workload.flags & WORKLOAD_HOST != 0 || subject.flags & SUBJECT_FAILSAFE != 0 {
        return None;
    }
    let (ingress, egress) =
        (Isolation::from_u8(subject.ingress), Isolation::from_u8(subject.egress));
    let (strictest, direction) = if (egress as u8) <= (ingress as u8) {
        (egress, Direction::Egress)
    } else {
        (ingress, Direction::Ingress)
    };
    let decision = match strictest {
        Isolation::Enforce => Decision::fixed(Verdict::Deny, Reason::PacketSocket),
        Isolation::Audit => {
            Decision { audit: true, ..Decision::fixed(Verdict::Allow, Reason::PacketSocket) }
        }
        Isolation::Open => return None,
    };
    Some((decision, direction))
}

/// Decides one flow at one end.
#[inline(always)]
pub fn decide<L: Lookup>(policy: &L, query: &Query) -> Decision {
    let Some(subject) = policy.subject(query.subject) else {
        return Decision::fixed(Verdict::Deny, Reason::NotInitialised);
    };
    let (isolation, shapes) = match query.direction {
        Direction::Ingress => (subject.ingress, subject.ingress_shapes),
        Direction::Egress => (subject.egress, subject.egress_shapes),
    };
    let isolation = Isolation::from_u8(isolation);
    let mut best = Best::new(query);
    if shapes != 0 {
        let port = policy.port_class(query.port_slot);
        if port == PORT_ANY {
            return Decision::fixed(Verdict::Deny, Reason::NotInitialised);
        }
        best.collect(policy, shapes, port);
    }
    let effective = policy.outcome(&best, false, isolation == Isolation::Enforce);
    let (mut found, mut end, mut audit) = (effective, effective.end, false);
    // The shadow evaluation differs only where something is in audit mode.
    if effective.verdict == Verdict::Allow
        && (isolation == Isolation::Audit || best.effective != best.shadow)
    {
        let shadow = policy.outcome(&best, true, isolation != Isolation::Open);
        end = earlier(end, shadow.end);
        if shadow.verdict == Verdict::Deny {
            (found, audit) = (shadow, true);
        }
    }
    let verdict = if audit { Verdict::Allow } else { found.verdict };
    let mut decision =
        Decision { rule: found.rank, audit, ..Decision::fixed(verdict, found.reason) };
    let mut own_end = 0;
    if let Some(rule) = policy.rule(found.rank) {
        own_end = rule.expires;
        if !audit {
            decision.log = rule.flags & RULE_LOG != 0;
            decision.reject = verdict == Verdict::Deny && rule.flags & RULE_REJECT != 0;
        }
    }
    // Behind the rules: the table of a kernel has a row of zeros for "no rule".
    if verdict == Verdict::Deny && found.reason == Reason::Isolation {
        decision.reject = subject.rejects(query.direction);
    }
    if query.peer.identity == IDENTITY_NOBODY {
        decision.keep = Keep::Never;
    } else if end != 0 {
        decision.keep = if own_end == end { Keep::UntilExpired } else { Keep::Never };
    }
    decision
}

/// The earlier of two ends of rules; zero for never.
#[inline(always)]
fn earlier(a: u64, b: u64) -> u64 {
    if a == 0 || (b != 0 && b < a) { b } else { a }
}

const NONE: u32 = u32::MAX;

/// The best ranks found so far, by tier, less one: so that "none" is the largest value. And what they
/// are looked for by.
///
/// In the kernel a subprogram gets it by reference: it is without padding.
#[repr(C)]
#[derive(Debug)]
pub struct Best {
    effective: [u32; 3],
    shadow: [u32; 3],
    subject: u32,
    identity: u32,
    address: u32,
    port: u16,
    direction: u16,
}

impl Best {
    #[inline(always)]
    fn new(query: &Query) -> Self {
        Self {
            effective: [NONE; 3],
            shadow: [NONE; 3],
            subject: query.subject,
            identity: query.peer.identity,
            address: query.peer.address,
            port: PORT_ANY,
            direction: query.direction as u16,
        }
    }

    #[inline(always)]
    fn collect<L: Lookup>(&mut self, policy: &L, shapes: u16, port: u16) {
        self.port = port;
        for shape in 0..2 * SHAPES {
            if shapes & 1 << shape != 0 {
                policy.look(self, shape);
            }
        }
    }

    /// See [`Lookup::look`]. `shape` is the number of a bit in a subject's mask.
    #[inline(always)]
    pub fn look<L: Lookup + ?Sized>(&mut self, policy: &L, shape: u32) {
        let (subject, shape) =
            if shape < SHAPES { (self.subject, shape) } else { (SUBJECT_ANY, shape - SHAPES) };
        let (kind, peer) = match shape >> 1 {
            0 => (PeerKind::Identity, self.identity),
            1 => (PeerKind::Address, self.address),
            _ => (PeerKind::Any, 0),
        };
        let key = EntryKey {
            subject,
            peer,
            port: if shape & 1 == 0 { PORT_ANY } else { self.port },
            kind: kind as u8,
            direction: self.direction.to_le_bytes()[0],
        };
        if let Some(entry) = policy.entry(&key) {
            self.merge(policy, entry);
        }
    }

    /// See [`Lookup::outcome`].
    #[inline(always)]
    pub fn outcome<L: Lookup + ?Sized>(&self, policy: &L, shadow: bool, isolated: bool) -> Outcome {
        outcome(policy, if shadow { &self.shadow } else { &self.effective }, isolated)
    }

    #[inline(always)]
    fn merge<L: Lookup + ?Sized>(&mut self, policy: &L, entry: &Entry) {
        for (tier, ranks) in entry.tiers.iter().enumerate() {
            let (mut effective, mut shadow) = (ranks.effective, ranks.shadow);
            if (effective | shadow) & RANK_EXPIRES != 0 {
                (effective, shadow) = (policy.alive(effective), policy.alive(shadow));
            }
            self.effective[tier] = lower(self.effective[tier], effective.wrapping_sub(1));
            self.shadow[tier] = lower(self.shadow[tier], shadow.wrapping_sub(1));
        }
    }
}

/// The lower of two numbers, without a branch: the kernel's verifier would follow both ways of each.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the result is one of the two")]
fn lower(a: u32, b: u32) -> u32 {
    let (a, b) = (u64::from(a), u64::from(b));
    let difference = a.wrapping_sub(b);
    let a_is_lower = (difference.cast_signed() >> 63).cast_unsigned();
    b.wrapping_add(difference & a_is_lower) as u32
}

/// What the tiers' best rules come to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What happens.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Of the rule that decided; zero for none.
    pub rank: u32,
    /// When the first of the rules that had a part in it ends; zero for never.
    pub end: u64,
}

#[inline(always)]
fn outcome<L: Lookup + ?Sized>(policy: &L, best: &[u32; 3], isolated: bool) -> Outcome {
    const APPLICATION: usize = Tier::Application as usize;
    let mut end = 0;
    for (tier, rank) in best.iter().enumerate() {
        let rank = rank.wrapping_add(1);
        if rank != 0 {
            let Some(rule) = policy.rule(rank) else {
                return Outcome {
                    verdict: Verdict::Deny,
                    reason: Reason::NotInitialised,
                    rank: 0,
                    end,
                };
            };
            end = earlier(end, rule.expires);
            let verdict = match Action::from_u8(rule.action) {
                Action::Deny => Some(Verdict::Deny),
                Action::Allow => Some(Verdict::Allow),
                Action::Pass => None,
            };
            if let Some(verdict) = verdict {
                return Outcome { verdict, reason: Reason::Rule, rank, end };
            }
        }
        if tier == APPLICATION && isolated {
            return Outcome { verdict: Verdict::Deny, reason: Reason::Isolation, rank: 0, end };
        }
    }
    Outcome { verdict: Verdict::Allow, reason: Reason::NoIsolation, rank: 0, end }
}

#[cfg(test)]
mod tests;
