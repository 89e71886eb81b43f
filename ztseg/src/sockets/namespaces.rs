//! The processes of workloads, and the network namespaces that they live in.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// One descriptor of each.
    pub(super) namespaces: Vec<File>,
    /// Processes whose namespace may not be asked for.
    pub(super) closed: usize,
}

/// The namespaces of the processes in a cgroup and below it, each once.
///
/// A namespace in which no process lives any more is not found, though a socket that was passed on
/// may be in it.
pub(super) fn below(cgroup: &Path) -> Found {
    let (mut found, mut seen) = (Found::default(), HashSet::new());
    each_process(cgroup, |process| {
        match namespace_of(process, &mut seen) {
            Ok(Some(namespace)) => found.namespaces.push(namespace),
            Ok(None) => {}
            Err(e) if is_gone(&e) => {}
            Err(_) => found.closed += 1,
        }
        ControlFlow::Continue(())
    });
    found
}

/// Hands out the numbers of the processes in a cgroup and below it. Zero stands for a process of a
/// process namespace that cannot be seen from here.
pub(super) fn each_process(cgroup: &Path, mut each: impl FnMut(&str) -> ControlFlow<()>) {
    let mut folders = vec![cgroup.to_owned()];
    while let Some(folder) = folders.pop() {
        // A cgroup that is gone has no processes; one with threads of its own shows none, but
        // their processes are in the cgroup above.
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            if each(process).is_break() {
                return;
            }
        }
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|t| t.is_dir());
        folders.extend(entries.flatten().filter(is_folder).map(|entry| entry.path()));
    }
}

fn namespace_of(process: &str, seen: &mut HashSet<u64>) -> io::Result<Option<File>> {
    if process == "0" {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let path = format!("/proc/{process}/ns/net");
    if !seen.insert(fs::metadata(&path)?.ino()) {
        return Ok(None);
    }
    File::open(&path).map(Some)
}

/// Whether it says that a process has ended.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// The namespace of this thread.
pub(super) fn own() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Takes this thread, and no other, into a namespace.
pub(super) fn enter(namespace: &File) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}
