//! Offloads of an interface: whether the kernel writes checksums, or leaves that to the device.

use std::io;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd as _;

/// `SIOCETHTOOL` (linux/sockios.h), `ETHTOOL_STXCSUM` (linux/ethtool.h)
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The child's side: the interface is in its network namespace.
pub(crate) fn without_checksums(interface: &str) -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
    let mut value = Value { command: SET_TX_CHECKSUM, data: 0 };
    // SAFETY: an all-zero request is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(interface.len() < libc::IFNAMSIZ, "{interface} is too long a name");
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::try_from(from).context("an interface's name is ASCII")?;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and what it points to live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    ensure!(result == 0, "{interface}: {}", io::Error::last_os_error());
    Ok(())
}
