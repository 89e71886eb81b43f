//! The flows that flip, part by part.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use ztseg_common::eval::{Decision, Query, decide};
use ztseg_common::value::Peer;
use ztseg_common::verdict::{Direction, Reason, Verdict};

use super::changed::{Changed, may_hold};
use super::workloads::Workload;
use super::{Side, addresses, ports};
use crate::policy::resolved::Isolation;

/// Everything that a comparison is about.
pub(super) struct Scene<'a> {
    pub(super) sides: &'a [Side<'a>; 2],
    pub(super) workloads: &'a [Workload],
    pub(super) addresses: Vec<addresses::Part>,
    pub(super) ports: Vec<ports::Part>,
    pub(super) changed: Changed<'a>,
    pub(super) now: Timestamp,
}

/// One end: a workload, or none, and the parts of the address space that the flow may use for it.
/// Numbers are indexes into the scene's lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct End {
    pub(super) workload: Option<usize>,
    pub(super) addresses: BTreeSet<usize>,
}

/// Flows that flip.
#[derive(Clone, Debug)]
pub(super) struct Flip {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) port: usize,
    pub(super) now: Verdict,
    /// What decided before, and what decides now.
    pub(super) because: [String; 2],
}

/// What both policies say at one end.
type Decisions = [Decision; 2];

/// The parts of one end's address, by what the other end says to them.
struct Answers {
    by_verdict: BTreeMap<[bool; 2], (Decisions, BTreeSet<usize>)>,
}

impl Scene<'_> {
    pub(super) fn flips(&self) -> Vec<Flip> {
        let mut flips = Vec::new();
        for own in 0..self.workloads.len() {
            for direction in [Direction::Egress, Direction::Ingress] {
                self.with_addresses(own, direction, &mut flips);
            }
        }
        for from in 0..self.workloads.len() {
            for to in 0..self.workloads.len() {
                self.between(from, to, &mut flips);
            }
        }
        flips
    }

    /// The parts of the ports that something which changed may decide between a workload and a peer.
    fn ports(&self, own: usize, direction: Direction, peer: Option<usize>, at: usize) -> Ports {
        if self.changed.workload(own) || peer.is_some_and(|peer| self.changed.workload(peer)) {
            return Ports::All;
        }
        let mut found = BTreeSet::new();
        for (index, rule) in self.changed.rules(&self.workloads[own], direction) {
            let (_, other) = rule.sides(direction);
            let peer = match peer {
                Some(peer) => Ok(&self.workloads[peer].segments[index]),
                None => Err(self.addresses[at].example),
            };
            if may_hold(self.sides[index].resolved, other, peer) {
                let names = |part: &ports::Part| {
                    rule.ports.iter().any(|range| range.contains(part.protocol, part.port))
                };
                let parts = self.ports.iter().enumerate();
                found.extend(parts.filter(|(_, part)| names(part)).map(|(index, _)| index));
            }
        }
        Ports::Some(found)
    }

    /// Flows between a workload and what is no workload.
    fn with_addresses(&self, own: usize, direction: Direction, flips: &mut Vec<Flip>) {
        if !self.changed.workload(own)
            && self.changed.rules(&self.workloads[own], direction).is_empty()
        {
            return;
        }
        for (at, part) in self.addresses.iter().enumerate() {
            for port in self.ports(own, direction, None, at).of(self.ports.len()) {
                if self.ports[port].v4.is_some_and(|v4| v4 != part.v4) {
                    continue;
                }
                let decisions = self.decide(own, direction, part.peers, port);
                let [before, now] = decisions.map(|decision| decision.verdict);
                if before == now {
                    continue;
                }
                // An end that is judged nowhere asks for no address of the other.
                let workload = End { workload: Some(own), addresses: self.family(part.v4) };
                let elsewhere = End { workload: None, addresses: [at].into() };
                let (from, to) = match direction {
                    Direction::Egress => (workload, elsewhere),
                    Direction::Ingress => (elsewhere, workload),
                };
                let because =
                    [0, 1].map(|index| self.because(index, &[(own, direction, decisions[index])]));
                flips.push(Flip { from, to, port, now, because });
            }
        }
    }

    /// All parts of an address family.
    pub(super) fn family(&self, v4: bool) -> BTreeSet<usize> {
        let parts = self.addresses.iter().enumerate();
        parts.filter(|(_, part)| part.v4 == v4).map(|(index, _)| index).collect()
    }

    /// Flows between two workloads.
    fn between(&self, from: usize, to: usize, flips: &mut Vec<Flip>) {
        let ports = self.ports(from, Direction::Egress, Some(to), 0).and(self.ports(
            to,
            Direction::Ingress,
            Some(from),
            0,
        ));
        for port in ports.of(self.ports.len()) {
            for v4 in [true, false] {
                if self.ports[port].v4.is_some_and(|only| only != v4) {
                    continue;
                }
                let egress = self.answers(from, Direction::Egress, to, v4, port);
                let ingress = self.answers(to, Direction::Ingress, from, v4, port);
                for (out, (of_out, to_addresses)) in &egress.by_verdict {
                    for (into, (of_into, from_addresses)) in &ingress.by_verdict {
                        let [before, now] = [0, 1].map(|index| out[index] && into[index]);
                        if before == now {
                            continue;
                        }
                        let ends = [0, 1].map(|index| {
                            [
                                (from, Direction::Egress, of_out[index]),
                                (to, Direction::Ingress, of_into[index]),
                            ]
                        });
                        flips.push(Flip {
                            from: End { workload: Some(from), addresses: from_addresses.clone() },
                            to: End { workload: Some(to), addresses: to_addresses.clone() },
                            port,
                            now: if now { Verdict::Allow } else { Verdict::Deny },
                            because: [0, 1].map(|index| self.because(index, &ends[index])),
                        });
                    }
                }
            }
        }
    }

    /// What a workload says to another one, by the address that the other one uses.
    fn answers(
        &self,
        own: usize,
        direction: Direction,
        other: usize,
        v4: bool,
        port: usize,
    ) -> Answers {
        let mut by_verdict: BTreeMap<[bool; 2], (Decisions, BTreeSet<usize>)> = BTreeMap::new();
        // Of an address of a workload, the segments that hold it do not matter.
        let mut by_address: BTreeMap<[u32; 2], Decisions> = BTreeMap::new();
        for (at, part) in self.addresses.iter().enumerate().filter(|(_, part)| part.v4 == v4) {
            let address = part.peers.map(|peer| peer.address);
            let decisions = *by_address.entry(address).or_insert_with(|| {
                let peers = [0, 1].map(|index| {
                    let set = &self.workloads[other].segments[index];
                    let classes = self.sides[index].image.classes.get(set);
                    let identity = classes.map_or(Peer::UNKNOWN.identity, |c| c.identity);
                    Peer { identity, address: address[index] }
                });
                self.decide(own, direction, peers, port)
            });
            let verdicts = decisions.map(|decision| decision.verdict == Verdict::Allow);
            by_verdict.entry(verdicts).or_insert((decisions, BTreeSet::new())).1.insert(at);
        }
        Answers { by_verdict }
    }

    fn decide(&self, own: usize, direction: Direction, peers: [Peer; 2], port: usize) -> Decisions {
        [0, 1].map(|index| {
            let image = &self.sides[index].image;
            let set = &self.workloads[own].segments[index];
            // Every set has classes: the image was made for them. Zero would deny.
            let subject = image.classes.get(set).map_or(0, |classes| classes.subject);
            let port_slot = self.ports[port].slot();
            let query = Query { subject, peer: peers[index], port_slot, direction };
            decide(&image.at(self.now), &query)
        })
    }

    /// What decided, in a few words: the end that denies, else all of them.
    fn because(&self, index: usize, ends: &[(usize, Direction, Decision)]) -> String {
        let resolved = self.sides[index].resolved;
        let denying = ends.iter().find(|(.., decision)| decision.verdict == Verdict::Deny);
        let say = |(own, direction, decision): &(usize, Direction, Decision)| {
            let rule = decision.rule.checked_sub(1);
            let rule = rule.and_then(|index| resolved.rules.get(index as usize));
            match (decision.reason, rule.filter(|_| !decision.audit)) {
                (Reason::Rule, Some(rule)) => format!("rule {} ({})", rule.name, rule.position),
                (Reason::Isolation, _) if decision.verdict == Verdict::Deny => {
                    let set = &self.workloads[*own].segments[index];
                    let segments = set.iter().filter(|id| {
                        let segment = resolved.segments.get(id.0 as usize);
                        segment.is_some_and(|s| s.isolation(*direction) == Isolation::Enforce)
                    });
                    let names = resolved.names(segments).join("+");
                    format!("the isolation of {names} ({}), and no rule", direction.name())
                }
                _ if decision.audit => "audit mode".to_owned(),
                _ => "no rule and no isolation".to_owned(),
            }
        };
        if let Some(end) = denying {
            return format!("denied by {}", say(end));
        }
        let mut all: Vec<String> = ends.iter().map(say).collect();
        all.dedup();
        // What is open by default explains nothing beside a rule.
        if all.len() > 1 {
            all.retain(|text| text != "no rule and no isolation");
        }
        format!("allowed by {}", all.join(" and "))
    }
}

/// Parts of the ports.
enum Ports {
    All,
    Some(BTreeSet<usize>),
}

impl Ports {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Some(mut a), Self::Some(b)) => {
                a.extend(b);
                Self::Some(a)
            }
            _ => Self::All,
        }
    }

    fn of(self, count: usize) -> Vec<usize> {
        match self {
            Self::All => (0..count).collect(),
            Self::Some(found) => found.into_iter().collect(),
        }
    }
}
