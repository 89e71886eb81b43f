//! Links: made, taken over from an earlier agent, and looked after.
//!
//! The pin is what counts: the next agent finds it, and it keeps the link in force when no agent
//! runs. The descriptor that an agent holds besides only makes that a removed pin is no gap.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::guard::Tampering;
use super::pin::Pin;
use super::sys::{self, AttachType, LinkInfo};

/// What a program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A cgroup's folder.
    Cgroup(PathBuf),
    /// An interface of the agent's network namespace.
    Interface {
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "{}", path.display()),
            Self::Interface { name, .. } => write!(f, "{name}"),
        }
    }
}

impl Target {
    fn attach(&self, program: BorrowedFd<'_>, attach_type: AttachType) -> io::Result<OwnedFd> {
        match self {
            Self::Cgroup(path) => {
                let folder = fs::File::open(path)?;
                sys::link_create(program, sys::fd_u32(folder.as_raw_fd()), attach_type)
            }
            Self::Interface { ifindex, .. } => sys::link_create(program, *ifindex, attach_type),
        }
    }

    /// Whether a link is attached to this, by this type. A link that is attached no longer has
    /// nothing as its target (`bpf_cgroup_link_fill_link_info`, `tcx_link_fill_info`).
    fn has(&self, link: &LinkInfo, attach_type: AttachType) -> io::Result<bool> {
        /// `BPF_LINK_TYPE_CGROUP`, `BPF_LINK_TYPE_TCX` (uapi/linux/bpf.h)
        const CGROUP: u32 = 3;
        const TCX: u32 = 11;
        Ok(match self {
            // The file system shows cgroup ids as inode numbers.
            Self::Cgroup(path) => {
                link.link_type == CGROUP
                    && link.target == fs::metadata(path)?.ino()
                    && link.attach_type == attach_type as u32
            }
            Self::Interface { ifindex, .. } => {
                link.link_type == TCX
                    && link.target == u64::from(*ifindex) | u64::from(attach_type as u32) << 32
            }
        })
    }

    /// Whether it is still there; what is attached goes with it.
    fn is_there(&self) -> bool {
        match self {
            Self::Cgroup(path) => path.exists(),
            Self::Interface { ifindex, name } => {
                nix::net::if_::if_nametoindex(name.as_str()).is_ok_and(|index| index == *ifindex)
            }
        }
    }
}

/// A link of ours.
#[derive(Debug)]
pub struct Link {
    /// The program's name.
    pub program: &'static str,
    /// What it is attached to.
    pub target: Target,
    attach_type: AttachType,
    pin: Pin,
    fd: OwnedFd,
}

impl Link {
    /// Swaps a program into the pinned link, or makes and pins a new one. True: a new one.
    pub fn attach(
        (name, program): (&'static str, BorrowedFd<'_>),
        target: &Target,
        attach_type: AttachType,
        path: &Path,
    ) -> io::Result<(Self, bool)> {
        let link = |fd, pin| Self { program: name, target: target.clone(), attach_type, pin, fd };
        if let Some(fd) = adopt(program, target, attach_type, path)? {
            return Ok((link(fd, Pin::at(path)?), false));
        }
        let fd = target.attach(program, attach_type)?;
        let pin = Pin::make(fd.as_fd(), path)?;
        Ok((link(fd, pin), true))
    }

    /// Looks whether it is still as it was made, with the program of this id; what is not is put
    /// right.
    pub fn inspect(
        &mut self,
        program: BorrowedFd<'_>,
        id: u32,
    ) -> Option<(Tampering, io::Result<()>)> {
        let info = match sys::link_info(self.fd.as_fd()) {
            Ok(info) => info,
            Err(e) => return Some((Tampering::LinkDetached, Err(e))),
        };
        if !self.target.has(&info, self.attach_type).unwrap_or(false) {
            // With an interface its links go, and the watcher says so in a moment.
            let gone = matches!(self.target, Target::Interface { .. }) && !self.target.is_there();
            return (!gone).then(|| (Tampering::LinkDetached, self.again(program)));
        }
        if info.prog_id != id {
            let back = sys::link_update(self.fd.as_fd(), program);
            return Some((Tampering::ProgramReplaced, back));
        }
        if !self.pin.is_there() {
            return Some((Tampering::PinRemoved, self.pin_again()));
        }
        None
    }

    fn again(&mut self, program: BorrowedFd<'_>) -> io::Result<()> {
        self.fd = self.target.attach(program, self.attach_type)?;
        self.pin_again()
    }

    fn pin_again(&mut self) -> io::Result<()> {
        self.pin = Pin::make(self.fd.as_fd(), self.pin.path())?;
        Ok(())
    }
}

/// The pinned link, with this program in it; nothing where there is none that is attached as it
/// should be.
fn adopt(
    program: BorrowedFd<'_>,
    target: &Target,
    attach_type: AttachType,
    path: &Path,
) -> io::Result<Option<OwnedFd>> {
    let link = match sys::open_pinned(path) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // What is no link answers with other words, and is none of ours.
    let ours = sys::link_info(link.as_fd())
        .and_then(|info| target.has(&info, attach_type))
        .unwrap_or(false);
    if !ours {
        return Ok(None);
    }
    match sys::link_update(link.as_fd(), program) {
        Ok(()) => Ok(Some(link)),
        // The link's target is gone (an interface was removed and its index used again).
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(None),
        Err(e) => Err(e),
    }
}
