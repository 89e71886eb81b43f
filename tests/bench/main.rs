//! What ztseg costs: run by `cargo xtask bench`.
//!
//! All configurations are measured in turn in every round, on the same sockets' paths and the same
//! CPU; figures are medians over rounds, ratios and differences medians over what each round gave.

mod control;
mod figures;
mod generator;
mod policy;
mod programs;
mod scale;
mod setups;
mod stage;
mod testrun;
mod traffic;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::figures::Figure;
use crate::stage::Stage;

#[derive(Debug, Parser)]
#[command(name = "ztseg-bench", about = "What ztseg costs, beside nothing and empty programs")]
struct Cli {
    /// Fewer rounds and shorter ones: at most 90 s
    #[arg(long)]
    quick: bool,
    /// Only this part; may be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<Part>,
    /// Rounds; 9 by default, 3 with --quick
    #[arg(long)]
    rounds: Option<u16>,
    /// How to print
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "camelCase")]
enum Part {
    /// Throughput, latency, rates
    Traffic,
    /// Run-time statistics under that traffic
    InPlace,
    /// The TC programs by `BPF_PROG_TEST_RUN`
    TestRun,
    /// A denied datagram
    Denied,
    /// Compiling, committing, adding a workload
    Changes,
    /// The largest policy, from its text on
    Scale,
}

impl Part {
    const ALL: [Self; 6] =
        [Self::Traffic, Self::InPlace, Self::TestRun, Self::Denied, Self::Changes, Self::Scale];

    fn title(self) -> &'static str {
        match self {
            Self::Traffic => {
                "traffic (ratio: speed against nothing; above empty: for empty programs, above nothing)"
            }
            Self::InPlace => {
                "in the programs, in place (run-time statistics, with what they cost themselves)"
            }
            Self::TestRun => "in the TC programs, BPF_PROG_TEST_RUN",
            Self::Denied => "denied, for the sender (ratio: time against a silent drop)",
            Self::Changes => "changes of policy",
            Self::Scale => "the largest policy, from its text to the kernel",
        }
    }
}

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Rounds.
    pub(crate) rounds: u16,
    /// How long one configuration is measured in one round.
    pub(crate) time: Duration,
    /// Numbers of rules, growing; never none.
    pub(crate) rules: Vec<usize>,
}

impl Plan {
    /// Where one number of rules is enough.
    pub(crate) fn middle(&self) -> usize {
        self.rules[self.rules.len() / 2]
    }
}

/// Where it ran, and what came out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    kernel: String,
    cpu: String,
    cpus: usize,
    rounds: u16,
    command: String,
    seconds: f64,
    parts: Vec<(Part, Vec<Figure>)>,
}

fn main() -> ExitCode {
    if let Some(status) = ztseg_tests::tool::dispatch() {
        return status;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((first, rest)) if first == generator::ARGUMENT => generator::run(rest),
        Some((first, [rules])) if first == scale::ARGUMENT => scale::child(rules),
        _ => bench(&Cli::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<()> {
    let _bpffs = ztseg_tests::world::Bpffs::as_found();
    ensure!(
        !ztseg::datapath::object::bytes().is_empty(),
        "built without the kernel programs; run this with `cargo xtask bench`"
    );
    let (rounds, time) = if cli.quick { (3, 60) } else { (9, 150) };
    let rounds = cli.rounds.unwrap_or(rounds);
    ensure!((1..=16).contains(&rounds), "--rounds: 1 to 16, each has a port of its own");
    let plan = Plan { rounds, time: Duration::from_millis(time), rules: vec![10, 1_000, 100_000] };
    let parts = if cli.only.is_empty() { Part::ALL.to_vec() } else { cli.only.clone() };
    stop_on_signals()?;
    let start = Instant::now();
    let cpus = std::thread::available_parallelism()?.get();
    // The last one: interrupts mostly go to the first.
    let mut stage = Stage::new(cpus - 1)?;
    let mut report = Report {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: cpu_model(),
        cpus,
        rounds,
        command: std::env::var("ZTSEG_BENCH_COMMAND")
            .unwrap_or_else(|_| std::env::args().collect::<Vec<_>>().join(" ")),
        seconds: 0.0,
        parts: Vec::new(),
    };
    if cli.output == Output::Table {
        println!(
            "kernel {}, {} x {}, {} rounds, medians\n{}",
            report.kernel, report.cpus, report.cpu, report.rounds, report.command
        );
    }
    for part in parts {
        eprintln!(
            "measuring {} …",
            part.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned())
        );
        let figures = match part {
            Part::Traffic => traffic::traffic(&mut stage, &plan),
            Part::InPlace => traffic::in_place(&mut stage, &plan),
            Part::TestRun => testrun::programs(&mut stage, &plan),
            Part::Denied => traffic::denied(&mut stage, &plan),
            Part::Changes => control::changes(&mut stage, &plan),
            Part::Scale => scale::scale(&mut stage, &plan),
        }
        .with_context(|| format!("measuring {part:?}"))?;
        if cli.output == Output::Table {
            print!("{}", figures::table(part.title(), &figures));
        }
        report.parts.push((part, figures));
    }
    report.seconds = start.elapsed().as_secs_f64();
    match cli.output {
        Output::Table => println!("\n{:.0} s", report.seconds),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

/// Ctrl-C ends the run at the next measurement, so that everything is removed.
fn stop_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            stage::STOP.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn cpu_model() -> String {
    let info = read("/proc/cpuinfo");
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown CPU", |line| line.trim_start_matches([' ', '\t', ':'])).to_owned()
}
