//! The resolved form: what every front end (segment policies now, Kubernetes objects later)
//! produces, and what the compiler, the oracle and `explain` read.
//!
//! Names are gone (segments are numbers), address groups are spelled out, and rules stand in the
//! order of evaluation: a rule's rank is its index plus one.

use ipnet::IpNet;
use jiff::Timestamp;
pub use ztseg_common::value::{Action, Isolation, Tier};
use ztseg_common::verdict::Direction;

use super::source::Position;

/// A segment: an index into [`Resolved::segments`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// Whether drops happen or are only reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Mode {
    /// Drop.
    #[default]
    Enforce,
    /// Evaluate and report, drop nothing.
    Audit,
}

/// A whole policy, over all files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// By [`SegmentId`].
    pub segments: Vec<Segment>,
    /// In the order of evaluation: tiers in their order; application tier: all denies in file
    /// order, then all allows. Before all of them, those that are built in.
    pub rules: Vec<Rule>,
    /// The segment that the built-in rules are for ([`super::failsafe`]); the last one. The host's
    /// side of an interface is in it, too, where another segment names the interface.
    pub failsafe: Option<SegmentId>,
}

impl Resolved {
    /// Number of segments, the built-in one not counted.
    pub fn own_segments(&self) -> usize {
        self.segments.len() - usize::from(self.failsafe.is_some())
    }

    /// Number of rules, built-in ones not counted.
    pub fn own_rules(&self) -> usize {
        self.rules.iter().filter(|rule| rule.built_in.is_none()).count()
    }

    /// Whether a set of segments has one that a policy defines.
    pub fn has_own<'a>(&self, set: impl IntoIterator<Item = &'a SegmentId>) -> bool {
        set.into_iter().any(|id| Some(*id) != self.failsafe)
    }

    /// The names of those segments that policies define.
    pub fn names<'a>(&self, set: impl IntoIterator<Item = &'a SegmentId>) -> Vec<String> {
        let own = set.into_iter().filter(|id| Some(**id) != self.failsafe);
        let segments = own.filter_map(|id| self.segments.get(id.0 as usize));
        segments.map(|s| s.name.clone()).collect()
    }
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its global name.
    pub name: String,
    /// `metadata.name` of the policy that defines it.
    pub policy: String,
    /// What happens on ingress when no rule matches.
    pub ingress: Isolation,
    /// What happens on egress when no rule matches.
    pub egress: Isolation,
    /// Tell who is denied by its isolation at once, as [`Rule::reject`] does.
    pub reject: bool,
    /// Which workloads of this host are members; entries are ORed.
    pub selectors: Vec<Selector>,
    /// Members elsewhere, from `match` entries that have `addresses` alone.
    pub addresses: Vec<IpNet>,
    /// Where it is defined.
    pub position: Position,
}

/// One `match` entry; the fields are ANDed, at least one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Path below the cgroup root with a leading slash; `*` matches within a component, `**` any
    /// number of components. Descendants are members.
    pub cgroup: Option<String>,
    /// Unit of the system manager, `*` globs.
    pub unit: Option<String>,
    /// Interface name, `*` globs.
    pub interface: Option<String>,
    /// What is in no other workload of this host.
    pub host: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `policy/name`; rules without a name are `policy/allow-3` (kind and place in the list).
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// What it does.
    pub action: Action,
    /// Its policy's mode.
    pub mode: Mode,
    /// Report what it allows, too.
    pub log: bool,
    /// Tell who is denied at once, with a reset or an ICMP error. Of deny rules only.
    pub reject: bool,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// Who opens the flow.
    pub from: Side,
    /// Who is asked.
    pub to: Side,
    /// Which protocols and ports; ORed, never empty.
    pub ports: Vec<PortRange>,
    /// Where it is defined.
    pub position: Position,
    /// A rule of ztseg's own ([`super::failsafe`]): it holds at the end of the built-in segment
    /// alone, which is this direction there, and only for workloads that a segment or a rule of
    /// some policy concerns in this direction.
    pub built_in: Option<Direction>,
}

/// One side of a rule: a union.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Everything: every workload of this host as a subject, every peer as a peer.
    pub any: bool,
    /// Segments.
    pub segments: Vec<SegmentId>,
    /// Address sets; they match peers only, never make a subject.
    pub networks: Vec<Network>,
}

/// A CIDR without some parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// The CIDR.
    pub cidr: IpNet,
    /// What is left out of it.
    pub except: Vec<IpNet>,
}

/// A protocol and a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// IP protocol number; `None` is every protocol and every port.
    pub protocol: Option<u8>,
    /// First port, or ICMP type.
    pub first: u16,
    /// Last port, or ICMP type; included.
    pub last: u16,
}

impl PortRange {
    /// Every protocol, every port.
    pub const ANY: Self = Self { protocol: None, first: 0, last: u16::MAX };

    /// Whether (protocol, port) is in it.
    pub fn contains(&self, protocol: u8, port: u16) -> bool {
        self.protocol.is_none_or(|p| p == protocol && (self.first..=self.last).contains(&port))
    }
}
