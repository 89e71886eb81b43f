//! Where things are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// The checked-out workspace and its target folder.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The workspace that this xtask was built from; `CARGO_TARGET_DIR` moves its target folder.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask is not in a workspace")?
            .to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(target) => env::current_dir()
                .context("the current folder is gone; change to the workspace and try again")?
                .join(target),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The top folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder; everything slow to make is kept below it.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Where `setup` puts programs.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// `PATH`, with those programs before all others.
    pub(crate) fn path_with_tools(&self) -> OsString {
        let mut path = self.tools().join("bin").into_os_string();
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        path
    }

    /// Where kernels, initramfs images and console logs of the virtual machines are.
    pub(crate) fn vm(&self) -> PathBuf {
        self.target.join("vm")
    }

    /// The cargo that runs this xtask, in the top folder.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        cargo
    }
}
