use std::fmt::Write as _;

use ztseg_common::addr::Addr;
use ztseg_common::eval::{Decision, Query, decide};
use ztseg_common::key::{IDENTITY_NOBODY, port_slot};
use ztseg_common::value::Peer;
use ztseg_common::verdict::{Reason, Verdict};

use super::*;
use crate::policy::generate::{Question, World, large, question, seed, seeded, world};
use crate::policy::oracle;

const LARGE: Capacity =
    Capacity { flows: 1, verdicts: 1 << 20, peers: 1 << 18, workloads: 1 << 15 };

/// The evaluator's answer over an image, with the peer's classes as the kernel programs find them.
fn evaluate(image: &Image, world: &World, q: &Question) -> Decision {
    let workload = |i: usize| image.workloads[&world.workloads[i].key];
    let by_address = image.peer(&Addr::from(q.address));
    let identity = match q.peer {
        _ if q.nobody => IDENTITY_NOBODY,
        Some(peer) => workload(peer).identity,
        None => by_address.identity,
    };
    decide(
        image,
        &Query {
            subject: workload(q.subject).subject,
            peer: Peer { identity, ..by_address },
            port_slot: port_slot(q.protocol, q.port),
            direction: q.direction,
        },
    )
}

/// How the evaluator differs from the oracle, if it does.
fn difference(image: &Image, world: &World, q: &Question) -> Option<String> {
    let found = evaluate(image, world, q);
    let subject = &world.workloads[q.subject].segments;
    let peer = q.peer_facts(world);
    let expected = oracle::decide(&world.resolved, subject, &peer, q.direction, q.protocol, q.port);
    let same = (found.verdict == Verdict::Allow) == expected.allow
        && found.rule as usize == expected.rule.map_or(0, |index| index + 1)
        && found.audit == expected.audit
        && (found.reason == Reason::Isolation) == expected.default_deny
        && (found.reason == Reason::Rule) == expected.rule.is_some()
        && found.log == expected.log
        && found.volatile == q.nobody;
    (!same).then(|| format!("oracle {expected:?}\nevaluator {found:?}\nquestion {q:?}"))
}

/// Leaves out rules as long as the answers still differ, so that a failure can be read.
fn shrink(mut world: World, q: &Question) -> String {
    let differs = |world: &World| {
        compile(&world.resolved, &world.workloads, &LARGE)
            .ok()
            .and_then(|image| difference(&image, world, q))
    };
    let mut index = 0;
    while index < world.resolved.rules.len() {
        let mut less = world.clone();
        less.resolved.rules.remove(index);
        if differs(&less).is_some() { world = less } else { index += 1 }
    }
    let mut text = differs(&world).unwrap_or_default();
    let _ = write!(text, "\npolicy {:#?}\nworkloads {:#?}", world.resolved, world.workloads);
    text
}

#[test]
fn the_evaluator_over_an_image_says_what_the_oracle_says() {
    const POLICIES: u64 = 500;
    const QUESTIONS: usize = 60;
    let seed = seed();
    let mut decisions = [0u32; 4];
    for case in 0..POLICIES {
        let mut rng = seeded(seed, case);
        let world = world(&mut rng);
        let image = compile(&world.resolved, &world.workloads, &LARGE).unwrap();
        for _ in 0..QUESTIONS {
            let q = question(&mut rng, &world);
            if difference(&image, &world, &q).is_some() {
                panic!("seed {seed} case {case}\n{}", shrink(world, &q));
            }
            let d = evaluate(&image, &world, &q);
            decisions[usize::from(d.rule == 0) << 1 | usize::from(d.verdict == Verdict::Deny)] += 1;
        }
    }
    // The questions must not all end alike: allowed and denied, by rules and by default.
    assert!(decisions.iter().all(|n| *n > 1000), "{decisions:?}");
}

#[test]
fn zero_is_never_a_class_and_class_masks_are_exact() {
    let seed = seed();
    for case in 0..50 {
        let world = world(&mut seeded(seed, case));
        let image = compile(&world.resolved, &world.workloads, &LARGE).unwrap();
        assert!(image.ports.iter().all(|class| *class != 0));
        assert!(image.classes.values().all(|c| c.subject != 0 && c.identity != 0));
        let peers = image.hosts.values().chain(image.prefixes.values());
        assert!(peers.into_iter().all(|p| p.identity != 0 && p.address != 0));
        for (key, entry) in &image.entries {
            assert!(entry.tiers.iter().any(|t| t.shadow != 0), "seed {seed}: an empty entry");
            assert!((key.subject as usize) < image.subjects.len());
        }
        for (class, row) in image.subjects.iter().enumerate().skip(1) {
            for (direction, mask) in [(1, row.ingress_shapes), (2, row.egress_shapes)] {
                let mut used = 0;
                for key in image.entries.keys().filter(|k| k.direction == direction) {
                    if key.subject as usize == class {
                        used |= key.shape();
                    } else if key.subject == ztseg_common::key::SUBJECT_ANY {
                        used |= key.shape() << ztseg_common::key::SHAPES;
                    }
                }
                assert_eq!(mask, used, "seed {seed} case {case}");
            }
        }
    }
}

#[test]
fn a_policy_that_does_not_fit_is_refused_with_the_option_that_raises_the_limit() {
    let world = large(&mut seeded(1, 1), 50, 200, 400);
    let capacity = |verdicts, peers, workloads| Capacity { flows: 1, verdicts, peers, workloads };
    let compile = |capacity| compile(&world.resolved, &world.workloads, &capacity);
    let image = compile(LARGE).unwrap();
    let (entries, peers, workloads) = (image.entries.len(), image.hosts.len(), 50);
    let fits = |n: usize| u32::try_from(n).unwrap();
    assert!(compile(capacity(fits(entries), fits(peers), workloads)).is_ok());
    for (capacity, option) in [
        (capacity(fits(entries) - 1, fits(peers), workloads), "capacity.verdicts"),
        (capacity(fits(entries), fits(peers) - 1, workloads), "capacity.peers"),
        (capacity(fits(entries), fits(peers), workloads - 1), "capacity.workloads"),
    ] {
        let message = compile(capacity).unwrap_err().to_string();
        assert!(message.contains(option), "{message}");
    }
}

#[test]
fn a_policy_that_explodes_is_refused_before_it_takes_memory() {
    let mut world = large(&mut seeded(1, 1), 10_000, 3, 10);
    let everyone = crate::policy::resolved::Side {
        segments: (0..10_000).map(crate::policy::resolved::SegmentId).collect(),
        ..Default::default()
    };
    // Ten thousand segments, told apart as peers by the rules of one each, times themselves.
    for i in 0..10_000u32 {
        let mut rule = world.resolved.rules[1].clone();
        rule.to.segments = vec![crate::policy::resolved::SegmentId(i)];
        world.resolved.rules.push(rule);
    }
    world.resolved.rules[1].name = "p/everyone".into();
    world.resolved.rules[1].from = everyone.clone();
    world.resolved.rules[1].to = everyone;
    let error = compile(&world.resolved, &world.workloads, &Capacity::default()).unwrap_err();
    let CompileError::Capacity { needed: Needed::MoreThanLimit { at_most }, largest, .. } = &error
    else {
        panic!("{error}");
    };
    assert!(*at_most > 100_000_000);
    assert_eq!(largest.as_ref().map(|l| l.rule.as_str()), Some("p/everyone"));
}

#[test]
fn numbers_of_no_segment_are_refused() {
    let mut world = large(&mut seeded(1, 1), 3, 20, 1);
    let all = world.workloads.clone();
    world.workloads[0].segments = [crate::policy::resolved::SegmentId(3)].into();
    let error = compile(&world.resolved, &world.workloads, &LARGE).unwrap_err();
    assert!(matches!(error, CompileError::UnknownSegment { segment: 3, .. }), "{error}");
    world.resolved.segments.truncate(1);
    let error = compile(&world.resolved, &all[..1], &LARGE).unwrap_err();
    assert!(error.to_string().contains("large/rule-"), "{error}");
}

#[test]
#[ignore = "a measurement: cargo test --release -p ztseg --lib large_policy -- --ignored --nocapture"]
fn a_large_policy_compiles_in_seconds() {
    let world = large(&mut seeded(1, 1), 10_000, 100_000, 200_000);
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let image = compile(&world.resolved, &world.workloads, &LARGE).unwrap();
        let took = start.elapsed();
        eprintln!(
            "{} rules, {} addresses: {} entries, {} peers, {took:?}",
            world.resolved.rules.len(),
            200_000,
            image.entries.len(),
            image.hosts.len() + image.prefixes.len(),
        );
        assert!(took.as_secs() < 2);
    }
}
