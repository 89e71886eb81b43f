//! `ztseg apply`

use std::path::PathBuf;

use clap::Args;

use super::{Agent, Failure, output, settings};
use crate::api::types::{ApplyRequest, PolicyFile};

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// Policy files, or folders of *.yaml files: the whole policy. They are in force until the
    /// next reload or start of the agent [default: what the agent's configuration names]
    #[arg(value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    agent: Agent,
}

impl Apply {
    pub(super) async fn execute(self) -> Result<(), Failure> {
        let request = if self.files.is_empty() {
            None
        } else {
            let sources = settings::policies(&self.files, &[])?.into_iter();
            let file = |s: crate::policy::source::Source| PolicyFile {
                name: s.name.to_string(),
                text: s.text.to_string(),
            };
            Some(ApplyRequest { files: sources.map(file).collect() })
        };
        let applied = self.agent.client().apply(request.as_ref()).await?;
        for warning in &applied.warnings {
            eprintln!("warning: {warning}");
        }
        output::print(&format!(
            "generation {} is in force: {} files, {} segments, {} rules, {} workloads in segments\n",
            applied.generation, applied.files, applied.segments, applied.rules, applied.workloads
        ))
    }
}
