//! `cargo xtask run`: the agent, built and started.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::apt;
use crate::build;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What the agent gets: `cargo xtask run -- run --policies policies/demo.yaml`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let object = build::kernel_object(workspace)?;
    let agent = build::agent(workspace, &object, true)?;
    if options.args.first().is_some_and(|verb| verb == "run") && !apt::is_root()? {
        eprintln!(
            "note: `ztseg run` loads BPF programs, which needs root. The agent is built; start it with\n  \
             sudo {} {}",
            agent.display(),
            options.args.join(" ")
        );
    }
    let error = Command::new(&agent).args(&options.args).exec();
    Err(error).with_context(|| format!("cannot start {}", agent.display()))
}
