//! Policies, from YAML to an image. Everything here is pure: no aya, no tokio, no file system.

pub mod compile;
#[cfg(any(test, feature = "generate"))]
pub mod generate;
pub mod oracle;
pub mod resolved;
pub mod source;
