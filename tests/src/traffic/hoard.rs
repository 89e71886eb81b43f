//! Processes with many sockets.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::tool::{say, wait_for_the_end};
use crate::process::{Place, Process};
use crate::world::patient;

/// Sockets of one process, on one address of the loopback network: fewer than a process may have
/// where nobody says otherwise.
const EACH: u32 = 1000;

/// Processes that hold sockets; they are closed when this is dropped.
#[derive(Debug)]
pub struct Hoard {
    _processes: Vec<Process>,
}

impl Hoard {
    /// Makes so many UDP sockets, each with a port.
    pub fn start(place: &Place, count: u32) -> Result<Self> {
        let mut processes = Vec::new();
        for begin in (0..count).step_by(EACH as usize) {
            let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + begin / EACH);
            let each = EACH.min(count - begin);
            processes.push(place.tool(&["hoard", &address.to_string(), &each.to_string()])?);
        }
        for process in &mut processes {
            process.wait_for_output("ready", patient(Duration::from_secs(60)))?;
        }
        Ok(Self { _processes: processes })
    }
}

/// The child's side.
pub(super) fn run(address: Ipv4Addr, count: u32) -> Result<()> {
    let bind = |n| UdpSocket::bind((address, 0)).with_context(|| format!("socket {n}"));
    let sockets = (0..count).map(bind).collect::<Result<Vec<_>>>()?;
    say(&"ready")?;
    wait_for_the_end();
    drop(sockets);
    Ok(())
}
