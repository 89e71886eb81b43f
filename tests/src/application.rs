//! Programs that others wrote, as `cargo xtask` found or unpacked them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::{Place, Process};

/// The folder in which packages are unpacked that this machine has not installed.
const UNPACKED: &str = "ZTSEG_APPLICATIONS";
/// Where programs are, below that folder and on the machine.
const FOLDERS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];
/// Where Debian keeps the programs of each version of `PostgreSQL`.
const POSTGRESQL: &str = "usr/lib/postgresql";
/// Where unpacked programs find their libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// The user that has nothing (`/etc/passwd` of Debian), for what refuses to run as root.
pub const NOBODY: u32 = 65534;

/// A program.
#[derive(Clone, Debug)]
pub struct Application {
    file: PathBuf,
    /// What its environment must have, as `env` takes it.
    environment: Vec<String>,
}

impl Application {
    /// Looks for a program by its name; `None` where it is not there.
    pub fn find(name: &str) -> Option<Self> {
        let unpacked = std::env::var_os(UNPACKED).map(PathBuf::from);
        let roots = unpacked.iter().map(PathBuf::as_path).chain([Path::new("/")]);
        let file = roots.flat_map(folders).map(|folder| folder.join(name)).find(|f| f.is_file())?;
        let libraries: Vec<String> = unpacked
            .iter()
            .flat_map(|root| LIBRARIES.map(|folder| root.join(folder).display().to_string()))
            .collect();
        Some(Self { file, environment: vec![format!("LD_LIBRARY_PATH={}", libraries.join(":"))] })
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn with(mut self, variable: &str, value: &str) -> Self {
        self.environment.push(format!("{variable}={value}"));
        self
    }

    /// Starts it.
    pub fn spawn(&self, place: &Place, args: &[&str]) -> Result<Process> {
        let file = self.file.to_string_lossy();
        let environment = self.environment.iter().map(String::as_str);
        let all: Vec<&str> = environment.chain([&*file]).chain(args.iter().copied()).collect();
        place.spawn("env", &all)
    }

    /// Starts it as a user without any right but to read everything: the program's own folder may
    /// be below one that is root's alone. It has its own System V memory, which goes with it.
    pub fn spawn_as_nobody(&self, place: &Place, args: &[&str]) -> Result<Process> {
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        let mut all = vec!["--ipc", "setpriv", &user[0], &user[1], "--clear-groups"];
        all.extend(["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]);
        // Another user id takes the signal at the parent's death away.
        all.extend(["--pdeathsig", "KILL", "env"]);
        all.extend(self.environment.iter().map(String::as_str));
        let file = self.file.to_string_lossy();
        all.push(&file);
        all.extend(args);
        place.spawn("unshare", &all)
    }
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let versions = fs::read_dir(root.join(POSTGRESQL));
    let versions = versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    FOLDERS.map(|folder| root.join(folder)).into_iter().chain(versions).collect()
}
