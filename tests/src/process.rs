//! Children in a cgroup and a namespace of the world.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::tool;

/// Where a child runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The folder of its cgroup; the parent's where there is none.
    pub cgroup: Option<PathBuf>,
    /// The file of its network namespace; the parent's where there is none.
    pub namespace: Option<PathBuf>,
}

impl Place {
    /// A child that runs `program` here.
    pub fn spawn(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Result<Process> {
        let program = program.as_ref();
        let own = std::env::current_exe().context("this program's file is unknown")?;
        let or_parents =
            |path: &Option<PathBuf>| path.clone().unwrap_or_else(|| tool::PARENTS.into());
        let mut command = Command::new(own);
        command
            .args([tool::ARGUMENT, &std::process::id().to_string()])
            .arg(or_parents(&self.cgroup))
            .arg(or_parents(&self.namespace))
            .arg(program)
            .args(args)
            // Ctrl-C is for the program that started it, which ends its children in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let name = format!("{} {}", program.display(), args.join(" "));
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Process::new(name, child))
    }

    /// A child that is a tool of this program (see [`crate::traffic::tool`]).
    pub fn tool(&self, args: &[&str]) -> Result<Process> {
        self.spawn(tool::SELF, args)
    }
}

/// A line that a child wrote.
enum Line {
    Out(String),
    Err(String),
}

/// A running child. It is killed when this is dropped, and when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<Line>,
    out: Vec<String>,
    err: Vec<String>,
}

impl Process {
    fn new(name: String, mut child: Child) -> Self {
        let (tx, lines) = channel();
        if let Some(out) = child.stdout.take() {
            read(out, tx.clone(), Line::Out);
        }
        if let Some(err) = child.stderr.take() {
            read(err, tx, Line::Err);
        }
        Self { name, child, lines, out: Vec::new(), err: Vec::new() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} does not read", self.name))
    }

    /// Closes its standard input, which tells a tool of this program to end.
    pub fn end_input(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for a line on standard output that contains `text`, and gives it.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.wait_for(text, limit, true)
    }

    /// As [`Process::wait_for_output`], on standard error.
    pub fn wait_for_error(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.wait_for(text, limit, false)
    }

    fn wait_for(&mut self, text: &str, limit: Duration, out: bool) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let (line, is_out) = self.keep(line);
                    if is_out == out && line.contains(text) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!(
                    "{} did not say `{text}` within {} ms{}",
                    self.name,
                    limit.as_millis(),
                    self.said()
                ),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended without saying `{text}`{}", self.name, self.said())
                }
            }
        }
    }

    fn keep(&mut self, line: Line) -> (String, bool) {
        match line {
            Line::Out(line) => {
                self.out.push(line.clone());
                (line, true)
            }
            Line::Err(line) => {
                self.err.push(line.clone());
                (line, false)
            }
        }
    }

    /// What it wrote so far, for messages.
    fn said(&self) -> String {
        let mut text = String::new();
        for (what, lines) in [("standard output", &self.out), ("standard error", &self.err)] {
            if !lines.is_empty() {
                // Writing to a string does not fail.
                let _ = fmt::Write::write_fmt(
                    &mut text,
                    format_args!("\n  {what}:\n    {}", lines.join("\n    ")),
                );
            }
        }
        text
    }

    /// What it wrote on standard output so far.
    pub fn written(&mut self) -> String {
        self.keep_all();
        self.out.join("\n")
    }

    /// What it wrote on standard error so far.
    pub fn errors(&mut self) -> String {
        self.keep_all();
        self.err.join("\n")
    }

    fn keep_all(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.keep(line);
        }
    }

    /// Waits until it ends, and gives its status and what it wrote on standard output and on
    /// standard error.
    pub fn wait(mut self, limit: Duration) -> Result<(ExitStatus, String, String)> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => drop(self.keep(line)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} did not end within {} s{}", self.name, limit.as_secs(), self.said())
                }
            }
        }
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok((status, self.out.join("\n"), self.err.join("\n")))
    }

    /// As [`Process::wait`], and an error where it fails; gives standard output.
    pub fn output(self, limit: Duration) -> Result<String> {
        let name = self.name.clone();
        let (status, out, err) = self.wait(limit)?;
        if !status.success() {
            bail!("{name}: {status}\n{out}\n{err}");
        }
        Ok(out)
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only for a child that is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read(from: impl Read + Send + 'static, to: Sender<Line>, kind: fn(String) -> Line) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(kind(line)).is_err() {
                break;
            }
        }
    });
}
