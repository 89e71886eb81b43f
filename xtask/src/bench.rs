//! `cargo xtask bench`: what ztseg costs, beside nothing and empty programs.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Fewer rounds and shorter ones
    #[arg(long)]
    quick: bool,
    /// Only this part: traffic, in-place, test-run, denied, changes, scale; may be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many rounds
    #[arg(long)]
    rounds: Option<u16>,
    /// table or json
    #[arg(short, long)]
    output: Option<String>,
}

impl Options {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.quick {
            arguments.push("--quick".to_owned());
        }
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        for part in &self.only {
            add("--only", part.clone());
        }
        if let Some(rounds) = self.rounds {
            add("--rounds", rounds.to_string());
        }
        if let Some(output) = &self.output {
            add("--output", output.clone());
        }
        arguments
    }
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if let Err(obstacle) = test::this_kernel() {
        bail!("the benchmark loads BPF programs on this kernel, and cannot: {obstacle}");
    }
    setup::test_tools(workspace)?;
    let object = build::kernel_object(workspace)?;
    let bench = build::benchmark(workspace, &object)?;
    let arguments = options.arguments();
    let shown = ["cargo xtask bench".to_owned()].into_iter().chain(arguments.iter().cloned());
    let status = Command::new(&bench)
        .args(&arguments)
        .env("ZTSEG_BENCH_COMMAND", shown.collect::<Vec<_>>().join(" "))
        .status()
        .with_context(|| format!("cannot start {}", bench.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
