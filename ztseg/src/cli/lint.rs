//! `ztseg lint`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::output::{Format, print, print_json, print_jsonl};
use super::{Failure, output, settings};
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::policy::lint::lint;
use crate::policy::load;
use crate::policy::source::Position;

#[derive(Debug, Args)]
pub(super) struct Lint {
    /// Policy files, or folders of *.yaml files [default: what is configured]
    #[arg(value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// How to print what is found
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Configuration file, for `policies` [default: /etc/ztseg/config.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Lint {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let config = settings::config(self.config.as_deref())?;
        let sources = settings::named_or_configured(&self.files, &config)?;
        let loaded = load(&sources).map_err(|e| Failure::input(e.render(output::color())))?;
        let found = lint(&loaded, Timestamp::now());
        let warnings = || found.iter().map(|d| Warning::new(&found, d)).collect::<Vec<_>>();
        match self.output {
            Format::Table if found.is_empty() => {
                let resolved = &loaded.resolved;
                let (segments, rules) = (resolved.own_segments(), resolved.own_rules());
                print(&format!(
                    "ok: nothing to warn about in {rules} rules, {segments} segments\n"
                ))?;
            }
            Format::Table => {
                let text = found.render(output::color_of_output());
                print(&format!("{text}\n{}\n", found.summary()))?;
            }
            Format::Json => print_json(&warnings())?,
            Format::Jsonl => print_jsonl(&warnings())?,
        }
        if found.is_empty() { Ok(()) } else { Err(Failure::found("")) }
    }
}

/// One warning, for programs.
#[derive(Debug, Serialize)]
struct Warning<'a> {
    /// The name of the check that found it.
    id: Option<&'static str>,
    severity: &'static str,
    #[serde(flatten)]
    at: Place,
    message: &'a str,
    help: Option<&'a str>,
    related: Vec<Related<'a>>,
}

/// Another place that has to do with a warning.
#[derive(Debug, Serialize)]
struct Related<'a> {
    #[serde(flatten)]
    at: Place,
    label: &'a str,
}

#[derive(Debug, Serialize)]
struct Place {
    file: String,
    line: u32,
    column: u32,
}

impl From<Position> for Place {
    fn from(position: Position) -> Self {
        let Position { file, line, column } = position;
        Self { file: file.to_string(), line, column }
    }
}

impl<'a> Warning<'a> {
    fn new(all: &Diagnostics, d: &'a Diagnostic) -> Self {
        let related = |(span, label): &'a (_, String)| Related {
            at: all.place(*span).into(),
            label: label.as_str(),
        };
        Self {
            id: d.id,
            severity: d.severity.name(),
            at: all.position(d).into(),
            message: &d.message,
            help: d.help.as_deref(),
            related: d.related.iter().map(related).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::source::Source;

    const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  segments: { web: { match: [ { unit: a.service } ] }, db: { match: [ { unit: b.service } ] } }
  allow:
    - { name: wide, from: web, to: db }
    - { name: again, from: web, to: db }
";

    fn linted(policy: &str, output: Format) -> Result<(), Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.yaml");
        std::fs::write(&file, policy).expect("written");
        Lint { files: vec![file], output, config: None }.execute()
    }

    #[test]
    fn something_found_is_one_and_wrong_input_is_two() {
        for format in [Format::Table, Format::Json, Format::Jsonl] {
            assert_eq!(linted(POLICY, format).expect_err("found").status, 1);
            assert_eq!(linted("kind: No\n", format).expect_err("wrong").status, 2);
            linted(&POLICY.replace("    - { name: again, from: web, to: db }\n", ""), format)
                .expect("nothing is found");
        }
    }

    #[test]
    fn programs_get_the_name_of_the_check_and_every_place() {
        let source = Source { name: "p.yaml".into(), text: POLICY.into() };
        let found = lint(&load(&[source]).expect("loads"), Timestamp::UNIX_EPOCH);
        let all: Vec<_> = found.iter().map(|d| Warning::new(&found, d)).collect();
        let json = serde_json::to_value(&all).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!([{
                "id": "duplicate-rule",
                "severity": "warning",
                "file": "p.yaml",
                "line": 9,
                "column": 15,
                "message": "the rule `shop/again` says the same as `shop/wide`, which comes first",
                "help": "remove one of them",
                "related": [
                    { "file": "p.yaml", "line": 8, "column": 15, "label": "this rule says the same" }
                ],
            }])
        );
    }
}
