//! ztseg: workload microsegmentation for Linux. See `ARCHITECTURE.md`.

pub mod agent;
pub mod api;
pub mod check;
pub mod cli;
pub mod clocks;
pub mod config;
pub mod datapath;
pub mod diff;
pub mod discover;
pub mod events;
pub mod explain;
pub mod image;
pub mod inventory;
pub mod judge;
pub mod policy;
pub mod present;
pub mod sockets;
