//! The file system for pins, left as it was found.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::umount;
use nix::sys::statfs::{FsType, statfs};

use super::{BPFFS, PREFIX, leftovers};

/// `BPF_FS_MAGIC` (uapi/linux/magic.h)
const MAGIC: FsType = FsType(0xcafe_4a11);
/// Another one after each boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What the kernel itself pins into each bpffs (`CONFIG_BPF_PRELOAD`, `kernel/bpf/inode.c`).
const KERNELS: [&str; 2] = ["maps.debug", "progs.debug"];

/// Whether the bpffs was mounted when this was made. If not, the first agent mounts it, as it does on
/// a host without one, and this unmounts it when it is dropped, unless somebody else has pins there.
///
/// A run that is killed drops nothing, so it leaves a note, by which the next one knows that the mount
/// is nobody's.
#[derive(Debug)]
#[must_use]
pub struct Bpffs {
    /// None where somebody else had mounted it.
    note: Option<PathBuf>,
}

impl Bpffs {
    /// Looks. To be called before anything is pinned.
    pub fn as_found() -> Self {
        // Without it, notes say nothing.
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        Self { note: look(&std::env::temp_dir(), &boot, is_mounted()) }
    }
}

/// Takes the notes of dead runs away, and gives this one's, where the bpffs is not mounted or was by one
/// of those since this boot.
fn look(folder: &Path, boot: &str, is_mounted: bool) -> Option<PathBuf> {
    let mut is_ours = !is_mounted;
    for name in leftovers::names(folder, &format!("{PREFIX}-bpffs-")) {
        let note = folder.join(name);
        is_ours |= fs::read_to_string(&note).is_ok_and(|of| !of.is_empty() && of == boot);
        let _ = fs::remove_file(note);
    }
    let own = folder.join(format!("{PREFIX}-bpffs-{}-", std::process::id()));
    if is_ours && let Err(error) = fs::write(&own, boot) {
        eprintln!(
            "{} cannot be written: {error}; after a kill, {BPFFS} stays mounted",
            own.display()
        );
    }
    is_ours.then_some(own)
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let Some(note) = &self.note else { return };
        unmount();
        // One that stays is taken away by the next run.
        let _ = fs::remove_file(note);
    }
}

/// Unmounts what has no pins but the kernel's own.
fn unmount() {
    if !is_mounted() {
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

fn is_mounted() -> bool {
    statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_a_dead_run_is_ours() {
        let folder = std::env::temp_dir().join(format!("bpffs-notes-{}", std::process::id()));
        fs::create_dir(&folder).expect("made");
        // Above the largest process id (PID_MAX_LIMIT, include/linux/threads.h).
        let dead = folder.join(format!("{PREFIX}-bpffs-4194305-"));
        for (note, is_mounted, is_ours) in [
            (None, false, true),
            (None, true, false),
            (Some("this boot"), true, true),
            (Some("another boot"), true, false),
            (Some(""), true, false),
        ] {
            if let Some(text) = note {
                fs::write(&dead, text).expect("written");
            }
            let own = look(&folder, "this boot", is_mounted);
            assert_eq!(own.is_some(), is_ours, "{note:?}, mounted: {is_mounted}");
            assert!(!dead.exists(), "{note:?} is still there");
            // A run that lives is no leftover.
            assert_eq!(look(&folder, "this boot", true), None);
            assert_eq!(own.as_ref().is_some_and(|own| own.exists()), is_ours);
            own.map(fs::remove_file).transpose().expect("removed");
        }
        fs::remove_dir(&folder).expect("empty");
    }
}
