//! ztseg: workload microsegmentation for Linux. See `ARCHITECTURE.md`.

pub mod datapath;
pub mod image;
pub mod policy;
