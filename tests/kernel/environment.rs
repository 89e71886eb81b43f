//! What the tests run in, and why one of them may have to be skipped.

use std::env;
use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;
use ztseg::datapath::measure::{self, ProgramType};
use ztseg::datapath::sys::{self, AttachType};

/// What a single test needs and does not find here: as its error, it makes the test skipped.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Lacking(pub(crate) String);

/// What `cargo xtask test` and `cargo xtask vm` say about where the tests run.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// The agent to test, from `ZTSEG_BIN`; `None` in a plain `cargo test`.
    pub(crate) agent: Option<PathBuf>,
    /// Whether this is a virtual machine of our own (`ZTSEG_IN_VM`). Only there may a test attach
    /// programs to the root of the cgroup tree.
    pub(crate) in_vm: bool,
    /// Why this user or kernel cannot run the tests.
    obstacle: Option<String>,
}

impl Environment {
    /// Looks around.
    pub(crate) fn here() -> Self {
        Self {
            agent: env::var_os("ZTSEG_BIN").map(PathBuf::from),
            in_vm: env::var_os("ZTSEG_IN_VM").is_some(),
            obstacle: obstacle(),
        }
    }

    /// Where the tests run, for the first line of their output.
    pub(crate) fn describe(&self) -> String {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let place =
            if self.in_vm { "in a virtual machine of their own" } else { "on this machine" };
        format!("real-kernel tests on Linux {}, {place}", release.trim())
    }

    /// Why a test that starts the agent or loads programs cannot run here.
    pub(crate) fn obstacle(&self) -> Option<&str> {
        if self.agent.is_none() {
            return Some("the agent is not built; these tests run with `cargo xtask test`");
        }
        self.obstacle.as_deref()
    }
}

/// Why nothing refuses packet sockets on this kernel; `None` where BPF LSM does.
pub(crate) fn no_bpf_lsm() -> Option<String> {
    const LSM_ID_BPF: u64 = 109; // include/uapi/linux/lsm.h
    let names = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let numbers = sys::lsm_modules().unwrap_or_default();
    if !names.trim().split(',').any(|name| name == "bpf") && !numbers.contains(&LSM_ID_BPF) {
        return Some("BPF LSM is not active on this kernel".to_owned());
    }
    // A program without a hook is no program. Where no program is taken at all, it does not come to
    // that: some machines of the cloud are so.
    let error = measure::load(ProgramType::Lsm, Some(AttachType::LsmCgroup), &[0x95]).err()?;
    let refused = [Errno::EPERM, Errno::EACCES].map(|errno| Some(errno as i32));
    refused
        .contains(&error.raw_os_error())
        .then(|| format!("this kernel takes no program of BPF LSM, though it is active: {error}"))
}

/// Whether BPF LSM refuses packet sockets on this kernel.
pub(crate) fn has_bpf_lsm() -> bool {
    no_bpf_lsm().is_none()
}

/// `CAP_BPF` stands for all that root has: the other capabilities are missed with a clear error.
fn obstacle() -> Option<String> {
    const CAP_BPF: u32 = 39; // include/uapi/linux/capability.h
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or_default();
    if effective & (1 << CAP_BPF) == 0 {
        return Some("no root: CAP_BPF is missing".to_owned());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        return Some("there is no cgroup2 mount".to_owned());
    }
    None
}
