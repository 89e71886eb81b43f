//! The real agent, on one world only.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use ztseg_common::ABI_VERSION;

use crate::process::{Place, Process};
use crate::world::{World, patient};

/// How long it may take to load, attach and compile.
const READY: Duration = Duration::from_secs(20);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);
/// How long a record may take from the kernel to a reader of `ztseg events`.
const EVENT: Duration = Duration::from_secs(5);

/// The folder of the pins of an agent of other layouts.
pub const OTHER_VERSION: &str = "v0";

/// The agent's executable, from `ZTSEG_BIN`.
pub fn executable() -> Result<PathBuf> {
    let path = std::env::var_os("ZTSEG_BIN").map(PathBuf::from);
    path.context("ZTSEG_BIN, the agent's file, is not set: start this with `cargo xtask`")
}

/// The agent of a world. What it attached stays when it is dropped, until its world goes.
#[derive(Debug)]
pub struct Agent {
    executable: PathBuf,
    place: Place,
    config: PathBuf,
    policy: PathBuf,
    socket: PathBuf,
    /// What runs the agent instead, where it is to see another machine.
    script: Option<PathBuf>,
    process: Option<Process>,
}

impl Agent {
    /// Starts the agent with a policy and waits until it is in force.
    pub fn start(world: &World, policy: &str) -> Result<Self> {
        Self::start_with(world, policy, "", &[])
    }

    /// As [`Agent::start`], with more lines in the configuration and more arguments of `run`.
    pub fn start_with(world: &World, policy: &str, settings: &str, args: &[&str]) -> Result<Self> {
        let mut agent = Self::new(world, policy, settings)?;
        agent.run(args)?;
        Ok(agent)
    }

    /// Writes what an agent of this world needs, and starts nothing.
    pub fn new(world: &World, policy: &str, settings: &str) -> Result<Self> {
        let folder = world.folder();
        let agent = Self {
            executable: executable()?,
            // Not in a cgroup of the world: the agent is no workload of its own policy.
            place: world.host.place(),
            config: folder.join("config.yaml"),
            policy: folder.join("policies/policy.yaml"),
            socket: folder.join("ztseg.sock"),
            script: None,
            process: None,
        };
        let policies = folder.join("policies");
        let config = format!(
            "cgroupRoot: {}\nbpffs: {}\nstateDir: {}\nsocket: {}\npolicies: [{}]\n{settings}",
            world.cgroup_root().display(),
            world.pins().display(),
            folder.join("state").display(),
            agent.socket.display(),
            policies.display(),
        );
        fs::create_dir_all(&policies)?;
        fs::write(&agent.config, config)?;
        agent.write_policy(policy)?;
        world.ensure_apart()?;
        Ok(agent)
    }

    /// From its next start, it sees these active modules for access control, not the kernel's.
    pub fn pretend_modules(&mut self, modules: &str) -> Result<()> {
        let script = self.config.with_file_name("agent.sh");
        // In a mount namespace of its own.
        let text = format!(
            "#!/bin/sh -e\nif [ \"$ZTSEG_APART\" = 1 ]; then\n    mount -t tmpfs modules \
             /sys/kernel/security\n    printf %s '{modules}' >/sys/kernel/security/lsm\n    exec {} \
             \"$@\"\nfi\nexport ZTSEG_APART=1\nexec unshare -m \"$0\" \"$@\"\n",
            self.executable.display(),
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        self.script = Some(script);
        Ok(())
    }

    /// From its next start, it sees the machine as it is.
    pub fn pretend_nothing(&mut self) {
        self.script = None;
    }

    /// Starts it and waits until it says that the policy is in force.
    pub fn run(&mut self, args: &[&str]) -> Result<()> {
        self.process = None;
        let mut process = self.spawn(args)?;
        process.wait_for_error("ready", patient(READY)).context("the agent did not get ready")?;
        self.process = Some(process);
        Ok(())
    }

    /// A further agent with the same configuration.
    pub fn spawn(&self, args: &[&str]) -> Result<Process> {
        let config = self.config.to_string_lossy();
        let args: Vec<&str> =
            ["run", "--config", &config].into_iter().chain(args.iter().copied()).collect();
        self.place.spawn(self.script.as_ref().unwrap_or(&self.executable), &args)
    }

    /// Replaces the policy file that the agent watches.
    pub fn write_policy(&self, policy: &str) -> Result<()> {
        let new = self.policy.with_extension("new");
        fs::write(&new, policy)?;
        fs::rename(&new, &self.policy).context("cannot replace the policy")
    }

    /// The agent's configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The socket of its API.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Runs a client verb; gives its status, standard output and standard error.
    pub fn command(&self, args: &[&str]) -> Result<(Option<i32>, String, String)> {
        let socket = self.socket.to_string_lossy();
        let args: Vec<&str> = args.iter().copied().chain(["--socket", &socket]).collect();
        let (status, out, err) =
            self.place.spawn(&self.executable, &args)?.wait(patient(COMMAND))?;
        Ok((status.code(), out, err))
    }

    fn answer(&self, args: &[&str]) -> Result<String> {
        let (status, out, err) = self.command(args)?;
        ensure!(status == Some(0), "ztseg {} ended with {status:?}: {err}", args.join(" "));
        Ok(out)
    }

    /// Puts a policy in force that is not the configured one.
    pub fn apply(&self, policy: &str) -> Result<String> {
        let file = self.config.with_file_name("applied.yaml");
        fs::write(&file, policy)?;
        self.answer(&["apply", &file.to_string_lossy()])
    }

    /// `ztseg status -o json`
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.answer(&["status", "-o", "json"])?).context("status is no JSON")
    }

    /// The events that the agent keeps, oldest first.
    pub fn events(&self) -> Result<Vec<Value>> {
        let lines = self.answer(&["events", "-o", "jsonl"])?;
        lines
            .lines()
            .map(|line| serde_json::from_str(line).context("an event is no JSON"))
            .collect()
    }

    /// Waits for an event that `is_it` knows, and gives it.
    pub fn wait_for_event(&self, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + patient(EVENT);
        loop {
            let mut events = self.events()?;
            if let Some(at) = events.iter().position(&is_it) {
                return Ok(events.swap_remove(at));
            }
            if Instant::now() > deadline {
                let all: Vec<String> = events.iter().map(ToString::to_string).collect();
                bail!("no such event; these there are:\n{}", all.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the status until `is_so`, and gives it.
    pub fn wait_for_status(&self, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        self.wait_for_status_within(patient(EVENT), is_so)
    }

    /// As [`Agent::wait_for_status`], within another time.
    pub fn wait_for_status_within(
        &self,
        limit: Duration,
        is_so: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status()?;
            if is_so(&status) {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the status does not become so: {status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it wrote on standard error.
    pub fn log(&mut self) -> String {
        self.process.as_mut().map(Process::errors).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the agent does not run")?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).context("cannot send a signal")
    }

    /// Stops it as systemd does; an error if it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        self.stop_by(Signal::SIGTERM)
    }

    /// As [`Agent::stop`], by another signal.
    pub fn stop_by(&mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        let process = self.process.take().context("the agent does not run")?;
        let (status, _, err) = process.wait(patient(COMMAND))?;
        ensure!(status.success(), "the agent ended with {status}: {err}");
        Ok(())
    }

    /// Makes what is pinned in `world` look as if an agent of other layouts had left it there. No agent
    /// may run.
    pub fn become_another_version(world: &World) -> Result<()> {
        let [this, other] = [format!("v{ABI_VERSION}"), OTHER_VERSION.to_owned()];
        fs::rename(world.pins().join(this), world.pins().join(other))
            .context("pretending to be another version")
    }

    /// The other way round, too: what the version of this build has left in force becomes the other
    /// version's, and that this one's. No agent may run.
    pub fn swap_versions(world: &World) -> Result<()> {
        let [this, other, aside] = [&format!("v{ABI_VERSION}"), OTHER_VERSION, "aside"]
            .map(|name| world.pins().join(name));
        for (from, to) in [(&this, &aside), (&other, &this), (&aside, &other)] {
            fs::rename(from, to).context("swapping the versions")?;
        }
        Ok(())
    }

    /// Starts it, and kills it as soon as `reached` says so, or it is ready.
    pub fn run_until(&mut self, limit: Duration, reached: impl Fn() -> bool) -> Result<()> {
        let mut process = self.spawn(&[])?;
        let deadline = Instant::now() + patient(limit);
        while !reached() && !process.errors().contains("ready") {
            ensure!(Instant::now() < deadline, "the agent did not get there: {}", process.errors());
            std::thread::sleep(Duration::from_micros(100));
        }
        process.kill();
        Ok(())
    }

    /// Kills it without a chance to clean up.
    pub fn kill9(&mut self) {
        self.process = None;
    }
}
