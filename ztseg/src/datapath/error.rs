//! What can go wrong.

use std::path::PathBuf;

/// An error of the datapath, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The binary was built without the kernel object.
    #[error("this binary was built without the kernel programs; build it with `cargo xtask build`")]
    NoObject,
    /// The process may not use BPF.
    #[error(
        "no permission to load BPF programs ({0}); run ztseg as root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON)"
    )]
    NoPermission(String),
    /// Another agent holds the same pins.
    #[error(
        "another ztseg agent already runs with {0}; stop it, or give this one its own --bpffs, --state-dir, --socket and --cgroup-root"
    )]
    SecondAgent(PathBuf),
    /// The policy needs more than a ceiling allows; nothing was changed.
    #[error(
        "the policy needs {needed} {what}, but capacity.{option} is {limit}; raise capacity.{option} to at least {needed}"
    )]
    Capacity {
        /// What there is too much of.
        what: &'static str,
        /// How much of it the policy needs.
        needed: usize,
        /// The ceiling.
        limit: u32,
        /// The key below `capacity`.
        option: &'static str,
    },
    /// The kernel refused something.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: anyhow::Error,
    },
}
