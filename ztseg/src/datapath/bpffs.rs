//! The folder for pins: it must lie on a bpffs, and only one agent may use it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::DatapathError;
use super::programs::{Pins, kernel};
use super::sys;

/// `BPF_FS_MAGIC` (uapi/linux/magic.h)
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
/// Where every distribution mounts its bpffs.
const STANDARD: &str = "/sys/fs/bpf";

/// Makes the folders, mounting the standard bpffs where it is not, and takes the lock. The lock
/// lasts as long as the returned file.
pub fn prepare(bpffs: &Path) -> Result<File, DatapathError> {
    let existing = bpffs.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if !on_bpffs(existing) {
        if !bpffs.starts_with(STANDARD) {
            let message = format!(
                "{} is not on a bpffs; mount one there (mount -t bpf bpf {0}), or use a folder below {STANDARD}",
                bpffs.display()
            );
            return Err(kernel("preparing the folder for pins", anyhow::anyhow!(message)));
        }
        mount_standard().map_err(|e| kernel(&format!("mounting a bpffs at {STANDARD}"), e))?;
    }
    let pins = Pins::new(bpffs);
    for folder in [pins.maps(), pins.links()] {
        fs::create_dir_all(&folder)
            .map_err(|e| kernel(&format!("making the folder {}", folder.display()), e))?;
    }
    lock(bpffs)
}

/// Mounts the standard bpffs. Of agents that start at once, one does: a second mount would hide the
/// first one's pins.
fn mount_standard() -> io::Result<()> {
    let _lock = Flock::lock(File::open(STANDARD)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    if on_bpffs(Path::new(STANDARD)) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("bpf"), STANDARD, Some("bpf"), flags, Some("mode=700"))?)
}

fn on_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Takes the lock of a folder that is there.
pub fn lock(bpffs: &Path) -> Result<File, DatapathError> {
    let folder = File::open(bpffs)
        .map_err(|e| kernel(&format!("opening the folder {}", bpffs.display()), e))?;
    match sys::lock_folder(&folder) {
        Ok(()) => Ok(folder),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(DatapathError::SecondAgent(bpffs.to_owned()))
        }
        Err(e) => Err(kernel(&format!("locking the folder {}", bpffs.display()), e)),
    }
}
