//! Warnings about policies that load: what they say is most likely not what was meant.
//!
//! Each has a name ([`Check`]), a place and a help. Kubernetes objects are not warned about, since
//! their meaning is not ztseg's; their rules count where they decide before others.

mod cover;
mod dead;
mod definitions;
mod ports;
mod rules;
#[cfg(test)]
mod tests;

pub use cover::Cover;
pub use dead::{Why, dead_rules};

use jiff::Timestamp;

use super::Loaded;
use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::parse;
use super::resolved::SegmentId;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// A rule whose `expires` has passed.
    EndedRule,
    /// A rule that no workload can have.
    NeverMatches,
    /// A rule whose flows are all decided before it is looked at.
    ShadowedRule,
    /// An allow rule that allows nothing that anybody listens for, since deny rules come before.
    DeniedRule,
    /// A rule that says again what an earlier one says.
    DuplicateRule,
    /// An allow rule with everybody, on all ports.
    WideOpen,
    /// A rule that is known by its place in a list.
    MissingName,
    /// A segment that isolates and has no workloads on any host.
    SegmentWithoutWorkloads,
    /// A segment that nothing names and that isolates nothing.
    UnusedSegment,
    /// An address group that no rule names.
    UnusedGroup,
    /// A policy with nothing in it.
    EmptyPolicy,
}

impl Check {
    /// Its name in messages.
    pub const fn id(self) -> &'static str {
        match self {
            Self::EndedRule => "ended-rule",
            Self::NeverMatches => "never-matches",
            Self::ShadowedRule => "shadowed-rule",
            Self::DeniedRule => "denied-rule",
            Self::DuplicateRule => "duplicate-rule",
            Self::WideOpen => "wide-open",
            Self::MissingName => "missing-name",
            Self::SegmentWithoutWorkloads => "segment-without-workloads",
            Self::UnusedSegment => "unused-segment",
            Self::UnusedGroup => "unused-group",
            Self::EmptyPolicy => "empty-policy",
        }
    }

    fn at(self, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic::warning(span, message).id(self.id())
    }
}

/// Everything that is odd in a load, seen at `now`.
pub fn lint(loaded: &Loaded, now: Timestamp) -> Diagnostics {
    // They loaded, so nothing is reported here. The written form is looked at for what the
    // resolved one has no more: names that are not used, places, fields that were left out.
    let parsed = parse::parse(&loaded.sources, &mut Vec::new());
    let policies = &parsed.policies;
    let mut found = Vec::new();
    definitions::look_at(policies, &mut found);
    // Segments of policies come first, in their order; behind them those of Kubernetes, which
    // have pods.
    let written: usize = policies.iter().map(|policy| policy.segments.len()).sum();
    let has_workloads = |SegmentId(number): SegmentId| {
        let segment = loaded.resolved.segments.get(number as usize);
        number as usize >= written || segment.is_some_and(|s| !s.selectors.is_empty())
    };
    rules::look_at(loaded, policies, dead_rules(&loaded.resolved, now, has_workloads), &mut found);
    Diagnostics::new(&loaded.sources, found)
}
