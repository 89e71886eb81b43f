//! Adding up what test runners report in their closing lines.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;

/// How many lines of a runner's failures are said again at the end.
const FAILURE_LINES: usize = 60;

/// Tests that passed, failed and were skipped, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    reasons: BTreeMap<String, u64>,
    /// What the runners said of their failed tests.
    failures: Vec<String>,
    part: Part,
}

/// Where in a runner's output we are. Both runners close with `failures:` and what each failed
/// test printed, then, libtest only, `failures:` again and the names alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Tests,
    Failures,
    Names,
}

impl Tally {
    /// Takes in one line of a runner's output: the closing line of libtest and libtest-mimic, and
    /// the lines of skipped tests for their reasons. Other lines count nothing.
    pub(crate) fn read(&mut self, line: &str) {
        if line == "failures:" {
            self.part = if self.part == Part::Tests { Part::Failures } else { Part::Names };
        } else if let Some(reason) = skip_reason(line) {
            *self.reasons.entry(reason.to_owned()).or_default() += 1;
        } else if let Some([passed, failed, ignored]) = closing_line(line) {
            self.passed += passed;
            self.failed += failed;
            self.skipped += ignored;
            self.part = Part::Tests;
        } else if self.part == Part::Failures
            && self.failures.len() < FAILURE_LINES
            && !line.trim().is_empty()
        {
            self.failures.push(line.to_owned());
        }
    }

    /// Counts `count` tests that could not be run at all.
    pub(crate) fn skip(&mut self, count: u64, reason: impl Into<String>) {
        self.skipped += count;
        *self.reasons.entry(reason.into()).or_default() += count;
    }

    /// Counts a runner that failed without saying so in a closing line.
    pub(crate) fn fail(&mut self, why: impl Into<String>) {
        self.failed += 1;
        self.failures.push(why.into());
    }

    /// How many failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    /// Adds another tally to this one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.failures.extend_from_slice(&other.failures);
    }

    /// Prints one line per reason for skipped tests, what the failed tests said, then the closing
    /// line, so that the end of a long log says what failed; and gives the exit status: failure when a
    /// test failed.
    pub(crate) fn close(&self) -> ExitCode {
        let mut explained = 0;
        for (reason, count) in &self.reasons {
            println!("skipped {count}: {reason}");
            explained += count;
        }
        if self.skipped > explained {
            println!("skipped {}: the runner gave no reason", self.skipped - explained);
        }
        for line in &self.failures {
            println!("failure: {line}");
        }
        println!("{self}");
        if self.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped, .. } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// `test NAME ... ignored, REASON` is libtest's form, `test NAME ... ignored (REASON)` that of
/// libtest-mimic; without a reason there is nothing to keep.
fn skip_reason(line: &str) -> Option<&str> {
    let (_, outcome) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    match outcome.strip_prefix(", ") {
        Some(reason) => Some(reason),
        None => outcome.trim_start().strip_prefix('(')?.strip_suffix(')'),
    }
}

/// Passed, failed and ignored of `test result: ok. 1 passed; 0 failed; 0 ignored; …`.
fn closing_line(line: &str) -> Option<[u64; 3]> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = counts.split("; ");
    let mut number =
        |word: &str| -> Option<u64> { counts.next()?.strip_suffix(word)?.trim_end().parse().ok() };
    Some([number("passed")?, number("failed")?, number("ignored")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(line);
        }
        tally
    }

    #[test]
    fn adds_up_the_closing_lines_of_several_runners() {
        let tally = tally(&[
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 5 filtered out; finished in 0.10s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.87s",
        ]);
        assert_eq!(tally.to_string(), "6 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn keeps_the_reasons_of_both_runners() {
        let tally = tally(&[
            "test slow ... ignored, takes an hour",
            "test cgroup_udp       ... ignored (no cgroup2 mount)",
            "test tc_udp           ... ignored (no cgroup2 mount)",
            "test bare ... ignored",
        ]);
        let reasons: Vec<_> = tally.reasons.iter().map(|(r, n)| (r.as_str(), *n)).collect();
        assert_eq!(reasons, [("no cgroup2 mount", 2), ("takes an hour", 1)]);
    }

    #[test]
    fn keeps_what_failed_tests_said_once() {
        let tally = tally(&[
            "test a ... FAILED",
            "",
            "failures:",
            "",
            "---- a ----",
            "it broke",
            "",
            "failures:",
            "    a",
            "",
            "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "a line of the next runner",
        ]);
        assert_eq!(tally.failures, ["---- a ----", "it broke"]);
    }

    #[test]
    fn lines_that_only_look_like_closing_lines_count_nothing() {
        let tally = tally(&[
            "test result: unknown",
            "the test result: ok. 1 passed; 0 failed; 0 ignored",
            "test result: ok. many passed; 0 failed; 0 ignored",
        ]);
        assert_eq!(tally, Tally::default());
    }
}
