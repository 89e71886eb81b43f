//! `ztseg status`

use clap::Args;

use super::output::{Format, print, print_json, print_jsonl};
use super::{Agent, Failure};
use crate::api::types;
use crate::present::status::text;

#[derive(Debug, Args)]
pub(super) struct Status {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: Agent,
}

impl Status {
    pub(super) async fn execute(self) -> Result<(), Failure> {
        let status: types::Status = self.agent.client().get("/v1/status").await?;
        match self.output {
            Format::Table => print(&text(&status)),
            Format::Json => print_json(&status),
            Format::Jsonl => print_jsonl(&[status]),
        }
    }
}
