//! `cargo xtask ci`: every check, each with its time.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::build;
use crate::command;
use crate::kernels::Series;
use crate::tally::Tally;
use crate::test::{self, Built};
use crate::vm;
use crate::workspace::Workspace;

/// What a stage came to, if it did not fail.
enum Outcome {
    Passed,
    Skipped(String),
    Tests(Tally),
}

/// The stages so far.
#[derive(Default)]
struct Stages {
    lines: Vec<String>,
    tally: Tally,
    failed: Vec<&'static str>,
}

impl Stages {
    /// Runs a stage; a failure is noted and the stages that can still say something go on.
    fn run(&mut self, name: &'static str, stage: impl FnOnce() -> Result<Outcome>) {
        println!("\n==> {name}");
        let (start, busy) = (Instant::now(), processor_time());
        let outcome = match stage() {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
            Ok(Outcome::Tests(tally)) => {
                self.tally.add(&tally);
                if tally.failed() > 0 {
                    self.failed.push(name);
                }
                tally.to_string()
            }
            Err(error) => {
                self.failed.push(name);
                eprintln!("error: {error:#}");
                "FAILED".to_owned()
            }
        };
        let busy = processor_time().saturating_sub(busy);
        let (time, busy) = (seconds(start.elapsed()), seconds(busy));
        let line = format!("{name}: {outcome} ({time}; {busy} of processor)");
        println!("<== {line}");
        self.lines.push(line);
    }

    /// The summary; the tests' closing line is the last.
    fn close(&self, total: Duration) -> ExitCode {
        println!("\n==> summary ({})", seconds(total));
        for line in &self.lines {
            println!("{line}");
        }
        if !self.failed.is_empty() {
            println!("failed: {}", self.failed.join(", "));
        }
        let tests = self.tally.close();
        if self.failed.is_empty() { tests } else { ExitCode::FAILURE }
    }
}

pub(crate) fn verb(workspace: &Workspace) -> ExitCode {
    let start = Instant::now();
    let mut stages = Stages::default();

    stages.run("formatting", || {
        command::run(workspace.cargo().args(["fmt", "--all", "--check"]))?;
        Ok(Outcome::Passed)
    });
    stages.run("dependencies", || dependencies(workspace));

    let mut built = None;
    stages.run("set-up and build", || {
        built = Some(test::build(workspace)?);
        Ok(Outcome::Passed)
    });

    stages.run("lints", || {
        let mut clippy = match &built {
            Some(built) => build::cargo_with(workspace, &built.object),
            None => workspace.cargo(),
        };
        clippy.args(["clippy", "--all-targets", "--", "-D", "warnings"]);
        command::run(&mut clippy)?;
        Ok(Outcome::Passed)
    });
    stages.run("lints of the kernel programs", || {
        Ok(build::kernel_clippy(workspace)?.map_or_else(
            || Outcome::Skipped("the toolchain of the kernel programs has no clippy".to_owned()),
            |()| Outcome::Passed,
        ))
    });
    stages.run("unit and property tests", || {
        test::unit(workspace, built.as_ref().map(|built| built.object.as_path()))
            .map(Outcome::Tests)
    });
    stages.run("real-kernel tests, this kernel", || {
        let built = needed(built.as_ref())?;
        match test::this_kernel() {
            Ok(()) => test::kernel_here(workspace, built, &[]).map(Outcome::Tests),
            Err(obstacle) => Ok(Outcome::Skipped(obstacle)),
        }
    });
    stages.run("real-kernel tests, Linux 6.1 and 6.12", || {
        machines(workspace, needed(built.as_ref())?).map(Outcome::Tests)
    });
    stages.close(start.elapsed())
}

/// The virtual machines. Each start of an agent takes an emulated one many seconds, and CI has half an
/// hour: what starts the most is left out, and counted.
fn machines(workspace: &Workspace, built: &Built) -> Result<Tally> {
    const LEFT_OUT: [&str; 21] = [
        "adoption::",
        "agents::",
        "applications::",
        "around::",
        "behind::",
        "boot::",
        "commit::",
        "expiry::",
        "failsafe::",
        "flows::",
        "life::",
        "living::",
        "malformed::",
        "older::",
        "pressure::",
        "reject::",
        "rules::",
        "sockets::",
        "takeover::",
        "translation::",
        "upgrade::",
    ];
    let arguments = LEFT_OUT.map(|group| ["--skip".to_owned(), group.to_owned()]).concat();
    let mut tally = vm::tests(workspace, built, &Series::ALL, vm::MINUTES, &arguments)?;
    let mut left_out = 0;
    for group in LEFT_OUT {
        left_out += test::count(built, &[group.to_owned()])?;
    }
    tally.skip(
        left_out * Series::ALL.len() as u64,
        format!(
            "in virtual machines, for their time (`cargo xtask vm` runs them): {}",
            LEFT_OUT.map(|group| group.trim_end_matches(':')).join(", ")
        ),
    );
    Ok(tally)
}

fn needed(built: Option<&Built>) -> Result<&Built> {
    built.ok_or_else(|| anyhow!("not run, because the build failed"))
}

/// Licences, sources and duplicates of the dependencies, and known flaws where the database of
/// advisories can be reached.
fn dependencies(workspace: &Workspace) -> Result<Outcome> {
    if command::ask(workspace.cargo().args(["deny", "--version"])).is_none() {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed (`cargo install --locked cargo-deny`)".to_owned(),
        ));
    }
    command::run(workspace.cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    if command::ask(workspace.cargo().args(["deny", "fetch", "db"])).is_none() {
        println!("known flaws were not looked up: the database of advisories cannot be reached");
        return Ok(Outcome::Passed);
    }
    if command::run(workspace.cargo().args(["deny", "check", "advisories"])).is_err() {
        bail!("a dependency has a known flaw; see above");
    }
    Ok(Outcome::Passed)
}

/// What all ended children have taken of the processors: `cutime` and `cstime` of
/// `proc_pid_stat(5)`.
/// Zero where it cannot be read; it only tells why a stage takes long.
fn processor_time() -> Duration {
    // `USER_HZ` is 100 on every architecture that Rust's tier 1 and 2 have.
    const TICKS_A_SECOND: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in brackets may have spaces; the state after it is field 3.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(13).take(2);
    let ticks: u64 = fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
