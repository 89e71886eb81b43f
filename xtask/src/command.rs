//! Running other programs, with errors that name the command.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How often a running child is looked at.
const POLL: Duration = Duration::from_millis(200);

/// How a streamed command ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// It ran longer than its limit and was killed.
    TimedOut,
}

/// The command as someone would type it.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command with this terminal as its own; an error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command and gives its standard output; standard error stays visible.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command and gives its standard output when it succeeds; for questions whose answer may
/// be no.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command with its output in `log`; the error carries the log's last lines. `limit` is for
/// commands that use the network and may hang.
pub(crate) fn run_logged(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let err = out.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(POLL);
    };
    let ended = match status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("failed ({status})"),
        None => format!("had not ended after {} s and was stopped", limit.as_secs()),
    };
    bail!(
        "`{}` {ended}; the end of {}:\n{}",
        shown(command),
        log.display(),
        tail(log, 15).trim_end()
    )
}

/// Runs a command and hands out each line of its standard output as it comes. Kills it when it has
/// not ended after `limit`. Does not wait for grandchildren that keep the pipe open.
pub(crate) fn stream(
    command: &mut Command,
    limit: Duration,
    each: &mut dyn FnMut(&str),
) -> Result<Ended> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let stdout = child.stdout.take().context("the child has no standard output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        while stdout.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    let start = Instant::now();
    loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => each(&line),
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(10)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = child.try_wait()? {
            while let Ok(line) = lines.recv_timeout(POLL) {
                each(&line);
            }
            return Ok(Ended::Exited(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            while let Ok(line) = lines.try_recv() {
                each(&line);
            }
            return Ok(Ended::TimedOut);
        }
    }
}

/// The last `lines` lines of a file; empty when it cannot be read.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn streams_lines_without_their_ends() -> Result<()> {
        let mut lines = Vec::new();
        let ended = stream(
            &mut shell("printf 'one\\r\\ntwo\\nthree'; exit 3"),
            Duration::from_secs(10),
            &mut |line| lines.push(line.to_owned()),
        )?;
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
        assert_eq!(lines, ["one", "two", "three"]);
        Ok(())
    }

    #[test]
    fn kills_a_command_that_runs_too_long() -> Result<()> {
        let start = Instant::now();
        let ended = stream(&mut shell("exec sleep 60"), Duration::from_millis(300), &mut |_| {})?;
        assert!(matches!(ended, Ended::TimedOut));
        assert!(start.elapsed() < Duration::from_secs(30));
        Ok(())
    }

    #[test]
    fn does_not_wait_for_a_grandchild_that_holds_the_pipe() -> Result<()> {
        let start = Instant::now();
        let ended =
            stream(&mut shell("sleep 20 & echo done"), Duration::from_secs(60), &mut |_| {})?;
        assert!(matches!(ended, Ended::Exited(_)));
        assert!(start.elapsed() < Duration::from_secs(15));
        Ok(())
    }

    #[test]
    fn a_failed_command_shows_the_end_of_its_log() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let error =
            run_logged(&mut shell("echo reason >&2; exit 1"), &log, Duration::from_secs(10))
                .err()
                .context("it must fail")?;
        assert!(error.to_string().contains("reason"), "{error}");
        Ok(())
    }
}
