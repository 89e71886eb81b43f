//! `ztseg test`

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;

use super::output::{Format, print, print_json, print_jsonl};
use super::{Failure, output, settings};
use crate::check::{Outcome, outcomes};
use crate::policy::{Loaded, load};
use crate::present::{junit, tested};

#[derive(Debug, Args)]
pub(super) struct Test {
    /// Policy files with `tests:`, and those that the tests are about, or folders of *.yaml files
    /// [default: what is configured]
    #[arg(value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Write a report as JUnit XML into this file, too, whether tests fail or not
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// How to print the outcomes
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Configuration file, for `policies` [default: /etc/ztseg/config.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Test {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let config = settings::config(self.config.as_deref())?;
        let sources = settings::named_or_configured(&self.files, &config)?;
        let loaded = load(&sources)
            .map_err(|e| self.not_loaded(&e.to_string(), e.render(output::color())))?;
        let outcomes = outcomes(&loaded, Timestamp::now())
            .map_err(|e| self.not_loaded(&e.to_string(), e.to_string()))?;
        if let Some(file) = &self.junit {
            let report = junit::report(&loaded, &outcomes);
            write(file, report.map_err(|e| e.to_string()))?;
        }
        let printed = self.print(&loaded, &outcomes);
        if outcomes.iter().any(|outcome| outcome.failure.is_some()) {
            // Also where whoever reads the report went away: tests that fail are never success.
            return Err(Failure::found(printed.err().map(|e| e.text).unwrap_or_default()));
        }
        printed
    }

    fn print(&self, loaded: &Loaded, outcomes: &[Outcome<'_>]) -> Result<(), Failure> {
        if outcomes.is_empty() && self.output != Format::Table {
            eprintln!("warning: {}", tested::summary(loaded, outcomes));
        }
        match self.output {
            Format::Table => print(&tested::report(loaded, outcomes, output::color_of_output())),
            Format::Json => print_json(&tested::results(outcomes)),
            Format::Jsonl => print_jsonl(&tested::results(outcomes)),
        }
    }

    /// The failure for policies that do not load; the report says so, too.
    fn not_loaded(&self, why: &str, mut text: String) -> Failure {
        if let Some(file) = &self.junit {
            let report = junit::not_loaded(why).map_err(|e| e.to_string());
            if let Err(failure) = write(file, report) {
                text = format!("{}\n\nerror: {}", text.trim_end(), failure.text);
            }
        }
        Failure::input(text)
    }
}

fn write(file: &Path, report: Result<String, String>) -> Result<(), Failure> {
    let written = report.and_then(|text| std::fs::write(file, text).map_err(|e| e.to_string()));
    written.map_err(|why| {
        let file = file.display();
        Failure::input(format!(
            "the JUnit report cannot be written to {file}: {why}; name a file in a folder that is there and can be written to"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HEAD: &str = "apiVersion: ztseg.io/v1\nkind: SegmentPolicy\n";
    const POLICY: &str = "metadata: { name: shop }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
  allow:
    - { name: web-to-db, from: web, to: db, ports: [tcp/5432] }
";
    const TESTS: &str = "metadata: { name: shop-tests }
spec:
  tests:
    - { allow: web -> db tcp/5432 }
    - { deny: web -> db tcp/22 }
";

    /// Runs the verb on files of these texts; gives the JUnit report as well.
    fn tested(texts: &[&str]) -> (Result<(), Failure>, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).expect("written");
            file
        };
        let config = Some(file("config.yaml", ""));
        let files = (0..).zip(texts);
        let files =
            files.map(|(n, text): (u32, _)| file(&format!("{n}.yaml"), &format!("{HEAD}{text}")));
        let files = files.collect();
        let junit = folder.path().join("junit.xml");
        let verb = Test { files, junit: Some(junit.clone()), output: Format::Table, config };
        let result = verb.execute();
        (result, fs::read_to_string(junit).expect("was written"))
    }

    #[test]
    fn a_file_of_tests_alone_tests_the_segments_of_another() {
        for texts in [[POLICY, TESTS], [TESTS, POLICY]] {
            let (result, junit) = tested(&texts);
            result.expect("ok");
            assert!(junit.contains(r#"tests="2" skipped="0" failures="0""#), "{junit}");
        }
        let (alone, junit) = tested(&[TESTS]);
        let alone = alone.expect_err("nobody knows web");
        assert!(alone.status == 2 && alone.text.contains("`web`"), "{}", alone.text);
        assert!(junit.contains(r#"errors="1""#) && junit.contains("0.yaml:6:16"), "{junit}");
    }

    #[test]
    fn a_test_that_fails_is_something_found_and_reported() {
        let (result, junit) = tested(&[POLICY, &TESTS.replace("deny: web", "allow: web")]);
        let failure = result.expect_err("fails");
        assert_eq!((failure.status, failure.text.as_str()), (1, ""));
        assert!(junit.contains("1.yaml:7:16") && junit.contains("isolation of segment"), "{junit}");
    }

    #[test]
    fn a_policy_without_tests_passes() {
        let (result, junit) = tested(&[POLICY]);
        result.expect("ok");
        assert!(junit.contains(r#"tests="0""#), "{junit}");
    }

    #[test]
    fn a_report_that_cannot_be_written_is_wrong_input() {
        let file = Path::new("/nonexistent/junit.xml");
        let failure = write(file, Ok(String::new())).expect_err("no such folder");
        assert_eq!(failure.status, 2);
        assert!(failure.text.contains("/nonexistent/junit.xml"), "{}", failure.text);
    }
}
