//! Debian packages.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::workspace::Workspace;

const STATUS: &str = "/var/lib/dpkg/status";
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Those of `wanted` that are not installed. All of them on a machine without dpkg.
pub(crate) fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    missing_in(&fs::read_to_string(STATUS).unwrap_or_default(), wanted)
}

/// Whether this machine has apt at all.
pub(crate) fn is_here() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

/// Installs those of `packages` that are missing; says so in one line. `purpose` completes "needed
/// for …".
pub(crate) fn install(workspace: &Workspace, packages: &[&str], purpose: &str) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_here() {
        bail!(
            "{purpose} needs these Debian packages or what your system has instead of them: \
             {names}. This machine has no apt-get, so install them by hand and try again."
        );
    }
    if !is_root()? {
        bail!(
            "{purpose} needs packages that are not installed, and only root can install them. \
             Run this, then try again:\n  sudo apt-get update && sudo apt-get install {names}"
        );
    }
    println!("setup: install Debian packages for {purpose}: {names}");
    update(workspace)?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command::run_logged(&mut install, &workspace.tools().join("apt-install.log"), LIMIT)
        .with_context(|| format!("{purpose} needs these packages: {names}"))
}

/// Reads the package lists anew; needs root.
pub(crate) fn update(workspace: &Workspace) -> Result<()> {
    let mut update = Command::new("apt-get");
    update.arg("update");
    command::run_logged(&mut update, &workspace.tools().join("apt-update.log"), LIMIT)
        .context("Debian's package lists could not be read; check /etc/apt and the network")
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    Ok(effective_uid(&status) == Some(0))
}

/// The second number of `Uid:` in `proc_pid_status(5)`.
fn effective_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

/// `status` is dpkg's database: paragraphs with `Package:` and `Status:` lines (deb-src-control(5),
/// dpkg(1)).
fn missing_in<'a>(status: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    let installed = |name: &str| {
        status.split("\n\n").any(|paragraph| {
            let mut lines = paragraph.lines();
            lines.by_ref().any(|line| line.strip_prefix("Package: ") == Some(name))
                && lines.any(|line| line.starts_with("Status: ") && line.ends_with(" ok installed"))
        })
    };
    wanted.iter().copied().filter(|name| !installed(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASE: &str = "Package: cpio\nStatus: install ok installed\nArchitecture: amd64\n\n\
        Package: qemu-system-x86\nStatus: deinstall ok config-files\n\n\
        Package: zlib1g-dev\nStatus: hold ok installed\n";

    #[test]
    fn only_installed_packages_count_as_there() {
        let wanted = ["cpio", "qemu-system-x86", "zlib1g-dev", "zlib1g"];
        assert_eq!(missing_in(DATABASE, &wanted), ["qemu-system-x86", "zlib1g"]);
    }

    #[test]
    fn without_a_database_everything_is_missing() {
        assert_eq!(missing_in("", &["cpio"]), ["cpio"]);
    }

    #[test]
    fn the_effective_uid_is_the_second() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t1000\t1000\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }
}
