//! `cargo xtask demo`: the agent at work, in a small world of its own.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::build;
use crate::command;
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Keep the world until Ctrl-C, to look around in it
    #[arg(long)]
    stay: bool,
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if let Err(obstacle) = test::this_kernel() {
        eprintln!("error: the demo cannot run here: {obstacle}\n{WHY}");
        return Ok(ExitCode::FAILURE);
    }
    setup::test_tools(workspace)?;
    let object = build::kernel_object(workspace)?;
    let (agent, demo) = build_both(workspace, &object)?;
    let mut demo = Command::new(&demo);
    demo.args(options.stay.then_some("--stay"))
        .current_dir(workspace.root())
        .env("ZTSEG_BIN", &agent)
        .env("RUST_LIB_BACKTRACE", "0");
    // In its place: nobody stands between the terminal's signals and the demo.
    let error = demo.exec();
    Err(error).with_context(|| format!("cannot start {}", command::shown(&demo)))
}

const WHY: &str = "\
It loads BPF programs, and makes cgroups and network namespaces of its own, all removed again: that \
needs root, and cgroup2. As a user who may become root:
  sudo -E env \"PATH=$PATH\" cargo xtask demo
Without root, `cargo xtask vm` runs the real-kernel tests in virtual machines.";

/// Gives the files of the agent and of the demo.
fn build_both(workspace: &Workspace, object: &Path) -> Result<(PathBuf, PathBuf)> {
    let mut cargo = build::cargo_with(workspace, object);
    // Both in one build and with the same settings: they share all that takes time.
    cargo.args(["build", "--release", "--package", "ztseg", "--bin", "ztseg"]);
    cargo.args(["--package", "ztseg-tests", "--bin", "ztseg-demo"]);
    command::run(&mut cargo).context("the agent and the demo did not build")?;
    let folder = workspace.target().join("release");
    Ok((folder.join("ztseg"), folder.join("ztseg-demo")))
}
