//! Ctrl-C, and the other polite ways to end a program.
//!
//! A signal only raises a flag, and the demo looks at it between its steps, none of which takes
//! long. So whatever a step began is finished, and then removed in order.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The error of a step that did not begin, because a signal came.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Whether a signal came.
#[derive(Debug)]
pub(crate) struct Interrupt {
    came: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on signals do not end this program.
    pub(crate) fn listen() -> Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&came))
                .context("cannot listen to signals")?;
        }
        Ok(Self { came })
    }

    /// An error if a signal came.
    pub(crate) fn check(&self) -> Result<()> {
        if self.came.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
        Ok(())
    }

    /// Waits until a signal comes, which is no error here.
    pub(crate) fn wait(&self) {
        while self.check().is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
        self.came.store(false, Ordering::Relaxed);
    }
}
