//! `ztseg check`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use ztseg_common::eval::Decision;
use ztseg_common::verdict::Reason;

use super::{Failure, output, settings};
use crate::check::{Answer, Because, End, run_tests};
use crate::config::Config;
use crate::image::Image;
use crate::judge::{self, EndJudgement, Flow, judge};
use crate::policy::compile::compile;
use crate::policy::resolved::{Isolation, Mode, Resolved, SegmentId};
use crate::policy::testcase::{ResolvedTest, TestEnd};
use crate::policy::{Loaded, load};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Policy files, or folders of *.yaml files [default: what is configured]
    #[arg(value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Configuration file, for `policies` and `capacity` [default: /etc/ztseg/config.yaml, if it
    /// is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Check {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let config = settings::config(self.config.as_deref())?;
        let sources = if self.files.is_empty() {
            settings::policies(&config.policies, &Config::default().policies)?
        } else {
            settings::policies(&self.files, &[])?
        };
        let loaded = load(&sources).map_err(|e| Failure::input(e.render(output::color())))?;
        let resolved = &loaded.resolved;
        compile(resolved, &[], &config.capacity).map_err(|e| Failure::input(e.to_string()))?;
        test(&loaded)?;
        output::print(&format!(
            "ok: {}, {}, {}, {}\n",
            count(sources.len(), "file"),
            count(resolved.segments.len(), "segment"),
            count(resolved.rules.len(), "rule"),
            count(loaded.tests.len(), "test"),
        ))
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Runs the policy's tests against the policy as if all of it enforced.
fn test(loaded: &Loaded) -> Result<(), Failure> {
    let mut enforced = loaded.resolved.clone();
    enforce_everything(&mut enforced);
    let ceiling = crate::datapath::Capacity {
        verdicts: u32::MAX,
        peers: u32::MAX,
        ..crate::datapath::Capacity::default()
    };
    let image = compile(&enforced, &[], &ceiling).map_err(|e| Failure::input(e.to_string()))?;
    let now = Timestamp::now();
    let failed = run_tests(loaded, |test| answer(&enforced, &image, now, test));
    if failed.is_empty() { Ok(()) } else { Err(Failure::found(failed.render(output::color()))) }
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

fn answer(resolved: &Resolved, image: &Image, now: Timestamp, test: &ResolvedTest) -> Answer {
    let end = |end: TestEnd| match end {
        TestEnd::Segment(id) => judge::End::workload([id]),
        TestEnd::Address(address) => judge::End::address(address),
    };
    let flow =
        Flow { from: end(test.from), to: end(test.to), protocol: test.protocol, port: test.port };
    match judge(resolved, image, now, &flow) {
        Some(judgement) => Answer {
            verdict: judgement.verdict(),
            ends: judgement.ends().map(|end| explained(resolved, end)).collect(),
        },
        // Each segment alone has classes in every image; were it otherwise, nothing would pass.
        None => Answer { verdict: ztseg_common::verdict::Verdict::Deny, ends: Vec::new() },
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

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(policy: &str) -> Result<(), Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.yaml");
        std::fs::write(&file, policy).expect("written");
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, "").expect("written");
        Check { files: vec![file], config: Some(config) }.execute()
    }

    const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  mode: audit
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
  allow:
    - { name: web-to-db, from: web, to: db, ports: [tcp/5432] }
  tests:
    - { allow: web -> db tcp/5432 }
    - { deny: web -> db tcp/22 }
    - { deny: 198.51.100.7 -> db tcp/5432 }
";

    #[test]
    fn a_policy_whose_tests_hold_is_fine_in_audit_mode_too() {
        checked(POLICY).expect("ok");
    }

    #[test]
    fn a_test_that_fails_is_something_found() {
        let failure = checked(&POLICY.replace("{ deny: web", "{ allow: web")).expect_err("fails");
        assert_eq!(failure.status, 1);
        assert!(failure.text.contains("web -> db tcp/22"), "{}", failure.text);
    }

    #[test]
    fn a_policy_that_is_wrong_is_wrong_input() {
        let failure = checked(&POLICY.replace("to: db", "to: bd")).expect_err("wrong");
        assert_eq!(failure.status, 2);
        assert!(failure.text.contains("bd"), "{}", failure.text);
    }
}
