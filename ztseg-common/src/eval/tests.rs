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
fn a_packet_socket_is_refused_where_either_direction_is_isolated() {
    use Isolation::{Audit, Enforce, Open};
    let (denied, told) = (Some((Verdict::Deny, false)), Some((Verdict::Allow, true)));
    for (ingress, egress, expected, direction) in [
        (Enforce, Enforce, denied, Direction::Egress),
        (Enforce, Open, denied, Direction::Ingress),
        (Enforce, Audit, denied, Direction::Ingress),
        (Audit, Enforce, denied, Direction::Egress),
        (Audit, Audit, told, Direction::Egress),
        (Audit, Open, told, Direction::Ingress),
        (Open, Open, None, Direction::Egress),
    ] {
        let row = Subject { ingress: ingress as u8, egress: egress as u8, ..Subject::default() };
        let found = packet_socket(&Workload::default(), Some(row));
        assert_eq!(found.map(|(d, _)| (d.verdict, d.audit)), expected, "{row:?}");
        if let Some((decision, of)) = found {
            assert_eq!((decision.reason, of), (Reason::PacketSocket, direction), "{row:?}");
        }
    }
}

#[test]
fn the_host_and_failsafe_units_keep_their_packet_sockets_and_nothing_unset_does() {
    let isolated = Subject::default();
    let host = Workload { flags: WORKLOAD_HOST, ..Workload::default() };
    assert_eq!(packet_socket(&host, Some(isolated)), None);
    let unit = Subject { flags: SUBJECT_FAILSAFE, ..isolated };
    assert_eq!(packet_socket(&Workload::default(), Some(unit)), None);
    let verdict = |subject| packet_socket(&Workload::default(), subject).map(|(d, _)| d);
    assert_eq!(verdict(Some(isolated)).map(|d| d.verdict), Some(Verdict::Deny));
    assert_eq!(verdict(None).map(|d| d.reason), Some(Reason::NotInitialised));
    assert_eq!(packet_socket(&host, None).map(|(d, _)| d.verdict), Some(Verdict::Deny));
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
    t.fallbacks =
        std::vec![Fallback::default(), Fallback { rank: 1, next }, Fallback { rank: 2, next: 0 },];
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
