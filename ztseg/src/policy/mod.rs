//! Policies, from YAML to an image. Everything here is pure: no aya, no tokio, no file system.

pub mod resolved;
pub mod source;
