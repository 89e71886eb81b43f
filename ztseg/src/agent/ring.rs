//! Waiting for the ring buffer. The agent's only `unsafe`.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers the ring buffer's descriptor with the runtime.
///
/// # Errors
/// When it cannot be polled.
pub(super) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same, open descriptor for as long as it lives, and nothing
    // here hands out a way to replace it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
