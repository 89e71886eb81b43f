//! `ztseg check` and `ztseg test` without their command lines: run the `tests:` of what was loaded.

use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;
use ztseg_common::addr::proto;
use ztseg_common::eval::Decision;
use ztseg_common::verdict::{Direction, Reason, Verdict};

use crate::image::Image;
use crate::judge::{EndJudgement, Flow, judge};
use crate::policy::Loaded;
use crate::policy::compile::{CompileError, for_questions};
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::policy::resolved::{Isolation, Mode, Resolved, SegmentId};
use crate::policy::testcase::{Expect, ResolvedTest, TestEnd};

/// What the policy says of a test's flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The verdict over both ends.
    pub verdict: Verdict,
    /// What each end that has a policy says: egress at `from`, ingress at `to`.
    pub ends: Vec<End>,
}

/// What one end says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Egress at the flow's source, ingress at its destination.
    pub direction: Direction,
    /// Its verdict.
    pub verdict: Verdict,
    /// Why.
    pub because: Because,
}

/// Why an end says what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// A rule decided: its index in [`crate::policy::resolved::Resolved::rules`].
    Rule(usize),
    /// No rule matched, and these segments isolate the direction.
    Isolation(Vec<SegmentId>),
    /// No rule matched, and nothing isolates the direction.
    NoIsolation,
}

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<'l> {
    /// The test.
    pub test: &'l ResolvedTest,
    /// Why it failed, at its place; `None` where it holds.
    pub failure: Option<Diagnostic>,
}

/// Runs the tests of a load against its own policies; what fails, at its place.
///
/// # Errors
/// The policies do not compile.
pub fn check(loaded: &Loaded, now: Timestamp) -> Result<Diagnostics, CompileError> {
    Ok(failures(loaded, &outcomes(loaded, now)?))
}

/// Runs the tests of a load against its own policies; what became of each, in their order.
///
/// # Errors
/// The policies do not compile.
pub fn outcomes(loaded: &Loaded, now: Timestamp) -> Result<Vec<Outcome<'_>>, CompileError> {
    let mut enforced = loaded.resolved.clone();
    enforce_everything(&mut enforced);
    let image = for_questions(&enforced, loaded.sets())?;
    Ok(run_tests(loaded, |test| answer(loaded, &enforced, &image, now, test)))
}

fn enforce_everything(resolved: &mut Resolved) {
    for rule in &mut resolved.rules {
        rule.mode = Mode::Enforce;
    }
    for segment in &mut resolved.segments {
        for isolation in [&mut segment.ingress, &mut segment.egress] {
            if *isolation == Isolation::Audit {
                *isolation = Isolation::Enforce;
            }
        }
    }
}

fn answer(
    loaded: &Loaded,
    resolved: &Resolved,
    image: &Image,
    now: Timestamp,
    test: &ResolvedTest,
) -> Answer {
    let v4 = is_v4(loaded, test);
    let flow = Flow {
        from: loaded.end(test.from, v4),
        to: loaded.end(test.to, v4),
        protocol: test.protocol,
        port: test.port,
    };
    match judge(resolved, image, now, &flow) {
        Some(judgement) => Answer {
            verdict: judgement.verdict(),
            ends: judgement.ends().map(|end| explained(resolved, end)).collect(),
        },
        // Each segment alone, and each pod's set, has classes in the image; were it otherwise,
        // nothing would pass.
        None => Answer { verdict: Verdict::Deny, ends: Vec::new() },
    }
}

/// The address family of a test's flow: its protocol's or an address's, else what its pods and workloads have.
fn is_v4(loaded: &Loaded, test: &ResolvedTest) -> bool {
    let of = |end: TestEnd| match end {
        TestEnd::Address(address) => Some(address.is_ipv4()),
        TestEnd::Segment(_) | TestEnd::Pod(_) | TestEnd::Workload(_) => None,
    };
    let has_v4 = |end: TestEnd| match end {
        TestEnd::Pod(number) => loaded.pods[number].addresses.iter().any(IpAddr::is_ipv4),
        TestEnd::Workload(number) => {
            let addresses = &loaded.workloads[number].facts.addresses;
            addresses.is_empty() || addresses.iter().any(IpAddr::is_ipv4)
        }
        TestEnd::Segment(_) | TestEnd::Address(_) => true,
    };
    match test.protocol {
        proto::ICMP => true,
        proto::ICMPV6 => false,
        _ => of(test.from).or(of(test.to)).unwrap_or(has_v4(test.from) && has_v4(test.to)),
    }
}

fn explained(resolved: &Resolved, end: &EndJudgement<'_>) -> End {
    let Decision { verdict, reason, rule, .. } = end.decision;
    let because = match (reason, rule.checked_sub(1)) {
        (Reason::Rule, Some(index)) => Because::Rule(index as usize),
        (Reason::Isolation, _) => {
            let id = |name: &str| {
                let at = resolved.segments.iter().position(|s| s.name == name)?;
                u32::try_from(at).ok().map(SegmentId)
            };
            Because::Isolation(end.isolating.iter().filter_map(|s| id(&s.name)).collect())
        }
        _ => Because::NoIsolation,
    };
    End { direction: end.direction, verdict, because }
}

/// Runs the tests of a load; what became of each, in their order.
///
/// `answer` evaluates one flow as if every policy enforced: a test is about what a policy says, and
/// audit mode changes only what is done about it. Where an end is a segment it is a workload in
/// that segment alone.
pub fn run_tests(
    loaded: &Loaded,
    mut answer: impl FnMut(&ResolvedTest) -> Answer,
) -> Vec<Outcome<'_>> {
    let outcome = |test| {
        let answer = answer(test);
        let expected = match test.expect {
            Expect::Allow => Verdict::Allow,
            Expect::Deny => Verdict::Deny,
        };
        let failed = answer.verdict != expected;
        Outcome { test, failure: failed.then(|| failure(loaded, test, &answer)) }
    };
    loaded.tests.iter().map(outcome).collect()
}

/// One error for each test that failed.
pub fn failures(loaded: &Loaded, outcomes: &[Outcome<'_>]) -> Diagnostics {
    let failed = outcomes.iter().filter_map(|outcome| outcome.failure.clone());
    Diagnostics::new(&loaded.sources, failed.collect())
}

fn failure(loaded: &Loaded, test: &ResolvedTest, answer: &Answer) -> Diagnostic {
    let got = verdict_name(answer.verdict);
    let mut message =
        format!("this test expects {}, but the policy says {got}", test.expect.name());
    let deciding = answer.ends.iter().filter(|end| end.verdict == answer.verdict);
    let reasons: Vec<_> = deciding.clone().map(|end| reason(loaded, end)).collect();
    if !reasons.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(message, ": {}", reasons.join("; "));
    }
    let by_default = deciding.clone().any(|end| !matches!(end.because, Because::Rule(_)));
    let help = match test.expect {
        Expect::Allow if by_default => "add an `allow` rule for this flow, or change the test",
        Expect::Allow => "narrow the rule that denies it, or change the test",
        Expect::Deny => "narrow what allows it, add a `deny` rule, or change the test",
    };
    Diagnostic::error(test.span, message).help(help)
}

fn reason(loaded: &Loaded, end: &End) -> String {
    let direction = end.direction.name();
    let verb = match end.verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "denied",
    };
    match &end.because {
        Because::Rule(index) => match loaded.resolved.rules.get(*index) {
            Some(rule) => {
                format!("{direction} is {verb} by rule `{}` ({})", rule.name, rule.position)
            }
            None => format!("{direction} is {verb} by a rule"),
        },
        Because::Isolation(segments) => {
            let named = segments.iter().filter_map(|id| {
                loaded.resolved.segments.get(id.0 as usize).map(|s| format!("`{}`", s.name))
            });
            let named: Vec<_> = named.collect();
            let of = if named.len() == 1 { "segment" } else { "segments" };
            format!(
                "{direction} is {verb} by the isolation of {of} {}, and no rule allows it",
                named.join(", ")
            )
        }
        Because::NoIsolation => format!("nothing isolates {direction}, and no rule denies it"),
    }
}

const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load;
    use crate::policy::source::Source;

    const TEXT: &str = "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: p }
spec:
  segments: { web: { match: [ { unit: a.service } ] }, db: { match: [ { unit: b.service } ] } }
  allow: [ { name: wide, from: any, to: db } ]
  tests:
    - { allow: web -> db tcp/5432 }
    - { deny: web -> db tcp/5433 }
";

    fn loaded() -> Loaded {
        load(&[Source { name: "p.yaml".into(), text: TEXT.into() }]).expect("loads")
    }

    fn end(direction: Direction, verdict: Verdict, because: Because) -> End {
        End { direction, verdict, because }
    }

    #[test]
    fn tests_that_hold_say_nothing() {
        let loaded = loaded();
        let outcomes = run_tests(&loaded, |test| {
            let verdict = if test.port == 5432 { Verdict::Allow } else { Verdict::Deny };
            Answer { verdict, ends: vec![] }
        });
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes.iter().all(|o| o.failure.is_none()), "{outcomes:?}");
    }

    #[test]
    fn a_failing_test_says_what_decided() {
        let loaded = loaded();
        let outcomes = run_tests(&loaded, |test| {
            let ingress = end(Direction::Ingress, Verdict::Allow, Because::Rule(0));
            if test.expect == Expect::Allow {
                let isolation = Because::Isolation(vec![SegmentId(0)]);
                let egress = end(Direction::Egress, Verdict::Deny, isolation);
                Answer { verdict: Verdict::Deny, ends: vec![egress, ingress] }
            } else {
                let egress = end(Direction::Egress, Verdict::Allow, Because::NoIsolation);
                Answer { verdict: Verdict::Allow, ends: vec![egress, ingress] }
            }
        });
        assert_eq!(
            failures(&loaded, &outcomes).to_string(),
            "p.yaml:8:16: error: this test expects allow, but the policy says deny: egress is denied by the isolation of segment `web`, and no rule allows it; add an `allow` rule for this flow, or change the test
p.yaml:9:15: error: this test expects deny, but the policy says allow: nothing isolates egress, and no rule denies it; ingress is allowed by rule `p/wide` (p.yaml:6:12); narrow what allows it, add a `deny` rule, or change the test"
        );
    }
}
