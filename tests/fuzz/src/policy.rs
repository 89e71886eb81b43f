//! A policy file, through the whole front end.

use ztseg::check::{Answer, failures, run_tests};
use ztseg::config::Config;
use ztseg::datapath::Capacity;
use ztseg::image::Image;
use ztseg::inventory::Membership;
use ztseg::judge::{Flow, judge};
use ztseg::policy::compile::{compile, memberships_of};
use ztseg::policy::oracle::{self, PeerFacts};
use ztseg::policy::resolved::{Resolved, SegmentId};
use ztseg::policy::source::Source;
use ztseg::policy::testcase::ResolvedTest;
use ztseg::policy::{Loaded, load};
use ztseg_common::verdict::{Direction, Verdict};

/// What is wrong is said, at a place that exists; what is right compiles or is refused whole, and
/// the evaluator says of every test what the oracle says.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let source = Source { name: "any.yaml".into(), text: text.as_ref().into() };
    let _ = Config::from_yaml(&source);
    match load(std::slice::from_ref(&source)) {
        Ok(loaded) => compiled(&loaded),
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            assert!(diagnostics.to_string().starts_with("any.yaml:"));
            let _ = diagnostics.render(true);
            let lines = text.lines().count().max(1);
            for diagnostic in &diagnostics {
                // A syntax error may stand behind the last line.
                let line = diagnostics.position(diagnostic).line as usize;
                assert!((1..=lines + 1).contains(&line), "line {line} of {lines}");
            }
        }
    }
}

fn compiled(loaded: &Loaded) {
    let resolved = &loaded.resolved;
    let mut all = workloads(resolved);
    all.extend(
        memberships_of(loaded.sets()).into_iter().map(|m| Membership { key: m.key | 1 << 40, ..m }),
    );
    let Ok(image) = compile(resolved, &all, &Capacity::default()) else { return };
    let outcomes = run_tests(loaded, |test| answer(loaded, &image, test));
    let _ = failures(loaded, &outcomes).render(false);
}

/// A workload in each segment, and one in all of them.
fn workloads(resolved: &Resolved) -> Vec<Membership> {
    let ids: Vec<_> = (0..).map(SegmentId).take(resolved.segments.len()).collect();
    let sets = ids.iter().map(|id| vec![*id]).chain([ids.clone()]);
    let numbered = (1..).zip(sets);
    let workload = |(key, set): (u64, Vec<SegmentId>)| Membership {
        key,
        name: format!("/{key}"),
        level: Some(1),
        segments: set.into_iter().collect(),
    };
    numbered.map(workload).collect()
}

fn answer(loaded: &Loaded, image: &Image, test: &ResolvedTest) -> Answer {
    let resolved = &loaded.resolved;
    let end = |end| loaded.end(end, true);
    let flow =
        Flow { from: end(test.from), to: end(test.to), protocol: test.protocol, port: test.port };
    let judgement = judge(resolved, image, jiff::Timestamp::UNIX_EPOCH, &flow)
        .expect("each segment alone, each pod and each workload has classes");
    for end in judgement.ends() {
        let (subject, peer) = match end.direction {
            Direction::Egress => (&flow.from, &flow.to),
            Direction::Ingress => (&flow.to, &flow.from),
        };
        // The oracle wants an address, and a workload has none here.
        if let (Some(segments), Some(address)) = (&subject.workload, peer.address) {
            let facts = PeerFacts { known: None, nobody: false, address };
            let expected =
                oracle::decide(resolved, segments, &facts, end.direction, test.protocol, test.port);
            let allowed = end.decision.verdict == Verdict::Allow;
            assert_eq!(allowed, expected.allow, "{test:?}");
        }
    }
    Answer { verdict: judgement.verdict(), ends: Vec::new() }
}
