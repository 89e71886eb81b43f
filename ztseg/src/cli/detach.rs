//! `ztseg detach`

use std::path::PathBuf;

use clap::Args;

use super::{Failure, output, settings};
use crate::api::client::{Client, ClientError};
use crate::api::types::Status;
use crate::datapath::{Datapath, Options};
use crate::discover::mounts::cgroup_root;

#[derive(Debug, Args)]
pub(super) struct Detach {
    /// Configuration file [default: /etc/ztseg/config.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the pins
    #[arg(long, value_name = "DIR")]
    bpffs: Option<PathBuf>,
    /// Socket of the agent that must not be running
    #[arg(long, value_name = "PATH", env = "ZTSEG_SOCKET")]
    socket: Option<PathBuf>,
}

impl Detach {
    pub(super) async fn execute(self) -> Result<(), Failure> {
        let config = settings::config(self.config.as_deref())?;
        let bpffs = self.bpffs.unwrap_or(config.bpffs);
        let socket = self.socket.unwrap_or(config.socket);
        match Client::new(&socket).get::<Status>("/v1/status").await {
            Err(ClientError::NoAgent { .. }) => {}
            Err(other) => return Err(other.into()),
            // Another agent's programs are not this one's.
            Ok(status) if status.bpffs != bpffs.display().to_string() => {}
            Ok(status) => {
                return Err(Failure::refused(format!(
                    "a ztseg agent runs (process {}) and would attach its programs again: stop it \
                     first (`systemctl stop ztseg`), or let it detach when it stops (`onExit: \
                     detach`)",
                    status.pid
                )));
            }
        }
        let root = cgroup_root(config.cgroup_root.as_deref());
        let cgroup_root = root.map_or_else(|_| "/sys/fs/cgroup".into(), |r| r.path);
        let options =
            Options { bpffs: bpffs.clone(), cgroup_root, capacity: config.capacity, debug: false };
        let removed =
            Datapath::detach_all(&options).map_err(|e| Failure::refused(e.to_string()))?;
        if removed.is_empty() {
            return output::print(&format!(
                "nothing to detach: no pins below {}\n",
                bpffs.display()
            ));
        }
        output::print(&(removed.join("\n") + "\n"))
    }
}
