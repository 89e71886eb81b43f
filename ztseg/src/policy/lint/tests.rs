use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::policy::generate::{World, large, moment, question, seed, seeded, world};
use crate::policy::load;
use crate::policy::oracle::{OracleDecision, decide_at};
use crate::policy::resolved::{Resolved, Rule};
use crate::policy::source::Source;

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().expect("a time")
}

fn found_in(text: &str) -> Diagnostics {
    let source = Source { name: "p.yaml".into(), text: text.into() };
    lint(&load(&[source]).expect("loads"), now())
}

/// A policy with segments `web`, `db` and `far`, which has only addresses, and these lists.
fn policy(lists: &str) -> String {
    format!(
        "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: p }}
spec:
  segments:
    web: {{ match: [ {{ unit: web.service }} ] }}
    db: {{ match: [ {{ unit: db.service }} ] }}
    far: {{ match: [ {{ addresses: [192.0.2.0/24] }} ] }}
  {}
  tests:
    - {{ deny: far -> db tcp/9 }}
",
        lists.trim_start()
    )
}

/// The ids that lists of rules give, with the lines that they stand in, counted in the lists.
fn ids(lists: &str) -> Vec<(&'static str, u32)> {
    let found = found_in(&policy(lists));
    found.iter().map(|d| (d.id.expect("every warning has one"), d.span.line - 8)).collect()
}

#[test]
fn what_is_covered_is_said_with_the_rule_that_covers_it() {
    let found = found_in(&policy(
        "\
  allow:
    - { name: wide, from: [web, db], to: [db, 198.51.100.0/24], ports: [tcp/1-100] }
    - { name: narrow, from: web, to: [db, 198.51.100.7], ports: [tcp/22, tcp/80-90], log: true }",
    ));
    assert_eq!(
        found.to_string(),
        "p.yaml:11:15: warning[shadowed-rule]: the rule `p/narrow` never decides: `p/wide` decides \
         all of its flows before; allowed before by this rule: p.yaml:10:15; remove it, or narrow \
         `p/wide`; its `log: true` has no effect, set it at `p/wide`"
    );
    assert!(found.render(false).starts_with("warning[shadowed-rule]: the rule"));
}

#[test]
fn what_decides_something_is_not_reported() {
    for second in [
        "from: web, to: db, ports: [tcp/5, udp/5]",
        "from: [web, far], to: db, ports: [tcp/5]",
        "from: web, to: any, ports: [tcp/5]",
        "from: web, to: [db, 192.0.2.0/23], ports: [tcp/5]",
        "from: web, to: far, ports: [tcp/5]",
        "from: any, to: db, ports: [tcp/5]",
        "from: db, to: web, ports: [tcp/5]",
    ] {
        let lists = format!(
            "\
  allow:
    - {{ name: a, from: web, to: [db, 192.0.2.0/24], ports: [tcp/1-9] }}
    - {{ name: b, {second} }}"
        );
        assert_eq!(ids(&lists), [], "{second}");
    }
}

#[test]
fn several_rules_cover_together() {
    let lists = "\
  allow:
    - { name: a, from: web, to: db, ports: [tcp/1-50] }
    - { name: b, from: any, to: any, ports: [tcp/51-99] }
    - { name: c, from: web, to: [192.0.2.0/24, db], ports: [tcp/60] }
    - { name: d, from: web, to: db, ports: [tcp/40-60] }";
    // Neither side of `b` is a segment.
    let lists = lists.replace("from: any, to: any", "from: [web, any], to: any");
    assert_eq!(ids(&lists), [("shadowed-rule", 4), ("shadowed-rule", 5)]);
}

#[test]
fn an_exception_is_not_covered() {
    let groups = "  addressGroups:
    most: { cidrs: [198.51.100.0/24], except: [198.51.100.64/26] }
";
    for (to, shadowed) in [
        ("198.51.100.0/26", true),
        ("198.51.100.0/25", false),
        ("198.51.100.65", false),
        ("most", true),
    ] {
        let lists = format!(
            "{groups}  allow:
    - {{ name: a, from: web, to: most }}
    - {{ name: b, from: web, to: {to}, ports: [tcp/1] }}"
        );
        assert_eq!(ids(&lists).len(), usize::from(shadowed), "{to}");
    }
}

#[test]
fn a_rule_that_ends_sooner_covers_nothing() {
    let lists = |first: &str, second: &str| {
        ids(&format!(
            "\
  allow:
    - {{ name: a, from: web, to: db, expires: {first} }}
    - {{ name: b, from: web, to: db, ports: [tcp/1], expires: {second} }}"
        ))
    };
    assert_eq!(lists("2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z"), []);
    assert_eq!(lists("2027-01-02T00:00:00Z", "2027-01-02T00:00:00Z"), [("shadowed-rule", 3)]);
    // What has ended is no cover, either.
    assert_eq!(
        lists("2026-06-01T00:00:00Z", "2026-05-01T00:00:00Z"),
        [("ended-rule", 2), ("ended-rule", 3)]
    );
}

#[test]
fn a_deny_rule_that_is_only_told_hides_no_allow_rule() {
    let two = |mode: &str| {
        let allow = policy("  allow: [ { name: a, from: web, to: 198.51.100.7 } ]");
        found_in(&format!(
            "{allow}---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: q }}
spec: {{ mode: {mode}, deny: [ {{ name: d, from: web, to: 198.51.100.0/24 }} ] }}
"
        ))
    };
    assert_eq!(two("enforce").iter().map(|d| d.id).collect::<Vec<_>>(), [Some("shadowed-rule")]);
    assert!(two("audit").is_empty());
}

#[test]
fn an_allow_rule_under_a_deny_rule_is_left_with_ports_that_nobody_listens_on() {
    let lists = "\
  deny: [ { name: d, from: web, to: db } ]
  allow: [ { name: a, from: web, to: db, ports: [tcp/1] } ]";
    assert_eq!(ids(lists), [("denied-rule", 2)]);
}

#[test]
fn another_tier_decides_unless_a_rule_passes_the_flow_on() {
    let admin = |pass: &str| {
        let own = policy("  allow: [ { name: a, from: web, to: 198.51.100.7, ports: [tcp/1-9] } ]");
        let found = found_in(&format!(
            "{own}---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: first }}
spec: {{ tier: admin, priority: 1, pass: [ {{ name: p, from: web, to: any, ports: [{pass}] }} ] }}
---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: second }}
spec: {{ tier: admin, priority: 2, deny: [ {{ name: d, from: web, to: any }} ] }}
"
        ));
        found.iter().filter(|d| d.id == Some("shadowed-rule")).count()
    };
    assert_eq!(admin("tcp/10"), 1);
    assert_eq!(admin("tcp/9"), 0);
}

#[test]
fn isolation_ends_what_comes_to_the_baseline() {
    let own = policy("");
    let found = found_in(&format!(
        "{own}---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: b }}
spec: {{ tier: baseline, priority: 1, deny: [ {{ name: d, from: web, to: db }} ] }}
"
    ));
    assert_eq!(found.len(), 1, "{found}");
    assert!(found.to_string().contains("the isolation of segments `web`, `db`"), "{found}");
}

#[test]
fn equal_rules_and_rules_without_workloads_are_told_apart() {
    let lists = "\
  allow:
    - { name: a, from: [web, db], to: db, ports: [tcp/1-5, tcp/6] }
    - { name: b, from: [db, web], to: db, ports: [tcp/1-6] }
    - { name: c, from: far, to: 198.51.100.7 }";
    assert_eq!(ids(lists), [("duplicate-rule", 3), ("never-matches", 4)]);
}

#[test]
fn what_is_open_to_everybody_is_told() {
    for (rule, wide) in [
        ("from: any, to: web", true),
        ("from: web, to: any", true),
        ("from: web, to: [0.0.0.0/0]", true),
        ("from: \"::/0\", to: web", true),
        ("from: any, to: web, ports: [tcp]", true),
        ("from: any, to: web, ports: [tcp/443]", false),
        ("from: any, to: web, ports: [icmp]", false),
        ("from: web, to: db", false),
        ("from: 0.0.0.0/1, to: web", false),
    ] {
        let found = ids(&format!("  allow: [ {{ name: a, {rule} }} ]"));
        assert_eq!(found == [("wide-open", 1)], wide, "{rule}: {found:?}");
        assert_eq!(ids(&format!("  deny: [ {{ name: a, {rule} }} ]")), [], "{rule}");
    }
}

#[test]
fn what_nothing_uses_and_what_has_no_name_is_told() {
    let found = found_in(
        "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: p }
spec:
  segments:
    idle: { isolation: [], match: [ { unit: a.service } ] }
    alone: { match: [ { unit: b.service } ] }
    far: { isolation: [ingress], match: [ { addresses: [192.0.2.1] } ] }
    far-2: { match: [ { addresses: [192.0.2.2] } ] }
  addressGroups:
    office: { cidrs: [198.51.100.0/24] }
    home: { cidrs: [198.51.101.0/24] }
  allow:
    - { from: home, to: alone, ports: [tcp/1] }
---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: q }
spec: {}
",
    );
    let ids: Vec<_> = found.iter().map(|d| (d.id.expect("one"), d.span.line)).collect();
    let expected = [
        ("unused-segment", 6),
        ("segment-without-workloads", 8),
        ("unused-segment", 9),
        ("unused-group", 11),
        ("missing-name", 14),
        ("empty-policy", 18),
    ];
    assert_eq!(ids, expected, "{found}");
}

/// A decision with the name of its rule, which does not change with what stands before it.
fn decision(world: &World, resolved: &Resolved, at: Timestamp, n: usize, seed: u64) -> Named {
    let mut rng = seeded(seed, n as u64);
    let q = question(&mut rng, world);
    let decision = decide_at(
        at,
        resolved,
        &world.workloads[q.subject].segments,
        &q.peer_facts(world),
        q.direction,
        (q.protocol, q.port),
    );
    let rule = decision.rule.map(|index| &resolved.rules[index]);
    // A built-in rule holds where some rule concerns the workload, even one that has ended.
    let name = rule.filter(|rule| !rule.built_in).map(|rule| rule.name.clone());
    Named { name, decision: OracleDecision { rule: None, ..decision } }
}

#[derive(Debug, PartialEq)]
struct Named {
    name: Option<String>,
    decision: OracleDecision,
}

#[test]
fn what_decides_nothing_can_be_removed() {
    const POLICIES: u64 = 3000;
    const QUESTIONS: usize = 60;
    let seed = seed();
    let mut counts = [0; 4];
    for case in 0..POLICIES {
        let mut rng = seeded(seed, case);
        let mut world = world(&mut rng);
        let now = moment(&mut rng);
        // Some segments have only addresses, and so nobody of this host.
        for (number, segment) in (0..).zip(&mut world.resolved.segments) {
            if rng.u8(0..5) == 0 && world.resolved.failsafe != Some(SegmentId(number)) {
                segment.selectors.clear();
                for workload in &mut world.workloads {
                    workload.segments.remove(&SegmentId(number));
                }
            }
        }
        // And some rules stand there twice.
        let own = |rule: &Rule| !rule.built_in;
        if let Some(index) = world.resolved.rules.iter().rposition(own).filter(|_| rng.bool()) {
            let mut twin = world.resolved.rules[index].clone();
            twin.name.push_str("-again");
            world.resolved.rules.insert(index + 1, twin);
        }
        let has_workloads = |id: SegmentId| {
            let segment = world.resolved.segments.get(id.0 as usize);
            segment.is_some_and(|segment| !segment.selectors.is_empty())
        };
        let mut dead = dead_rules(&world.resolved, now, has_workloads);
        dead.retain(|(_, why)| why.is_harmless());
        for (_, why) in &dead {
            counts[match why {
                Why::Ended(_) => 0,
                Why::NoWorkload => 1,
                Why::Duplicate(_) => 2,
                _ => 3,
            }] += 1;
        }
        let mut alone: Vec<Vec<usize>> = dead.iter().map(|(index, _)| vec![*index]).collect();
        // All of them together, too: what covers a rule is none of them.
        alone.push(dead.iter().map(|(index, _)| *index).collect());
        for removed in alone.iter().filter(|removed| !removed.is_empty()) {
            let mut without = world.resolved.clone();
            for index in removed.iter().rev() {
                without.rules.remove(*index);
            }
            for n in 0..QUESTIONS {
                let later = SignedDuration::from_mins(30 * i64::try_from(n % 8).expect("small"));
                let at = now + later;
                let before = decision(&world, &world.resolved, at, n, seed ^ case);
                let after = decision(&world, &without, at, n, seed ^ case);
                let rules = &world.resolved.rules;
                assert_eq!(before, after, "case {case}, without {removed:?} of {rules:#?}");
            }
        }
    }
    eprintln!("ended, without workloads, duplicates, shadowed: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
#[ignore = "a measurement: cargo test --release -p ztseg --lib large_policy_is_linted -- --ignored --nocapture"]
fn a_large_policy_is_linted_in_seconds() {
    let spread = large(&mut seeded(1, 1), 10_000, 100_000, 200_000).resolved;
    // All with one pair of segments and ports apart, so that each rule has to look at many.
    let mut crowded = large(&mut seeded(1, 1), 1, 100_000, 1).resolved;
    for (number, rule) in (0u32..).zip(&mut crowded.rules) {
        rule.ports[0].first = u16::try_from(number % 50_000).expect("small");
        rule.ports[0].last = rule.ports[0].first + 7;
    }
    for (what, resolved) in [("spread", &spread), ("crowded", &crowded)] {
        let start = std::time::Instant::now();
        let dead = dead_rules(resolved, now(), |_| true);
        let took = start.elapsed();
        eprintln!("{what}: {} rules, {} found, {took:?}", resolved.rules.len(), dead.len());
        assert!(took.as_secs() < 5);
    }
}
