use std::collections::BTreeMap;

use super::facts::{ContainerFacts, PodFacts, WorkloadFacts};
use super::*;
use crate::policy::failsafe::Failsafe;
use crate::policy::generate::{seed, seeded};
use crate::policy::resolved::{ContainerMatch, PodMatch};
use crate::policy::resolved::{Isolation, Segment, SegmentId, Selector};
use crate::policy::source::Position;

fn segment(name: &str, selectors: Vec<Selector>) -> Segment {
    Segment {
        name: name.into(),
        policy: "p".into(),
        ingress: Isolation::Enforce,
        egress: Isolation::Enforce,
        reject: false,
        selectors,
        addresses: Vec::new(),
        position: Position { file: "p.yaml".into(), line: 1, column: 1 },
    }
}

fn policy(selectors: Vec<Selector>) -> Resolved {
    let segments =
        selectors.into_iter().enumerate().map(|(i, s)| segment(&format!("s{i}"), vec![s]));
    Resolved { segments: segments.collect(), rules: Vec::new(), failsafe: None }
}

fn cgroup(pattern: &str) -> Selector {
    Selector { cgroup: Some(pattern.into()), ..Selector::default() }
}

fn interface(pattern: &str) -> Selector {
    Selector { interface: Some(pattern.into()), ..Selector::default() }
}

fn facts(id: u64, path: &str) -> CgroupFacts {
    let level = u32::try_from(path.split('/').filter(|c| !c.is_empty()).count()).unwrap();
    CgroupFacts { id, path: path.into(), level }
}

#[test]
fn failsafe_is_for_the_host_the_units_and_the_hosts_side_of_named_interfaces() {
    let mut resolved = policy(vec![interface("*"), cgroup("/system.slice/**/inner")]);
    resolved.segments[0].selectors[0].interface = Some("e*".into());
    let failsafe = Failsafe { units: vec!["ssh.service".into()], ..Failsafe::default() };
    failsafe.add_to(&mut resolved);
    let id = resolved.failsafe.expect("some");
    let mut inventory = Inventory::new();
    inventory.set_policy(&resolved);
    for (n, (path, open)) in (1..).zip([
        ("/", true),
        ("/system.slice/ssh.service", true),
        // A part of the unit.
        ("/system.slice/ssh.service/inner", true),
        ("/system.slice/cron.service", false),
        ("/user.slice/user-1000.slice/user@1000.service/ssh.service", false),
        ("/shop/ssh.service", false),
    ]) {
        inventory.insert_cgroup(facts(n, path));
        let found = inventory.get(n).is_some_and(|m| m.segments.contains(&id));
        assert_eq!(found, open, "{path}");
    }
    let eth =
        |ifindex, name: &str, host_side| InterfaceFacts { ifindex, name: name.into(), host_side };
    inventory.set_interfaces([eth(1, "eth0", true), eth(2, "e-tap", false), eth(3, "wlan0", true)]);
    let of = |ifindex| inventory.get(workload_interface(ifindex)).map(|m| m.segments.clone());
    assert_eq!(of(1), Some([SegmentId(0), id].into()));
    assert_eq!(of(2), Some([SegmentId(0)].into()));
    assert_eq!(of(3), None);
}

#[test]
fn each_fact_tells_what_it_changes() {
    let mut inventory = Inventory::new();
    let put = |changes: Vec<Change>| match changes.as_slice() {
        [Change::Put(m)] => m.clone(),
        other => panic!("one workload expected: {other:?}"),
    };
    let root = put(inventory.insert_cgroup(facts(1, "/")));
    assert_eq!((root.name.as_str(), root.level, root.segments.len()), ("host", Some(0), 0));
    assert_eq!(inventory.insert_cgroup(facts(1, "/")), []);
    assert_eq!(inventory.insert_cgroup(facts(2, "/shop")), []);
    let web = put(inventory.set_policy(&policy(vec![cgroup("/shop")])));
    assert_eq!((web.key, web.name.as_str(), web.level), (2, "/shop", Some(1)));
    assert_eq!(inventory.get(2), Some(&web));

    assert_eq!(inventory.set_policy(&Resolved::default()), [Change::Removed(2)]);
    assert_eq!(inventory.get(2), None);
    assert_eq!(put(inventory.set_policy(&policy(vec![cgroup("/sh*")]))), web);
    assert_eq!(inventory.remove_cgroup(2), [Change::Removed(2)]);
    assert_eq!(inventory.remove_cgroup(2), []);
    assert_eq!(put(inventory.insert_cgroup(facts(3, "/shop"))).key, 3);
}

#[test]
fn interfaces_are_workloads_where_a_segment_names_them() {
    let mut inventory = Inventory::new();
    inventory.set_policy(&policy(vec![interface("tap-web*"), interface("tap-*")]));
    let eth = |ifindex, name: &str| InterfaceFacts { ifindex, name: name.into(), host_side: false };
    let changes = inventory.set_interfaces([eth(1, "lo"), eth(2, "tap-web1"), eth(3, "tap-db")]);
    let names: Vec<_> = inventory.memberships().map(|m| m.name.as_str()).collect();
    assert_eq!((changes.len(), names), (2, vec!["interface:tap-web1", "interface:tap-db"]));
    assert_eq!(inventory.get(workload_interface(2)).map(|m| m.segments.len()), Some(2));

    // A new name on an old index, and one that went away.
    let changes = inventory.set_interfaces([eth(1, "lo"), eth(2, "eth0")]);
    let removed = [2, 3].map(|i| Change::Removed(workload_interface(i)));
    assert_eq!(changes, removed);
}

#[test]
fn ten_thousand_literal_patterns_are_not_tried_one_by_one() {
    let mut inventory = Inventory::new();
    inventory.set_policy(&policy((0..10_000).map(|i| cgroup(&format!("/t/{i}"))).collect()));
    // Tried one by one, this is 10^8 comparisons: minutes in a debug build.
    for id in 0..10_000 {
        assert_eq!(inventory.insert_cgroup(facts(id, &format!("/t/{id}"))).len(), 1);
    }
}

#[test]
fn the_incremental_result_is_the_result_from_scratch() {
    const COMPONENTS: [&str; 7] = ["a", "b", "web-1", "s.slice", "x.service", "y.scope", "web-2"];
    const PATTERNS: [&str; 10] =
        ["a", "b", "*", "**", "web-*", "x.service", "s.slice", "*1", "*.service", "y*"];
    let seed = seed();
    for case in 0..60 {
        let mut rng = seeded(seed, case);
        let mut random_policy = || {
            let path = |rng: &mut fastrand::Rng, from: &[&str]| {
                let parts = (0..rng.usize(0..4)).map(|_| from[rng.usize(0..from.len())]);
                format!("/{}", parts.collect::<Vec<_>>().join("/"))
            };
            let selector = |rng: &mut fastrand::Rng| match rng.u8(0..8) {
                0..4 => cgroup(&path(rng, &PATTERNS)),
                4 => Selector { unit: Some("x*".into()), ..Selector::default() },
                5 => Selector { unit: Some("*".into()), ..cgroup(&path(rng, &PATTERNS)) },
                6 => interface(["e*", "eth1", "tap-*"][rng.usize(0..3)]),
                _ => Selector { host: true, ..Selector::default() },
            };
            let list = (0..rng.usize(0..6)).map(|_| selector(&mut rng)).collect();
            (policy(list), path(&mut rng, &COMPONENTS), rng.clone())
        };
        let mut inventory = Inventory::new();
        let mut tracked = BTreeMap::new();
        let (mut cgroups, mut interfaces) = (BTreeMap::new(), Vec::new());
        let mut current = Resolved::default();
        for step in 0..80u64 {
            let (policy, path, mut rng) = random_policy();
            let changes = match rng.u8(0..10) {
                0 => {
                    current = policy;
                    inventory.set_policy(&current)
                }
                1 => {
                    let eth = |i: u32, rng: &mut fastrand::Rng| InterfaceFacts {
                        ifindex: i,
                        name: ["eth0", "eth1", "tap-x"][rng.usize(0..3)].into(),
                        host_side: false,
                    };
                    interfaces = (0..rng.u32(0..5)).map(|i| eth(i, &mut rng)).collect();
                    inventory.set_interfaces(interfaces.clone())
                }
                2..4 => {
                    let gone = rng.u64(0..=step);
                    cgroups.remove(&gone);
                    inventory.remove_cgroup(gone)
                }
                _ => {
                    cgroups.insert(step, facts(step, &path));
                    inventory.insert_cgroup(facts(step, &path))
                }
            };
            for change in changes {
                match change {
                    Change::Put(m) => {
                        assert_ne!(tracked.get(&m.key), Some(&m), "no change: seed {seed}");
                        tracked.insert(m.key, m);
                    }
                    Change::Removed(key) => {
                        assert!(tracked.remove(&key).is_some(), "removed twice: seed {seed}");
                    }
                }
            }
            let mut scratch = Inventory::new();
            scratch.set_policy(&current);
            scratch.set_interfaces(interfaces.clone());
            // Children before their parents, for once.
            for facts in cgroups.values().rev() {
                scratch.insert_cgroup(facts.clone());
            }
            let by_key = |m: &Membership| (m.key, m.clone());
            let expected: BTreeMap<_, _> = scratch.memberships().map(by_key).collect();
            let kept: BTreeMap<_, _> = inventory.memberships().map(by_key).collect();
            assert_eq!(kept, expected, "seed {seed} case {case} step {step}");
            assert_eq!(tracked, expected, "seed {seed} case {case} step {step}");
        }
    }
}

#[test]
fn a_cgroup_belongs_to_the_nearest_workload_above_it() {
    let mut inventory = Inventory::new();
    let deep = format!("/a{}", "/x".repeat(30));
    for (id, path) in [(1, "/"), (2, "/a"), (3, "/a/b"), (4, "/a/b/c"), (5, "/ab"), (6, &deep)] {
        inventory.insert_cgroup(facts(id, path));
    }
    let owners = |workloads: &[u64]| {
        let owners: BTreeMap<_, _> =
            inventory.owners(|key| workloads.contains(&key)).into_iter().collect();
        owners.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(owners(&[1, 3]), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 1), (6, 1)]);
    // `/ab` is not below `/a`; and what lies too deep for the programs is none.
    assert_eq!(owners(&[2, 6]), [(2, 2), (3, 2), (4, 2), (6, 2)]);
}

/// A workload that is a container in a pod, of this user and at this path.
fn described(path: Option<&str>, user: Option<&str>, labels: &[(&str, &str)]) -> WorkloadFacts {
    let labels: BTreeMap<_, _> =
        labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    WorkloadFacts {
        cgroup: path.map(str::to_owned),
        user: user.map(str::to_owned),
        container: Some(ContainerFacts {
            name: Some("web-1".into()),
            image: Some("registry.example/web:1.2".into()),
            labels: labels.clone(),
        }),
        pod: Some(PodFacts {
            namespace: Some("shop".into()),
            labels,
            service_account: Some("default".into()),
        }),
        ..WorkloadFacts::default()
    }
}

#[test]
fn a_workload_is_found_by_what_runs_it() {
    let labels = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let container = |container| Selector { container: Some(container), ..Selector::default() };
    let pod = |pod| Selector { pod: Some(pod), ..Selector::default() };
    let text = |t: &str| Some(t.to_owned());
    let list = vec![
        container(ContainerMatch { name: text("web-*"), ..Default::default() }),
        container(ContainerMatch { name: text("web-2"), ..Default::default() }),
        container(ContainerMatch { image: text("registry.example/web:*"), ..Default::default() }),
        container(ContainerMatch { name: text("web-1"), image: text("*:2"), ..Default::default() }),
        container(ContainerMatch {
            labels: labels(&[("tier", "front"), ("app", "web")]),
            ..Default::default()
        }),
        pod(PodMatch { namespace: text("shop"), ..Default::default() }),
        pod(PodMatch {
            namespace: text("sh*"),
            labels: labels(&[("app", "db")]),
            ..Default::default()
        }),
        pod(PodMatch { service_account: text("def*"), ..Default::default() }),
        Selector { user: text("33"), ..Selector::default() },
        Selector {
            cgroup: text("/pods/*"),
            user: text("33"),
            ..pod(PodMatch { namespace: text("shop"), ..Default::default() })
        },
        Selector { user: text("33"), host: true, ..Selector::default() },
        Selector { unit: text("*"), user: text("33"), ..Selector::default() },
    ];
    let mut inventory = Inventory::new();
    inventory.set_policy(&policy(list));
    let of = |facts: &WorkloadFacts| -> Vec<u32> {
        inventory.described(facts).into_iter().map(|id| id.0).collect()
    };
    assert_eq!(of(&described(None, None, &[])), [0, 2, 5, 7]);
    assert_eq!(of(&described(None, None, &[("app", "db"), ("tier", "front")])), [0, 2, 5, 6, 7]);
    assert_eq!(of(&described(None, None, &[("app", "web"), ("tier", "front")])), [0, 2, 4, 5, 7]);
    assert_eq!(of(&described(Some("/pods/1/c"), Some("33"), &[])), [0, 2, 5, 7, 8, 9]);
    assert_eq!(of(&described(Some("/other/1"), Some("33"), &[])), [0, 2, 5, 7, 8]);
    // A user's process is in its unit, and else on the host.
    let user = |path: &str| WorkloadFacts {
        container: None,
        pod: None,
        ..described(Some(path), Some("33"), &[])
    };
    assert_eq!(of(&user("/nothing/here")), [8, 10]);
    assert_eq!(of(&user("/")), [8, 10]);
    assert_eq!(of(&user("/system.slice/a.service/below")), [8, 11]);
    let unit = WorkloadFacts { unit: text("a.service"), user: text("33"), ..Default::default() };
    assert_eq!(of(&unit), [8, 11]);
    // Nothing of this is known of cgroups that the kernel tells of.
    assert_eq!(inventory.owner_of("/pods/1").1.len(), 0);
    assert_eq!(inventory.interface("tap0").len(), 0);
}
