use jiff::Timestamp;
use ztseg_common::verdict::Reason;

use super::place::{Kind, Place, Places};
use super::*;
use crate::image::SegmentSet;
use crate::inventory::Inventory;
use crate::judge::End;
use crate::policy::compile::for_questions;
use crate::policy::failsafe::Failsafe;
use crate::policy::generate::{self, moment, seed, seeded, world};
use crate::policy::resolved::Resolved;
use crate::policy::source::Source;
use crate::policy::{Loaded, load};
use crate::present;

const POLICY: &str = "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  segments:
    web: { match: [ { cgroup: /shop/web } ] }
    db: { match: [ { unit: postgresql.service } ] }
    office: { isolation: [], match: [ { addresses: [198.51.100.0/24] } ] }
  deny:
    - { name: no-guests, from: 198.51.100.128/25, to: web }
  allow:
    - { name: web-to-db, from: web, to: db, ports: [tcp/5432], expires: 2030-01-01T00:00:00Z }
    - { name: office-to-web, from: office, to: web, ports: [tcp/443] }
---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: guards }
spec:
  tier: admin
  priority: 7
  pass:
    - { name: trusted, from: web, to: db }
  deny:
    - { name: no-ssh, from: any, to: [web, db], ports: [tcp/22] }
";

fn loaded(more: &[&str]) -> Loaded {
    let texts = std::iter::once(&POLICY).chain(more).enumerate();
    let source = |(n, text): (usize, &&str)| Source {
        name: if n == 0 { "shop.yaml".into() } else { format!("more{n}.yaml").into() },
        text: (*text).into(),
    };
    let mut loaded = load(&texts.map(source).collect::<Vec<_>>()).expect("a policy");
    Failsafe::default().add_to(&mut loaded.resolved);
    loaded
}

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().expect("a time")
}

fn ask(loaded: &Loaded, from: &str, to: &str, service: &str) -> Result<Explanation, String> {
    let mut inventory = Inventory::new();
    inventory.set_policy(&loaded.resolved);
    let Loaded { resolved, pods, workloads, .. } = &loaded;
    let places = Places { resolved, inventory: &inventory, pods, workloads };
    let question = Question { from: from.into(), to: to.into(), service: service.into() };
    let asked = Asked::new(&places, &question)?;
    let image = for_questions(&loaded.resolved, asked.sets()).map_err(|e| e.to_string())?;
    explain(&loaded.resolved, &image, now(), &asked).ok_or_else(|| "no classes".into())
}

#[test]
fn both_ends_and_each_rule_are_told() {
    let loaded = loaded(&[]);
    let told = |from: &str, to: &str, service: &str| {
        present::explain::text(&ask(&loaded, from, to, service).expect("an answer"))
    };
    assert_eq!(
        told("/shop/web/worker", "db", "tcp/22"),
        "\
/shop/web/worker -> db tcp/22: denied

/shop/web/worker in workload /shop/web (segment web): egress denied by rule guards/no-ssh (shop.yaml:24:7)
  RULE            DOES   TIER         AT              HERE
  guards/no-ssh   deny   admin        shop.yaml:24:7  it decides
  guards/trusted  pass   admin        shop.yaml:22:7  it matches, but `guards/no-ssh` does before it
  shop/web-to-db  allow  application  shop.yaml:12:7  tcp/22 is not in tcp/5432
  2 other rules are about other workloads or the other direction

db: ingress denied by rule guards/no-ssh (shop.yaml:24:7)
  RULE            DOES   TIER         AT              HERE
  guards/no-ssh   deny   admin        shop.yaml:24:7  it decides
  guards/trusted  pass   admin        shop.yaml:22:7  it matches, but `guards/no-ssh` does before it
  shop/web-to-db  allow  application  shop.yaml:12:7  tcp/22 is not in tcp/5432
  2 other rules are about other workloads or the other direction
"
    );
    assert_eq!(
        told("198.51.100.7", "web", "tcp/80"),
        "\
198.51.100.7 -> web tcp/80: denied

198.51.100.7: no workload, so nothing is judged there

web: ingress denied: no rule allows it, and segment web isolates ingress
  RULE                DOES   TIER         AT              HERE
  guards/no-ssh       deny   admin        shop.yaml:24:7  tcp/80 is not in tcp/22
  shop/no-guests      deny   application  shop.yaml:10:7  198.51.100.7 is not in 198.51.100.128/25
  shop/office-to-web  allow  application  shop.yaml:13:7  tcp/80 is not in tcp/443
  2 other rules are about other workloads or the other direction

This would allow it, in `spec.allow` of a SegmentPolicy:
    - { from: 198.51.100.7, to: web, ports: [tcp/80] }
"
    );
    let after = ask(&loaded, "web", "db", "tcp/5432").expect("an answer").egress.expect("an end");
    let outcomes: Vec<_> = after.rules.iter().map(|r| (r.rule.as_str(), r.outcome)).collect();
    assert_eq!(
        outcomes,
        [
            ("guards/no-ssh", Outcome::NoMatch),
            ("guards/trusted", Outcome::Passes),
            ("shop/web-to-db", Outcome::Decides)
        ]
    );
}

#[test]
fn a_default_deny_comes_with_the_rule_that_would_allow_it() {
    for (from, to, service, proposal) in [
        ("db", "web", "tcp/80", Some("{ from: db, to: web, ports: [tcp/80] }")),
        ("/shop/web", "db", "udp/53", Some("{ from: web, to: db, ports: [udp/53] }")),
        ("web", "192.0.2.7", "udp/53", Some("{ from: web, to: 192.0.2.7, ports: [udp/53] }")),
        (
            "2001:db8::7",
            "db",
            "icmpv6/echo-request",
            Some("{ from: \"2001:db8::7\", to: db, ports: [icmpv6/echo-request] }"),
        ),
        // Allowed already.
        ("198.51.100.7", "web", "tcp/443", None),
        // No rule that allows it comes before the one that denies it.
        ("198.51.100.200", "web", "tcp/443", None),
        ("192.0.2.7", "web", "tcp/22", None),
    ] {
        let before = ask(&loaded(&[]), from, to, service).expect("an answer");
        assert_eq!(before.proposal.as_deref(), proposal, "{from} {to} {service}");
        let Some(rule) = proposal else { continue };
        assert_eq!(before.verdict, Answer::Deny, "{from} {to} {service}");
        let fix = format!(
            "apiVersion: ztseg.io/v1\nkind: SegmentPolicy\nmetadata: {{ name: fix }}\nspec:\n  \
             allow:\n    - {rule}\n"
        );
        let after = ask(&loaded(&[&fix]), from, to, service).expect("an answer");
        assert_eq!(after.verdict, Answer::Allow, "{from} {to} {service} with {rule}");
    }
}

#[test]
fn ends_are_found_by_what_people_write() {
    let loaded = loaded(&[]);
    for (text, kind, segments, address) in [
        ("web", Kind::Segment, vec!["web"], None),
        ("web@192.0.2.1", Kind::Segment, vec!["web"], Some("192.0.2.1")),
        ("/shop/web/a/b", Kind::Cgroup, vec!["web"], None),
        ("/system.slice/postgresql.service", Kind::Cgroup, vec!["db"], None),
        ("/shop/web/run@1.service", Kind::Cgroup, vec!["web"], None),
        ("/shop/web@192.0.2.1", Kind::Cgroup, vec!["web"], Some("192.0.2.1")),
        ("/elsewhere", Kind::Cgroup, vec![], None),
        ("host", Kind::Host, vec![], None),
        ("198.51.100.1", Kind::Address, vec![], Some("198.51.100.1")),
        ("::ffff:198.51.100.1", Kind::Address, vec![], Some("198.51.100.1")),
    ] {
        let found = ask(&loaded, text, "db", "tcp/1").expect(text).from;
        let found = (found.kind, found.segments, found.address.map(|a| a.to_string()));
        let segments = segments.into_iter().map(str::to_owned).collect();
        assert_eq!(found, (kind, segments, address.map(str::to_owned)), "{text}");
    }
    for (from, to, service, error) in [
        ("wbe", "db", "tcp/1", "there is no segment `wbe`; did you mean `web`?"),
        (
            "web",
            "shop/pod",
            "tcp/1",
            "there is no pod `shop/pod`; load its manifest with --file, too",
        ),
        ("web@db", "db", "tcp/1", "`db` is not an address"),
        ("/web@192.0.2.300", "db", "tcp/1", "`192.0.2.300` is not an address"),
        ("interface:eth0", "db", "tcp/1", "no segment names the interface `eth0`"),
        ("192.0.2.1", "192.0.2.2", "tcp/1", "neither `192.0.2.1` nor `192.0.2.2` is a workload"),
        ("192.0.2.1", "db@2001:db8::1", "tcp/1", "mix IPv4 and IPv6"),
        ("192.0.2.1", "db", "icmpv6/1", "mix IPv4 and IPv6"),
        ("web", "db", "tcp", "`tcp` is more than one port"),
        ("web", "db", "443", "write the protocol too"),
    ] {
        let found = ask(&loaded, from, to, service).expect_err(error);
        assert!(found.contains(error), "{found}");
    }
}

#[test]
fn an_address_that_is_not_known_is_said() {
    let loaded = loaded(&[]);
    let notes = ask(&loaded, "db", "web", "tcp/443").expect("an answer").notes;
    assert_eq!(
        notes,
        [
            "the address of `db` is not known here, and `shop/no-guests` names addresses: no CIDR was \
          taken to hold it; ask with `db@ADDRESS`"
        ]
    );
    assert!(
        ask(&loaded, "db@198.51.100.200", "web", "tcp/443").expect("an answer").notes.is_empty()
    );
}

/// The rules' outcomes against the evaluator, on random policies: what is said to decide is what
/// decides.
#[test]
fn what_is_told_of_rules_is_what_the_evaluator_does() {
    const POLICIES: u64 = 2_000;
    let seed = seed();
    let (mut decided, mut audited, mut proposed) = (0, 0, 0);
    for case in 0..POLICIES {
        let rng = &mut seeded(seed, case);
        let generated = world(rng);
        let resolved: &Resolved = &generated.resolved;
        for _ in 0..10 {
            let question = generate::question(rng, &generated);
            let place = |segments: Option<SegmentSet>, address| {
                Place::new("it", Kind::Cgroup, End { workload: segments, address })
            };
            let subject = place(Some(generated.workloads[question.subject].segments.clone()), None);
            let peer = question.peer.map(|i| generated.workloads[i].segments.clone());
            let peer = place(peer, Some(question.address));
            let (from, to) = match question.direction {
                Direction::Egress => (subject, peer),
                Direction::Ingress => (peer, subject),
            };
            let asked = Asked { from, to, protocol: question.protocol, port: question.port };
            let image = for_questions(resolved, asked.sets()).expect("it compiles");
            let now = moment(rng);
            let judged = judge(resolved, &image, now, &asked.flow()).expect("classes");
            let told = explain(resolved, &image, now, &asked).expect("classes");
            for (judged, told) in [(judged.egress, &told.egress), (judged.ingress, &told.ingress)] {
                let (Some(judged), Some(told)) = (judged, told) else { continue };
                let with = |outcome: Outcome| {
                    let rules = told.rules.iter().filter(move |rule| rule.outcome == outcome);
                    rules.map(|rule| rule.rule.as_str()).collect::<Vec<_>>()
                };
                let deciding = judged.rule.map(|rule| rule.name.as_str());
                let context = format!("case {case}: {asked:?} {judged:?}\n{told:#?}");
                if judged.decision.audit {
                    audited += 1;
                    if let Some(name) = deciding {
                        assert!(with(Outcome::Audit).contains(&name), "{context}");
                    }
                } else {
                    decided += usize::from(deciding.is_some());
                    assert_eq!(with(Outcome::Decides).first().copied(), deciding, "{context}");
                    assert!(with(Outcome::Decides).len() <= 1, "{context}");
                    assert_eq!(
                        judged.decision.reason == Reason::Rule,
                        deciding.is_some(),
                        "{context}"
                    );
                }
            }
            proposed += usize::from(told.proposal.is_some());
        }
    }
    // The test says something only where all of it occurs.
    assert!(decided > 1000 && audited > 100 && proposed > 100, "{decided} {audited} {proposed}");
}
