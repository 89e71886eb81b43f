//! What stands where in a policy: the order of fields, and what is written in brackets.

use crate::policy::parse::fields;

/// What a list or mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Document,
    Metadata,
    Spec,
    Segments,
    Segment,
    Matches,
    Match,
    Groups,
    Group,
    Rules,
    Rule,
    Tests,
    Test,
    Other,
}

impl Kind {
    /// What stands in it, under this name or as an item of a list.
    pub(super) fn child(self, name: Option<&str>) -> Self {
        match (self, name) {
            (Self::Document, Some("metadata")) => Self::Metadata,
            (Self::Document, Some("spec")) => Self::Spec,
            (Self::Spec, Some("segments")) => Self::Segments,
            (Self::Spec, Some("addressGroups")) => Self::Groups,
            (Self::Spec, Some("deny" | "allow" | "pass")) => Self::Rules,
            (Self::Spec, Some("tests")) => Self::Tests,
            (Self::Segments, Some(_)) => Self::Segment,
            (Self::Segment, Some("match")) => Self::Matches,
            (Self::Matches, None) => Self::Match,
            (Self::Groups, Some(_)) => Self::Group,
            (Self::Rules, None) => Self::Rule,
            (Self::Tests, None) => Self::Test,
            _ => Self::Other,
        }
    }

    /// Where a field stands among the others.
    pub(super) fn place(self, field: &str) -> usize {
        let fields = match self {
            Self::Document => fields::DOCUMENT,
            Self::Metadata => fields::METADATA,
            Self::Spec => fields::SPEC,
            Self::Segment => fields::SEGMENT,
            Self::Match => fields::MATCH,
            Self::Group => fields::GROUP,
            Self::Rule => fields::RULE,
            // Names of segments and groups, and items, stay in the author's order.
            _ => return 0,
        };
        fields.iter().position(|known| *known == field).unwrap_or(fields.len())
    }

    /// Whether it is written in brackets where it fits and has no comments in it; `was` says
    /// whether it is now, `entries` how many there are.
    pub(super) const fn is_one_line(self, was: bool, entries: usize) -> bool {
        match self {
            Self::Document
            | Self::Spec
            | Self::Segments
            | Self::Groups
            | Self::Matches
            | Self::Rules
            | Self::Tests => false,
            Self::Metadata | Self::Rule | Self::Test => true,
            // `- unit: nginx.service`
            Self::Match => was && entries > 1,
            Self::Segment | Self::Group | Self::Other => was,
        }
    }
}
