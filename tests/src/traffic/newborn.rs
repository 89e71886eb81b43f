//! Cgroups that send a packet the moment they are made.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::last_line;
use super::tool::say;
use crate::process::Place;

/// What became of the first packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newborn {
    /// How many of those to the first address the kernel took.
    pub first_taken: u64,
    /// How many of those to the second address the kernel took.
    pub second_taken: u64,
}

/// Makes `count` cgroups below `place`'s; each gets a process that sends one datagram to the
/// first and one to the second address at once, from sockets made there.
pub fn newborn(
    place: &Place,
    count: u32,
    first: SocketAddr,
    second: SocketAddr,
) -> Result<Newborn> {
    let cgroup = place.cgroup.as_deref().context("a place without a cgroup")?;
    let (cgroup, count) = (cgroup.to_string_lossy(), count.to_string());
    let args = ["newborn", &*cgroup, &count, &first.to_string(), &second.to_string()];
    last_line(place.tool(&args)?)
}

/// The child's side: one process moves from cgroup to cgroup.
pub(super) fn run(parent: &Path, count: u32, first: SocketAddr, second: SocketAddr) -> Result<()> {
    let mut taken = Newborn { first_taken: 0, second_taken: 0 };
    for number in 0..count {
        let cgroup = parent.join(format!("newborn-{number}"));
        fs::create_dir(&cgroup)?;
        fs::write(cgroup.join("cgroup.procs"), "0")?;
        taken.first_taken += u64::from(send(first)?);
        taken.second_taken += u64::from(send(second)?);
    }
    say(&taken)
}

/// Whether the kernel took a datagram from a new socket.
fn send(to: SocketAddr) -> Result<bool> {
    let local: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    Ok(UdpSocket::bind(local)?.send_to(b"newborn", to).is_ok())
}
