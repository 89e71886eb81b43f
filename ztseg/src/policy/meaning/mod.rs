//! Holds what is loaded from text against what the text means.
//!
//! [`naive`] evaluates the documents as they were written; everything from the parser to the
//! evaluator must say the same, at both ends of each flow.

mod found;
mod members;
mod naive;

use std::collections::BTreeMap;

use fastrand::Rng;
use jiff::Timestamp;
use ztseg_common::addr::proto;
use ztseg_common::verdict::{Reason, Verdict};

use self::naive::{Answer, Because, Direction, Flow, Verdict as Expected, Who, ask};
use crate::image::{Image, SegmentSet};
use crate::inventory::Inventory;
use crate::judge::{self, EndJudgement, Judgement, judge};
use crate::policy::compile::for_questions;
use crate::policy::generate::written::{self, Written};
use crate::policy::generate::{moment, seed, seeded};
use crate::policy::resolved::SegmentId;
use crate::policy::testcase::TestEnd;
use crate::policy::{Loaded, load};

/// The environment variable that sets how many policies a run has.
const POLICIES_VARIABLE: &str = "ZTSEG_POLICIES";
/// Of each policy.
const QUESTIONS: usize = 30;
const PLACES: usize = 3;

/// Documents that are loaded and compiled.
struct Case {
    written: Written,
    loaded: Loaded,
    image: Image,
    /// What no document describes, with its segments.
    places: BTreeMap<String, SegmentSet>,
}

impl Case {
    /// Loads documents in a style, and with questions about places, that `style` gives.
    fn new(written: Written, style: u64) -> Result<Self, String> {
        let sources = written::sources(&mut Rng::with_seed(style), &written);
        let text = || {
            let files = sources.iter().map(|source| format!("# {}\n{}", source.name, source.text));
            files.collect::<Vec<_>>().join("\n")
        };
        let loaded = load(&sources).map_err(|error| format!("{error}\n{}", text()))?;
        let mut inventory = Inventory::new();
        inventory.set_policy(&loaded.resolved);
        let mut rng = Rng::with_seed(!style);
        let place = |place: String| {
            let segments = match place.strip_prefix("interface:") {
                Some(name) => inventory.interface(name),
                None => inventory.owner_of(&place).1,
            };
            (place, segments)
        };
        let places: BTreeMap<_, _> = (0..PLACES).map(|_| place(written::place(&mut rng))).collect();
        let image = for_questions(&loaded.resolved, loaded.sets().chain(places.values()))
            .map_err(|error| format!("{error}\n{}", text()))?;
        Ok(Self { written, loaded, image, places })
    }

    fn end(&self, who: &Who, v4: bool) -> judge::End {
        let loaded = &self.loaded;
        let end = match who {
            Who::Place(place) => {
                return judge::End { workload: Some(self.places[place].clone()), address: None };
            }
            Who::Address(address) => TestEnd::Address(*address),
            Who::Segment(name) => {
                let at = loaded.resolved.segments.iter().position(|s| s.name == *name);
                TestEnd::Segment(SegmentId(u32::try_from(at.expect("a segment")).expect("few")))
            }
            Who::Pod(name) => {
                let at = loaded.pods.iter().position(|pod| pod.name == *name);
                TestEnd::Pod(at.expect("a pod"))
            }
            Who::Workload(name) => {
                let at = loaded.workloads.iter().position(|w| w.name == *name);
                TestEnd::Workload(at.expect("a workload"))
            }
        };
        loaded.end(end, v4)
    }

    /// What both ends say, as the documents mean it.
    fn expected(&self, flow: &Flow, now: Timestamp) -> [Option<Answer>; 2] {
        [Direction::Egress, Direction::Ingress].map(|d| ask(&self.written, now, flow, d))
    }

    /// What both ends say, as it is enforced.
    fn judged(&self, flow: &Flow, now: Timestamp) -> Judgement<'_> {
        let asked = judge::Flow {
            from: self.end(&flow.from, flow.v4),
            to: self.end(&flow.to, flow.v4),
            protocol: flow.protocol,
            port: flow.port,
        };
        judge(&self.loaded.resolved, &self.image, now, &asked).expect("classes for every end")
    }
}

/// What both ends say.
fn answers(judgement: &Judgement<'_>) -> [Option<Answer>; 2] {
    [&judgement.egress, &judgement.ingress].map(|end| end.as_ref().map(answer))
}

/// What an end says, with the names that were written.
fn answer(end: &EndJudgement<'_>) -> Answer {
    let decision = end.decision;
    let because = match (decision.reason, end.rule) {
        (Reason::Rule, Some(rule)) => Because::Rule(rule.name.clone()),
        (Reason::Isolation, None) => {
            Because::Isolation(end.isolating.iter().map(|s| s.name.clone()).collect())
        }
        (Reason::NoIsolation, None) => Because::Nothing,
        other => panic!("{other:?} decides nothing here"),
    };
    let verdict = match (decision.verdict, decision.audit) {
        (Verdict::Deny, _) => Expected::Deny,
        (Verdict::Allow, false) => Expected::Allow,
        (Verdict::Allow, true) => Expected::Audit,
    };
    // Denials are reported in any case.
    let log = decision.log && verdict == Expected::Allow;
    Answer { verdict, because, log, reject: decision.reject }
}

/// A random flow; one end at least is no address.
fn flow(rng: &mut Rng, case: &Case) -> Flow {
    const PROTOCOLS: [u8; 6] =
        [proto::TCP, proto::TCP, proto::TCP, proto::UDP, proto::SCTP, proto::ICMP];
    let written = &case.written;
    let mut protocol = PROTOCOLS[rng.usize(0..PROTOCOLS.len())];
    let v4 = rng.u8(0..3) != 0;
    if protocol == proto::ICMP && !v4 {
        protocol = proto::ICMPV6;
    }
    let mut port = match protocol {
        proto::ICMP | proto::ICMPV6 => written::icmp_type(rng),
        _ => written::port(rng),
    };
    let (mut from, mut to) = (who(rng, case, v4), who(rng, case, v4));
    let elsewhere = |who: &Who| matches!(who, Who::Address(_));
    if elsewhere(&from) && elsewhere(&to) {
        let own = Who::Segment(rng.choice(written.segments()).expect("a segment"));
        *(if rng.bool() { &mut from } else { &mut to }) = own;
    }
    // One of its own ports, mostly: that another has the same number is rare.
    let own = match &to {
        Who::Pod(name) => written.pods.iter().find(|pod| pod.name == *name),
        Who::Address(address) => written.pods.iter().find(|pod| pod.addresses.contains(address)),
        Who::Workload(_) | Who::Segment(_) | Who::Place(_) => None,
    };
    let own = own.and_then(|pod| rng.choice(&pod.ports)).filter(|_| rng.u8(0..4) != 0);
    if let Some(own) = own {
        (protocol, port) = (own.protocol.unwrap_or(proto::TCP), own.number);
    }
    Flow { from, to, v4, protocol, port }
}

fn who(rng: &mut Rng, case: &Case, v4: bool) -> Who {
    let written = &case.written;
    let pods = written.pods.iter().filter(|pod| !pod.ended);
    let mut all: Vec<Who> = pods.map(|pod| Who::Pod(pod.name.clone())).collect();
    all.extend(written.workloads.iter().map(|w| Who::Workload(w.name.clone())));
    match rng.u8(0..9) {
        8 => Who::Place(rng.choice(case.places.keys()).expect("a place").clone()),
        0 | 1 => {
            let addresses = std::iter::repeat_with(|| written::address(rng));
            Who::Address(addresses.take(1000).find(|a| a.is_ipv4() == v4).expect("an address"))
        }
        2 | 3 => Who::Segment(rng.choice(written.segments()).expect("a segment")),
        _ if all.is_empty() => Who::Segment("s0"),
        _ => all.swap_remove(rng.usize(0..all.len())),
    }
}

/// Leaves out what a difference does not need, so that it can be read.
fn shrink(mut written: Written, style: u64, flow: &Flow, now: Timestamp) -> String {
    let differs = |written: &Written| {
        let case = Case::new(written.clone(), style).ok()?;
        let (expected, found) = (case.expected(flow, now), answers(&case.judged(flow, now)));
        (expected != found).then(|| format!("expected {expected:#?}\nfound {found:#?}"))
    };
    let is_end = |name: &str| {
        [&flow.from, &flow.to].iter().any(|who| match who {
            Who::Pod(other) | Who::Workload(other) => other == name,
            Who::Segment(other) => *other == name,
            Who::Address(_) | Who::Place(_) => false,
        })
    };
    let mut at = 0;
    while let Some(less) = written.without(at, is_end) {
        if differs(&less).is_some() { written = less } else { at += 1 }
    }
    let sources = written::sources(&mut Rng::with_seed(style), &written);
    let files = sources.iter().map(|source| format!("# {}\n{}", source.name, source.text));
    let files: Vec<_> = files.collect();
    let difference = differs(&written).unwrap_or_default();
    format!("at {now}: {flow:?}\n{difference}\n{}", files.join("\n"))
}

/// How often the ends of flows were decided in each way.
#[derive(Clone, Copy, Debug, Default)]
struct Ways {
    allowed_by_rule: u32,
    denied_by_rule: u32,
    isolated: u32,
    open: u32,
    audited: u32,
    by_port_name: u32,
}

impl Ways {
    fn count(&mut self, case: &Case, end: &EndJudgement<'_>) {
        let answer = answer(end);
        let way = match (answer.verdict, &answer.because) {
            (Expected::Audit, _) => &mut self.audited,
            (Expected::Deny, Because::Rule(_)) => &mut self.denied_by_rule,
            (_, Because::Rule(_)) => &mut self.allowed_by_rule,
            (_, Because::Isolation(_)) => &mut self.isolated,
            (_, Because::Nothing) => &mut self.open,
        };
        *way += 1;
        let own = case.written.segments().len();
        let of_pods = |id: &SegmentId| id.0 as usize >= own;
        let by_name = end.rule.is_some_and(|rule| rule.to.segments.iter().any(of_pods));
        self.by_port_name += u32::from(by_name);
    }
}

#[test]
fn what_is_loaded_says_what_is_written() {
    let asked = std::env::var(POLICIES_VARIABLE).ok().and_then(|n| n.parse().ok());
    let policies = asked.unwrap_or(10_000);
    let seed = seed();
    let mut ways = Ways::default();
    for number in 0..policies {
        let mut rng = seeded(seed, number);
        let written = written::written(&mut rng);
        let style = rng.u64(..);
        let case = Case::new(written, style);
        let case = case.unwrap_or_else(|error| panic!("seed {seed} case {number}: {error}"));
        for _ in 0..QUESTIONS {
            let (flow, now) = (flow(&mut rng, &case), moment(&mut rng));
            let expected = case.expected(&flow, now);
            let judgement = case.judged(&flow, now);
            let same = expected == answers(&judgement);
            let difference = || shrink(case.written.clone(), style, &flow, now);
            assert!(same, "seed {seed} case {number} {}", difference());
            judgement.ends().for_each(|end| ways.count(&case, end));
        }
    }
    let Ways { allowed_by_rule, denied_by_rule, isolated, open, audited, by_port_name } = ways;
    let all = [allowed_by_rule, denied_by_rule, isolated, open, audited, by_port_name];
    assert!(all.iter().all(|n| u64::from(*n) > policies / 20), "{ways:?}");
    eprintln!("{policies} policies: {ways:?}");
}
