//! `ztseg man`

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_mangen::Man as Page;

use super::{Cli, Failure, output};

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write ztseg.1 and a page for each verb into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::refused(e.to_string());
        if let Some(dir) = self.dir {
            let at = |e| Failure::refused(format!("{}: {e}", dir.display()));
            return clap_mangen::generate_to(Cli::command(), &dir).map_err(at);
        }
        let mut text = Vec::new();
        Page::new(Cli::command()).render(&mut text).map_err(failed)?;
        output::print(&String::from_utf8_lossy(&text))
    }
}
