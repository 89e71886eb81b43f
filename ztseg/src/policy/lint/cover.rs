//! Which earlier rules decide all flows of a rule.
//!
//! A rule is taken apart: at each end where it holds, into pairs of one subject (a segment or `any`)
//! and one peer (a segment, a network or `any`). Each pair must be decided by an earlier rule that
//! has it, for all ports; several rules may share the pairs and the ports among them. A network is
//! covered where one network of the other rule holds it, and a segment by the same segment or `any`
//! alone, since nobody knows here who its members are. So an index by pairs finds the rules that
//! matter, however many there are.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};
use rustc_hash::FxHashMap;
use ztseg_common::verdict::Direction;

use super::ports;
use crate::policy::resolved::{Action, Isolation, Mode, Network, Resolved, Rule, SegmentId, Tier};

/// A rule of more pairs than this is not compared.
const MOST_PARTS: usize = 1024;
/// How many pairs the index has room for. Rules beyond it cover nothing.
const MOST_ENTRIES: usize = 4 << 20;
/// How many rules of one pair are looked at.
const MOST_CANDIDATES: usize = 1024;
/// How many pass rules are looked at for one rule of another tier.
const MOST_PASSES: usize = 64;

/// What decides all flows of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cover {
    /// Rules that do so alone, in the order of evaluation.
    pub alone: Vec<usize>,
    /// Where there are none: rules that do so together.
    pub together: BTreeSet<usize>,
    /// Segments whose isolation denies what would come to a rule of the baseline tier.
    pub isolating: BTreeSet<SegmentId>,
}

/// Whether the flows to local ports that nobody listens on must be covered, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strict {
    Yes,
    ButForNobody,
}

/// Who a part of a rule is about at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Peer {
    Any,
    Segment(SegmentId),
    Network(IpNet),
}

/// One subject and one peer of a rule, at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    direction: Direction,
    /// `None` is every workload.
    subject: Option<SegmentId>,
    peer: Peer,
}

/// A rule that has a part.
#[derive(Clone, Copy, Debug)]
struct Entry {
    rule: u32,
    /// Which network of the side, where the part is one.
    network: u32,
}

/// The rules so far, by their parts.
pub(super) struct Covering<'a> {
    resolved: &'a Resolved,
    has_workloads: &'a dyn Fn(SegmentId) -> bool,
    entries: FxHashMap<Part, Vec<Entry>>,
    room: usize,
    /// The prefix lengths that networks in the index have, of IPv4 and IPv6.
    lengths: [BTreeSet<u8>; 2],
    /// The pass rules of each tier.
    passes: [Vec<usize>; 3],
}

impl<'a> Covering<'a> {
    pub(super) fn new(
        resolved: &'a Resolved,
        has_workloads: &'a dyn Fn(SegmentId) -> bool,
    ) -> Self {
        Self {
            resolved,
            has_workloads,
            entries: FxHashMap::default(),
            room: MOST_ENTRIES,
            lengths: Default::default(),
            passes: Default::default(),
        }
    }

    /// A rule's parts, each with the number of its network in its side; `None` where there are too
    /// many.
    pub(super) fn parts(&self, rule: &Rule) -> Option<Vec<(Part, usize)>> {
        let mut parts = Vec::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            if !rule.ends.hold(direction) {
                continue;
            }
            let (mine, theirs) = rule.sides(direction);
            let subjects: Vec<Option<SegmentId>> = if mine.any {
                vec![None]
            } else {
                let segments = mine.segments.iter().copied();
                segments.filter(|id| (self.has_workloads)(*id)).map(Some).collect()
            };
            let peers: Vec<(Peer, usize)> = if theirs.any {
                vec![(Peer::Any, 0)]
            } else {
                let segments = theirs.segments.iter().map(|id| (Peer::Segment(*id), 0));
                let network = |(number, network): (usize, &Network)| {
                    (Peer::Network(canonical(network.cidr)), number)
                };
                segments.chain(theirs.networks.iter().enumerate().map(network)).collect()
            };
            if parts.len() + subjects.len() * peers.len() > MOST_PARTS {
                return None;
            }
            for subject in subjects {
                let part = |(peer, number): &(Peer, usize)| {
                    (Part { direction, subject, peer: *peer }, *number)
                };
                parts.extend(peers.iter().map(part));
            }
        }
        Some(parts)
    }

    /// Makes a rule one that may cover those that come after it.
    pub(super) fn add(&mut self, index: usize, rule: &Rule, parts: Option<&[(Part, usize)]>) {
        if rule.action == Action::Pass {
            self.passes[rule.tier as usize].push(index);
        }
        let parts = parts.unwrap_or_default();
        let Some(room) = self.room.checked_sub(parts.len()) else { return };
        self.room = room;
        for (part, network) in parts {
            if let Peer::Network(cidr) = part.peer {
                self.lengths[family(&cidr)].insert(cidr.prefix_len());
            }
            let (Ok(rule), Ok(network)) = (u32::try_from(index), u32::try_from(*network)) else {
                return;
            };
            self.entries.entry(*part).or_default().push(Entry { rule, network });
        }
    }

    /// What decides all flows of `rule`, which has these parts, before it comes to it.
    pub(super) fn cover(
        &self,
        rule: &Rule,
        parts: &[(Part, usize)],
        strict: Strict,
    ) -> Option<Cover> {
        let mut cover = Cover::default();
        // Of the parts so far, the rules that cover each of them alone.
        let mut alone: Option<Vec<usize>> = None;
        for (part, number) in parts {
            if let Some(segment) = self.isolation(rule, part) {
                cover.isolating.insert(segment);
                continue;
            }
            let mut full = Vec::new();
            let mut left = rule.ports.clone();
            for index in self.candidates(rule, part, *number, strict) {
                let other = &self.resolved.rules[index];
                if ports::cover(&other.ports, &rule.ports) {
                    full.push(index);
                }
                let before = left.clone();
                ports::without(&mut left, &other.ports);
                if left != before {
                    cover.together.insert(index);
                }
            }
            if !left.is_empty() {
                return None;
            }
            match &mut alone {
                None => alone = Some(full),
                Some(alone) => alone.retain(|index| full.contains(index)),
            }
        }
        cover.alone = alone.unwrap_or_default();
        if !cover.alone.is_empty() {
            cover.together.clear();
        }
        Some(cover)
    }

    /// The segment that isolates the subject of a part, where that keeps every flow from a rule of
    /// the baseline tier.
    fn isolation(&self, rule: &Rule, part: &Part) -> Option<SegmentId> {
        let id = part.subject.filter(|_| rule.tier == Tier::Baseline)?;
        let segment = self.resolved.segments.get(id.0 as usize)?;
        (segment.isolation(part.direction) == Isolation::Enforce).then_some(id)
    }

    /// The rules that decide flows of this part before `rule` is looked at, in their order.
    fn candidates(&self, rule: &Rule, part: &Part, number: usize, strict: Strict) -> Vec<usize> {
        let mut found = BTreeSet::new();
        let subjects = [part.subject, None];
        for subject in &subjects[usize::from(part.subject.is_none())..] {
            for peer in self.wider(part.peer) {
                // A deny rule to a segment says nothing of a port that nobody listens on.
                let segments = matches!(peer, Peer::Segment(_));
                let nobody = segments
                    && strict == Strict::Yes
                    && part.direction == Direction::Egress
                    && rule.action != Action::Deny;
                let key = Part { subject: *subject, peer, ..*part };
                let entries = self.entries.get(&key).map_or(&[][..], Vec::as_slice);
                for entry in entries.iter().take(MOST_CANDIDATES) {
                    let index = entry.rule as usize;
                    let other = &self.resolved.rules[index];
                    let holds = !matches!(peer, Peer::Network(_))
                        || keeps(
                            network(other, part.direction, entry.network as usize),
                            network(rule, part.direction, number),
                        );
                    if holds
                        && (!nobody || other.action != Action::Deny)
                        && ports::meet(&other.ports, &rule.ports)
                        && self.decides_before(index, other, rule)
                    {
                        found.insert(index);
                    }
                }
            }
        }
        found.into_iter().collect()
    }

    /// The peers in the index that hold all of this one.
    fn wider(&self, peer: Peer) -> Vec<Peer> {
        let mut wider = vec![Peer::Any];
        match peer {
            Peer::Any => {}
            Peer::Segment(_) => wider.push(peer),
            Peer::Network(cidr) => {
                let lengths = self.lengths[family(&cidr)].range(..=cidr.prefix_len());
                let network = |length: &u8| IpNet::new(cidr.addr(), *length).ok();
                wider.extend(lengths.filter_map(network).map(|net| Peer::Network(net.trunc())));
            }
        }
        wider
    }

    /// Whether a flow that `other` matches never comes to `rule`, whoever evaluates.
    fn decides_before(&self, index: usize, other: &Rule, rule: &Rule) -> bool {
        let outlasts = match (other.expires, rule.expires) {
            (None, _) => true,
            (Some(other), Some(own)) => other >= own,
            (Some(_), None) => false,
        };
        let is_only_told = |rule: &Rule| rule.action == Action::Deny && rule.mode == Mode::Audit;
        if !outlasts || (is_only_told(other) && !is_only_told(rule)) {
            return false;
        }
        if other.tier == rule.tier {
            return true;
        }
        // In another tier it decides only what no pass rule sends on to the next.
        let passes = &self.passes[other.tier as usize];
        let before = &passes[..passes.partition_point(|pass| *pass < index)];
        other.action != Action::Pass
            && before.len() <= MOST_PASSES
            && !before.iter().any(|pass| {
                let pass = &self.resolved.rules[*pass];
                ports::meet(&pass.ports, &rule.ports) && ports::meet(&pass.ports, &other.ports)
            })
    }
}

/// A network of the side that a rule has its peers on.
fn network(rule: &Rule, direction: Direction, number: usize) -> Option<&Network> {
    rule.sides(direction).1.networks.get(number)
}

/// Whether a network that holds the CIDR of another leaves out nothing of it that this does not
/// leave out itself.
fn keeps(wide: Option<&Network>, narrow: Option<&Network>) -> bool {
    let (Some(wide), Some(narrow)) = (wide, narrow) else { return false };
    let cidr = canonical(narrow.cidr);
    let left_out: Vec<IpNet> = narrow.except.iter().copied().map(canonical).collect();
    wide.except.iter().copied().map(canonical).all(|except| {
        let apart = !except.contains(&cidr) && !cidr.contains(&except);
        apart || left_out.iter().any(|own| own.contains(&except))
    })
}

/// A CIDR among the IPv4-mapped addresses of IPv6 is an IPv4 CIDR.
fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.network().to_ipv4_mapped().map(|v4| (v4, v6)),
        _ => None,
    };
    let v4 = mapped.and_then(|(v4, v6)| Ipv4Net::new(v4, v6.prefix_len() - 96).ok());
    v4.map_or(net, IpNet::V4).trunc()
}

/// The number of a CIDR's address family.
const fn family(net: &IpNet) -> usize {
    match net {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1,
    }
}
