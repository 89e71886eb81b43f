//! Where the cgroup2 hierarchy is mounted, and how deep below its root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`, `include/linux/proc_ns.h`).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;
/// The inode of the root of the cgroup2 hierarchy: the first that kernfs gives out.
const ROOT_INODE: u64 = 1;

/// A mount of the cgroup2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// What part of the hierarchy is mounted, as the reader's cgroup namespace sees it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
}

/// The folder that the cgroup hooks attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupRoot {
    /// The folder.
    pub path: PathBuf,
    /// How many levels below the root of the whole hierarchy it lies.
    pub level: u32,
}

/// Why there is no cgroup root. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No cgroup2 mount at all.
    #[error(
        "no cgroup2 file system is mounted here, and ztseg attaches its programs to one; \
         mount it with `mount -t cgroup2 none /sys/fs/cgroup` (on a host that still uses cgroup \
         v1: `mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`), or \
         in a container mount the host's /sys/fs/cgroup into it"
    )]
    NoCgroup2,
    /// The named folder is not on cgroup2.
    #[error(
        "the cgroup root {0} is not a folder of a cgroup2 file system; name one below {1}, or \
         leave cgroupRoot at `auto`"
    )]
    NotCgroup2(PathBuf, PathBuf),
    /// The named folder cannot be read.
    #[error(
        "the cgroup root {path} cannot be opened: {source}; make it with mkdir or name another one"
    )]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The depth of the mount is unknown.
    #[error(
        "this process runs in a cgroup namespace of its own, so the depth of {0} in the host's \
         hierarchy is unknown; start it in the host's cgroup namespace (docker and podman: \
         `--cgroupns=host`; Kubernetes: `privileged: true`)"
    )]
    Namespace(PathBuf),
    /// `/proc` is not there.
    #[error("{path} cannot be read: {source}; is /proc mounted?")]
    Proc {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The cgroup2 mounts in a `mountinfo` file (proc(5)), in the order of the file.
///
/// A line that is not as documented is left out.
pub fn parse_mountinfo(text: &[u8]) -> Vec<CgroupMount> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<CgroupMount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    // After the six fixed fields come any number of optional ones, then a lone hyphen.
    let hyphen = fields.iter().skip(6).position(|f| *f == b"-")? + 6;
    if *fields.get(hyphen + 1)? != b"cgroup2" {
        return None;
    }
    Some(CgroupMount { root: unescape(fields[3]), point: unescape(fields[4]) })
}

/// Undoes the octal escapes of blanks, tabs, line ends and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(value) if byte == b'\\' => {
                out.push(value);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out).into()
}

/// How many levels `root` (a mount's) lies below the hierarchy's root; nothing when it leads out
/// of the reader's cgroup namespace.
fn depth(root: &Path) -> Option<u32> {
    let mut depth = 0;
    for component in root.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(_) => depth += 1,
            _ => return None,
        }
    }
    Some(depth)
}

/// The mount to use: the one that shows most of the hierarchy; of equals the last, which lies on
/// top where two share a mount point.
pub fn whole_hierarchy(mounts: &[CgroupMount]) -> Option<&CgroupMount> {
    mounts.iter().rev().min_by_key(|m| depth(&m.root).unwrap_or(u32::MAX))
}

/// The mount that `path` lies on: the one with the longest mount point above it.
fn mount_of<'a>(mounts: &'a [CgroupMount], path: &Path) -> Option<&'a CgroupMount> {
    mounts.iter().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.as_os_str().len())
}

/// Finds the folder to attach to: `named`, or the whole cgroup2 hierarchy.
///
/// # Errors
/// [`MountError`]: what is missing, and what to do about it.
pub fn cgroup_root(named: Option<&Path>) -> Result<CgroupRoot, MountError> {
    let proc = |path: &str, source| MountError::Proc { path: path.into(), source };
    let text = fs::read("/proc/self/mountinfo").map_err(|e| proc("/proc/self/mountinfo", e))?;
    let mounts = parse_mountinfo(&text);
    let whole = whole_hierarchy(&mounts).ok_or(MountError::NoCgroup2)?;
    let (path, mount) = match named {
        None => (whole.point.clone(), whole),
        Some(named) => {
            let unreadable = |source| MountError::Unreadable { path: named.to_owned(), source };
            let path = fs::canonicalize(named).map_err(unreadable)?;
            let not = || MountError::NotCgroup2(named.to_owned(), whole.point.clone());
            let mount = mount_of(&mounts, &path).ok_or_else(not)?;
            // Another file system may be mounted below the cgroup2 mount.
            let is_cgroup2 = nix::sys::statfs::statfs(&path)
                .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
            if !is_cgroup2 || !path.is_dir() {
                return Err(not());
            }
            (path, mount)
        }
    };
    let inode = |path: &Path| {
        let unreadable = |source| MountError::Unreadable { path: path.to_owned(), source };
        fs::metadata(path).map(|m| m.ino()).map_err(unreadable)
    };
    let base = if inode(&mount.point)? == ROOT_INODE {
        0
    } else {
        let namespace = inode(Path::new("/proc/self/ns/cgroup"))?;
        depth(&mount.root)
            .filter(|_| namespace == INITIAL_CGROUP_NAMESPACE)
            .ok_or_else(|| MountError::Namespace(mount.point.clone()))?
    };
    let below = path.strip_prefix(&mount.point).map_or(0, |p| p.components().count());
    Ok(CgroupRoot { level: base.saturating_add(u32::try_from(below).unwrap_or(u32::MAX)), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    fn mount(root: &str, point: &str) -> CgroupMount {
        CgroupMount { root: root.into(), point: point.into() }
    }

    #[test]
    fn a_hybrid_host_has_cgroup2_beside_v1() {
        assert_eq!(parse_mountinfo(HYBRID), [mount("/", "/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_host_without_cgroup2_has_no_mount() {
        let v1 = b"32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
        assert_eq!(whole_hierarchy(&parse_mountinfo(v1)), None);
    }

    #[test]
    fn blanks_in_mount_points_are_undone() {
        let line = b"1 2 0:3 /a\\040b /mnt/x\\134y rw a:1 b:2 - cgroup2 none rw";
        assert_eq!(parse_mountinfo(line), [mount("/a b", "/mnt/x\\y")]);
    }

    #[test]
    fn lines_that_are_not_as_documented_are_left_out() {
        for line in [&b""[..], b"1 2 3", b"- cgroup2", b"1 2 0:3 / / rw - ", b"1 2 3 4 5 6 7 8"] {
            assert_eq!(parse_mountinfo(line), [], "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn the_whole_hierarchy_wins_over_a_part_of_it() {
        let mounts =
            [mount("/kubepods/pod1", "/part"), mount("/", "/whole"), mount("/../..", "/outside")];
        assert_eq!(whole_hierarchy(&mounts), Some(&mounts[1]));
    }

    #[test]
    fn the_depth_of_a_part_counts() {
        assert_eq!(depth(Path::new("/")), Some(0));
        assert_eq!(depth(Path::new("/kubepods/pod1")), Some(2));
        assert_eq!(depth(Path::new("/../../x")), None);
    }

    #[test]
    fn a_path_lies_on_the_innermost_mount() {
        let mounts = [mount("/", "/sys/fs/cgroup"), mount("/a", "/sys/fs/cgroup/deep")];
        assert_eq!(mount_of(&mounts, Path::new("/sys/fs/cgroup/deep/x")), Some(&mounts[1]));
        assert_eq!(mount_of(&mounts, Path::new("/sys/fs/cgroupish")), None);
    }

    #[test]
    fn a_folder_elsewhere_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = cgroup_root(Some(folder.path())).expect_err("not a cgroup");
        assert!(matches!(error, MountError::NotCgroup2(..) | MountError::NoCgroup2), "{error}");
        let missing = cgroup_root(Some(&folder.path().join("x"))).expect_err("missing");
        assert!(
            matches!(missing, MountError::Unreadable { .. } | MountError::NoCgroup2),
            "{missing}"
        );
    }
}
