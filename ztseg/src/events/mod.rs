//! Events, from the kernel's record to what people read: `decode` and `enrich` are pure, `log`
//! keeps the last ones and hands them to readers.

pub mod decode;
pub mod enrich;
pub mod log;
pub mod names;
