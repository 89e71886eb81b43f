//! `ztseg diff`

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;

use super::output::{Format, print, print_json, print_jsonl};
use super::{Agent, Failure, output, settings};
use crate::api::types::{ApplyRequest, PolicyFile, WorkloadInfo};
use crate::diff::{diff, workloads};
use crate::policy::source::Source;
use crate::policy::{Loaded, load};
use crate::present;

#[derive(Debug, Args)]
#[command(override_usage = "ztseg diff [OPTIONS] [OLD] NEW")]
#[command(after_help = "\
With one side, that is compared with the policy that the running agent enforces, for this host's \
workloads. Exit status 1 where a flow changes, 0 where none does.

  ztseg diff policies.old policies.new
  ztseg diff policies                   what `ztseg apply policies` would change")]
pub(super) struct Diff {
    /// The old policy, a file or a folder; left out, it is the one in force and this the new one
    #[arg(value_name = "OLD")]
    first: PathBuf,
    /// The new policy
    #[arg(value_name = "NEW")]
    second: Option<PathBuf>,
    /// Manifests that both sides need, or folders of them
    #[arg(long, value_name = "FILE|DIR")]
    with: Vec<PathBuf>,
    /// Compare as it will be or was then, as RFC 3339 writes it [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Configuration file, for `failsafe` [default: /etc/ztseg/config.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: Agent,
}

impl Diff {
    pub(super) async fn execute(self) -> Result<(), Failure> {
        let config = settings::config(self.config.as_deref())?;
        let (old, names, new) = if let Some(new) = &self.second {
            (self.files(&self.first)?, Vec::new(), new)
        } else {
            let client = self.agent.client();
            let ApplyRequest { files } = client.get("/v1/policy").await?;
            let source = |file: PolicyFile| Source {
                name: format!("in force: {}", file.name).into(),
                text: file.text.into(),
            };
            let all: Vec<WorkloadInfo> = client.get("/v1/workloads").await?;
            let names = all.into_iter().map(|workload| workload.name).collect();
            (files.into_iter().map(source).collect(), names, &self.first)
        };
        let loaded = |sources: Vec<Source>| -> Result<Loaded, Failure> {
            let mut loaded =
                load(&sources).map_err(|e| Failure::input(e.render(output::color())))?;
            loaded.add_failsafe(&config.failsafe);
            Ok(loaded)
        };
        let (old, new) = (loaded(old)?, loaded(self.files(new)?)?);
        let names = names.iter().map(String::as_str);
        let mut workloads = workloads::of(&old.resolved, &new.resolved, names);
        workloads::add_described(&mut workloads, [&old, &new]);
        let now = self.at.unwrap_or_else(Timestamp::now);
        let found = diff(&old.resolved, &new.resolved, now, &workloads)
            .map_err(|e| Failure::input(e.to_string()))?;
        match self.output {
            Format::Table => print(&present::diff::text(&found))?,
            Format::Json => print_json(&found)?,
            Format::Jsonl => print_jsonl(&found.changes)?,
        }
        if found.changes.is_empty() { Ok(()) } else { Err(Failure::found("")) }
    }

    fn files(&self, side: &Path) -> Result<Vec<Source>, Failure> {
        let paths: Vec<_> = std::iter::once(side.to_owned()).chain(self.with.clone()).collect();
        settings::policies(&paths, &[])
    }
}
