//! `cargo xtask soak`: a million decisions against the model, and real traffic under disturbances.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

/// Decisions of each differential test.
const DECISIONS: u32 = 1_000_000;
/// What they may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A tenth of everything
    #[arg(long)]
    quick: bool,
    /// Only this part: decisions, traffic
    #[arg(long, value_name = "NAME")]
    only: Option<Part>,
    /// For the traffic: `--applies N`, `--flows N`, `--rate N`, …; `--help` names them
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Decisions,
    Traffic,
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if let Err(obstacle) = test::this_kernel() {
        bail!("the long run loads BPF programs on this kernel, and cannot: {obstacle}");
    }
    setup::soak_tools(workspace)?;
    let mut succeeded = true;
    if options.only != Some(Part::Traffic) {
        succeeded &= decisions(workspace, options.quick)?;
    }
    if options.only != Some(Part::Decisions) {
        succeeded &= traffic(workspace, options)?;
    }
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn decisions(workspace: &Workspace, quick: bool) -> Result<bool> {
    let built = test::build(workspace)?;
    let decisions = if quick { DECISIONS / 10 } else { DECISIONS };
    let mut tests = Command::new(&built.tests);
    tests
        // One after the other, and with what they print.
        .args(["differential::", "--test-threads", "1", "--nocapture"])
        .current_dir(workspace.root())
        .env("ZTSEG_BIN", &built.agent)
        .env("ZTSEG_WORKSPACE", workspace.root())
        .env("ZTSEG_DECISIONS", decisions.to_string())
        .env("RUST_LIB_BACKTRACE", "0");
    let tally = test::tallied(&mut tests, LIMIT, "the differential tests")?;
    println!("{tally}");
    Ok(tally.failed() == 0)
}

fn traffic(workspace: &Workspace, options: &Options) -> Result<bool> {
    let object = build::kernel_object(workspace)?;
    let [soak, agent] = build::soak(workspace, &object)?;
    let status = Command::new(&soak)
        .args(options.quick.then_some("--quick"))
        .args(&options.args)
        .current_dir(workspace.root())
        .env("ZTSEG_BIN", &agent)
        .env("RUST_LIB_BACKTRACE", "0")
        .status()
        .with_context(|| format!("cannot start {}", soak.display()))?;
    Ok(status.success())
}
