//! `cargo xtask build`: the kernel object, and the agent with the object inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::setup;
use crate::workspace::Workspace;

/// What the build script of `ztseg` reads.
const OBJECT: &str = "ZTSEG_EBPF_OBJECT";

/// Where the kernel programs run.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Optimise the agent (the default)
    #[arg(long)]
    release: bool,
    /// Do not optimise the agent; the kernel programs always are
    #[arg(long, conflicts_with = "release")]
    debug: bool,
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let object = kernel_object(workspace)?;
    let agent = agent(workspace, &object, !options.debug)?;
    println!("{}", agent.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the kernel programs and gives the object file.
pub(crate) fn kernel_object(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = setup::kernel_toolchain(workspace)?;
    let mut cargo = for_kernel(workspace, toolchain.cargo(workspace));
    command::run(cargo.args(["build", "--release"]).args(kernel_package()))
        .context("the kernel programs did not build")?;
    let object = workspace.target().join("ebpf").join(BPF_TARGET).join("release/ztseg-ebpf");
    if !object.is_file() {
        bail!("the build of the kernel programs left no {}", object.display());
    }
    Ok(object)
}

/// Lints the kernel programs. `None` when their toolchain has no clippy.
pub(crate) fn kernel_clippy(workspace: &Workspace) -> Result<Option<()>> {
    let toolchain = setup::kernel_toolchain(workspace)?;
    let Some(clippy) = toolchain.clippy(workspace) else { return Ok(None) };
    let mut clippy = for_kernel(workspace, clippy);
    clippy.arg("--release").args(kernel_package()).args(["--", "-D", "warnings"]);
    command::run(&mut clippy).map(Some)
}

/// Builds the agent around `object`.
pub(crate) fn agent(workspace: &Workspace, object: &Path, release: bool) -> Result<PathBuf> {
    let mut cargo = cargo_with(workspace, object);
    cargo.args(["build", "--package", "ztseg", "--bin", "ztseg"]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo).context("the agent did not build")?;
    Ok(workspace.target().join(if release { "release" } else { "debug" }).join("ztseg"))
}

/// Builds the benchmark, optimised.
pub(crate) fn benchmark(workspace: &Workspace, object: &Path) -> Result<PathBuf> {
    let mut cargo = cargo_with(workspace, object);
    cargo.args(["build", "--package", "ztseg-tests", "--bin", "ztseg-bench", "--release"]);
    command::run(&mut cargo).context("the benchmark did not build")?;
    Ok(workspace.target().join("release/ztseg-bench"))
}

/// Builds the long run, optimised, and gives its file and the agent's.
pub(crate) fn soak(workspace: &Workspace, object: &Path) -> Result<[PathBuf; 2]> {
    let mut cargo = cargo_with(workspace, object);
    // Both in one build and with the same settings: they share all that takes time.
    cargo.args(["build", "--release", "--package", "ztseg", "--bin", "ztseg"]);
    cargo.args(["--package", "ztseg-tests", "--bin", "ztseg-soak"]);
    command::run(&mut cargo).context("the agent and the long run did not build")?;
    Ok(["ztseg-soak", "ztseg"].map(|name| workspace.target().join("release").join(name)))
}

/// Builds the real-kernel tests and gives their executable.
pub(crate) fn kernel_tests(workspace: &Workspace, object: &Path) -> Result<PathBuf> {
    let mut cargo = cargo_with(workspace, object);
    cargo.args(["test", "--package", "ztseg-tests", "--test", "kernel", "--no-run"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let messages = command::capture(&mut cargo).context("the real-kernel tests did not build")?;
    executable(&messages, "kernel")
        .context("cargo built the real-kernel tests but named no executable for them")
}

/// The host's cargo, told which object the agent embeds. Every build that xtask starts uses it, so
/// that they share their results.
pub(crate) fn cargo_with(workspace: &Workspace, object: &Path) -> Command {
    let mut cargo = workspace.cargo();
    cargo.env(OBJECT, object);
    cargo
}

/// Gives the kernel toolchain's cargo its flags in the environment, so that host builds know
/// nothing of them, and a target folder of its own, so that the two builds do not wait for each
/// other's lock.
fn for_kernel(workspace: &Workspace, mut cargo: Command) -> Command {
    // `--btf` makes bpf-linker emit BTF, which it derives from full debug information.
    // Without the last flag LLVM calls a memset of ours, byte by byte, for every array of zeros.
    const FLAGS: [&str; 4] = [
        "--cfg=bpf_target_arch=\"x86_64\"",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
    ];
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", workspace.target().join("ebpf"));
    cargo
}

fn kernel_package() -> [&'static str; 6] {
    ["--package", "ztseg-ebpf", "--target", BPF_TARGET, "-Z", "build-std=core"]
}

/// The executable of the test target `name` in cargo's JSON messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = message.get("target")?;
        let is_it = target.get("name")? == name
            && target.get("kind")?.as_array()?.iter().any(|kind| kind == "test");
        is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
    })
}

/// A file's size in KiB, for people.
pub(crate) fn kib(path: &Path) -> Result<u64> {
    let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    Ok(size / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_executable_of_a_test_target() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"kernel","kind":["lib"]},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"kernel","kind":["test"]},"executable":"/t/debug/deps/kernel-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "kernel"), Some("/t/debug/deps/kernel-1".into()));
        assert_eq!(executable(messages, "other"), None);
    }
}
