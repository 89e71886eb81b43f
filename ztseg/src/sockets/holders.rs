//! Processes that hold sockets, and the sockets that they hold.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};
use std::path::Path;

use super::namespaces::{each_process, is_gone};
use crate::datapath::sys;

/// What a process' descriptors of sockets are shown as: `socket:[INODE]`.
const SOCKET: &str = "socket:[";

/// Hands out a descriptor of each socket that `is_wanted` by its inode and that a process in a cgroup
/// or below it holds, until `each` has enough. Gives how many processes may not be looked into.
///
/// There is one such descriptor at a time and for as long as `each` takes: a socket that its process
/// closes meanwhile stays open for so long.
pub(super) fn each_socket(
    cgroup: &Path,
    is_wanted: impl Fn(u64) -> bool,
    mut each: impl FnMut(BorrowedFd<'_>) -> ControlFlow<()>,
) -> usize {
    let mut closed = 0;
    each_process(cgroup, |process| match of_process(process, &is_wanted, &mut each) {
        Ok(flow) => flow,
        Err(e) => {
            closed += usize::from(!is_gone(&e));
            ControlFlow::Continue(())
        }
    });
    closed
}

fn of_process(
    number: &str,
    is_wanted: impl Fn(u64) -> bool,
    mut each: impl FnMut(BorrowedFd<'_>) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let pid = number.parse().ok().filter(|pid| *pid > 0);
    let process = sys::process(pid.ok_or(io::ErrorKind::PermissionDenied)?)?;
    for entry in fs::read_dir(format!("/proc/{number}/fd"))? {
        let entry = entry?;
        // One that was closed meanwhile.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let descriptor = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let (Some(inode), Some(descriptor)) = (target.to_str().and_then(inode), descriptor) else {
            continue;
        };
        if !is_wanted(inode) {
            continue;
        }
        let socket = match sys::duplicate_of(process.as_fd(), descriptor) {
            Ok(socket) => socket,
            Err(e) if e.raw_os_error() == Some(libc::EBADF) => continue,
            Err(e) => return Err(e),
        };
        if each(socket.as_fd()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn inode(target: &str) -> Option<u64> {
    target.strip_prefix(SOCKET)?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_have_a_sockets_inode() {
        assert_eq!(inode("socket:[4711]"), Some(4711));
        for other in ["pipe:[4711]", "socket:[]", "socket:[x]", "/tmp/socket:[1]", "socket:[1"] {
            assert_eq!(inode(other), None, "{other}");
        }
    }
}
