//! The file system for pins, left as it was found.

use std::fs;

use nix::mount::umount;
use nix::sys::statfs::{FsType, statfs};

use super::BPFFS;

/// `BPF_FS_MAGIC` (uapi/linux/magic.h)
const MAGIC: FsType = FsType(0xcafe_4a11);
/// What the kernel itself pins into each bpffs (`CONFIG_BPF_PRELOAD`, `kernel/bpf/inode.c`).
const KERNELS: [&str; 2] = ["maps.debug", "progs.debug"];

/// Whether the bpffs was mounted when this was made. If not, the first agent mounts it, as it does on
/// a host without one, and this unmounts it when it is dropped, unless somebody else has pins there.
#[derive(Debug)]
#[must_use]
pub struct Bpffs {
    was_mounted: bool,
}

impl Bpffs {
    /// Looks. To be called before anything is pinned.
    pub fn as_found() -> Self {
        Self { was_mounted: is_mounted() }
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if self.was_mounted || !is_mounted() {
            return;
        }
        let is_kernels = |name: &str| KERNELS.contains(&name);
        let is_empty = fs::read_dir(BPFFS).is_ok_and(|mut entries| {
            entries.all(|entry| entry.is_ok_and(|e| e.file_name().to_str().is_some_and(is_kernels)))
        });
        if is_empty && let Err(error) = umount(BPFFS) {
            eprintln!("the bpffs at {BPFFS}, which was not mounted before, stays mounted: {error}");
        }
    }
}

fn is_mounted() -> bool {
    statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == MAGIC)
}
