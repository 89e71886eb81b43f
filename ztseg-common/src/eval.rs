//! The evaluator: one piece of code for the kernel programs, `ztseg check` and the tests.
//!
//! A new flow costs at most twelve entry lookups, however many rules there are: {identity class,
//! address class, any} × {port class, any} for its subject class and for "every subject". The
//! subject's mask says which of these shapes are in use, in practice one to three. Nothing here
//! loops over rules.

use crate::key::{EntryKey, IDENTITY_NOBODY, PORT_ANY, PeerKind, SHAPES, SUBJECT_ANY};
use crate::value::{Action, Entry, Isolation, Peer, RULE_LOG, Rule, Subject, Tier};
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
    fn rule(&self, rank: u32) -> Option<Rule>;
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
    /// The verdict must not be kept: it depends on something that no epoch follows (whether a
    /// local port has a listener).
    pub volatile: bool,
}

impl Decision {
    /// A verdict that no rule gave.
    pub const fn fixed(verdict: Verdict, reason: Reason) -> Self {
        Self { verdict, reason, rule: 0, audit: false, log: false, volatile: false }
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
    let mut decision = effective;
    // The shadow evaluation differs only where something is in audit mode.
    if effective.verdict == Verdict::Allow
        && (isolation == Isolation::Audit || best.effective != best.shadow)
    {
        let shadow = outcome(policy, &best.shadow, isolation != Isolation::Open);
        if shadow.verdict == Verdict::Deny {
            decision = Decision { verdict: Verdict::Allow, audit: true, log: false, ..shadow };
        }
    }
    decision.volatile = query.peer.identity == IDENTITY_NOBODY;
    decision
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
                        self.merge(entry);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn merge(&mut self, entry: &Entry) {
        for (tier, ranks) in entry.tiers.iter().enumerate() {
            self.effective[tier] = self.effective[tier].min(ranks.effective.wrapping_sub(1));
            self.shadow[tier] = self.shadow[tier].min(ranks.shadow.wrapping_sub(1));
        }
    }
}

/// What the tiers' best rules come to.
#[inline(always)]
fn outcome<L: Lookup>(policy: &L, best: &[u32; 3], isolated: bool) -> Decision {
    const APPLICATION: usize = Tier::Application as usize;
    for (tier, rank) in best.iter().enumerate() {
        let rank = rank.wrapping_add(1);
        if rank != 0 {
            let Some(rule) = policy.rule(rank) else {
                return Decision::fixed(Verdict::Deny, Reason::NotInitialised);
            };
            let verdict = match Action::from_u8(rule.action) {
                Action::Deny => Some(Verdict::Deny),
                Action::Allow => Some(Verdict::Allow),
                Action::Pass => None,
            };
            if let Some(verdict) = verdict {
                let log = rule.flags & RULE_LOG != 0;
                return Decision { rule: rank, log, ..Decision::fixed(verdict, Reason::Rule) };
            }
        }
        if tier == APPLICATION && isolated {
            return Decision::fixed(Verdict::Deny, Reason::Isolation);
        }
    }
    Decision::fixed(Verdict::Allow, Reason::NoIsolation)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::*;
    use crate::key::{ADDRESS_UNKNOWN, IDENTITY_UNKNOWN, PORT_UNNAMED, shape};
    use crate::value::Ranks;

    #[derive(Default)]
    struct Table {
        subjects: Vec<Subject>,
        entries: BTreeMap<EntryKey, Entry>,
        rules: Vec<Rule>,
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
        fn rule(&self, rank: u32) -> Option<Rule> {
            self.rules.get(rank as usize).copied()
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

    #[test]
    fn baseline_is_looked_at_only_where_nothing_isolates() {
        let entry = tiers(&[(Tier::Baseline, 1, 1)]);
        for (isolation, rule) in [(Isolation::Open, 1), (Isolation::Enforce, 0)] {
            assert_eq!(decide(&table(isolation, entry, &[Action::Deny]), &query()).rule, rule);
        }
    }
}
