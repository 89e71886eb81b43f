//! A subtree of the cgroup2 hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ztseg::discover::mounts::parse_mountinfo;

/// How long the kernel may take to end what was killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the root of the cgroup2 hierarchy is mounted.
pub(super) fn mount() -> Result<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    parse_mountinfo(&text)
        .into_iter()
        .find(|mount| mount.root == Path::new("/"))
        .map(|mount| mount.point)
        .context("there is no mount of the whole cgroup2 hierarchy")
}

/// A cgroup and all below it; removed when this is dropped.
#[derive(Debug)]
pub(super) struct Tree {
    mount: PathBuf,
    path: PathBuf,
}

impl Tree {
    pub(super) fn new(name: &str) -> Result<Self> {
        let mount = mount()?;
        let path = mount.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { mount, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_below_the_mount(&self) -> bool {
        self.path != self.mount && self.path.starts_with(&self.mount)
    }

    pub(super) fn make(&self, path: &str) -> Result<PathBuf> {
        let path = self.at(path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    pub(super) fn remove(&self, path: &str) -> Result<()> {
        remove(&self.at(path)?)
    }

    fn at(&self, path: &str) -> Result<PathBuf> {
        let below = path.strip_prefix('/').context("a cgroup's path begins with a slash")?;
        ensure!(!below.split('/').any(|part| part == ".."), "{path} leads out of the world");
        Ok(self.path.join(below))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

/// Kills what runs in a cgroup of a world, and removes it.
pub(super) fn remove(path: &Path) -> Result<()> {
    // Since Linux 5.14; it kills the whole subtree. No process here is anybody else's.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match remove_folders(path) {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => {
                bail!("cannot remove the cgroup {}: {e}", path.display())
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The files in a cgroup's folder cannot be removed, and need not be.
fn remove_folders(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_folders(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
