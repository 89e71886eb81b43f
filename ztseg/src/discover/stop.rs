//! A flag that ends a thread which waits in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The thread's end of the flag.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<EventFd>);

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The thread is to end.
    Stop,
    /// The descriptor is readable.
    Readable,
    /// Neither within the time.
    Timeout,
}

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Waits until `fd` is readable, the flag is set, or the time is over.
    pub(super) fn wait(
        &self,
        fd: Option<BorrowedFd<'_>>,
        timeout: PollTimeout,
    ) -> io::Result<Woken> {
        let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        fds.extend(fd.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        loop {
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
                Ok(0) => return Ok(Woken::Timeout),
                Ok(_) if fds[0].any() == Some(true) => return Ok(Woken::Stop),
                Ok(_) => return Ok(Woken::Readable),
            }
        }
    }

    fn set(&self) {
        // The counter can only fail to go up when it is already set.
        let _ = self.0.write(1);
    }
}

/// Owns a watcher's thread: tells it to end when dropped.
///
/// It does not wait for it: the thread may just be waiting for room in a channel whose reader is
/// the one that drops this.
#[derive(Debug)]
pub(super) struct Thread {
    stop: Stop,
}

impl Thread {
    pub(super) fn spawn(
        name: &str,
        stop: Stop,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { stop })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.set();
    }
}
