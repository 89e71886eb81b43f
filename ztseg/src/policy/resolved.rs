//! The resolved form: what every front end (segment policies, Kubernetes objects) produces, and
//! what the compiler, the oracle and `explain` read.
//!
//! Names are gone (segments are numbers), address groups are spelled out, and rules stand in the
//! order of evaluation: a rule's rank is its index plus one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
pub use ztseg_common::value::{Action, Isolation, Tier};
use ztseg_common::verdict::Direction;

use super::source::Position;
use crate::image::SegmentSet;

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
    /// In the order of evaluation: tiers in their order; in the application tier all denies in
    /// file order, then all allows; in the others by priority, and inside a policy deny, allow,
    /// pass. Before all of them, those that are built in.
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
        self.rules.iter().filter(|rule| !rule.built_in).count()
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

impl Segment {
    /// What happens in a direction when no rule matches.
    pub const fn isolation(&self, direction: Direction) -> Isolation {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// One `match` entry; the fields are ANDed, at least one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Path below the cgroup root with a leading slash; `*` matches within a component, `**` any
    /// number of components. Descendants are members.
    pub cgroup: Option<String>,
    /// Unit of the system manager, `*` globs.
    pub unit: Option<String>,
    /// Containers.
    pub container: Option<ContainerMatch>,
    /// Pods of Kubernetes.
    pub pod: Option<PodMatch>,
    /// Interface name, `*` globs.
    pub interface: Option<String>,
    /// The owner of the socket: a user's name, or a user id in decimal, as it is written.
    pub user: Option<String>,
    /// What is in no other workload of this host.
    pub host: bool,
}

/// Some containers; the fields are ANDed, at least one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ContainerMatch {
    /// Its name in its runtime, `*` globs.
    pub name: Option<String>,
    /// The reference of its image, as the runtime has it, `*` globs.
    pub image: Option<String>,
    /// Labels that it has, with these values.
    pub labels: BTreeMap<String, String>,
}

/// Some pods; the fields are ANDed, at least one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodMatch {
    /// Its namespace, `*` globs.
    pub namespace: Option<String>,
    /// Labels that it has, with these values.
    pub labels: BTreeMap<String, String>,
    /// The name of its service account, `*` globs.
    pub service_account: Option<String>,
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
    /// At which ends it holds.
    pub ends: Ends,
    /// A rule of ztseg's own ([`super::failsafe`]): it holds only for workloads that a segment or
    /// a rule of some policy concerns in its direction.
    pub built_in: bool,
}

impl Rule {
    /// The side that has the subjects of a direction, and the one that has their peers.
    pub const fn sides(&self, direction: Direction) -> (&Side, &Side) {
        match direction {
            Direction::Egress => (&self.from, &self.to),
            Direction::Ingress => (&self.to, &self.from),
        }
    }

    /// Whether it holds for a workload with these segments in a direction.
    pub fn concerns(&self, segments: &SegmentSet, direction: Direction) -> bool {
        let (own, _) = self.sides(direction);
        self.ends.hold(direction)
            && (own.any || own.segments.iter().any(|id| segments.contains(id)))
    }

    /// A rule of ztseg's own: before all policies, it allows this at these ends.
    pub fn built_in(
        name: String,
        ends: Ends,
        [from, to]: [Side; 2],
        ports: PortRange,
        position: Position,
    ) -> Self {
        Self {
            name,
            tier: Tier::Admin,
            action: Action::Allow,
            mode: Mode::Enforce,
            log: false,
            reject: false,
            expires: None,
            from,
            to,
            ports: vec![ports],
            position,
            ends,
            built_in: true,
        }
    }
}

/// The ends of a flow at which a rule holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ends {
    /// Egress at `from`, and ingress at `to`.
    #[default]
    Both,
    /// Ingress at `to` alone: `from` is a peer and no subject.
    Ingress,
    /// Egress at `from` alone: `to` is a peer and no subject.
    Egress,
}

impl Ends {
    /// Whether a rule holds at the end that this direction has.
    pub const fn hold(self, direction: Direction) -> bool {
        matches!(
            (self, direction),
            (Self::Both, _)
                | (Self::Ingress, Direction::Ingress)
                | (Self::Egress, Direction::Egress)
        )
    }
}

/// One side of a rule: a union.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Everything: every workload of this host as a subject, every peer as a peer.
    pub any: bool,
    /// Segments.
    pub segments: Vec<SegmentId>,
    /// Address sets; they match peers only, never make a subject. Sides that name the same address
    /// groups share one list, however long it is.
    pub networks: Arc<[Network]>,
}

/// A CIDR without some parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// The CIDR.
    pub cidr: IpNet,
    /// What is left out of it.
    pub except: Vec<IpNet>,
}

impl Side {
    /// Whether it holds a peer: a workload of this host by its segments, else an address by the
    /// segments' addresses, and anything by the CIDRs around its address, where that is known.
    pub fn holds(
        &self,
        resolved: &Resolved,
        known: Option<&SegmentSet>,
        address: Option<IpAddr>,
    ) -> bool {
        let by_address = |id: &SegmentId| {
            let segment = resolved.segments.get(id.0 as usize);
            segment.zip(address).is_some_and(|(segment, address)| {
                segment.addresses.iter().any(|net| in_net(*net, address))
            })
        };
        let in_segment =
            |id: &SegmentId| known.map_or_else(|| by_address(id), |set| set.contains(id));
        self.any
            || address.is_some_and(|address| self.networks.iter().any(|n| n.contains(address)))
            || self.segments.iter().any(in_segment)
    }
}

impl Network {
    /// Whether an address is in the CIDR and in none of the exceptions.
    pub fn contains(&self, address: IpAddr) -> bool {
        in_net(self.cidr, address) && !self.except.iter().any(|net| in_net(*net, address))
    }
}

/// Whether an address is in a CIDR. A packet with an IPv4-mapped IPv6 address is an IPv4 packet, and
/// a CIDR among those addresses is an IPv4 CIDR.
pub fn in_net(net: IpNet, address: IpAddr) -> bool {
    let net = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6
            .network()
            .to_ipv4_mapped()
            .and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - 96).ok())
            .map_or(net, IpNet::V4),
        _ => net,
    };
    net.contains(&address.to_canonical())
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

    /// One port, or type.
    pub const fn one(protocol: u8, port: u16) -> Self {
        Self { protocol: Some(protocol), first: port, last: port }
    }

    /// Whether (protocol, port) is in it.
    pub fn contains(&self, protocol: u8, port: u16) -> bool {
        self.protocol.is_none_or(|p| p == protocol && (self.first..=self.last).contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_of_ipv6_holds_no_ipv4() {
        let net = |cidr: &str, except: &[&str]| Network {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|e| e.parse().unwrap()).collect(),
        };
        let contains = |n: &Network, a: &str| n.contains(a.parse().unwrap());
        assert!(!contains(&net("::/0", &[]), "192.0.2.1"));
        assert!(!contains(&net("::/0", &[]), "::ffff:192.0.2.1"));
        assert!(contains(&net("::/0", &[]), "2001:db8::1"));
        assert!(contains(&net("::ffff:192.0.2.0/120", &[]), "192.0.2.1"));
        assert!(contains(&net("0.0.0.0/0", &["::/0"]), "192.0.2.1"));
        assert!(!contains(&net("0.0.0.0/0", &["192.0.2.1/32"]), "192.0.2.1"));
    }
}
