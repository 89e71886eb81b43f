//! What the agent and the kernel programs share.
//!
//! * [`addr`]: addresses and ports in network byte order
//! * [`key`], [`value`]: the layout of every policy map
//! * [`state`]: what a flow keeps between packets
//! * [`packet`]: the one packet parser
//! * [`verdict`]: verdicts and the reasons that events name
//! * [`eval`]: the evaluator, one piece of code for the kernel, `ztseg check` and the tests
//! * [`event`]: the record that the kernel programs write into the ring buffer
//!
//! The crate is `no_std`, has no `unsafe` and knows neither aya nor the kernel. Every struct that
//! crosses the kernel boundary is `repr(C)`, without padding and without `bool`, `Option` or
//! enums, and zero in any field means "deny" or "not initialised".
#![no_std]
#![forbid(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "the BPF back end must see through these; the seams are in ztseg-ebpf"
)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod eval;
pub mod event;
pub mod fragments;
pub mod key;
pub mod packet;
pub mod reject;
pub mod shares;
pub mod state;
pub mod value;
pub mod verdict;

/// The version of the layouts in this crate, and the name of the folder that the agent pins under.
///
/// Raise it with every change to a struct that lies in a map: an agent never adopts maps of
/// another version.
pub const ABI_VERSION: u32 = 1;
