//! `ztseg check`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::{Failure, output, settings};
use crate::check::check;
use crate::policy::compile::{CompileError, compile};
use crate::policy::load;
use crate::present::count;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Policy files, with the manifests of namespaces, pods and nodes that Kubernetes' policies are
    /// about, or folders of *.yaml files [default: what is configured]
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
        let sources = settings::named_or_configured(&self.files, &config)?;
        let loaded = load(&sources).map_err(|e| Failure::input(e.render(output::color())))?;
        let resolved = &loaded.resolved;
        let wrong = |error: CompileError| Failure::input(error.to_string());
        // Of the pods of a cluster each host has some; which, nobody knows here.
        compile(resolved, &[], &config.capacity).map_err(wrong)?;
        let failed = check(&loaded, Timestamp::now()).map_err(wrong)?;
        if !failed.is_empty() {
            return Err(Failure::found(failed.render(output::color())));
        }
        output::print(&format!(
            "ok: {}, {}, {}, {}\n",
            count(sources.len(), "file"),
            count(resolved.segments.len(), "segment"),
            count(resolved.own_rules(), "rule"),
            count(loaded.tests.len(), "test"),
        ))
    }
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
