//! ztseg: workload microsegmentation for Linux. See `ARCHITECTURE.md`.

pub mod datapath;
pub mod discover;
pub mod image;
pub mod policy;
