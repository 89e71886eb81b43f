use std::net::IpAddr;

use ztseg_common::addr::Addr;
use ztseg_common::value::Peer;
use ztseg_common::verdict::Direction;

use super::*;
use crate::image::SegmentSet;
use crate::policy::failsafe::Failsafe;
use crate::policy::generate::{self, World, moment, seed, seeded, world};
use crate::policy::load;
use crate::policy::oracle::{PeerFacts, decide_at};
use crate::policy::parse::port::{bounds, is_v4};
use crate::policy::resolved::{Action, Isolation, Mode, Tier};
use crate::policy::source::Source;
use crate::present;

const OLD: &str = "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  segments:
    web: { match: [ { cgroup: /shop/web } ] }
    db: { match: [ { unit: postgresql.service } ] }
    cache: { match: [ { cgroup: /shop/cache } ] }
  allow:
    - { name: to-db, from: [web, cache], to: db, ports: [tcp/5432-5433] }
    - { name: to-web, from: any, to: web, ports: [tcp/443] }
    - { name: to-cache, from: web, to: cache }
";

fn compared(old: &str, new: &str) -> Diff {
    let loaded = |text: &str| {
        let source = Source { name: "shop.yaml".into(), text: text.into() };
        let mut loaded = load(&[source]).expect("a policy");
        Failsafe::default().add_to(&mut loaded.resolved);
        loaded.resolved
    };
    let (old, new) = (loaded(old), loaded(new));
    let workloads = workloads::of(&old, &new, []);
    diff(&old, &new, Timestamp::UNIX_EPOCH, &workloads).expect("they compile")
}

#[test]
fn a_policy_does_not_differ_from_itself() {
    assert_eq!(compared(OLD, OLD), Diff::default());
    // Nor from one that means the same.
    let renamed =
        OLD.replace("name: to-db", "name: database").replace("[web, cache]", "[cache, web]");
    assert_eq!(compared(OLD, &renamed), Diff::default());
}

#[test]
fn what_changes_is_told_in_few_words() {
    let new = OLD
        .replace("tcp/5432-5433", "tcp/5432")
        .replace("from: any, to: web", "from: 198.51.100.0/24, to: web")
        .replace("to: cache }", "to: cache, ports: [tcp/6379] }");
    let expected = "\
now denied:
  hosts elsewhere, the host and failsafe units, workloads in no segment at every other IPv4 address, every IPv6 address -> web tcp/443
      before: allowed by rule shop/to-web (shop.yaml:11:7)
      now:    denied by the isolation of web (ingress), and no rule
  cache -> db tcp/5433
      before: allowed by rule shop/to-db (shop.yaml:10:7)
      now:    denied by the isolation of cache (egress), and no rule
  cache -> web tcp/443
      before: allowed by rule shop/to-web (shop.yaml:11:7)
      now:    denied by the isolation of cache (egress), and no rule
  db -> web tcp/443
      before: allowed by rule shop/to-web (shop.yaml:11:7)
      now:    denied by the isolation of db (egress), and no rule
  web -> cache every port but tcp/6379
      before: allowed by rule shop/to-cache (shop.yaml:12:7)
      now:    denied by the isolation of web (egress), and no rule
  web -> db tcp/5433
      before: allowed by rule shop/to-db (shop.yaml:10:7)
      now:    denied by the isolation of web (egress), and no rule
  web -> web tcp/443
      before: allowed by rule shop/to-web (shop.yaml:11:7)
      now:    denied by the isolation of web (egress), and no rule
";
    assert_eq!(present::diff::text(&compared(OLD, &new)), expected);
}

/// Another policy that has much in common with this one.
fn altered(rng: &mut fastrand::Rng, world: &World, other: &World) -> Resolved {
    let mut resolved = world.resolved.clone();
    resolved.rules.retain(|_| rng.u8(0..6) > 0);
    for rule in &mut resolved.rules {
        match rng.u8(0..12) {
            0 => rule.mode = if rule.mode == Mode::Audit { Mode::Enforce } else { Mode::Audit },
            1 => rule.expires = None,
            2 => rule.from.any = !rule.built_in,
            3 if !rule.built_in => rule.ports.truncate(1),
            _ => {}
        }
    }
    let fits = |side: &crate::policy::resolved::Side| {
        side.segments.iter().all(|id| (id.0 as usize) < resolved.own_segments())
    };
    let all = other.resolved.rules.iter();
    let fitting = all.filter(|rule| fits(&rule.from) && fits(&rule.to) && !rule.built_in);
    let new: Vec<_> = fitting.filter(|_| rng.bool()).cloned().collect();
    resolved.rules.extend(new);
    if rng.bool() {
        // In the tiers where the order decides, it does not stay either.
        rng.shuffle(&mut resolved.rules);
    }
    // In the order of evaluation, as every policy has it.
    resolved.rules.sort_by_key(|rule| {
        let later = rule.tier == Tier::Application && rule.action != Action::Deny;
        (!rule.built_in, rule.tier as u8, later)
    });
    for segment in &mut resolved.segments {
        if rng.u8(0..8) == 0 {
            segment.ingress = Isolation::Open;
        }
        let others = &other.resolved.segments;
        if rng.u8(0..4) == 0 && !others.is_empty() {
            segment.addresses.clone_from(&others[rng.usize(0..others.len())].addresses);
        }
    }
    resolved
}

struct Ask<'a> {
    workloads: &'a [Workload],
    sides: [&'a Resolved; 2],
    now: Timestamp,
}

impl Ask<'_> {
    /// What the oracle says under one of the policies.
    fn allows(
        &self,
        index: usize,
        ends: [(Option<usize>, IpAddr); 2],
        (protocol, port): (u8, u16),
    ) -> bool {
        let set = |end: (Option<usize>, IpAddr)| -> Option<SegmentSet> {
            end.0.map(|at| self.workloads[at].segments[index].clone())
        };
        let one = |own: usize, direction| {
            let Some(subject) = set(ends[own]) else { return true };
            let peer = ends[1 - own];
            let facts = PeerFacts { known: set(peer), nobody: false, address: peer.1 };
            let service = (protocol, port);
            decide_at(self.now, self.sides[index], &subject, &facts, direction, service).allow
        };
        one(0, Direction::Egress) && one(1, Direction::Ingress)
    }
}

fn holds(addresses: &Addresses, sides: &[Side<'_>; 2], address: IpAddr) -> bool {
    let unknown = |side: &Side<'_>| side.image.peer(&Addr::from(address)) == Peer::UNKNOWN;
    let other = if address.is_ipv4() { addresses.other_ipv4 } else { addresses.other_ipv6 };
    addresses.cidrs.iter().any(|net| net.contains(&address)) || (other && sides.iter().all(unknown))
}

/// On random policies: what is reported flips by the oracle, and what flips is reported.
#[test]
fn what_is_reported_is_what_flips() {
    const POLICIES: u64 = 400;
    let seed = seed();
    let (mut flipped, mut kept, mut reported) = (0, 0, 0);
    for case in 0..POLICIES {
        let rng = &mut seeded(seed, case);
        let (one, other) = (world(rng), world(rng));
        let new = altered(rng, &one, &other);
        let old = &one.resolved;
        let mut workloads = workloads::of(old, &new, []);
        for member in &one.workloads {
            let segments = [member.segments.clone(), member.segments.clone()];
            if workloads.iter().all(|workload| workload.segments != segments) {
                workloads.push(Workload { name: format!("w{}", member.key), segments });
            }
        }
        for (number, workload) in workloads.iter_mut().enumerate() {
            workload.name = format!("{number}");
        }
        let now = moment(rng);
        let found = diff(old, &new, now, &workloads).expect("they compile");
        let sides = [old, &new].map(|resolved| Side {
            resolved,
            image: for_questions(resolved, []).expect("it compiles"),
        });
        let ask = Ask { workloads: &workloads, sides: [old, &new], now };
        let number =
            |end: &End| end.workload.as_ref().map(|name| name.parse::<usize>().expect("a number"));
        for _ in 0..300 {
            let question = generate::question(rng, &one);
            let mut end = || {
                let workload = (rng.u8(0..4) > 0).then(|| rng.usize(0..workloads.len()));
                (workload, generate::question(rng, &one).address)
            };
            let ends = [end(), end()];
            // Nobody has port zero; a type may be zero, and what has neither has zero.
            let least = bounds(question.protocol).0;
            let service = (question.protocol, question.port.max(least));
            let v4 = ends[0].1.is_ipv4();
            if ends[1].1.is_ipv4() != v4
                || is_v4(service.0).is_some_and(|only| only != v4)
                || ends.iter().all(|(workload, _)| workload.is_none())
            {
                continue;
            }
            let [before, after] = [0, 1].map(|index| ask.allows(index, ends, service));
            let covers = |own: &[End], (workload, address): (Option<usize>, IpAddr)| {
                own.iter().any(|end| {
                    number(end) == workload
                        && end.addresses.as_ref().is_none_or(|a| holds(a, &sides, address))
                })
            };
            let reports: Vec<&Change> = found
                .changes
                .iter()
                .filter(|change| covers(&change.from, ends[0]) && covers(&change.to, ends[1]))
                .filter(|change| {
                    change.ports.iter().any(|range| range.contains(service.0, service.1))
                })
                .collect();
            let context =
                || format!("case {case} {ends:?} {service:?}: {before} {after}\n{reports:#?}");
            if before == after {
                kept += 1;
                assert!(reports.is_empty(), "{}", context());
            } else {
                flipped += 1;
                assert!(!reports.is_empty(), "{}", context());
                let now = if after { Answer::Allow } else { Answer::Deny };
                assert!(reports.iter().all(|change| change.now == now), "{}", context());
            }
        }
        reported += found.changes.len();
        assert_eq!(diff(old, old, now, &workloads).expect("compiles"), Diff::default());
    }
    assert!(flipped > 1000 && kept > 1000, "{flipped} flipped, {kept} not, {reported} reported");
}
