//! What became of the tests of policies: one entry for each, then what failed, then how many.

use serde::Serialize;

use super::count;
use super::table::table;
use crate::check::{Outcome, failures};
use crate::policy::Loaded;
use crate::policy::source::Source;

/// One test, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// `ok` or `failed`.
    pub result: &'static str,
    /// What must happen: `allow` or `deny`.
    pub expect: &'static str,
    /// The flow as it is written: `web -> db tcp/5432`.
    pub flow: String,
    /// The file that it stands in.
    pub file: String,
    /// Its line, from one.
    pub line: u32,
    /// Its column in characters, from one.
    pub column: u32,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to write instead, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// Every test, in the order of the files.
pub fn results(outcomes: &[Outcome<'_>]) -> Vec<TestResult> {
    let result = |outcome: &Outcome<'_>| {
        let test = outcome.test;
        TestResult {
            result: if outcome.failure.is_none() { "ok" } else { "failed" },
            expect: test.expect.name(),
            flow: test.text.clone(),
            file: test.position.file.to_string(),
            line: test.position.line,
            column: test.position.column,
            message: outcome.failure.as_ref().map(|d| d.message.clone()),
            help: outcome.failure.as_ref().and_then(|d| d.help.clone()),
        }
    };
    outcomes.iter().map(result).collect()
}

/// For people: a line for each test and for each file without one, what failed with the lines that
/// it is about, and how many there are.
pub fn report(loaded: &Loaded, outcomes: &[Outcome<'_>], color: bool) -> String {
    let mut rows: Vec<[String; 3]> = outcomes
        .iter()
        .map(|outcome| {
            let result = if outcome.failure.is_none() { "ok" } else { "FAILED" };
            [result.into(), name(outcome), outcome.test.position.to_string()]
        })
        .collect();
    let untested = without_tests(loaded);
    rows.extend(untested.map(|source| ["-".into(), "no tests".into(), source.name.to_string()]));
    let failed = failures(loaded, outcomes);
    let mut out = table(["result", "test", "place"], &rows);
    if !failed.is_empty() {
        out.push('\n');
        out.push_str(&failed.render(color));
    }
    out.push('\n');
    out.push_str(&summary(loaded, outcomes));
    out.push('\n');
    out
}

/// How many there are, in one line.
pub fn summary(loaded: &Loaded, outcomes: &[Outcome<'_>]) -> String {
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let all = count(outcomes.len(), "test");
    match failed {
        _ if outcomes.is_empty() => {
            format!("no tests in {}; nothing was tested", count(loaded.sources.len(), "file"))
        }
        0 => format!("ok: {all}, none failed"),
        _ => format!("FAILED: {all}, {} ok, {failed} failed", outcomes.len() - failed),
    }
}

/// A test as a report names it: `allow: web -> db tcp/5432`.
pub(super) fn name(outcome: &Outcome<'_>) -> String {
    format!("{}: {}", outcome.test.expect.name(), outcome.test.text)
}

/// The files that no test stands in.
fn without_tests(loaded: &Loaded) -> impl Iterator<Item = &Source> {
    let has_tests = |file: u32| loaded.tests.iter().any(|test| test.span.file == file);
    (0..).zip(&loaded.sources).filter(move |(file, _)| !has_tests(*file)).map(|(_, source)| source)
}

#[cfg(test)]
pub(super) mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::check::outcomes;
    use crate::policy::load;

    const POLICY: &str = "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
  allow:
    - { name: web-to-db, from: web, to: db, ports: [tcp/5432] }
";
    const TESTS: &str = "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop-tests }
spec:
  tests:
    - { allow: web -> db tcp/5432 }
    - { allow: web -> db tcp/22 }
";

    /// A policy without tests and a file of its tests, of which the second fails.
    pub(in crate::present) fn loaded() -> Loaded {
        let source = |name: &str, text: &str| Source { name: name.into(), text: text.into() };
        load(&[source("shop.yaml", POLICY), source("tests.yaml", TESTS)]).expect("loads")
    }

    #[test]
    fn every_test_has_a_line_and_every_failure_its_diagnostic() {
        let loaded = loaded();
        let outcomes = outcomes(&loaded, Timestamp::UNIX_EPOCH).expect("compiles");
        let expected = "\
RESULT  TEST                       PLACE
ok      allow: web -> db tcp/5432  tests.yaml:6:16
FAILED  allow: web -> db tcp/22    tests.yaml:7:16
-       no tests                   shop.yaml

error: this test expects allow, but the policy says deny: egress is denied by the isolation of segment `web`, and no rule allows it; ingress is denied by the isolation of segment `db`, and no rule allows it
 --> tests.yaml:7:16
  |
7 |     - { allow: web -> db tcp/22 }
  |                ^^^^^^^^^^^^^^^^
  |
  = help: add an `allow` rule for this flow, or change the test

FAILED: 2 tests, 1 ok, 1 failed
";
        assert_eq!(report(&loaded, &outcomes, false), expected);
        assert_eq!(
            report(&loaded, &outcomes[..1], false).lines().last(),
            Some("ok: 1 test, none failed")
        );
    }

    #[test]
    fn programs_get_place_and_reason_apart() {
        let loaded = loaded();
        let outcomes = outcomes(&loaded, Timestamp::UNIX_EPOCH).expect("compiles");
        let results = results(&outcomes);
        assert_eq!((results[0].result, &results[0].message), ("ok", &None));
        let failed = &results[1];
        assert_eq!((failed.result, failed.expect), ("failed", "allow"));
        assert_eq!((failed.file.as_str(), failed.line, failed.column), ("tests.yaml", 7, 16));
        assert!(failed.message.as_ref().is_some_and(|m| m.contains("isolation of segment `web`")));
        let ok = serde_json::to_string(&results[0]).expect("serializes");
        assert!(!ok.contains("message") && !ok.contains("help"), "{ok}");
    }

    #[test]
    fn no_tests_at_all_are_said_to_be_none() {
        let source = Source { name: "shop.yaml".into(), text: POLICY.into() };
        let loaded = load(&[source]).expect("loads");
        let expected = "\
RESULT  TEST      PLACE
-       no tests  shop.yaml

no tests in 1 file; nothing was tested
";
        assert_eq!(report(&loaded, &[], false), expected);
    }
}
