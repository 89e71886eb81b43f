//! `ztseg run`

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::{Failure, settings};
use crate::agent::host::{Settings, StartError, agent};
use crate::agent::run::PolicyPaths;
use crate::config::{Boot, Config, OnExit};
use crate::datapath::Datapath;

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Configuration file [default: /etc/ztseg/config.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Policy file, or folder of *.yaml files; can be given several times
    #[arg(long, value_name = "FILE|DIR")]
    policies: Vec<PathBuf>,
    /// Drop nothing: treat every rule and segment as in audit mode, and report
    #[arg(long)]
    audit: bool,
    /// cgroup that the programs attach to [default: the whole cgroup2 hierarchy]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// Folder for pins, on a bpffs
    #[arg(long, value_name = "DIR")]
    bpffs: Option<PathBuf>,
    /// Folder for what the agent keeps
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Socket of the API
    #[arg(long, value_name = "PATH", env = "ZTSEG_SOCKET")]
    socket: Option<PathBuf>,
    /// What happens to the programs when the agent stops: they stay and enforce, or are removed
    #[arg(long, value_name = "WHAT")]
    on_exit: Option<OnExitFlag>,
    /// What is enforced where the policy is broken at the start: nothing new, or the last good one
    #[arg(long, value_name = "WHAT")]
    boot: Option<BootFlag>,
    /// Log more, and let the kernel programs log, too
    #[arg(long)]
    debug: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BootFlag {
    Open,
    Closed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnExitFlag {
    Keep,
    Detach,
}

impl Run {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let debug = self.debug;
        let settings = self.settings()?;
        log(debug);
        agent(&settings, Datapath::open).map_err(|e| match e {
            StartError::Input(text) => Failure::input(text),
            StartError::Refused(text) => Failure::refused(text),
        })
    }

    /// The configuration with the flags over it.
    fn settings(self) -> Result<Settings, Failure> {
        let mut config = settings::config(self.config.as_deref())?;
        // Only the folder that nobody named may be missing.
        let optional = if self.policies.is_empty() { Config::default().policies } else { vec![] };
        if !self.policies.is_empty() {
            config.policies = self.policies;
        }
        config.cgroup_root = self.cgroup_root.or(config.cgroup_root);
        let or = |flag: Option<PathBuf>, value: &mut PathBuf| {
            if let Some(flag) = flag {
                *value = flag;
            }
        };
        or(self.bpffs, &mut config.bpffs);
        or(self.state_dir, &mut config.state_dir);
        or(self.socket, &mut config.socket);
        match self.on_exit {
            Some(OnExitFlag::Keep) => config.on_exit = OnExit::Keep,
            Some(OnExitFlag::Detach) => config.on_exit = OnExit::Detach,
            None => {}
        }
        match self.boot {
            Some(BootFlag::Open) => config.boot = Boot::Open,
            Some(BootFlag::Closed) => config.boot = Boot::Closed,
            None => {}
        }
        let policy = PolicyPaths { paths: config.policies.clone(), optional };
        Ok(Settings { config, policy, audit: self.audit, debug: self.debug })
    }
}

/// Logs to standard error, without time and colour where journald adds them (systemd.exec(5),
/// `JOURNAL_STREAM`). `RUST_LOG` says how much.
fn log(debug: bool) {
    let default = if debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(!journal && std::io::stderr().is_terminal());
    if journal {
        builder.without_time().init();
    } else {
        builder.init();
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Verb};
    use super::*;

    fn parsed(args: &[&str]) -> Settings {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, "onExit: detach\nbpffs: /sys/fs/bpf/one\n").expect("written");
        let file = file.to_string_lossy().into_owned();
        let args = ["ztseg", "run", "--config", &file].into_iter().chain(args.iter().copied());
        match Cli::try_parse_from(args).expect("parsed").verb {
            Verb::Run(run) => run.settings().expect("settings"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let s = parsed(&["--bpffs", "/sys/fs/bpf/two", "--policies", "a", "--policies", "b"]);
        assert_eq!(s.config.bpffs, PathBuf::from("/sys/fs/bpf/two"));
        assert_eq!(s.config.on_exit, OnExit::Detach);
        assert_eq!(s.policy.paths, [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(s.policy.optional.is_empty());
        assert_eq!(parsed(&["--boot", "closed"]).config.boot, Boot::Closed);
        assert_eq!(parsed(&["--on-exit", "keep"]).config.on_exit, OnExit::Keep);
    }

    #[test]
    fn only_the_default_folder_may_be_missing() {
        let s = parsed(&["--audit"]);
        assert_eq!(s.policy.optional, Config::default().policies);
        assert!(s.audit && !s.debug);
    }
}
