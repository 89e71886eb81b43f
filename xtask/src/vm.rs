//! `cargo xtask vm`: the real-kernel tests on Debian's kernels, in QEMU.
//!
//! The first serial line carries the kernel's messages and goes to a file; the second carries the
//! tests' output, so that a kernel message cannot break one of its lines.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::command::{self, Ended};
use crate::initramfs;
use crate::kernels::{self, Kernel, Series};
use crate::setup;
use crate::tally::Tally;
use crate::test::{self, Built};
use crate::workspace::Workspace;

/// What the tests may take, in minutes, under plain emulation on a busy machine.
pub(crate) const MINUTES: u64 = 20;
/// What booting and turning off may take on top.
const BOOT_LIMIT: Duration = Duration::from_secs(2 * 60);
/// A guest that KVM can run prints its first line in about a second.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

const MARKER: &str = "ztseg-vm: exit ";
const PROBE_MARKER: &str = "ztseg-vm: booted";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which kernel
    #[arg(long, default_value = "all")]
    kernel: Choice,
    /// How long all the tests together may take
    #[arg(long, default_value_t = MINUTES)]
    minutes: u64,
    /// For the real-kernel tests: name filters, `--skip NAME`, `--test-threads N`, …
    #[arg(last = true)]
    args: Vec<String>,
}

/// One series or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Choice {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    All,
}

impl Choice {
    fn series(self) -> &'static [Series] {
        match self {
            Self::V6_1 => &[Series::V6_1],
            Self::V6_12 => &[Series::V6_12],
            Self::All => &Series::ALL,
        }
    }
}

pub(crate) fn verb(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let built = test::build(workspace)?;
    let Options { kernel, minutes, args } = options;
    Ok(tests(workspace, &built, kernel.series(), *minutes, args)?.close())
}

/// Boots the kernels side by side, since an emulated machine keeps only one processor busy, runs
/// the tests in each, and gives the tally. An error when a machine could not be started; one that
/// dies or hangs is a failed test.
pub(crate) fn tests(
    workspace: &Workspace,
    built: &Built,
    kernels: &[Series],
    minutes: u64,
    args: &[String],
) -> Result<Tally> {
    let limit = Duration::from_secs(60 * minutes);
    setup::vm_tools(workspace)?;
    // One after the other: they share a folder for what is unfinished.
    let kernels = kernels
        .iter()
        .map(|series| Ok((*series, kernels::ready(workspace, *series)?)))
        .collect::<Result<Vec<_>>>()?;
    let tallies: Vec<Result<Tally>> = thread::scope(|scope| {
        let machines: Vec<_> = kernels
            .iter()
            .map(|(series, kernel)| {
                scope.spawn(move || machine(workspace, built, (*series, kernel), limit, args))
            })
            .collect();
        machines
            .into_iter()
            .map(|machine| {
                machine.join().map_err(|_| anyhow!("a bug: the machine's thread died"))?
            })
            .collect()
    });
    let mut total = Tally::default();
    for tally in tallies {
        total.add(&tally?);
    }
    Ok(total)
}

/// One machine: boots it, and gives the tally of the tests in it.
fn machine(
    workspace: &Workspace,
    built: &Built,
    (series, kernel): (Series, &Kernel),
    limit: Duration,
    args: &[String],
) -> Result<Tally> {
    let name = series.name();
    let folder = workspace.vm().join(name);
    let accelerator = Accelerator::probe(&folder, kernel)?;
    let initramfs = initramfs::with_tests(workspace, &folder, kernel, built, args, limit)?;
    let console = folder.join("console.log");
    println!("[{name}] boot Linux {} with {}", kernel.release, accelerator.describe());

    let start = Instant::now();
    let mut tally = Tally::default();
    let mut status = None;
    let mut qemu = accelerator.qemu(kernel, &initramfs, &console);
    let ended = command::stream(&mut qemu, limit + BOOT_LIMIT, &mut |line| {
        if let Some(code) = line.strip_prefix(MARKER) {
            status = code.trim().parse::<i32>().ok();
        } else {
            println!("[{name}] {line}");
            tally.read(line);
        }
    })?;
    if let Some(problem) = problem(&ended, status, limit, &tally) {
        eprintln!("[{name}] error: {problem}");
        tally.fail(format!("Linux {name}: {problem}"));
        eprintln!("[{name}] the end of {}:", console.display());
        for line in command::tail(&console, 40).lines() {
            eprintln!("[{name}] | {}", line.trim_end());
        }
    }
    for line in complaints(&command::tail(&console, usize::MAX)) {
        println!("[{name}] the kernel complained: {line}");
    }
    println!("[{name}] {tally} in {} s", start.elapsed().as_secs());
    Ok(tally)
}

/// What went wrong that no test's own result says.
fn problem(ended: &Ended, status: Option<i32>, limit: Duration, tally: &Tally) -> Option<String> {
    // `timeout -s KILL` reports the signal, 128 + 9 (signal(7)).
    const KILLED: i32 = 137;
    match (ended, status) {
        (_, Some(0)) => None,
        (_, Some(KILLED)) => {
            Some(format!("the tests had not ended after {} s and were killed", limit.as_secs()))
        }
        (_, Some(_)) if tally.failed() > 0 => None,
        (_, Some(code)) => Some(format!("the tests ended with status {code} and no result")),
        (Ended::TimedOut, None) => Some("the machine hung and was stopped".to_owned()),
        (Ended::Exited(status), None) => Some(format!(
            "the machine stopped before the tests had ended (QEMU: {status}); a kernel panic?"
        )),
    }
}

/// Lines of the console that tell of a bug in the kernel, or one that we made it run into.
fn complaints(console: &str) -> Vec<&str> {
    const SIGNS: [&str; 5] =
        ["BUG:", "WARNING:", "Kernel panic", "blocked for more than", "init: "];
    console
        .lines()
        .map(str::trim_end)
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .take(20)
        .collect()
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// KVM where a guest really starts with it: `/dev/kvm` can be there and refuse.
    fn probe(folder: &Path, kernel: &Kernel) -> Result<Self> {
        if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Emulation);
        }
        let folder = folder.join("probe");
        let initramfs = initramfs::with_marker(&folder, PROBE_MARKER)?;
        let mut booted = false;
        let mut qemu = Self::Kvm.qemu(kernel, &initramfs, &folder.join("console.log"));
        let log = folder.join("qemu.log");
        qemu.stderr(
            fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?,
        );
        command::stream(&mut qemu, PROBE_LIMIT, &mut |line| booted |= line == PROBE_MARKER)?;
        Ok(if booted { Self::Kvm } else { Self::Emulation })
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Emulation => "plain emulation (no KVM that starts a guest here)",
        }
    }

    /// A machine with two processors, 2 GiB and no network, whose second serial line is QEMU's
    /// standard output. It ends when the guest panics.
    fn qemu(self, kernel: &Kernel, initramfs: &Path, console: &Path) -> Command {
        let (machine, cpu) = match self {
            Self::Kvm => ("q35,accel=kvm", "host"),
            Self::Emulation => ("q35,accel=tcg", "max"),
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        // One processor under emulation: while the kernel patches its own code (a static key turns
        // with the first TC program), a second one can run into the breakpoint that is gone by then.
        let processors = if matches!(self, Self::Kvm) { "2" } else { "1" };
        qemu.args(["-machine", machine, "-cpu", cpu, "-smp", processors, "-m", "2G"])
            .args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio", "-kernel"])
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 loglevel=5 panic=-1"]);
        qemu
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn exited() -> Ended {
        Ended::Exited(std::process::ExitStatus::default())
    }

    #[test]
    fn a_machine_that_dies_or_hangs_is_a_problem() {
        let none = Tally::default();
        assert!(problem(&exited(), Some(0), LIMIT, &none).is_none());
        assert!(problem(&exited(), None, LIMIT, &none).is_some_and(|text| text.contains("panic")));
        assert!(
            problem(&Ended::TimedOut, None, LIMIT, &none).is_some_and(|text| text.contains("hung"))
        );
        assert!(
            problem(&exited(), Some(137), LIMIT, &none).is_some_and(|text| text.contains("killed"))
        );
        assert!(
            problem(&exited(), Some(101), LIMIT, &none).is_some_and(|text| text.contains("101"))
        );
    }

    #[test]
    fn a_status_that_a_failed_test_explains_is_none() {
        let mut failed = Tally::default();
        failed.fail("it broke");
        assert!(problem(&exited(), Some(101), LIMIT, &failed).is_none());
    }

    #[test]
    fn finds_what_the_kernel_complained_about() {
        let console =
            "[ 1.0] Linux version 6.1\r\n[ 2.0] WARNING: CPU: 0 PID: 1\r\n[ 3.0] fine\r\n";
        assert_eq!(complaints(console), ["[ 2.0] WARNING: CPU: 0 PID: 1"]);
    }
}
