//! Pins, and whether they are still the ones that were made.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::sys;

/// A pin that is ours. Its inode tells it from another one in its place: the kernel gives each pin
/// a new number (`bpf_get_inode`, kernel/bpf/inode.c).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    path: PathBuf,
    inode: u64,
}

impl Pin {
    /// The pin that is there.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() })
    }

    /// Pins an object, in place of whatever is there.
    pub fn make(object: BorrowedFd<'_>, path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
            Ok(_) => fs::remove_file(path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
            }
            Err(e) => return Err(e),
        }
        sys::pin(object, path)?;
        Self::at(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still there, and no other in its place.
    pub fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }
}

/// A map that outlives the agent.
#[derive(Debug)]
pub struct PinnedMap {
    /// The map.
    pub map: OwnedFd,
    /// Its pin.
    pub pin: Pin,
}

impl PinnedMap {
    /// Opens what is pinned in the folder `maps`.
    pub fn open(maps: &Path, name: &str) -> io::Result<Self> {
        let path = maps.join(name);
        Ok(Self { map: sys::open_pinned(&path)?, pin: Pin::at(&path)? })
    }
}
