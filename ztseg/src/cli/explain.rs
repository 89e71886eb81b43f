//! `ztseg explain`

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::output::{Format, print, print_json, print_jsonl};
use super::{Agent, Failure, output, settings};
use crate::config::Config;
use crate::explain::place::Places;
use crate::explain::{Answer, Asked, EndExplanation, Explanation, Question, explain};
use crate::image::Image;
use crate::inventory::Inventory;
use crate::policy::compile::for_questions;
use crate::policy::{Loaded, load};
use crate::present;

#[derive(Debug, Args)]
#[command(after_help = "\
An end is a segment (a workload that is in it alone), a cgroup's path below the cgroup root \
(/shop.slice/web.service), `host`, `interface:NAME`, a pod as NAMESPACE/NAME, a described workload \
as workload:NAME, or an address. Where a policy names addresses, the one that a workload uses is \
written behind it: web@192.0.2.7.

  ztseg explain web db tcp/5432                      by the agent, on its policy in force
  ztseg explain -f policies web 192.0.2.7 udp/53     offline, on files")]
pub(super) struct Explain {
    /// Who opens the flow
    #[arg(value_name = "SRC", required_unless_present = "batch")]
    from: Option<String>,
    /// Who is asked
    #[arg(value_name = "DST", required_unless_present = "batch")]
    to: Option<String>,
    /// Protocol and port, or ICMP type: tcp/443, icmp/echo-request
    #[arg(value_name = "PROTO/PORT", required_unless_present = "batch")]
    service: Option<String>,
    /// Answer offline, on these policy files and manifests or folders of them; without it, the
    /// running agent answers
    #[arg(short, long, value_name = "FILE|DIR")]
    file: Vec<PathBuf>,
    /// Answer offline, as it will be or was then, as RFC 3339 writes it [default: now]
    #[arg(long, value_name = "TIME", requires = "file")]
    at: Option<Timestamp>,
    /// Configuration file, for `failsafe` of offline answers [default: /etc/ztseg/config.yaml, if
    /// it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answer many: a JSON object a line, {"from":…,"to":…,"proto":…,"port":…}, from a file or `-`;
    /// one line of JSON each comes out
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["from", "output"])]
    batch: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: Agent,
}

impl Explain {
    pub(super) async fn execute(self) -> Result<(), Failure> {
        let offline = if self.file.is_empty() {
            None
        } else {
            Some(Offline::read(&self.file, self.config.as_deref(), self.at)?)
        };
        let source = Source { offline, agent: &self.agent };
        if let Some(file) = &self.batch {
            return batch(&source, file).await;
        }
        // Clap has seen to it that there are three.
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let question =
            Question { from: text(&self.from), to: text(&self.to), service: text(&self.service) };
        let explanation = source.ask(&question).await?;
        match self.output {
            Format::Table => print(&present::explain::text(&explanation)),
            Format::Json => print_json(&explanation),
            Format::Jsonl => print_jsonl(&[explanation]),
        }
    }
}

/// Who answers.
struct Source<'a> {
    offline: Option<Offline>,
    agent: &'a Agent,
}

impl Source<'_> {
    async fn ask(&self, question: &Question) -> Result<Explanation, Failure> {
        match &self.offline {
            Some(offline) => offline.ask(question).map_err(Failure::input),
            None => Ok(self.agent.client().post("/v1/explain", question).await?),
        }
    }
}

/// Policies from files.
struct Offline {
    loaded: Loaded,
    inventory: Inventory,
    now: Timestamp,
    /// With classes for all that was asked about: of ten thousand questions most are about the same
    /// few workloads, and a large policy takes seconds to compile.
    image: RefCell<Option<Image>>,
}

impl Offline {
    fn read(
        files: &[PathBuf],
        config: Option<&Path>,
        at: Option<Timestamp>,
    ) -> Result<Self, Failure> {
        let config: Config = settings::config(config)?;
        let sources = settings::policies(files, &[])?;
        let mut loaded = load(&sources).map_err(|e| Failure::input(e.render(output::color())))?;
        loaded.add_failsafe(&config.failsafe);
        let mut inventory = Inventory::new();
        inventory.set_policy(&loaded.resolved);
        let (now, image) = (at.unwrap_or_else(Timestamp::now), RefCell::new(None));
        Ok(Self { loaded, inventory, now, image })
    }

    fn ask(&self, question: &Question) -> Result<Explanation, String> {
        let Loaded { resolved, pods, workloads, .. } = &self.loaded;
        let places = Places { resolved, inventory: &self.inventory, pods, workloads };
        let asked = Asked::new(&places, question)?;
        let mut image = self.image.borrow_mut();
        let compiled = match image.take() {
            Some(known) if asked.sets().all(|set| known.classes.contains_key(set)) => known,
            known => {
                let known = known.iter().flat_map(|image| image.classes.keys());
                let sets = known.chain(asked.sets()).chain(self.loaded.sets());
                for_questions(resolved, sets).map_err(|e| e.to_string())?
            }
        };
        let image = image.insert(compiled);
        explain(resolved, image, self.now, &asked)
            .ok_or_else(|| "the policy has no classes for these workloads".to_owned())
    }
}

/// A line that is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    from: String,
    to: String,
    proto: String,
    port: Option<u16>,
}

/// A line that answers.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Reply {
    Answer {
        verdict: Answer,
        audit: bool,
        ingress: Option<Answer>,
        egress: Option<Answer>,
        rule: Option<String>,
        reason: String,
    },
    Error {
        error: String,
    },
}

impl From<Explanation> for Reply {
    fn from(explanation: Explanation) -> Self {
        let Explanation { verdict, audit, egress, ingress, .. } = explanation;
        let answer = |end: &Option<EndExplanation>| end.as_ref().map(|end| end.verdict);
        let (of_ingress, of_egress) = (answer(&ingress), answer(&egress));
        // The end that denies, or would; else the one that is asked.
        let ends: Vec<EndExplanation> = egress.into_iter().chain(ingress).collect();
        let denies = |end: &&EndExplanation| end.verdict == Answer::Deny || end.audit;
        let decider = ends.iter().find(denies).or(ends.last());
        Self::Answer {
            verdict,
            audit,
            ingress: of_ingress,
            egress: of_egress,
            rule: decider.and_then(|end| end.rule.clone()),
            reason: decider.map(|end| end.reason.clone()).unwrap_or_default(),
        }
    }
}

async fn batch(source: &Source<'_>, file: &Path) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| Failure::input(format!("{}: {e}", file.display()));
    let reader: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(cannot)?)
    };
    let (mut wrong, mut number) = (0usize, 0usize);
    for line in BufReader::new(reader).lines() {
        let line = line.map_err(cannot)?;
        number += 1;
        if line.trim().is_empty() {
            continue;
        }
        let reply = match serde_json::from_str::<Line>(&line) {
            Err(e) => Reply::Error { error: format!("line {number} is not a question: {e}") },
            Ok(Line { from, to, proto, port }) => {
                let service = port.map_or_else(|| proto.clone(), |port| format!("{proto}/{port}"));
                match source.ask(&Question { from, to, service }).await {
                    Ok(explanation) => explanation.into(),
                    // Without an agent, none of the lines has an answer.
                    Err(failure) if failure.status == 3 => return Err(failure),
                    Err(failure) => {
                        Reply::Error { error: format!("line {number}: {}", failure.text) }
                    }
                }
            }
        };
        wrong += usize::from(matches!(reply, Reply::Error { .. }));
        print_jsonl(&[reply])?;
    }
    match wrong {
        0 => Ok(()),
        n => Err(Failure::input(format!("{n} of {number} lines have no answer; each says why"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
  allow:
    - { name: web-to-db, from: web, to: db, ports: [tcp/5432], expires: 2030-01-01T00:00:00Z }
";

    fn offline(at: &str) -> Offline {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.yaml");
        std::fs::write(&file, POLICY).expect("written");
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, "").expect("written");
        let at = at.parse().expect("a time");
        Offline::read(&[file], Some(&config), Some(at)).expect("read")
    }

    fn reply(offline: &Offline, from: &str, to: &str, service: &str) -> String {
        let question = Question { from: from.into(), to: to.into(), service: service.into() };
        let reply = Reply::from(offline.ask(&question).expect("an answer"));
        serde_json::to_string(&reply).expect("JSON")
    }

    #[test]
    fn a_line_says_what_each_end_says() {
        let offline = offline("2026-01-01T00:00:00Z");
        for (from, to, service, expected) in [
            (
                "web",
                "db",
                "tcp/5432",
                r#"{"verdict":"allow","audit":false,"ingress":"allow","egress":"allow","rule":"shop/web-to-db","reason":"rule"}"#,
            ),
            (
                "192.0.2.7",
                "db",
                "tcp/5432",
                r#"{"verdict":"deny","audit":false,"ingress":"deny","egress":null,"rule":null,"reason":"isolation"}"#,
            ),
            (
                "host",
                "192.0.2.7",
                "udp/53",
                r#"{"verdict":"allow","audit":false,"ingress":null,"egress":"allow","rule":null,"reason":"no-isolation"}"#,
            ),
        ] {
            assert_eq!(reply(&offline, from, to, service), expected);
        }
    }

    #[test]
    fn it_is_answered_as_it_is_at_a_moment() {
        let later = offline("2030-01-01T00:00:00Z");
        assert!(reply(&later, "web", "db", "tcp/5432").contains(r#""verdict":"deny""#));
    }
}
