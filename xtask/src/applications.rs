//! The applications that the real-kernel tests put ztseg between: from Debian's packages, unpacked
//! and not installed.
//!
//! An installed server would be enabled and started as a service of this machine, and a `PostgreSQL`
//! would get a cluster. So what is missing, libraries included, is unpacked below the target folder,
//! where nothing but the tests finds it. What is installed already is used as it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::apt;
use crate::command;
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_secs(10 * 60);

/// What the tests start.
pub(crate) const PACKAGES: [&str; 9] = [
    "nginx",
    "wrk",
    "postgresql",
    "redis-server",
    "iperf3",
    "nsd",
    "bind9-dnsutils",
    "iputils-ping",
    "traceroute",
];

/// Where they are unpacked: a folder with a `usr`.
pub(crate) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("applications")
}

/// Unpacks what is missing. Where that does not succeed it says why, and the tests that lack an
/// application are skipped.
pub(crate) fn ready(workspace: &Workspace) {
    if let Err(error) = unpack_missing(workspace) {
        eprintln!("note: the tests of some applications will be skipped: {error:#}");
    }
}

fn unpack_missing(workspace: &Workspace) -> Result<()> {
    let root = folder(workspace);
    let unpacked = root.join("unpacked");
    let before = fs::read_to_string(&unpacked).unwrap_or_default();
    let before: BTreeSet<&str> = before.lines().collect();
    let mut missing = apt::missing(&PACKAGES);
    missing.retain(|package| !before.contains(package));
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: unpack Debian packages of applications to test with: {}", missing.join(" "));
    let archives = workspace.tools().join("applications-archives");
    // Of the sandbox user of an earlier run, or half written.
    let _ = fs::remove_dir_all(&archives);
    let partial = archives.join("partial");
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    if apt::is_root()? {
        apt::update(workspace)?;
    }
    download(workspace, &archives, &missing)?;
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            command::run(Command::new("dpkg").arg("-x").arg(&archive).arg(&root))?;
        }
    }
    let all: BTreeSet<&str> = before.into_iter().chain(missing).collect();
    let names = all.into_iter().collect::<Vec<_>>().join("\n");
    fs::write(&unpacked, names + "\n")
        .with_context(|| format!("cannot write {}", unpacked.display()))?;
    let _ = fs::remove_dir_all(&archives);
    Ok(())
}

/// Downloads `packages` and what they depend on and this machine has not installed.
fn download(workspace: &Workspace, archives: &Path, packages: &[&str]) -> Result<()> {
    let mut download = Command::new("apt-get");
    download
        .args(["install", "--download-only", "--no-upgrade"])
        .args(["--yes", "--no-install-recommends"])
        .args(["-o", &format!("Dir::Cache::archives={}", archives.display())])
        // apt's sandbox user may not reach this folder; and what installs nothing needs no lock,
        // which only root could take.
        .args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let log = workspace.tools().join("applications.log");
    command::run_logged(&mut download, &log, LIMIT)
        .with_context(|| format!("not downloaded: {}", packages.join(" ")))
}
