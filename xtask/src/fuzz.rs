//! `cargo xtask fuzz`: libFuzzer on the code that reads what others wrote.
//!
//! What it learns is kept below the target folder; the corpus in the repository is only read. An
//! input that breaks something is written to `target/fuzz/artifacts` and belongs into that corpus,
//! under a name that says what it is, together with the fix.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// The release of cargo-fuzz that the crate in `tests/fuzz` is for.
const CARGO_FUZZ: &str = "0.13.1";
const COMPILE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// An input that takes longer is a finding, too.
const SECONDS_FOR_ONE_INPUT: u32 = 10;
/// Nothing that is read needs as much.
const MEMORY_MIB: u32 = 1024;

/// A fuzz target: its name, the longest input that makes sense, and folders with more inputs.
struct Target {
    name: &'static str,
    longest: u32,
    more: &'static [&'static str],
}

const TARGETS: [Target; 3] = [
    Target { name: "packet", longest: 512, more: &[] },
    Target { name: "policy", longest: 4096, more: &["policies", "ztseg/tests/bad-policies"] },
    Target { name: "event", longest: 112, more: &[] },
];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// packet, policy or event [default: each in turn]
    target: Option<String>,
    /// How long to look for inputs, for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let chosen: Vec<_> = TARGETS
        .iter()
        .filter(|target| options.target.as_deref().is_none_or(|name| name == target.name))
        .collect();
    if chosen.is_empty() {
        let names = TARGETS.map(|target| target.name).join(", ");
        bail!("there is no such fuzz target; there are {names}");
    }
    cargo_fuzz(workspace)?;
    for target in chosen {
        println!("fuzz: {}, {} s", target.name, options.seconds);
        command::run(&mut fuzz(workspace, target, options.seconds)?).with_context(|| {
            format!(
                "{}: the input that did it is named above. Put it into tests/fuzz/corpus/{0} under \
                 a name that says what it is: `cargo test --test corpus` replays it",
                target.name
            )
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fuzz(workspace: &Workspace, target: &Target, seconds: u32) -> Result<Command> {
    let folder = workspace.target().join("fuzz");
    let learned = folder.join("corpus").join(target.name);
    let artifacts = folder.join("artifacts").join(target.name);
    for folder in [&learned, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut cargo = workspace.cargo();
    // Nothing here is unsafe but libFuzzer itself, so a sanitizer would find nothing; without one
    // a released compiler will do. (It is told to take unstable options: cargo-fuzz passes some.)
    cargo
        .args(["fuzz", "run", target.name, "--sanitizer", "none", "--fuzz-dir", "tests/fuzz"])
        .arg(&learned)
        .arg(format!("tests/fuzz/corpus/{}", target.name))
        .args(target.more)
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.longest))
        .arg(format!("-timeout={SECONDS_FOR_ONE_INPUT}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &folder)
        .env("PATH", workspace.path_with_tools());
    let words = workspace.root().join(format!("tests/fuzz/{}.dict", target.name));
    if words.exists() {
        cargo.arg(format!("-dict={}", words.display()));
    }
    Ok(cargo)
}

/// Builds cargo-fuzz into the project's own folder, unless it is there.
fn cargo_fuzz(workspace: &Workspace) -> Result<()> {
    let program = workspace.tools().join("bin/cargo-fuzz");
    let version = command::ask(Command::new(&program).arg("--version"));
    if version.is_some_and(|version| version.trim() == format!("cargo-fuzz {CARGO_FUZZ}")) {
        return Ok(());
    }
    println!("setup: build cargo-fuzz {CARGO_FUZZ} (about a minute)");
    let mut install = workspace.cargo();
    install
        .args(["install", "cargo-fuzz", "--locked", "--force", "--version", CARGO_FUZZ, "--root"])
        .arg(workspace.tools())
        .env("CARGO_TARGET_DIR", workspace.tools().join("build-fuzz"));
    command::run_logged(&mut install, &workspace.tools().join("cargo-fuzz.log"), COMPILE_LIMIT)?;
    // Nothing reads it again.
    let _ = fs::remove_dir_all(workspace.tools().join("build-fuzz"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn every_target_has_its_program_and_seeds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for target in &TARGETS {
            let program = format!("tests/fuzz/fuzz_targets/{}.rs", target.name);
            assert!(root.join(program).is_file(), "{}", target.name);
            let seeds = root.join("tests/fuzz/corpus").join(target.name);
            assert!(seeds.read_dir().is_ok_and(|mut files| files.next().is_some()));
            for more in target.more {
                assert!(root.join(more).is_dir(), "{more}");
            }
        }
    }
}
