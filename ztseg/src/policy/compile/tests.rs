mod members;

use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;
use ztseg_common::addr::Addr;
use ztseg_common::eval::{Decision, Keep, Query, decide};
use ztseg_common::key::{
    ADDRESS_UNKNOWN, IDENTITY_NOBODY, IDENTITY_UNKNOWN, SHAPES, SUBJECT_ANY, port_slot,
};
use ztseg_common::value::{MAX_FALLBACKS, Peer, SUBJECT_FAILSAFE};
use ztseg_common::verdict::{Reason, Verdict};

use super::*;
use crate::policy::failsafe::Failsafe;
use crate::policy::generate::{Question, World, large, moment, question, seed, seeded, world};
use crate::policy::oracle;
use crate::policy::resolved::{Network, PortRange, SegmentId, Side};

const LARGE: Capacity =
    Capacity { flows: 1, verdicts: 1 << 20, peers: 1 << 18, workloads: 1 << 15 };

/// The evaluator's answer over an image, with the peer's classes as the kernel programs find them.
fn evaluate(image: &Image, world: &World, q: &Question, now: Timestamp) -> Decision {
    let workload = |i: usize| image.workloads[&world.workloads[i].key];
    let by_address = image.peer(&Addr::from(q.address));
    let identity = match q.peer {
        _ if q.nobody => IDENTITY_NOBODY,
        Some(peer) => workload(peer).identity,
        None => by_address.identity,
    };
    decide(
        &image.at(now),
        &Query {
            subject: workload(q.subject).subject,
            peer: Peer { identity, ..by_address },
            port_slot: port_slot(q.protocol, q.port),
            direction: q.direction,
        },
    )
}

/// How the evaluator differs from the oracle, if it does.
fn difference(image: &Image, world: &World, q: &Question, now: Timestamp) -> Option<String> {
    let found = evaluate(image, world, q, now);
    let subject = &world.workloads[q.subject].segments;
    let peer = q.peer_facts(world);
    let service = (q.protocol, q.port);
    let expected = oracle::decide_at(now, &world.resolved, subject, &peer, q.direction, service);
    let same = (found.verdict == Verdict::Allow) == expected.allow
        && found.rule as usize == expected.rule.map_or(0, |index| index + 1)
        && found.audit == expected.audit
        && (found.reason == Reason::Isolation) == expected.default_deny
        && (found.reason == Reason::Rule) == expected.rule.is_some()
        && found.log == expected.log
        && found.reject == expected.reject
        && may_be_kept(world, q, now, &found);
    (!same).then(|| format!("at {now}: oracle {expected:?}\nevaluator {found:?}\nquestion {q:?}"))
}

/// Whether a verdict that is kept holds for as long as the evaluator says.
fn may_be_kept(world: &World, q: &Question, now: Timestamp, found: &Decision) -> bool {
    let ends = world.resolved.rules.iter().filter_map(|rule| rule.expires);
    let own = (found.rule as usize)
        .checked_sub(1)
        .and_then(|index| world.resolved.rules.get(index)?.expires);
    // What the oracle says until the verdict ends, it says at the end of each rule before.
    let last = match found.keep {
        Keep::Never => return true,
        _ if q.nobody => return false,
        Keep::UntilChanged => Timestamp::MAX,
        Keep::UntilExpired => match own {
            Some(end) => end,
            None => return false,
        },
    };
    let ask = |at| {
        let subject = &world.workloads[q.subject].segments;
        let (peer, service) = (q.peer_facts(world), (q.protocol, q.port));
        oracle::decide_at(at, &world.resolved, subject, &peer, q.direction, service)
    };
    ends.filter(|end| *end > now && *end < last).all(|end| ask(end) == ask(now))
}

/// Leaves out rules as long as the answers still differ, so that a failure can be read.
fn shrink(mut world: World, q: &Question, now: Timestamp) -> String {
    let differs = |world: &World| {
        compile(&world.resolved, &world.workloads, &LARGE)
            .ok()
            .and_then(|image| difference(&image, world, q, now))
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
    const POLICIES: u64 = 10_000;
    const QUESTIONS: usize = 60;
    let seed = seed();
    let (mut decisions, mut kept) = ([0u32; 4], [0u32; 3]);
    for case in 0..POLICIES {
        let mut rng = seeded(seed, case);
        let world = world(&mut rng);
        let image = compile(&world.resolved, &world.workloads, &LARGE).unwrap();
        for _ in 0..QUESTIONS {
            let q = question(&mut rng, &world);
            let now = moment(&mut rng);
            let same = difference(&image, &world, &q, now).is_none();
            assert!(same, "seed {seed} case {case}\n{}", shrink(world, &q, now));
            let d = evaluate(&image, &world, &q, now);
            kept[d.keep as usize] += 1;
            decisions[usize::from(d.rule == 0) << 1 | usize::from(d.verdict == Verdict::Deny)] += 1;
        }
    }
    // The questions must not all end alike: allowed and denied, by rules and by default.
    assert!(decisions.iter().all(|n| *n > 1000), "{decisions:?}");
    assert!(kept.iter().all(|n| *n > 100), "{kept:?}");
}

/// Allows the same flows, each a second longer than the one before.
fn one_after_the_other(count: i64) -> Resolved {
    let sides: Vec<_> = (0..count).map(|_| (segments(&[0]), segments(&[1]))).collect();
    let mut resolved = policy(&sides);
    for (n, rule) in (1..).zip(&mut resolved.rules) {
        rule.expires = Some(Timestamp::from_second(n).unwrap());
    }
    resolved
}

#[test]
fn rules_that_end_one_after_the_other_have_a_limit() {
    let limit = i64::try_from(MAX_FALLBACKS).unwrap();
    let most = compile(&one_after_the_other(limit), &[], &LARGE).unwrap();
    // At both ends, each chain twice: as it is, and as if everything enforced.
    assert!(most.fallbacks.len() > 2 * 2 * MAX_FALLBACKS, "{}", most.fallbacks.len());
    let error = compile(&one_after_the_other(limit + 1), &[], &LARGE).unwrap_err().to_string();
    assert!(error.contains("large/rule-0") && error.contains("large/rule-8"), "{error}");
    // One that does not end closes the chain, and those that end no later add nothing to it.
    let mut closed = one_after_the_other(limit + 1);
    closed.rules.last_mut().unwrap().expires = None;
    assert!(compile(&closed, &[], &LARGE).is_ok());
    let mut same = one_after_the_other(limit + 9);
    same.rules.iter_mut().for_each(|rule| rule.expires = Some(Timestamp::MAX));
    let once = compile(&same, &[], &LARGE).unwrap().fallbacks.len();
    assert_eq!(most.fallbacks.len() - 1, MAX_FALLBACKS * (once - 1));
}

#[test]
fn zero_is_never_a_class_and_shape_masks_are_exact() {
    let seed = seed();
    for case in 0..50 {
        let world = world(&mut seeded(seed, case));
        let image = compile(&world.resolved, &world.workloads, &LARGE).unwrap();
        assert!(image.ports.iter().all(|class| *class != 0));
        assert!(image.classes.values().all(|c| c.subject != 0 && c.identity != 0));
        let hosts = image.hosts.iter().map(|(_, peer)| peer);
        let mut peers = hosts.chain(image.prefixes.values().copied());
        assert!(peers.all(|p| p.identity != 0 && p.address != 0));
        for (key, entry) in image.entries.iter() {
            assert!(entry.tiers.iter().any(|t| t.shadow != 0), "seed {seed}: an empty entry");
            assert!((key.subject as usize) < image.subjects.len());
        }
        for (class, row) in image.subjects.iter().enumerate().skip(1) {
            for (direction, mask) in [(1, row.ingress_shapes), (2, row.egress_shapes)] {
                let mut used = 0;
                for key in image.entries.keys().filter(|k| k.direction == direction) {
                    if key.subject as usize == class {
                        used |= key.shape();
                    } else if key.subject == SUBJECT_ANY {
                        used |= key.shape() << SHAPES;
                    }
                }
                assert_eq!(mask, used, "seed {seed} case {case}");
            }
        }
    }
}

fn segments(list: &[u32]) -> Side {
    Side { segments: list.iter().copied().map(SegmentId).collect(), ..Side::default() }
}

fn networks(list: &[&str]) -> Side {
    let network = |cidr: &&str| Network { cidr: cidr.parse().unwrap(), except: Vec::new() };
    Side { networks: list.iter().map(network).collect(), ..Side::default() }
}

/// Allows every port from each first to each second side; there are eight segments.
fn policy(sides: &[(Side, Side)]) -> Resolved {
    let mut resolved = large(&mut seeded(1, 1), 8, sides.len(), 0).resolved;
    for (rule, (from, to)) in resolved.rules.iter_mut().zip(sides) {
        (rule.from, rule.to) = (from.clone(), to.clone());
        rule.ports = vec![PortRange::ANY];
    }
    resolved
}

#[test]
fn what_every_rule_treats_alike_shares_a_class() {
    let resolved = policy(&[
        (segments(&[0, 1]), segments(&[2])),
        (networks(&["192.0.2.1/32", "198.51.100.0/24"]), segments(&[2])),
        (segments(&[3]), networks(&["192.0.2.0/24"])),
    ]);
    let image = compile(&resolved, &[], &LARGE).unwrap();
    let identity = |list: &[u32]| image.classes[&list.iter().copied().map(SegmentId).collect()];
    assert_eq!(identity(&[0]).identity, identity(&[1]).identity);
    assert_ne!(identity(&[0]).identity, identity(&[2]).identity);
    // Segment 3 is never a peer: nothing that its rule names makes a subject.
    assert_eq!(identity(&[3]).identity, IDENTITY_UNKNOWN);
    assert_eq!(identity(&[]).identity, IDENTITY_UNKNOWN);

    let address = |a: &str| image.peer(&Addr::from(a.parse::<IpAddr>().unwrap())).address;
    assert_eq!(address("198.51.100.1"), address("198.51.100.2"));
    assert_ne!(address("198.51.100.1"), address("192.0.2.1"));
    assert_ne!(address("192.0.2.2"), address("192.0.2.1"));
    assert_eq!(address("203.0.113.1"), ADDRESS_UNKNOWN);
}

#[test]
fn any_is_one_entry_for_each_end_and_not_a_copy_for_each_class() {
    let any = Side { any: true, ..Side::default() };
    let image = compile(&policy(&[(any, segments(&[0]))]), &[], &LARGE).unwrap();
    let mut keys: Vec<_> = image.entries.keys().map(|k| (k.direction, k.subject)).collect();
    keys.sort_unstable();
    let web = image.classes[&[SegmentId(0)].into()].subject;
    // Ingress at the segment; egress of everyone to the segment and to nobody.
    assert_eq!(keys, [(1, web), (2, SUBJECT_ANY), (2, SUBJECT_ANY)]);
}

#[test]
fn prefixes_are_complete_and_nothing_is_said_twice() {
    let cidrs = ["::/0", "10.0.0.0/8", "10.0.0.1/32", "10.9.0.0/16", "2001:db8::1/128"];
    let image = compile(&policy(&[(segments(&[0]), networks(&cidrs))]), &[], &LARGE).unwrap();
    // One list holds them all, so what lies inside another one of the same family adds nothing.
    assert!(image.hosts.is_empty());
    let prefixes: Vec<_> = image
        .prefixes
        .iter()
        .map(|(key, peer)| {
            let net = format!("{}/{}", IpAddr::from(key.addr), key.prefix_len);
            (net, peer.address == ADDRESS_UNKNOWN)
        })
        .collect();
    let expected = [("::/0", false), ("0.0.0.0/96", true), ("10.0.0.0/104", false)];
    assert_eq!(prefixes, expected.map(|(net, unknown)| (net.to_owned(), unknown)));
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
    let everyone = Side { segments: (0..10_000).map(SegmentId).collect(), ..Default::default() };
    // Ten thousand segments, told apart as peers by the rules of one each, times themselves.
    for i in 0..10_000u32 {
        let mut rule = world.resolved.rules[1].clone();
        rule.to.segments = vec![SegmentId(i)];
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
    world.workloads[0].segments = [SegmentId(3)].into();
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

#[test]
fn who_is_failsafe_is_marked_and_nobody_else() {
    let mut resolved = large(&mut seeded(1, 1), 8, 4, 4).resolved;
    if resolved.failsafe.is_none() {
        Failsafe::default().add_to(&mut resolved);
    }
    let image = compile(&resolved, &[], &LARGE).expect("it fits");
    let mut marked = 0;
    for (set, classes) in &image.classes {
        let flags = image.subjects[classes.subject as usize].flags;
        let is_one = resolved.failsafe.is_some_and(|id| set.contains(&id));
        assert_eq!(flags & SUBJECT_FAILSAFE != 0, is_one, "{set:?}");
        marked += usize::from(is_one);
    }
    assert_eq!(marked, 1);
}
