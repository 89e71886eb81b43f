//! `cargo xtask`: everything about ztseg that is not the product itself.
//!
//! One verb a file. What a verb needs and this machine lacks is installed by [`setup`] on the way,
//! so that each verb works as the first command in a fresh clone.

mod applications;
mod apt;
mod bench;
mod build;
mod ci;
mod command;
mod demo;
mod fuzz;
mod initramfs;
mod kernels;
mod modules;
mod run;
mod setup;
mod soak;
mod tally;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set-up, build, tests and CI of ztseg"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing for the other verbs
    Setup,
    /// Build one self-contained agent, the kernel programs inside
    Build(build::Options),
    /// Build the agent and run it with ARGS
    Run(run::Options),
    /// Show what ztseg does, on real traffic in a small world of its own; needs root
    Demo(demo::Options),
    /// Run all tests: pure ones, then those on a real kernel
    Test(test::Options),
    /// Run the real-kernel tests in virtual machines with Debian's kernels; needs no root
    Vm(vm::Options),
    /// Measure what ztseg costs, beside nothing and empty programs
    Bench(bench::Options),
    /// Compare a million decisions with the model, then disturb real traffic for minutes
    Soak(soak::Options),
    /// Look for inputs that break the readers of packets, policies and events (libFuzzer)
    Fuzz(fuzz::Options),
    /// What CI runs: formatting, lints, all tests, kernels 6.1 and 6.12
    Ci,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Workspace::find().and_then(|workspace| match cli.verb {
        Verb::Setup => setup::verb(&workspace),
        Verb::Build(options) => build::verb(&workspace, &options),
        Verb::Run(options) => run::verb(&workspace, &options),
        Verb::Demo(options) => demo::verb(&workspace, &options),
        Verb::Test(options) => test::verb(&workspace, &options),
        Verb::Vm(options) => vm::verb(&workspace, &options),
        Verb::Bench(options) => bench::verb(&workspace, &options),
        Verb::Soak(options) => soak::verb(&workspace, &options),
        Verb::Fuzz(options) => fuzz::verb(&workspace, &options),
        Verb::Ci => Ok(ci::verb(&workspace)),
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
