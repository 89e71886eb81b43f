//! The long run: real traffic while policies change and agents come, die and are replaced. Run by
//! `cargo xtask soak`.
//!
//! What is allowed must lose nothing, and of what is denied nothing may pass. A first run without any
//! change shows that this machine loses nothing by itself.

mod disturb;
mod iperf;
mod load;
mod report;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use ztseg_tests::agent::Agent;
use ztseg_tests::policies::alternating;
use ztseg_tests::world::World;

use crate::disturb::{Disturbances, Done, disturb};
use crate::load::Load;

#[derive(Debug, Parser)]
#[command(name = "ztseg-soak", about = "Traffic while policies change and agents come and go")]
struct Cli {
    /// A tenth of everything
    #[arg(long)]
    quick: bool,
    /// How many policies are applied
    #[arg(long)]
    applies: Option<u32>,
    /// How often the agent is restarted
    #[arg(long)]
    restarts: Option<u32>,
    /// How often it is killed
    #[arg(long)]
    kills: Option<u32>,
    /// How often it is replaced by one of another version
    #[arg(long)]
    upgrades: Option<u32>,
    /// How often an agent is killed in the middle of an upgrade, and the next one goes on
    #[arg(long)]
    cut: Option<u32>,
    /// UDP flows that are allowed
    #[arg(long)]
    flows: Option<u32>,
    /// Messages a second of each
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// Seconds of the first run, without any change
    #[arg(long)]
    still: Option<u64>,
}

fn main() -> ExitCode {
    if let Some(status) = ztseg_tests::tool::dispatch() {
        return status;
    }
    let _bpffs = ztseg_tests::world::Bpffs::as_found();
    match soak(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing was lost and nothing passed.
fn soak(cli: &Cli) -> Result<bool> {
    let share = |given: Option<u32>, whole: u32| {
        given.unwrap_or(if cli.quick { whole / 10 } else { whole })
    };
    let plan = Disturbances {
        applies: share(cli.applies, 1000),
        restarts: share(cli.restarts, 50),
        kills: share(cli.kills, 50),
        upgrades: share(cli.upgrades, 10),
        cut: share(cli.cut, 20),
    };
    let (flows, rate) = (share(cli.flows, 1000), cli.rate);
    ensure!(flows >= 20, "--flows: at least 20, so that each way has some");
    let world = World::new()?;
    world.peer.add_address(&world.uplink.far_interface, world.uplink.addresses(3)[0], 28)?;
    let mut agent = Agent::start(&world, &alternating(0))?;

    let still = Duration::from_secs(cli.still.unwrap_or(if cli.quick { 5 } else { 20 }));
    println!(
        "{flows} UDP flows, {rate} messages a second each; {} s without a change",
        still.as_secs()
    );
    let load = Load::start(&world, flows, rate)?;
    std::thread::sleep(still);
    let seen = load.finish(&world)?;
    print!("{}", report::table(&Done::default(), &seen, still));
    ensure!(
        seen.is_clean(),
        "this machine loses packets without any change: {:?}; a smaller --rate may be what it can do",
        seen.lost
    );

    println!("\n{plan}");
    let load = Load::start(&world, flows, rate)?;
    let begun = Instant::now();
    let done = disturb(&world, &mut agent, &plan).context("changing things")?;
    let seen = load.finish(&world)?;
    print!("{}", report::table(&done, &seen, begun.elapsed()));
    ensure!(done.counts == plan, "not all was done: {}, not {plan}", done.counts);
    let clean = seen.is_clean() && done.wrong.is_empty();
    if !clean || seen.ways.iter().any(|way| way.late() != 0) {
        print!("{}", report::losses(&seen, &done));
    }
    agent.stop()?;
    Ok(clean)
}
