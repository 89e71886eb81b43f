//! `ztseg detach`: leaves nothing behind.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::{TcAttachType, tc};

use super::programs::{TC_PROGRAMS, has_tcx, kernel, remove_clsact, remove_link};
use super::{DatapathError, bpffs, versions};

/// Detaches every pinned link of every ABI version, then removes the pins.
pub fn all(folder: &Path) -> Result<Vec<String>, DatapathError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let lock = bpffs::lock(folder)?;
    let done = everything(folder).map_err(|e| kernel("detaching", e))?;
    drop(lock);
    match fs::remove_dir(folder) {
        // The folder may be a mount point, or hold what is not ours.
        Ok(()) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => {}
        Err(e) => return Err(kernel(&format!("removing {}", folder.display()), e)),
    }
    Ok(done)
}

fn everything(folder: &Path) -> io::Result<Vec<String>> {
    let mut done = if has_tcx() { Vec::new() } else { filters() };
    for version in versions::versions(folder)? {
        for link in entries(&version.join("links"))? {
            let name = file_name(&link);
            if remove_link(&link)? {
                done.push(format!("detached {name}"));
            }
        }
        for map in entries(&version.join("maps"))? {
            fs::remove_file(&map)?;
            done.push(format!("removed map {}", file_name(&map)));
        }
        for note in entries(&version.join("clsact"))? {
            if let Ok(ifindex) = file_name(&note).parse() {
                remove_clsact(&version.join("clsact"), ifindex);
            }
        }
        remove_folders(&version)?;
    }
    Ok(done)
}

/// Removes the folder of a version, which must have no pins any more.
pub fn remove_folders(version: &Path) -> io::Result<()> {
    for inner in ["links", "maps", "clsact"] {
        let inner = version.join(inner);
        if inner.exists() {
            fs::remove_dir(inner)?;
        }
    }
    fs::remove_dir(version)
}

/// Removes our classic TC filters from every interface; they have no pins.
fn filters() -> Vec<String> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else { return Vec::new() };
    let mut done = Vec::new();
    for interface in &interfaces {
        let Ok(interface) = interface.name().to_str() else { continue };
        for program in TC_PROGRAMS {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                if tc::qdisc_detach_program(interface, hook, program).is_ok() {
                    done.push(format!("detached {program}@{interface}"));
                }
            }
        }
    }
    done
}

/// What is in a folder, which need not be there.
pub fn entries(folder: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|e| Ok(e?.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The last part of a path.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
