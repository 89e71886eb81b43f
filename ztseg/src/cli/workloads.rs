//! `ztseg workloads`

use clap::Args;

use super::output::{Format, print, print_json, print_jsonl};
use super::{Agent, Failure};
use crate::api::types::WorkloadInfo;
use crate::present::table::{list, table};

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
        }
    }
}
