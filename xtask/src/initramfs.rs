//! The file system of a virtual machine: busybox, the tests, and what they call.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::applications;
use crate::command;
use crate::kernels::Kernel;
use crate::modules;
use crate::test::Built;
use crate::workspace::Workspace;

const BUSYBOX: &str = "/bin/busybox";

/// Programs that tests call where the host has them; the first is one that they cannot do without.
const PROGRAMS: [&str; 10] = [
    "ip",
    "tc",
    "ss",
    "nft",
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "ping",
    "bpftool",
];

/// Where iptables has its matches and targets: shared objects that it loads by name.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Applications that tests put ztseg between, where they are unpacked or the host has them: those
/// that are small, for the machine keeps its files in memory, and that need little time.
const APPLICATIONS: [&str; 5] = ["nsd", "nsd-control", "dig", "ping", "traceroute.db"];
/// Where those are in the machine that are unpacked.
const UNPACKED: &str = "/ztseg/applications";

/// What `ip` and the C library look up.
const FILES: [&str; 4] =
    ["/etc/protocols", "/etc/services", "/etc/iproute2", "/usr/share/iproute2"];

/// Makes the initramfs that runs the tests; `folder` is emptied and used. `limit` is theirs.
pub(crate) fn with_tests(
    workspace: &Workspace,
    folder: &Path,
    kernel: &Kernel,
    built: &Built,
    args: &[String],
    limit: Duration,
) -> Result<PathBuf> {
    let mut tree = Tree::new(folder)?;
    tree.program_as(&built.tests, "/ztseg/kernel")?;
    tree.program_as(&built.agent, "/ztseg/ztseg")?;
    for name in PROGRAMS {
        match find(name) {
            Some(program) => tree.program(&program, name)?,
            None if name == PROGRAMS[0] => bail!("`ip` is not there; install iproute2"),
            None => {}
        }
    }
    for name in APPLICATIONS {
        tree.application(&applications::folder(workspace), name)?;
    }
    for file in FILES {
        tree.copy(Path::new(file), file)?;
    }
    tree.copy(Path::new(XTABLES), XTABLES)?;
    tree.copy(&workspace.root().join("policies"), "/ztseg/policies")?;
    let loaded = modules::copy(&kernel.modules, &tree.at("/modules"))?;
    tree.write("/modules/order", &lines(&loaded))?;
    tree.write("/ztseg/args", &lines(args))?;
    tree.write("/ztseg/limit", &format!("{}\n", limit.as_secs()))?;
    tree.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    tree.write("/etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    tree.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    tree.init(include_str!("init.sh"))?;
    tree.pack()
}

/// Makes an initramfs that prints `marker` on the second serial line and turns the machine off.
pub(crate) fn with_marker(folder: &Path, marker: &str) -> Result<PathBuf> {
    let tree = Tree::new(folder)?;
    tree.init(&format!(
        "#!{BUSYBOX} sh\n/bin/busybox mount -t devtmpfs devtmpfs /dev\necho {marker} >/dev/ttyS1\n\
         /bin/busybox poweroff -f\n"
    ))?;
    tree.pack()
}

/// One line each; a line break inside would make two of one.
fn lines(items: &[String]) -> String {
    let mut text = String::new();
    for item in items {
        text.push_str(&item.replace('\n', " "));
        text.push('\n');
    }
    text
}

/// A program in the folders where system programs are, which a user's PATH may lack.
fn find(name: &str) -> Option<PathBuf> {
    find_below(Path::new("/"), name)
}

fn find_below(root: &Path, name: &str) -> Option<PathBuf> {
    ["usr/sbin", "usr/bin", "sbin", "bin"]
        .iter()
        .map(|folder| root.join(folder).join(name))
        .find(|path| path.is_file())
}

/// A folder that becomes an initramfs.
struct Tree {
    root: PathBuf,
    libraries: BTreeSet<PathBuf>,
}

impl Tree {
    /// Starts with the empty folders that mounts need, and busybox.
    fn new(folder: &Path) -> Result<Self> {
        let root = folder.join("root");
        if root.exists() {
            fs::remove_dir_all(&root)
                .with_context(|| format!("cannot empty {}", root.display()))?;
        }
        let tree = Self { root, libraries: BTreeSet::new() };
        for name in [
            "bin", "sbin", "dev", "proc", "sys", "tmp", "run", "var", "root", "usr/sbin", "usr/bin",
        ] {
            let folder = tree.root.join(name);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        std::os::unix::fs::symlink("/run", tree.root.join("var/run"))
            .context("cannot link /var/run")?;
        tree.copy(Path::new(BUSYBOX), BUSYBOX)?;
        if !tree.at(BUSYBOX).exists() {
            bail!("{BUSYBOX} is not there; install busybox-static");
        }
        Ok(tree)
    }

    /// Where an absolute path of the machine is on this host.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let file = self.at(path);
        make_parent(&file)?;
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    fn init(&self, script: &str) -> Result<()> {
        self.write("/init", script)?;
        fs::set_permissions(self.at("/init"), fs::Permissions::from_mode(0o755))
            .context("cannot make /init executable")
    }

    /// Copies a file, or a folder with what is in it; nothing when it does not exist.
    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        if from.is_dir() {
            for entry in
                fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?
            {
                let entry = entry?;
                let name = entry.file_name();
                self.copy(&entry.path(), &format!("{to}/{}", name.to_string_lossy()))?;
            }
        } else if from.exists() {
            let to = self.at(to);
            make_parent(&to)?;
            fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(())
    }

    /// A system program with its libraries. busybox has some of the same names, so it goes where
    /// PATH looks first.
    fn program(&mut self, program: &Path, name: &str) -> Result<()> {
        self.copy(program, &format!("/usr/sbin/{name}"))?;
        self.libraries(program)
    }

    /// An application with its libraries, from below the folder `unpacked` or from the host; nothing
    /// where it is in neither.
    fn application(&mut self, unpacked: &Path, name: &str) -> Result<()> {
        let Some(program) = find_below(unpacked, name) else {
            return find(name).map_or(Ok(()), |program| self.program(&program, name));
        };
        let mut ldd = Command::new("ldd");
        ldd.arg(&program).env("LD_LIBRARY_PATH", unpacked.join("usr/lib/x86_64-linux-gnu"));
        let listing = command::ask(&mut ldd).unwrap_or_default();
        for file in libraries(&listing).into_iter().chain([program]) {
            if self.libraries.insert(file.clone()) {
                let inside =
                    file.strip_prefix(unpacked).map(|below| Path::new(UNPACKED).join(below));
                let to = inside.unwrap_or_else(|_| file.clone());
                self.copy(&file, &to.to_string_lossy())?;
            }
        }
        Ok(())
    }

    /// One of our own programs with its libraries, without the debug information that would only
    /// fill the machine's memory.
    fn program_as(&mut self, program: &Path, to: &str) -> Result<()> {
        let copy = self.at(to);
        make_parent(&copy)?;
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(&copy).arg(program);
        if command::ask(&mut strip).is_none() {
            self.copy(program, to)?;
        }
        self.libraries(program)
    }

    fn libraries(&mut self, program: &Path) -> Result<()> {
        // ldd fails for a program that is linked statically, which needs nothing.
        let Some(listing) = command::ask(Command::new("ldd").arg(program)) else { return Ok(()) };
        for library in libraries(&listing) {
            if self.libraries.insert(library.clone()) {
                self.copy(&library, &library.to_string_lossy())?;
            }
        }
        Ok(())
    }

    /// Writes the archive: `cpio -H newc` (Documentation/driver-api/early-userspace/buffer-format).
    fn pack(&self) -> Result<PathBuf> {
        let archive = self.root.with_extension("cpio");
        let out = File::create(&archive)
            .with_context(|| format!("cannot write {}", archive.display()))?;
        let mut names = Vec::new();
        list(&self.root, Path::new(""), &mut names)?;
        let mut cpio = Command::new("cpio")
            .args(["--create", "--format=newc", "--quiet", "--owner=+0:+0"])
            .current_dir(&self.root)
            .stdin(Stdio::piped())
            .stdout(out)
            .spawn()
            .context("cannot start cpio")?;
        {
            let mut stdin = cpio.stdin.take().context("cpio has no standard input")?;
            for name in names {
                writeln!(stdin, "{}", name.display()).context("cpio stopped reading")?;
            }
        }
        let status = cpio.wait()?;
        if !status.success() {
            bail!("cpio failed ({status}) to pack {}", self.root.display());
        }
        Ok(archive)
    }
}

fn make_parent(file: &Path) -> Result<()> {
    let Some(folder) = file.parent() else { return Ok(()) };
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Every path below a folder, each folder before what is in it.
fn list(root: &Path, below: &Path, names: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(below);
    let mut entries: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = below.join(entry.file_name());
        names.push(name.clone());
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}

/// The files in the output of ldd(1): `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader's bare
/// path.
fn libraries(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| {
            let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
            let path = path.split(" (").next()?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ldd() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
            \tlibgone.so.1 => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        assert_eq!(
            libraries(listing),
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn lists_folders_before_what_is_in_them() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::create_dir_all(folder.path().join("b/c"))?;
        fs::write(folder.path().join("b/c/d"), "")?;
        fs::write(folder.path().join("a"), "")?;
        let mut names = Vec::new();
        list(folder.path(), Path::new(""), &mut names)?;
        assert_eq!(names, ["a", "b", "b/c", "b/c/d"].map(PathBuf::from));
        Ok(())
    }
}
