//! `ztseg workloads`

use clap::{Args, ValueEnum};

use super::output::{print, print_json, print_jsonl};
use super::{Agent, Failure};
use crate::api::types::WorkloadInfo;
use crate::present::table::{list, table};
use crate::present::workloads::documents;

/// How workloads are printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Columns for people
    Table,
    /// One JSON value
    Json,
    /// One JSON value a line
    Jsonl,
    /// `kind: Workload` documents, which the offline verbs read with a policy
    Yaml,
}

#[derive(Debug, Args)]
pub(super) struct Workloads {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: Agent,
}

impl Workloads {
    pub(super) async fn execute(self) -> Result<(), Failure> {
        let all: Vec<WorkloadInfo> = self.agent.client().get("/v1/workloads").await?;
        match self.output {
            Format::Table => {
                let row = |w: &WorkloadInfo| {
                    [w.name.clone(), list(&w.segments), w.kind.clone(), w.id.to_string()]
                };
                let rows: Vec<_> = all.iter().map(row).collect();
                print(&table(["workload", "segments", "kind", "id"], &rows))
            }
            Format::Json => print_json(&all),
            Format::Jsonl => print_jsonl(&all),
            Format::Yaml => print(&documents(&all)),
        }
    }
}
