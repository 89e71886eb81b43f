//! The evaluator: one piece of code for the kernel programs, `ztseg check` and the tests.
//!
//! A new flow costs at most twelve entry lookups, however many rules there are: {identity class,
//! address class, any} × {port class, any} for its subject class and for "every subject". The
//! subject's mask says which of these shapes are in use, in practice one to three. Nothing here
//! loops over rules.

use crate::key::{EntryKey, IDENTITY_NOBODY, PORT_ANY, PeerKind, SHAPES, SUBJECT_ANY};
use crate::value::{
    Action, Entry, Fallback, Isolation, MAX_FALLBACKS, Peer, RANK_EXPIRES, RULE_LOG, RULE_REJECT,
    Rule, Subject, Tier,
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
    let mut best = Best { effective: [NONE; 3], shadow: [NONE; 3] };
    if shapes != 0 {
        let port = policy.port_class(query.port_slot);
        if port == PORT_ANY {
            return Decision::fixed(Verdict::Deny, Reason::NotInitialised);
        }
        best.collect(policy, query, shapes, port);
    }
    let effective = outcome(policy, &best.effective, isolation == Isolation::Enforce);
    let (mut found, mut end, mut audit) = (effective, effective.end, false);
    // The shadow evaluation differs only where something is in audit mode.
    if effective.verdict == Verdict::Allow
        && (isolation == Isolation::Audit || best.effective != best.shadow)
    {
        let shadow = outcome(policy, &best.shadow, isolation != Isolation::Open);
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

/// The best ranks found so far, by tier, less one: so that "none" is the largest value.
struct Best {
    effective: [u32; 3],
    shadow: [u32; 3],
}

impl Best {
    #[inline(always)]
    fn collect<L: Lookup>(&mut self, policy: &L, query: &Query, shapes: u16, port: u16) {
        // One key, changed in place: in the kernel it lies on a stack of 512 bytes.
        let mut key = EntryKey { direction: query.direction as u8, ..EntryKey::default() };
        for (subject, shapes) in [(query.subject, shapes), (SUBJECT_ANY, shapes >> SHAPES)] {
            key.subject = subject;
            for kind in [PeerKind::Identity, PeerKind::Address, PeerKind::Any] {
                key.kind = kind as u8;
                key.peer = match kind {
                    PeerKind::Identity => query.peer.identity,
                    PeerKind::Address => query.peer.address,
                    PeerKind::Any => 0,
                };
                for port in [PORT_ANY, port] {
                    key.port = port;
                    if shapes & key.shape() != 0
                        && let Some(entry) = policy.entry(&key)
                    {
                        self.merge(policy, entry);
                    }
                }
            }
        }
    }

    /// A function of its own for its stack frame in the kernel.
    #[inline(never)]
    fn merge<L: Lookup>(&mut self, policy: &L, entry: &Entry) {
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
#[derive(Clone, Copy)]
struct Outcome {
    verdict: Verdict,
    reason: Reason,
    /// Of the rule that decided; zero for none.
    rank: u32,
    /// When the first of the rules that had a part in it ends; zero for never.
    end: u64,
}

#[inline(always)]
fn outcome<L: Lookup>(policy: &L, best: &[u32; 3], isolated: bool) -> Outcome {
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
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::*;
    use crate::key::{ADDRESS_UNKNOWN, IDENTITY_UNKNOWN, PORT_UNNAMED, shape};
    use crate::value::{Ranks, SUBJECT_REJECT_EGRESS, SUBJECT_REJECT_INGRESS};

    #[derive(Default)]
    struct Table {
        subjects: Vec<Subject>,
        entries: BTreeMap<EntryKey, Entry>,
        rules: Vec<Rule>,
        fallbacks: Vec<Fallback>,
        now: u64,
    }

    impl Lookup for Table {
        fn subject(&self, class: u32) -> Option<Subject> {
            self.subjects.get(class as usize).copied()
        }
        fn port_class(&self, slot: u32) -> u16 {
            if slot == 0 { 0 } else { PORT_UNNAMED }
        }
        fn entry(&self, key: &EntryKey) -> Option<&Entry> {
            self.entries.get(key)
        }
        fn rule(&self, rank: u32) -> Option<&Rule> {
            self.rules.get(rank as usize)
        }
        fn fallback(&self, index: u32) -> Option<Fallback> {
            self.fallbacks.get(index as usize).copied()
        }
        fn now(&self) -> u64 {
            self.now
        }
    }

    fn subject(isolation: Isolation, shapes: u16) -> Subject {
        Subject { ingress: isolation as u8, ingress_shapes: shapes, ..Subject::default() }
    }

    fn rule(action: Action) -> Rule {
        Rule { action: action as u8, ..Rule::default() }
    }

    fn query() -> Query {
        let peer = Peer { identity: IDENTITY_UNKNOWN, address: ADDRESS_UNKNOWN };
        Query { subject: 0, peer, port_slot: 1, direction: Direction::Ingress }
    }

    fn any_key() -> EntryKey {
        EntryKey { kind: PeerKind::Any as u8, direction: 1, ..EntryKey::default() }
    }

    fn tiers(list: &[(Tier, u32, u32)]) -> Entry {
        let mut entry = Entry::default();
        for (tier, effective, shadow) in list {
            entry.tiers[*tier as usize] = Ranks { effective: *effective, shadow: *shadow };
        }
        entry
    }

    fn table(isolation: Isolation, entry: Entry, actions: &[Action]) -> Table {
        let mut rules = std::vec![Rule::default()];
        rules.extend(actions.iter().map(|a| rule(*a)));
        let shapes = shape(PeerKind::Any as u8, false);
        Table {
            subjects: std::vec![subject(isolation, shapes)],
            entries: [(any_key(), entry)].into(),
            rules,
            ..Table::default()
        }
    }

    #[test]
    fn what_is_not_initialised_denies() {
        let d = decide(&Table::default(), &query());
        assert_eq!((d.verdict, d.reason), (Verdict::Deny, Reason::NotInitialised));
        let zeroed = Table { subjects: std::vec![Subject::default()], ..Table::default() };
        assert_eq!(decide(&zeroed, &query()).reason, Reason::Isolation);
        let no_rule = table(Isolation::Open, tiers(&[(Tier::Application, 5, 5)]), &[]);
        assert_eq!(decide(&no_rule, &query()).reason, Reason::NotInitialised);
        let t = table(Isolation::Open, Entry::default(), &[]);
        assert_eq!(decide(&t, &Query { port_slot: 0, ..query() }).reason, Reason::NotInitialised);
    }

    #[test]
    fn isolation_decides_without_a_rule() {
        for (isolation, verdict, reason, audit) in [
            (Isolation::Enforce, Verdict::Deny, Reason::Isolation, false),
            (Isolation::Audit, Verdict::Allow, Reason::Isolation, true),
            (Isolation::Open, Verdict::Allow, Reason::NoIsolation, false),
        ] {
            let d = decide(&table(isolation, Entry::default(), &[]), &query());
            assert_eq!((d.verdict, d.reason, d.audit), (verdict, reason, audit));
        }
    }

    #[test]
    fn a_deny_in_audit_mode_reports_and_passes() {
        let entry = tiers(&[(Tier::Application, 2, 1)]);
        let t = table(Isolation::Enforce, entry, &[Action::Deny, Action::Allow]);
        let d = decide(&t, &query());
        assert_eq!((d.verdict, d.reason, d.rule, d.audit), (Verdict::Allow, Reason::Rule, 1, true));
    }

    #[test]
    fn a_pass_leads_to_the_next_tier() {
        let entry = tiers(&[(Tier::Admin, 1, 1), (Tier::Application, 2, 2)]);
        let t = table(Isolation::Open, entry, &[Action::Pass, Action::Deny]);
        let d = decide(&t, &query());
        assert_eq!((d.verdict, d.rule), (Verdict::Deny, 2));
    }

    #[test]
    fn entries_for_every_subject_count_too() {
        let mut t = table(Isolation::Open, tiers(&[(Tier::Application, 2, 2)]), &[Action::Deny]);
        t.rules.push(rule(Action::Allow));
        let key = EntryKey { subject: SUBJECT_ANY, ..any_key() };
        t.entries.insert(key, tiers(&[(Tier::Application, 1, 1)]));
        t.subjects.push(t.subjects[0]);
        let own = EntryKey { subject: 1, ..any_key() };
        t.entries.insert(own, t.entries[&key]);
        let q = Query { subject: 1, ..query() };
        assert_eq!(decide(&t, &q).rule, 1);
        t.subjects[1].ingress_shapes <<= SHAPES;
        assert_eq!(decide(&t, &q).rule, 1);
        t.subjects[1].ingress_shapes = 0;
        assert_eq!(decide(&t, &q).reason, Reason::NoIsolation);
    }

    /// An allow rule until 10, a deny rule until 20, then isolation.
    fn expiring() -> Table {
        let first = RANK_EXPIRES | 1;
        let mut t = table(
            Isolation::Enforce,
            tiers(&[(Tier::Application, first, first)]),
            &[Action::Allow, Action::Deny],
        );
        t.rules[1].expires = 10;
        t.rules[2].expires = 20;
        let next = RANK_EXPIRES | 2;
        t.fallbacks = std::vec![
            Fallback::default(),
            Fallback { rank: 1, next },
            Fallback { rank: 2, next: 0 },
        ];
        t
    }

    #[test]
    fn a_rule_that_is_over_leaves_the_decision_to_the_next_one() {
        for (now, verdict, rule, keep) in [
            (0, Verdict::Allow, 1, Keep::UntilExpired),
            (9, Verdict::Allow, 1, Keep::UntilExpired),
            (10, Verdict::Deny, 2, Keep::UntilExpired),
            (20, Verdict::Deny, 0, Keep::UntilChanged),
        ] {
            let d = decide(&Table { now, ..expiring() }, &query());
            assert_eq!((d.verdict, d.rule, d.keep), (verdict, rule, keep), "at {now}");
        }
    }

    #[test]
    fn what_hangs_on_the_end_of_another_rule_is_not_kept() {
        let mut t = expiring();
        t.rules[1].action = Action::Pass as u8;
        let first = RANK_EXPIRES | 1;
        let entry = tiers(&[(Tier::Admin, first, first), (Tier::Application, 3, 3)]);
        t.entries.insert(any_key(), entry);
        t.rules.push(rule(Action::Allow));
        t.fallbacks[1].next = 0;
        let d = decide(&t, &query());
        assert_eq!((d.verdict, d.rule, d.keep), (Verdict::Allow, 3, Keep::Never));
        let d = decide(&Table { now: 10, ..t }, &query());
        assert_eq!((d.verdict, d.rule, d.keep), (Verdict::Allow, 3, Keep::UntilChanged));
    }

    #[test]
    fn a_chain_that_never_ends_denies() {
        let mut t = Table { now: 99, ..expiring() };
        t.fallbacks[2].next = RANK_EXPIRES | 1;
        assert_eq!(decide(&t, &query()).reason, Reason::NotInitialised);
    }

    #[test]
    fn the_lower_number_without_a_branch() {
        let numbers = [0, 1, 2, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
        for a in numbers {
            for b in numbers {
                assert_eq!(lower(a, b), a.min(b), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_deny_that_rejects_says_so() {
        let mut t = table(Isolation::Open, tiers(&[(Tier::Application, 1, 1)]), &[Action::Deny]);
        t.rules[1].flags = RULE_REJECT;
        assert!(decide(&t, &query()).reject);
        t.rules[1].action = Action::Allow as u8;
        assert!(!decide(&t, &query()).reject);
    }

    #[test]
    fn an_isolation_that_rejects_says_so_for_its_direction_alone() {
        let mut t = table(Isolation::Enforce, Entry::default(), &[]);
        for (flags, reject) in [(SUBJECT_REJECT_INGRESS, true), (SUBJECT_REJECT_EGRESS, false)] {
            t.subjects[0].flags = flags;
            assert_eq!(decide(&t, &query()).reject, reject);
        }
        // What passes is told nothing, and what a rule denies is the rule's to say.
        t.subjects[0].flags = SUBJECT_REJECT_INGRESS;
        t.subjects[0].ingress = Isolation::Audit as u8;
        assert!(!decide(&t, &query()).reject);
        let mut t = table(Isolation::Enforce, tiers(&[(Tier::Application, 1, 1)]), &[Action::Deny]);
        t.subjects[0].flags = SUBJECT_REJECT_INGRESS;
        assert!(!decide(&t, &query()).reject);
    }

    #[test]
    fn baseline_is_looked_at_only_where_nothing_isolates() {
        let entry = tiers(&[(Tier::Baseline, 1, 1)]);
        for (isolation, rule) in [(Isolation::Open, 1), (Isolation::Enforce, 0)] {
            assert_eq!(decide(&table(isolation, entry, &[Action::Deny]), &query()).rule, rule);
        }
    }
}
