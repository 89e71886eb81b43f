//! The agent's API: HTTP over a Unix socket, JSON, and JSON lines for streams.

pub mod access;
pub mod client;
pub mod server;
pub mod types;
