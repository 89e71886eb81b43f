//! What runs that were killed left behind.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{BPFFS, PREFIX, cgroup, network};

/// Removes everything with the name of a world whose process is gone.
pub(super) fn remove() -> Result<()> {
    let world = format!("{PREFIX}-");
    let mount = cgroup::mount()?;
    for name in names(&mount, &world) {
        // Another run may be removing it right now.
        let _ = cgroup::remove(&mount.join(name));
    }
    for folder in [Path::new(BPFFS), &std::env::temp_dir()] {
        for name in names(folder, &world) {
            let _ = fs::remove_dir_all(folder.join(name));
        }
    }
    for name in names(Path::new(network::NAMESPACES), "zt-") {
        network::remove(&name);
    }
    Ok(())
}

/// The names in `folder` of the form `PREFIX PID -…` whose process is gone.
pub(super) fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| is_of_the_dead(name, prefix)).collect()
}

fn is_of_the_dead(name: &str, prefix: &str) -> bool {
    let Some((pid, _)) = name.strip_prefix(prefix).and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::is_of_the_dead;

    #[test]
    fn only_names_of_worlds_whose_process_is_gone() {
        let own = std::process::id();
        assert!(!is_of_the_dead(&format!("zt-{own}-0-host"), "zt-"));
        // Above the largest process id (PID_MAX_LIMIT, include/linux/threads.h).
        assert!(is_of_the_dead("zt-4194305-0-host", "zt-"));
        for other in ["zt-4194305", "zt-x-0", "other-4194305-0", "zt--0"] {
            assert!(!is_of_the_dead(other, "zt-"), "{other}");
        }
    }
}
