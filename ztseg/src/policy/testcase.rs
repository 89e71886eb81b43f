//! The `tests:` of policies, with names resolved.

use std::net::IpAddr;

use super::diagnostic::Span;
use super::resolved::SegmentId;
use super::source::Position;

/// What a test says must happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// The flow is allowed at both ends.
    Allow,
    /// The flow is denied at one end at least.
    Deny,
}

impl Expect {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// One end of a test's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TestEnd {
    /// A workload that is in this segment and in no other.
    Segment(SegmentId),
    /// An address that belongs to no workload of this host.
    Address(IpAddr),
    /// A pod: an index into [`super::Loaded::pods`].
    Pod(usize),
    /// A workload that a document describes: an index into [`super::Loaded::workloads`].
    Workload(usize),
}

/// One test: whether a flow is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedTest {
    /// What must happen.
    pub expect: Expect,
    /// Who opens the flow.
    pub from: TestEnd,
    /// Who is asked.
    pub to: TestEnd,
    /// IP protocol number.
    pub protocol: u8,
    /// Port, or ICMP type.
    pub port: u16,
    /// As it is written: `web -> db tcp/5432`.
    pub text: String,
    /// Where it is written.
    pub position: Position,
    /// The same, for a diagnostic.
    pub span: Span,
}
