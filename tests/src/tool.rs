//! What this program is when its first argument is `--tool`: a child in the world.
//!
//! A child needs its cgroup, its namespace and its death signal before it makes a socket. Doing
//! that between `fork` and `exec` of the parent would take `unsafe`; a program that does it to
//! itself needs none.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::traffic;

/// The first argument that makes this program a tool.
pub const ARGUMENT: &str = "--tool";
/// In the place of a program: a tool of this program, in this process.
pub(crate) const SELF: &str = "@self";
/// In the place of a cgroup or a namespace: the parent's.
pub(crate) const PARENTS: &str = "-";

/// Runs the tool that the arguments ask for; `None` when they ask for none.
pub fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    Some(match run(args.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Arguments: the parent's process id, cgroup, namespace, program, its arguments.
fn run(args: Vec<OsString>) -> Result<()> {
    let mut args = args.into_iter();
    let mut next = |what: &str| args.next().with_context(|| format!("no {what} given"));
    let parent = next("parent")?;
    let (cgroup, namespace) = (next("cgroup")?, next("namespace")?);
    let program = next("program")?;
    prctl::set_pdeathsig(Signal::SIGKILL)
        .context("cannot ask for a signal at the parent's death")?;
    // It may have died before the request.
    ensure!(parent == *getppid().to_string(), "the parent is gone");
    if cgroup != PARENTS {
        let procs = Path::new(&cgroup).join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("cannot join {}", procs.display()))?;
    }
    if namespace != PARENTS {
        let file = File::open(&namespace)
            .with_context(|| format!("no namespace {}", namespace.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    }
    if program != SELF {
        let error = Command::new(&program).args(args).exec();
        bail!("cannot start {}: {error}", program.display());
    }
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    traffic::tool::run(&args)
}
