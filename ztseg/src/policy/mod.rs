//! Policies, from YAML to an image. Everything here is pure: no aya, no tokio, no file system.
//!
//! [`load`] is the front end as a whole: sources in, [`Loaded`] or every error at once out.

pub mod compile;
pub mod diagnostic;
pub mod failsafe;
#[cfg(any(test, feature = "generate"))]
pub mod generate;
pub mod model;
pub mod names;
pub mod oracle;
pub mod parse;
pub mod resolve;
pub mod resolved;
pub mod source;
pub mod testcase;
pub mod yaml;

use diagnostic::{Diagnostic, Diagnostics};
use resolved::Resolved;
use source::Source;
use testcase::ResolvedTest;

/// What a load gives when nothing is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Segments and rules of all files.
    pub resolved: Resolved,
    /// The `tests:` of all files, in file order.
    pub tests: Vec<ResolvedTest>,
    /// What was loaded; spans refer to it by index.
    pub sources: Vec<Source>,
}

/// Reads policies from all `sources` together, as one policy.
///
/// No source at all, and sources without a document, give an empty policy.
///
/// # Errors
/// Everything that is wrong, over all sources, sorted by source and position. A name that is
/// unknown only because its definition could not be read is not reported as well.
pub fn load(sources: &[Source]) -> Result<Loaded, Diagnostics> {
    let mut found: Vec<Diagnostic> = Vec::new();
    let parsed = parse::parse(sources, &mut found);
    let (resolved, tests) = resolve::resolve(&parsed, sources, &mut found);
    if found.is_empty() {
        Ok(Loaded { resolved, tests, sources: sources.to_vec() })
    } else {
        Err(Diagnostics::new(sources, found))
    }
}
