//! The outcomes of tests as JUnit XML, which CI systems read.

use quick_junit::{NonSuccessKind, Report, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::tested::name;
use crate::check::Outcome;
use crate::policy::Loaded;
use crate::policy::diagnostic::Diagnostics;

/// The name of the whole report.
const NAME: &str = "ztseg test";

/// One suite for each file, also for those without tests; one case for each test.
///
/// # Errors
/// None that is known: the XML is written into memory.
pub fn report(loaded: &Loaded, outcomes: &[Outcome<'_>]) -> Result<String, SerializeError> {
    let mut report = Report::new(NAME);
    for (file, source) in (0u32..).zip(&loaded.sources) {
        let mut suite = TestSuite::new(source.name.as_ref());
        let here = outcomes.iter().filter(|outcome| outcome.test.span.file == file);
        suite.add_test_cases(here.map(|outcome| case(loaded, outcome)));
        report.add_test_suite(suite);
    }
    report.to_string()
}

/// A report for policies that do not load, so that none can be tested.
///
/// # Errors
/// As for [`report`].
pub fn not_loaded(why: &str) -> Result<String, SerializeError> {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_message("the policies do not load, so no test was run").set_description(why);
    let mut suite = TestSuite::new(NAME);
    suite.add_test_case(TestCase::new("the policies load", status));
    let mut report = Report::new(NAME);
    report.add_test_suite(suite);
    report.to_string()
}

fn case(loaded: &Loaded, outcome: &Outcome<'_>) -> TestCase {
    let status = match &outcome.failure {
        None => TestCaseStatus::success(),
        Some(failure) => {
            let whole = Diagnostics::new(&loaded.sources, vec![failure.clone()]).render(false);
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(failure.message.as_str()).set_description(whole);
            status
        }
    };
    let position = &outcome.test.position;
    let mut case = TestCase::new(name(outcome), status);
    case.set_classname(position.file.as_ref());
    // No part of the format, but what pytest began and others read.
    case.extra.insert("file".into(), position.file.as_ref().into());
    case.extra.insert("line".into(), position.line.to_string().into());
    case
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::tested::tests::loaded;
    use super::*;
    use crate::check::outcomes;

    #[test]
    fn a_report_has_a_suite_for_each_file_and_a_case_for_each_test() {
        let loaded = loaded();
        let outcomes = outcomes(&loaded, Timestamp::UNIX_EPOCH).expect("compiles");
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="ztseg test" tests="2" skipped="0" failures="1" errors="0">
    <testsuite name="shop.yaml" tests="0" skipped="0" errors="0" failures="0"/>
    <testsuite name="tests.yaml" tests="2" skipped="0" errors="0" failures="1">
        <testcase name="allow: web -&gt; db tcp/5432" classname="tests.yaml" file="tests.yaml" line="6"/>
        <testcase name="allow: web -&gt; db tcp/22" classname="tests.yaml" file="tests.yaml" line="7">
            <failure message="this test expects allow, but the policy says deny: egress is denied by the isolation of segment `web`, and no rule allows it; ingress is denied by the isolation of segment `db`, and no rule allows it">error: this test expects allow, but the policy says deny: egress is denied by the isolation of segment `web`, and no rule allows it; ingress is denied by the isolation of segment `db`, and no rule allows it
 --&gt; tests.yaml:7:16
  |
7 |     - { allow: web -&gt; db tcp/22 }
  |                ^^^^^^^^^^^^^^^^
  |
  = help: add an `allow` rule for this flow, or change the test
</failure>
        </testcase>
    </testsuite>
</testsuites>
"#;
        assert_eq!(report(&loaded, &outcomes).expect("serializes"), expected);
    }

    #[test]
    fn policies_that_do_not_load_are_an_error_in_the_report() {
        let text = not_loaded("a.yaml:1:1: error: `a` & <b>").expect("serializes");
        let read = Report::deserialize_from_str(&text).expect("is XML");
        assert_eq!((read.tests, read.errors, read.failures), (1, 1, 0));
        assert!(text.contains("`a` &amp; &lt;b&gt;"), "{text}");
    }
}
