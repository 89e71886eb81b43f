//! ztseg: workload microsegmentation for Linux. See `ARCHITECTURE.md`.

pub mod image;
pub mod policy;
