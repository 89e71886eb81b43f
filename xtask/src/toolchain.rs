//! The toolchain for the kernel programs.
//!
//! They build for a target that has no precompiled `core`, so the compiler must accept unstable
//! options and come with the source of its own `core`. There are two ways to such a compiler: a
//! nightly of rustup with `rust-src`, and Debian's `rustc-web` with `rust-web-src`. In both cases
//! bpf-linker must be linked to the LLVM major that the compiler was built with.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::command;
use crate::workspace::Workspace;

/// Which way to take, `rustup` or `debian`; without it, whichever can be had.
const CHOICE: &str = "ZTSEG_EBPF_TOOLCHAIN";

/// The nightly is pinned: another one may emit code that the verifier refuses.
const NIGHTLY: &str = "nightly-2026-05-20";
/// The commit of that nightly's rustc, by which a toolchain of another name is known to be it.
const NIGHTLY_COMMIT: &str = "e50aa6fba4e63ab34c72bf9acfd2c307c1155d1a";

/// rustc 1.96 with its source; LLVM 22.
const DEBIAN_RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// The lints that go with it.
const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// The LLVM major of both compilers.
const LLVM: &str = "22";
/// What bpf-linker links to.
const DEBIAN_LLVM: [&str; 5] =
    ["llvm-22-dev", "libclang-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];
/// The release of bpf-linker that goes with these compilers.
const BPF_LINKER: &str = "0.13.0";

const DOWNLOAD_LIMIT: Duration = Duration::from_secs(5 * 60);
const COMPILE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A compiler for the kernel programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// A toolchain of rustup, by name.
    Rustup(String),
    /// `/usr/bin/rustc` and `/usr/bin/cargo` of Debian.
    Debian,
}

impl Toolchain {
    /// Finds a compiler, or installs one.
    pub(crate) fn ready(workspace: &Workspace) -> Result<Self> {
        match env::var(CHOICE).as_deref() {
            Ok("debian") => Self::install_debian(workspace),
            Ok("rustup") => Self::install_rustup(workspace),
            Ok(other) => bail!("{CHOICE} is `{other}`; write `rustup` or `debian`, or unset it"),
            Err(_) => Self::choose(workspace),
        }
    }

    /// What is complete already is taken, Debian's first because nobody can have changed it;
    /// then rustup is asked once for what it lacks, then Debian.
    fn choose(workspace: &Workspace) -> Result<Self> {
        if apt::missing(&DEBIAN_RUST).is_empty() {
            return Ok(Self::Debian);
        }
        if let Some(name) = pinned_nightly()
            && has_source(&name)
        {
            return Ok(Self::Rustup(name));
        }
        let refused = workspace.tools().join("rustup-refused");
        if !refused.exists() {
            match Self::install_rustup(workspace) {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => {
                    println!(
                        "setup: rustup has no {NIGHTLY} with rust-src; take Debian's compiler"
                    );
                    std::fs::create_dir_all(workspace.tools())
                        .and_then(|()| std::fs::write(&refused, format!("{error:#}\n")))
                        .with_context(|| format!("cannot write {}", refused.display()))?;
                }
            }
        }
        Self::install_debian(workspace).with_context(|| {
            format!(
                "no compiler for the kernel programs: rustup has no {NIGHTLY} with rust-src (see \
                 {}), and Debian's was not installed either",
                refused.display()
            )
        })
    }

    fn install_debian(workspace: &Workspace) -> Result<Self> {
        apt::install(workspace, &DEBIAN_RUST, "the compiler of the kernel programs")?;
        Ok(Self::Debian)
    }

    fn install_rustup(workspace: &Workspace) -> Result<Self> {
        let log = workspace.tools().join("rustup.log");
        let mut rustup = Command::new("rustup");
        let name = if let Some(name) = pinned_nightly() {
            if has_source(&name) {
                return Ok(Self::Rustup(name));
            }
            println!("setup: add rust-src to rustup's {name}");
            rustup.args(["component", "add", "rust-src", "--toolchain", &name]);
            name
        } else {
            println!("setup: install rustup's {NIGHTLY} with rust-src");
            rustup.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
            rustup.args(["--component", "rust-src", "--no-self-update"]);
            NIGHTLY.to_owned()
        };
        command::run_logged(&mut rustup, &log, DOWNLOAD_LIMIT)?;
        if !has_source(&name) {
            bail!("rustup installed {name}, but without the source of `core`");
        }
        Ok(Self::Rustup(name))
    }

    /// This toolchain's cargo, in the top folder, with nothing that the outer cargo, its rustup
    /// proxy or the user's settings for host builds put into the environment.
    pub(crate) fn cargo(&self, workspace: &Workspace) -> Command {
        self.program(workspace, "cargo")
    }

    /// This toolchain's `cargo clippy`, if it has one or can get it. It is started under its own
    /// name: cargo would take rustup's before Debian's.
    pub(crate) fn clippy(&self, workspace: &Workspace) -> Option<Command> {
        if *self == Self::Debian
            && let Err(error) =
                apt::install(workspace, &[DEBIAN_CLIPPY], "the lints of the kernel programs")
        {
            eprintln!("note: {error:#}");
        }
        let mut clippy = self.program(workspace, "cargo-clippy");
        clippy.arg("clippy");
        let mut version = self.program(workspace, "cargo-clippy");
        command::ask(version.args(["clippy", "--version"])).map(|_| clippy)
    }

    fn program(&self, workspace: &Workspace, name: &str) -> Command {
        let mut cargo = match self {
            Self::Rustup(toolchain) => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", toolchain, name]);
                cargo
            }
            Self::Debian => Command::new(format!("/usr/bin/{name}")),
        };
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(belongs_to_the_outer_build) {
                cargo.env_remove(name);
            }
        }
        match self {
            Self::Rustup(_) => {}
            Self::Debian => {
                // A released compiler takes unstable options only when it is told to.
                cargo
                    .env("CARGO", "/usr/bin/cargo")
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTC_BOOTSTRAP", "1");
            }
        }
        cargo.current_dir(workspace.root()).env("PATH", workspace.path_with_tools());
        cargo
    }
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rustup(name) => write!(f, "rustup's {name}"),
            Self::Debian => f.write_str("Debian's rustc-web"),
        }
    }
}

/// Builds bpf-linker into the project's own folder, unless it is there.
pub(crate) fn bpf_linker(workspace: &Workspace) -> Result<()> {
    let program = workspace.tools().join("bin/bpf-linker");
    let version = command::ask(Command::new(&program).arg("--version"));
    if version.is_some_and(|version| version.trim() == format!("bpf-linker {BPF_LINKER}")) {
        return Ok(());
    }
    let prefix = if let Some(prefix) = env::var_os("LLVM_PREFIX") {
        PathBuf::from(prefix)
    } else {
        apt::install(workspace, &DEBIAN_LLVM, "bpf-linker")?;
        PathBuf::from(format!("/usr/lib/llvm-{LLVM}"))
    };
    println!("setup: build bpf-linker {BPF_LINKER} with LLVM {LLVM} (about a minute)");
    let mut install = workspace.cargo();
    install
        .args(["install", "bpf-linker", "--locked", "--force", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", &format!("llvm-{LLVM}"), "--root"])
        .arg(workspace.tools())
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_TARGET_DIR", workspace.tools().join("build"));
    command::run_logged(&mut install, &workspace.tools().join("bpf-linker.log"), COMPILE_LIMIT)
        .with_context(|| {
            format!(
                "bpf-linker must be linked to LLVM {LLVM}, looked for in {}; set LLVM_PREFIX to \
                 where your system has it",
                prefix.display()
            )
        })?;
    // A hundred megabytes that nothing reads again.
    let _ = std::fs::remove_dir_all(workspace.tools().join("build"));
    Ok(())
}

/// The name under which rustup has the pinned nightly: its own, or `nightly` where that is at the
/// same commit.
fn pinned_nightly() -> Option<String> {
    [NIGHTLY, "nightly"].into_iter().map(str::to_owned).find(|name| {
        command::ask(in_toolchain(name).args(["rustc", "-vV"]))
            .is_some_and(|version| version.contains(NIGHTLY_COMMIT))
    })
}

fn has_source(name: &str) -> bool {
    command::ask(in_toolchain(name).args(["rustc", "--print", "sysroot"])).is_some_and(|root| {
        Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// `rustup run NAME`, which must not install what it does not find.
fn in_toolchain(name: &str) -> Command {
    let mut rustup = Command::new("rustup");
    rustup.args(["run", name]).env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTUP_TOOLCHAIN");
    rustup
}

/// Settings for registries, network and terminal stay; what names compilers, flags or packages of
/// the outer build goes.
fn belongs_to_the_outer_build(variable: &str) -> bool {
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "RUSTUP_HOME",
    ];
    const DROPPED: [&str; 6] =
        ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"];
    DROPPED.iter().any(|prefix| variable.starts_with(prefix))
        && !KEPT.iter().any(|prefix| variable.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::belongs_to_the_outer_build;

    #[test]
    fn the_outer_builds_variables_do_not_reach_the_kernel_build() {
        for dropped in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_PKG_NAME",
            "CARGO_TARGET_DIR",
            "RUSTC_WRAPPER",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
        ] {
            assert!(belongs_to_the_outer_build(dropped), "{dropped}");
        }
        for kept in
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX", "RUSTUP_HOME", "PATH"]
        {
            assert!(!belongs_to_the_outer_build(kept), "{kept}");
        }
    }
}
