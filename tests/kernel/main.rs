//! Tests of ztseg on a real kernel.
//!
//! `cargo xtask test` runs them on this kernel, `cargo xtask vm` on others. A test that cannot run
//! where it is started is skipped, with the reason in its line. Each test makes what it needs
//! (cgroups, network namespaces, pins) under names of its own and removes it, because tests run at
//! the same time, and outside a virtual machine on somebody's real system.

mod addresses;
mod adoption;
mod agents;
mod applications;
mod around;
mod behind;
mod boot;
mod commit;
mod conformance;
mod differential;
mod environment;
mod expiry;
mod failsafe;
mod flows;
mod fragments;
mod life;
mod living;
mod malformed;
mod matrix;
mod older;
mod packet_sockets;
mod pressure;
mod programs;
mod reject;
mod rules;
mod sequences;
mod sockets;
mod takeover;
mod toolchain;
mod translation;
mod upgrade;
mod worlds;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::environment::{Environment, Lacking};

/// The body of a test.
type Body = fn(&Environment) -> anyhow::Result<()>;

fn main() -> ExitCode {
    if let Some(status) = ztseg_tests::tool::dispatch() {
        return status;
    }
    let bpffs = ztseg_tests::world::Bpffs::as_found();
    let arguments = Arguments::from_args();
    let environment = Environment::here();
    if !arguments.list {
        println!("{}", environment.describe());
    }
    let tests: Vec<(&str, Body)> = [
        toolchain::TESTS,
        programs::TESTS,
        differential::TESTS,
        sequences::TESTS,
        fragments::TESTS,
        expiry::TESTS,
        pressure::TESTS,
        reject::TESTS,
        sockets::TESTS,
        worlds::TESTS,
        commit::TESTS,
        addresses::TESTS,
        conformance::TESTS,
        agents::TESTS,
        adoption::TESTS,
        living::TESTS,
        malformed::TESTS,
        rules::TESTS,
        flows::TESTS,
        behind::TESTS,
        older::TESTS,
        packet_sockets::TESTS,
        failsafe::TESTS,
        life::TESTS,
        takeover::TESTS,
        upgrade::TESTS,
        boot::TESTS,
    ]
    .into_iter()
    .chain(around::TESTS.iter().copied())
    .chain(applications::TESTS.iter().copied())
    .collect::<Vec<_>>()
    .concat();
    let mut trials: Vec<Trial> =
        tests.into_iter().map(|(name, body)| trial(name, body, &environment)).collect();
    trials.extend(matrix::tests().into_iter().map(|(name, row)| trial(name, row, &environment)));
    trials.extend(translation::tests().into_iter().map(|(name, t)| trial(name, t, &environment)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    around::clean_up();
    drop(bpffs);
    conclusion.exit_code()
}

/// A test that is skipped where the environment has an obstacle.
fn trial(
    name: impl Into<String>,
    body: impl FnOnce(&Environment) -> anyhow::Result<()> + Send + 'static,
    environment: &Environment,
) -> Trial {
    let environment = environment.clone();
    let name: String = name.into();
    Trial::ignorable_test(name.clone(), move || {
        if let Some(obstacle) = environment.obstacle() {
            return Ok(Completion::ignored_with(obstacle));
        }
        match body(&environment) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) if error.is::<Lacking>() => Ok(Completion::ignored_with(error.to_string())),
            Err(error) => {
                // At once, too: a run that is cut off would say nothing of it.
                eprintln!("{name}: {error:?}");
                Err(Failed::from(format!("{error:?}")))
            }
        }
    })
}
