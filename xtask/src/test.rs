//! `cargo xtask test`: all tests, added up.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::applications;
use crate::build;
use crate::command::{self, Ended};
use crate::kernels::Series;
use crate::setup;
use crate::tally::Tally;
use crate::vm;
use crate::workspace::Workspace;

/// The pure tests on a slow machine, compiling included.
const UNIT_LIMIT: Duration = Duration::from_secs(40 * 60);
/// The real-kernel tests on this kernel.
const KERNEL_LIMIT: Duration = Duration::from_secs(20 * 60);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// For the real-kernel tests: name filters, `--skip NAME`, `--test-threads N`, …
    #[arg(last = true)]
    args: Vec<String>,
}

/// What the real-kernel tests are run with.
#[derive(Debug)]
pub(crate) struct Built {
    /// The kernel object.
    pub(crate) object: PathBuf,
    /// The agent with the object inside.
    pub(crate) agent: PathBuf,
    /// The executable of the real-kernel tests.
    pub(crate) tests: PathBuf,
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let built = build(workspace)?;
    let mut tally = unit(workspace, Some(&built.object))?;
    tally.add(&kernel(workspace, &built, &options.args)?);
    Ok(tally.close())
}

/// Builds everything that the real-kernel tests need.
pub(crate) fn build(workspace: &Workspace) -> Result<Built> {
    let object = build::kernel_object(workspace)?;
    let agent = build::agent(workspace, &object, true)?;
    let tests = build::kernel_tests(workspace, &object)?;
    println!("built {} ({} KiB)", object.display(), build::kib(&object)?);
    println!("built {} ({} KiB)", agent.display(), build::kib(&agent)?);
    Ok(Built { object, agent, tests })
}

/// Unit, property and documentation tests: every package that builds on the host, but not the
/// real-kernel tests. They need no kernel object; with one, they share the build of what does.
pub(crate) fn unit(workspace: &Workspace, object: Option<&Path>) -> Result<Tally> {
    let cargo = || match object {
        Some(object) => build::cargo_with(workspace, object),
        None => workspace.cargo(),
    };
    let mut all = cargo();
    all.args(["test", "--no-fail-fast", "--workspace"]);
    all.args(["--exclude", "ztseg-tests", "--exclude", "ztseg-ebpf"]);
    let mut tally = tallied(&mut all, UNIT_LIMIT, "the unit and property tests")?;
    let mut library = cargo();
    library.args(["test", "--no-fail-fast", "--package", "ztseg-tests"]);
    library.args(["--lib", "--test", "conformance"]);
    tally.add(&tallied(&mut library, UNIT_LIMIT, "the tests of the test library and the cases")?);
    Ok(tally)
}

/// The real-kernel tests: on this kernel where that is possible, else in a virtual machine, else
/// counted as skipped.
fn kernel(workspace: &Workspace, built: &Built, args: &[String]) -> Result<Tally> {
    let Err(obstacle) = this_kernel() else {
        return kernel_here(workspace, built, args);
    };
    println!(
        "the real-kernel tests cannot run on this kernel ({obstacle}); they run in a virtual machine"
    );
    match vm::tests(workspace, built, &[Series::V6_12], vm::MINUTES, args) {
        Ok(tally) => Ok(tally),
        Err(error) => {
            eprintln!("no virtual machine: {error:#}");
            let mut tally = Tally::default();
            tally.skip(
                count(built, args)?,
                format!("no kernel to run on: here {obstacle}, and no virtual machine started"),
            );
            Ok(tally)
        }
    }
}

/// The real-kernel tests on this kernel.
pub(crate) fn kernel_here(workspace: &Workspace, built: &Built, args: &[String]) -> Result<Tally> {
    setup::test_tools(workspace)?;
    let mut tests = Command::new(&built.tests);
    if !args.iter().any(|arg| arg.starts_with("--test-threads")) {
        // They wait for packets, timers and agents three quarters of their time.
        let threads = 2 * thread::available_parallelism().map_or(1, NonZero::get);
        tests.args(["--test-threads", &threads.to_string()]);
    }
    tests
        .args(args)
        .current_dir(workspace.root())
        .env("ZTSEG_BIN", &built.agent)
        .env("ZTSEG_WORKSPACE", workspace.root())
        .env("ZTSEG_APPLICATIONS", applications::folder(workspace))
        // A test's error says what went wrong; the stack of its error value does not.
        .env("RUST_LIB_BACKTRACE", "0");
    tallied(&mut tests, KERNEL_LIMIT, "the real-kernel tests")
}

/// Why the real-kernel tests cannot run on this kernel, if they cannot.
pub(crate) fn this_kernel() -> Result<(), String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    may_use_bpf(&read("/proc/self/status")?, &read("/proc/self/uid_map")?)?;
    if !read("/proc/self/mounts")?.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        return Err("there is no cgroup2 mount".to_owned());
    }
    Ok(())
}

/// `status` and `uid_map` are those of proc(5). Root of a user namespace has all the capability
/// bits and may still not load a program.
fn may_use_bpf(status: &str, uid_map: &str) -> Result<(), String> {
    // Bits of include/uapi/linux/capability.h.
    const NEEDED: [(u32, &str); 4] =
        [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or("/proc/self/status has no CapEff")?;
    let lacks: Vec<_> = NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if !lacks.is_empty() {
        return Err(format!("no root: {} missing", lacks.join(", ")));
    }
    if uid_map.split_whitespace().ne(["0", "0", "4294967295"]) {
        return Err("root only of a user namespace".to_owned());
    }
    Ok(())
}

/// How many real-kernel tests `args` selects.
pub(crate) fn count(built: &Built, args: &[String]) -> Result<u64> {
    let list = command::capture(Command::new(&built.tests).arg("--list").args(args))?;
    let tests = list.lines().filter(|line| line.ends_with(": test")).count();
    u64::try_from(tests).context("more tests than fit in a number")
}

/// Runs a test runner with its output visible and adds up its closing lines. A runner that fails
/// without a failed test (it crashed, hung or did not compile) counts as one.
pub(crate) fn tallied(command: &mut Command, limit: Duration, what: &str) -> Result<Tally> {
    let mut tally = Tally::default();
    let ended = command::stream(command, limit, &mut |line| {
        println!("{line}");
        tally.read(line);
    })?;
    match ended {
        Ended::Exited(status) if status.success() => {}
        Ended::Exited(_) if tally.failed() > 0 => {}
        Ended::Exited(status) => {
            tally.fail(format!("{what} ended without a result ({status}); see their output"));
        }
        Ended::TimedOut => {
            tally
                .fail(format!("{what} had not ended after {} s and were stopped", limit.as_secs()));
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "         0          0 4294967295\n";

    #[test]
    fn root_with_all_capabilities_may() {
        assert_eq!(may_use_bpf("CapEff:\t000001fffeffffff\n", WHOLE), Ok(()));
    }

    #[test]
    fn a_user_may_not_and_is_told_what_is_missing() {
        let obstacle = may_use_bpf("CapEff:\t0000000000000000\n", WHOLE).unwrap_err();
        assert!(obstacle.contains("CAP_BPF") && obstacle.contains("CAP_NET_ADMIN"), "{obstacle}");
    }

    #[test]
    fn root_of_a_user_namespace_may_not() {
        let obstacle = may_use_bpf("CapEff:\t000001ffffffffff\n", "0 1000 1\n").unwrap_err();
        assert!(obstacle.contains("user namespace"), "{obstacle}");
    }

    #[test]
    fn a_runner_that_crashes_counts_as_a_failure() -> Result<()> {
        let mut crash = Command::new("sh");
        crash.args([
            "-c",
            "echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured'; exit 101",
        ]);
        let tally = tallied(&mut crash, Duration::from_secs(10), "the tests")?;
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 0 skipped");
        Ok(())
    }
}
