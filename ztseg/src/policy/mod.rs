//! Policies, from YAML to an image. Everything here is pure: no aya, no tokio, no file system.
//!
//! [`load`] is the front end as a whole: sources in, [`Loaded`] or every error at once out.

pub mod compile;
pub mod diagnostic;
pub mod failsafe;
pub mod format;
#[cfg(any(test, feature = "generate"))]
pub mod generate;
pub mod kubernetes;
pub mod lint;
#[cfg(test)]
mod meaning;
pub mod model;
pub mod names;
pub mod oracle;
pub mod parse;
pub mod resolve;
pub mod resolved;
pub mod source;
pub mod testcase;
pub mod workload;
pub mod yaml;

use diagnostic::{Diagnostic, Diagnostics};
use failsafe::Failsafe;
use kubernetes::placed::PlacedPod;
use model::{Offline, Spanned};
use resolved::Resolved;
use source::Source;
use testcase::{ResolvedTest, TestEnd};
use workload::PlacedWorkload;

use crate::image::SegmentSet;
use crate::judge::End;

/// What a load gives when nothing is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Segments and rules of all files.
    pub resolved: Resolved,
    /// The `tests:` of all files, in file order.
    pub tests: Vec<ResolvedTest>,
    /// The pods of all files, with their segments.
    pub pods: Vec<PlacedPod>,
    /// The workloads that documents describe, with their segments.
    pub workloads: Vec<PlacedWorkload>,
    /// What the agent cannot enforce, and where it stands.
    pub offline: Vec<Spanned<Offline>>,
    /// What was loaded; spans refer to it by index.
    pub sources: Vec<Source>,
}

impl Loaded {
    /// One end of a test as one end of a flow of this address family.
    pub fn end(&self, end: TestEnd, v4: bool) -> End {
        match end {
            TestEnd::Segment(id) => End::workload([id]),
            TestEnd::Address(address) => End::address(address),
            TestEnd::Pod(number) => self.pods[number].end(v4),
            TestEnd::Workload(number) => self.workloads[number].end(v4),
        }
    }

    /// Adds what stays open whatever policies say.
    pub fn add_failsafe(&mut self, failsafe: &Failsafe) {
        failsafe.add_to(&mut self.resolved);
        workload::place(&self.resolved, &mut self.workloads);
    }

    /// The segments of every pod and workload that is described.
    pub fn sets(&self) -> impl Iterator<Item = &SegmentSet> {
        let pods = self.pods.iter().filter_map(|pod| pod.segments.as_ref());
        pods.chain(self.workloads.iter().map(|workload| &workload.segments))
    }
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
    let resolve::Outcome { resolved, tests, pods, workloads } =
        resolve::resolve(&parsed, sources, &mut found);
    if found.is_empty() {
        let (offline, sources) = (parsed.offline, sources.to_vec());
        Ok(Loaded { resolved, tests, pods, workloads, offline, sources })
    } else {
        Err(Diagnostics::new(sources, found))
    }
}
