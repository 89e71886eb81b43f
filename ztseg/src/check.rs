//! `ztseg check` without its command line: load policies, then run their `tests:`.

use std::fmt::Write as _;

use ztseg_common::verdict::{Direction, Verdict};

use crate::policy::Loaded;
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::policy::resolved::SegmentId;
use crate::policy::testcase::{Expect, ResolvedTest};

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

/// Runs the tests of a load; one error for each that fails, at its place.
///
/// `answer` evaluates one flow as if every policy enforced: a test is about what a policy says, and
/// audit mode changes only what is done about it. Where an end is a segment it is a workload in
/// that segment alone.
pub fn run_tests(loaded: &Loaded, mut answer: impl FnMut(&ResolvedTest) -> Answer) -> Diagnostics {
    let failed = loaded.tests.iter().filter_map(|test| {
        let answer = answer(test);
        let expected = match test.expect {
            Expect::Allow => Verdict::Allow,
            Expect::Deny => Verdict::Deny,
        };
        (answer.verdict != expected).then(|| failure(loaded, test, &answer))
    });
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
    let direction = match end.direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
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
        let diagnostics = run_tests(&loaded(), |test| {
            let verdict = if test.port == 5432 { Verdict::Allow } else { Verdict::Deny };
            Answer { verdict, ends: vec![] }
        });
        assert!(diagnostics.is_empty(), "{diagnostics}");
    }

    #[test]
    fn a_failing_test_says_what_decided() {
        let diagnostics = run_tests(&loaded(), |test| {
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
            diagnostics.to_string(),
            "p.yaml:8:16: error: this test expects allow, but the policy says deny: egress is denied by the isolation of segment `web`, and no rule allows it; add an `allow` rule for this flow, or change the test
p.yaml:9:15: error: this test expects deny, but the policy says allow: nothing isolates egress, and no rule denies it; ingress is allowed by rule `p/wide` (p.yaml:6:12); narrow what allows it, add a `deny` rule, or change the test"
        );
    }
}
