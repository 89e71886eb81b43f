//! The demo: real traffic between real processes in a small world, and the agent's word for it.
//!
//! `cargo xtask demo` builds and runs it. What it shows it also checks: anything that is not as
//! expected makes it fail.

mod attempts;
mod expected;
mod interrupt;
mod live;
mod scene;
mod talk;

use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::interrupt::{Interrupt, Interrupted};
use crate::scene::Scene;

/// The argument that makes this program a client with one connection ([`talk`]).
const TALK: &str = "--talk";
/// The argument that keeps the world until Ctrl-C.
const STAY: &str = "--stay";
/// What a shell reports for a program that SIGINT ended: 128 + 2 (signal(7)).
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    if let Some(status) = ztseg_tests::tool::dispatch() {
        return status;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [TALK, to] => talk::run(to),
        [] => demo(false),
        [STAY] => demo(true),
        _ => Err(anyhow!("unknown arguments; usage: ztseg-demo [{STAY}]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            // Where nobody reads any more there is nobody to tell.
            let _ = writeln!(stdout(), "\nInterrupted. {GONE}");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "\nerror: the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const GONE: &str = "Everything is removed again: processes, namespaces, cgroups, programs, maps.";

const GO_ON: &str = "\
How to go on:
  policies/demo.yaml                                   the policy of this demo; more beside it
  target/release/ztseg check FILE                      reads a policy and runs its tests, offline
  target/release/ztseg run --audit --policies FILE     as root: reports what FILE would deny here
  target/release/ztseg events -f                       denials as they happen
  cargo xtask test                                     every test, those on this kernel included
  cargo xtask demo --stay                              this world, until Ctrl-C, to look around in";

/// The whole demo. When it returns, its world is gone.
fn demo(stay: bool) -> Result<()> {
    let _bpffs = ztseg_tests::world::Bpffs::as_found();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "it needs root, to load BPF programs and to make cgroups and network namespaces"
    );
    let interrupt = Interrupt::listen()?;
    let scene = Scene::new()?;
    let traces = scene.traces();
    let attempts = show(scene, &interrupt, stay);
    let left: Vec<PathBuf> =
        traces.into_iter().filter(|path| path.symlink_metadata().is_ok()).collect();
    ensure!(left.is_empty(), "it left behind: {left:?}");
    let attempts = attempts?;
    let mut out = stdout();
    writeln!(out, "\n{attempts} attempts, each as the policy says. {GONE}\n\n{GO_ON}")?;
    Ok(())
}

/// Everything that happens in the world; gives how many attempts there were.
fn show(mut scene: Scene, interrupt: &Interrupt, stay: bool) -> Result<usize> {
    let mut out = stdout();
    writeln!(out, "{}", scene.describe())?;

    scene.start_servers(interrupt)?;
    let count = attempts::without_agent(&scene, interrupt)?;
    writeln!(out, "1. Without ztseg, all {count} attempts below get through.\n")?;

    let rules = scene.start_agent()?;
    // As after a boot: the services start when the agent is ready.
    scene.start_servers(interrupt)?;
    writeln!(out, "2. With ztseg, the agent runs with policies/demo.yaml, {rules} rules:")?;
    attempts::with_agent(&scene, interrupt)?;

    writeln!(out, "\n3. A change of policy reaches a connection that stands:")?;
    live::run(&scene, interrupt)?;

    if stay {
        writeln!(out, "\n{}", scene.how_to_look_around())?;
        out.flush()?;
        interrupt.wait();
    }
    scene.stop_agent().context("the agent did not stop well")?;
    Ok(count)
}
