use std::net::IpAddr;

use super::*;
use crate::policy::diagnostic::Diagnostics;
use crate::policy::testcase::Expect;
use crate::policy::{Loaded, load};

fn load_all(texts: &[&str]) -> Result<Loaded, Diagnostics> {
    let source = |(n, text): (usize, &&str)| Source {
        name: format!("{n}.yaml").into(),
        text: format!("apiVersion: ztseg.io/v1\nkind: SegmentPolicy\n{text}").into(),
    };
    load(&texts.iter().enumerate().map(source).collect::<Vec<_>>())
}

const FIRST: &str = "
metadata: { name: one }
spec:
  mode: audit
  segments:
    web: { match: [ { unit: web.service }, { cgroup: /web, unit: w.scope }, { addresses: [192.0.2.0/24] } ] }
    db: { mode: enforce, isolation: [ingress], match: [ { interface: tap* } ] }
  addressGroups:
    office: { cidrs: [198.51.100.0/24, 203.0.113.0/24], except: [198.51.100.66] }
  allow:
    - { from: web, to: db }
    - { name: front, from: [office, office, any, web], to: web, log: true, ports: [tcp/80, icmp] }
  deny:
    - { from: web, to: [10.0.0.1, 10.0.0.1/32] }
  tests:
    - { allow: web -> cache tcp/6379 }
";
const SECOND: &str = "
metadata: { name: two }
spec:
  segments: { cache: { isolation: [], match: [ { host: true } ] } }
  deny:
    - { name: no, from: any, to: cache }
  allow:
    - { from: web, to: cache }
  tests:
    - { deny: \"2001:db8::1 -> cache icmpv6/echo-request\" }
";

#[test]
fn denies_of_all_files_come_before_allows() {
    let loaded = load_all(&[FIRST, SECOND]).expect("loads");
    let rules = &loaded.resolved.rules;
    let names: Vec<_> = rules.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["one/deny-1", "two/no", "one/allow-1", "one/front", "two/allow-1"]);
    let modes: Vec<_> = rules.iter().map(|r| r.mode == Mode::Audit).collect();
    assert_eq!(modes, [true, false, true, true, false]);
    let actions: Vec<_> = rules.iter().map(|r| r.action == Action::Deny).collect();
    assert_eq!(actions, [true, true, false, false, false]);
    assert_eq!(rules[1].position.to_string(), "1.yaml:8:7");
}

#[test]
fn what_a_policy_denies_is_told_unless_a_rule_says_otherwise() {
    let text = "
metadata: { name: told }
spec:
  reject: true
  segments: { web: { match: [ { unit: web.service } ] } }
  deny:
    - { name: default, from: web, to: 192.0.2.1 }
    - { name: silent, from: web, to: 192.0.2.2, reject: false }
  allow:
    - { name: out, from: web, to: any }
";
    let rejects = |text: &str| {
        let resolved = load_all(&[text]).expect("loads").resolved;
        let rules = resolved.rules.iter().map(|r| r.reject).collect::<Vec<_>>();
        (resolved.segments[0].reject, rules)
    };
    assert_eq!(rejects(text), (true, vec![true, false, false]));
    assert_eq!(
        rejects(&text.replace("reject: true", "reject: false")),
        (false, vec![false, false, false])
    );
    let one = text.replace("  reject: true\n", "").replace("reject: false", "reject: true");
    assert_eq!(rejects(&one), (false, vec![false, true, false]));
}

#[test]
fn isolation_follows_directions_and_modes() {
    let loaded = load_all(&[FIRST, SECOND]).expect("loads");
    let of = |n: usize| {
        let s = &loaded.resolved.segments[n];
        (s.name.as_str(), s.policy.as_str(), s.ingress, s.egress)
    };
    assert_eq!(of(0), ("web", "one", Isolation::Audit, Isolation::Audit));
    assert_eq!(of(1), ("db", "one", Isolation::Enforce, Isolation::Open));
    assert_eq!(of(2), ("cache", "two", Isolation::Open, Isolation::Open));
    let web = &loaded.resolved.segments[0];
    assert_eq!(web.selectors.len(), 2);
    assert_eq!(web.selectors[1].unit.as_deref(), Some("w.scope"));
    assert_eq!(web.addresses, ["192.0.2.0/24".parse().expect("a CIDR")]);
}

#[test]
fn sides_are_unions_without_repetition() {
    let loaded = load_all(&[FIRST, SECOND]).expect("loads");
    let front = &loaded.resolved.rules[3];
    assert!(front.log && front.from.any && !front.to.any);
    assert_eq!(front.from.segments, [SegmentId(0)]);
    let nets: Vec<_> =
        front.from.networks.iter().map(|n| (n.cidr.to_string(), n.except.len())).collect();
    assert_eq!(nets, [("198.51.100.0/24".to_owned(), 1), ("203.0.113.0/24".to_owned(), 0)]);
    assert_eq!(front.ports.len(), 2);
    assert_eq!(loaded.resolved.rules[0].to.networks.len(), 1);
}

#[test]
fn tests_name_segments_of_other_files() {
    let loaded = load_all(&[FIRST, SECOND]).expect("loads");
    let [first, second] = loaded.tests.as_slice() else { panic!("{:?}", loaded.tests) };
    assert_eq!(
        (first.from, first.to),
        (TestEnd::Segment(SegmentId(0)), TestEnd::Segment(SegmentId(2)))
    );
    assert_eq!((first.expect, first.protocol, first.port), (Expect::Allow, 6, 6379));
    let address: IpAddr = "2001:db8::1".parse().expect("an address");
    assert_eq!(second.from, TestEnd::Address(address));
    assert_eq!((second.expect, second.protocol, second.port), (Expect::Deny, 58, 128));
    assert_eq!(second.text, "2001:db8::1 -> cache icmpv6/echo-request");
    assert_eq!(second.position.to_string(), "1.yaml:12:15");
}

#[test]
fn names_hold_over_all_files() {
    let again = SECOND.replace("two", "one").replace("cache: {", "office: {");
    let found = load_all(&[FIRST, &again]).expect_err("is refused").to_string();
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(
        lines[0],
        "0.yaml:18:23: error: there is no segment or address group `cache`; there are `db`, `office`, `web`"
    );
    assert_eq!(
        lines[1],
        "1.yaml:4:19: error: a second policy with the name `one`; first here: 0.yaml:4:19; give each policy a name of its own"
    );
    assert_eq!(
        lines[2],
        "1.yaml:6:15: error: the name `office` is defined a second time; first defined here, as an address group: 0.yaml:11:5; names of segments and address groups hold for all files together; rename one of them"
    );
}

#[test]
fn nothing_is_an_empty_policy() {
    assert_eq!(load(&[]), Ok(Loaded::default()));
    let text = "# nothing\n---\n---\n...\n".into();
    let loaded = load(&[Source { name: "a".into(), text }]).expect("loads");
    assert_eq!(loaded.resolved, Resolved::default());
}

/// Two guardrails, an application, and what holds where nobody has written anything.
const TIERS: [&str; 3] = [
    "
metadata: { name: late }
spec:
  tier: admin
  priority: 20
  segments: { web: { match: [ { unit: web.service } ] } }
  pass: [ { name: p, from: web, to: any } ]
  allow: [ { name: a, from: web, to: any } ]
  deny: [ { name: d, from: web, to: any } ]
",
    "
metadata: { name: floor }
spec:
  tier: baseline
  priority: 20
  segments: { db: { isolation: [egress], match: [ { unit: db.service } ] } }
  deny: [ { name: d, from: any, to: db } ]
  pass: [ { name: p, from: web, to: db } ]
---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: app }
spec:
  segments: { app: { match: [ { unit: app.service } ] } }
  allow: [ { name: a, from: app, to: db } ]
  deny: [ { name: d, from: app, to: web } ]
",
    "
metadata: { name: early }
spec:
  tier: admin
  priority: 3
  mode: audit
  pass: [ { name: p, from: web, to: db } ]
  deny: [ { name: d, from: any, to: db } ]
",
];

#[test]
fn tiers_come_in_order_and_in_them_priorities_and_kinds() {
    let resolved = load_all(&TIERS).expect("loads").resolved;
    let names: Vec<_> = resolved.rules.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "early/d", "early/p", "late/d", "late/a", "late/p", "app/d", "app/a", "floor/d",
            "floor/p"
        ]
    );
    let tiers: Vec<_> = resolved.rules.iter().map(|r| r.tier.name()).collect();
    assert_eq!((tiers[4], tiers[5], tiers[7]), ("admin", "application", "baseline"));
    assert_eq!(resolved.rules[1].action, Action::Pass);
    assert_eq!((resolved.rules[1].mode, resolved.rules[2].mode), (Mode::Audit, Mode::Enforce));
}

#[test]
fn only_the_application_tier_isolates_by_itself() {
    let resolved = load_all(&TIERS).expect("loads").resolved;
    let of = |name: &str| {
        let segment = resolved.segments.iter().find(|s| s.name == name).expect(name);
        (segment.ingress, segment.egress)
    };
    assert_eq!(of("web"), (Isolation::Open, Isolation::Open));
    assert_eq!(of("db"), (Isolation::Open, Isolation::Enforce));
    assert_eq!(of("app"), (Isolation::Enforce, Isolation::Enforce));
}

#[test]
fn a_priority_means_nothing_in_the_application_tier() {
    let with = |text: &str, priority: u32| {
        let place = format!("spec:\n  tier: application\n  priority: {priority}\n");
        text.replacen("spec:\n", &place, 1)
    };
    let plain = load_all(&[FIRST, SECOND]).expect("loads");
    let names = |loaded: &Loaded| -> Vec<String> {
        loaded.resolved.rules.iter().map(|rule| rule.name.clone()).collect()
    };
    for (first, second) in [(1, 2), (2, 1), (7, 7)] {
        let numbered = load_all(&[&with(FIRST, first), &with(SECOND, second)]).expect("loads");
        assert_eq!(names(&numbered), names(&plain), "{first}, {second}");
    }
}

#[test]
fn two_policies_of_one_place_are_refused_with_both_their_names() {
    let [late, floor, early] = TIERS;
    let same = early.replace("priority: 3", "priority: 20");
    let found = load_all(&[late, floor, &same]).expect_err("is refused").to_string();
    assert_eq!(
        found,
        "2.yaml:7:13: error: `late` and `early` both have the priority 20 in the tier `admin`, so neither comes first; the other one: 0.yaml:7:13; give each policy of a tier a priority of its own; the lower one is looked at first"
    );
}

/// Ten thousand rules for a group of a thousand addresses are not ten million of them.
#[test]
fn sides_that_name_the_same_groups_share_one_list() {
    let text = "
metadata: { name: shared }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
  addressGroups:
    one: { cidrs: [192.0.2.0/24, 192.0.2.0/24] }
    two: { cidrs: [198.51.100.0/24, 192.0.2.0/24] }
  allow:
    - { from: one, to: web, ports: [tcp/1] }
    - { from: one, to: web, ports: [tcp/2] }
    - { from: [one, two], to: web, ports: [tcp/3] }
    - { from: [one, two], to: web, ports: [tcp/4] }
    - { from: [two, one], to: web, ports: [tcp/5] }
    - { from: [one, 203.0.113.1], to: web, ports: [tcp/6] }
";
    let loaded = load_all(&[text]).expect("loads");
    let lists: Vec<_> = loaded.resolved.rules.iter().map(|rule| &rule.from.networks).collect();
    let shared = |a: usize, b: usize| Arc::ptr_eq(lists[a], lists[b]);
    assert!(shared(0, 1) && shared(2, 3));
    assert!(!shared(1, 2) && !shared(3, 4));
    let cidrs = |list: usize| lists[list].iter().map(|n| n.cidr.to_string()).collect::<Vec<_>>();
    assert_eq!(cidrs(0), ["192.0.2.0/24"]);
    assert_eq!(cidrs(2), ["192.0.2.0/24", "198.51.100.0/24"]);
    assert_eq!(cidrs(4), ["198.51.100.0/24", "192.0.2.0/24"]);
    assert_eq!(cidrs(5), ["192.0.2.0/24", "203.0.113.1/32"]);
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: { name: web-0, namespace: shop, labels: { app: web } }
spec: { serviceAccountName: front, containers: [ { ports: [ { name: http, containerPort: 8080 } ] } ] }
status: { podIPs: [ { ip: 10.0.0.1 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: web-1, namespace: shop, labels: { app: web } }
spec: { containers: [ { ports: [ { name: http, containerPort: 80 }, { name: http, containerPort: 80, protocol: UDP } ] } ] }
status: { podIPs: [ { ip: 10.0.0.2 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: agent, namespace: shop }
spec: { hostNetwork: true, containers: [ { ports: [ { name: http, containerPort: 9090 } ] } ] }
status: { podIPs: [ { ip: 192.0.2.1 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: other, namespace: lab }
spec: { hostNetwork: true }
status: { podIPs: [ { ip: 192.0.2.1 } ] }
---
apiVersion: ztseg.io/v1
kind: Workload
metadata: { name: runner }
spec: { cgroup: /ci/runner, addresses: [10.0.0.9] }
---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: p }
spec:
  segments:
    web: { match: [ { pod: { labels: { app: web } } } ] }
    front: { isolation: [], match: [ { pod: { serviceAccount: front } } ] }
    shop: { isolation: [], match: [ { pod: { namespace: shop } } ] }
    ci: { match: [ { cgroup: /ci } ] }
  allow:
    - { name: to-web, from: ci, to: web, ports: [tcp/http, tcp/22] }
    - { name: to-shop, from: ci, to: shop, ports: [tcp/http] }
    - { name: to-nobody, from: ci, to: shop, ports: [tcp/htpp] }
  tests:
    - { allow: runner -> shop/web-0 tcp/8080 }
    - { deny: runner -> shop/web-0 tcp/80 }
    - { allow: workload:runner -> shop/web-1 tcp/80 }
    - { deny: runner -> shop/web-1 udp/80 }
    - { allow: runner -> shop/web-1 tcp/22 }
    - { allow: runner -> shop/agent tcp/9090 }
    - { deny: runner -> shop/agent tcp/22 }
    - { allow: ci -> 10.0.0.1 tcp/8080 }
    - { deny: ci -> 10.0.0.1 tcp/80 }
    - { allow: 10.0.0.9 -> shop/web-0 tcp/8080 }
    - { deny: 192.0.2.1 -> shop/web-0 tcp/8080 }
";

#[test]
fn pods_are_in_the_segments_that_ask_for_them() {
    let source = Source { name: "p".into(), text: PODS.into() };
    let loaded = load(std::slice::from_ref(&source)).unwrap_or_else(|e| panic!("{e}"));
    let names = |pod: usize| {
        let set = loaded.pods[pod].segments.as_ref()?;
        Some(loaded.resolved.names(set).join(" "))
    };
    // What two rules need of the same pods is one segment; a port's protocol is its own.
    let (first, second) = ("pods:web:http=tcp/8080", "pods:web:http=tcp/80");
    assert_eq!(names(0).as_deref(), Some(&*format!("web front shop {first}")));
    assert_eq!(names(1).as_deref(), Some(&*format!("web shop {second}")));
    assert_eq!(names(2).as_deref(), Some("shop pods:shop:http=tcp/9090"));
    // One of its node's network is a workload where a segment names it.
    assert_eq!(names(3), None);
    let addresses = |name: &str| {
        let segment = loaded.resolved.segments.iter().find(|s| s.name == name).expect(name);
        segment.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(addresses("shop"), "10.0.0.1/32 10.0.0.2/32");
    assert_eq!(addresses("ci"), "10.0.0.9/32");
    assert_eq!(addresses(second), "10.0.0.2/32");
    assert_eq!(addresses("pods:shop:http=tcp/9090"), "");
    let rules: Vec<_> = loaded.resolved.rules.iter().map(|r| (&*r.name, r.ports.len())).collect();
    let (web, shop, nobody) = ("p/to-web", "p/to-shop", "p/to-nobody");
    assert_eq!(rules, [(web, 1), (web, 1), (web, 1), (shop, 1), (shop, 1), (shop, 1), (nobody, 1)]);
    let found = crate::check::check(&loaded, jiff::Timestamp::UNIX_EPOCH).expect("compiles");
    assert_eq!(found.to_string(), "");
}
