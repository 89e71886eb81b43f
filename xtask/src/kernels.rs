//! Debian's cloud kernels: found, downloaded and unpacked without being installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::command;
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_secs(10 * 60);

/// A kernel series that ztseg supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12's from backports.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// Every series, oldest first.
    pub(crate) const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// Its number.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// What stands before and after the number that tells its packages apart:
    /// `linux-image-6.1.0-56-cloud-amd64`, `linux-image-6.12.117+deb12-cloud-amd64`.
    fn package_pattern(self) -> (&'static str, &'static str) {
        match self {
            Self::V6_1 => ("linux-image-6.1.0-", "-cloud-amd64"),
            Self::V6_12 => ("linux-image-6.12.", "+deb12-cloud-amd64"),
        }
    }
}

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` says in it.
    pub(crate) release: String,
    /// The image to boot.
    pub(crate) image: PathBuf,
    /// The folder with its modules.
    pub(crate) modules: PathBuf,
}

/// The newest kernel of a series. Without network or package lists one that was unpacked before
/// will do.
pub(crate) fn ready(workspace: &Workspace, series: Series) -> Result<Kernel> {
    let folder = workspace.vm().join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut listed = list(series);
    if listed.is_none() && apt::is_here() && apt::is_root()? {
        apt::update(workspace)?;
        listed = list(series);
    }
    let unpacked = newest(
        fs::read_dir(&folder)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect::<Vec<_>>()
            .iter()
            .map(String::as_str),
        series,
    );
    let package = match (listed, unpacked) {
        (Some(listed), unpacked) if unpacked.as_ref() == Some(&listed) => listed,
        (Some(listed), unpacked) => match (download(&folder, &listed), unpacked) {
            (Ok(()), _) => listed,
            (Err(error), Some(unpacked)) => {
                eprintln!("note: {error:#}\nnote: {unpacked}, unpacked before, is used instead");
                unpacked
            }
            (Err(error), None) => return Err(error),
        },
        (None, Some(unpacked)) => unpacked,
        (None, None) => bail!(
            "apt knows no Debian 12 cloud kernel {}. On Debian 12, run `sudo apt-get update`, with \
             bookworm and bookworm-security in its sources (6.12 is in bookworm-backports too), \
             and try again.",
            series.name()
        ),
    };
    let root = folder.join(&package);
    let release = package.trim_start_matches("linux-image-").to_owned();
    Ok(Kernel {
        image: root.join(format!("boot/vmlinuz-{release}")),
        modules: root.join(format!("lib/modules/{release}")),
        release,
    })
}

/// The newest package of the series in apt's lists.
fn list(series: Series) -> Option<String> {
    let prefix = series.package_pattern().0;
    let names = command::ask(Command::new("apt-cache").args(["pkgnames", prefix]))?;
    newest(names.lines(), series)
}

/// The name with the highest number among those of the series. Debug symbols and unsigned images
/// have names that go on.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: Series) -> Option<String> {
    let (prefix, suffix) = series.package_pattern();
    names
        .filter_map(|name| {
            let number: u32 = name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()?;
            Some((number, name))
        })
        .max()
        .map(|(_, name)| name.to_owned())
}

/// Downloads and unpacks `package` into a folder of its name, which is there whole or not at all.
fn download(folder: &std::path::Path, package: &str) -> Result<()> {
    println!("vm: download {package}");
    let work = folder.join("unfinished");
    let _ = fs::remove_dir_all(&work);
    let root = work.join("root");
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    let mut download = Command::new("apt-get");
    download
        // apt's sandbox user cannot write here.
        .args(["-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(&work);
    command::run_logged(&mut download, &folder.join("download.log"), LIMIT).with_context(|| {
        format!("{package} was not downloaded; if apt's lists are old, run `sudo apt-get update`")
    })?;
    let archive = fs::read_dir(&work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no archive of {package}"))?;
    command::run(Command::new("dpkg").arg("-x").arg(&archive).arg(&root))?;
    fs::rename(&root, folder.join(package)).context("cannot move the unpacked kernel")?;
    let _ = fs::remove_dir_all(&work);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 7] = [
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.1.0-57-cloud-amd64-unsigned",
        "linux-image-6.1.0-58-cloud-amd64-dbg",
        "linux-image-6.12.99+deb12-cloud-amd64",
        "linux-image-6.12.117+deb12-cloud-amd64",
        "linux-image-6.12-cloud-amd64",
    ];

    #[test]
    fn the_highest_number_wins_not_the_last_in_the_alphabet() {
        let newest = |series| newest(NAMES.into_iter(), series);
        assert_eq!(newest(Series::V6_1).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(
            newest(Series::V6_12).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
    }

    #[test]
    fn no_package_of_the_series_is_none() {
        assert_eq!(newest(["linux-image-amd64"].into_iter(), Series::V6_1), None);
    }
}
