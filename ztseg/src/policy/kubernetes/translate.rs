//! Kubernetes' policies as segments and rules.
//!
//! A segment stands for a selector: its members are the pods that it selects, wherever they run.
//! A rule holds at the end of its policy's subject alone. ARCHITECTURE.md has the table.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use ipnet::IpNet;
use ztseg_common::verdict::Direction;

use super::Objects;
use super::cluster::{Cluster, Pod};
use super::labels::Selector;
use super::model::{Peer, PodSelector, Policy, Port, Rule as Written};
use super::placed::PlacedPod;
use super::select::Index;
use crate::image::SegmentSet;
use crate::policy::resolve::Order;
use crate::policy::resolved::{
    Ends, Isolation, Mode, Network, PortRange, Rule, Segment, SegmentId, Side, Tier,
};
use crate::policy::source::{Position, Source};

/// What becomes of the Kubernetes documents of a load.
#[derive(Debug, Default)]
pub(in crate::policy) struct Translated {
    /// To be put behind the segments that are there already.
    pub(in crate::policy) segments: Vec<Segment>,
    /// Each with its place in the order of evaluation.
    pub(in crate::policy) rules: Vec<(Order, Rule)>,
    /// Every pod with its segments.
    pub(in crate::policy) pods: Vec<PlacedPod>,
}

/// What a segment's members have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Members {
    /// A selector selects them.
    Selected(PodSelector),
    /// It does, and they have given this name to this port.
    WithPort { selector: PodSelector, name: String, protocol: u8, number: u16 },
    /// They run on this node.
    OnNode(String),
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Selected(selector) => write!(f, "pods:{selector}"),
            Self::WithPort { selector, name, protocol, number } => {
                let port = PortRange::one(*protocol, *number);
                write!(f, "pods:{selector}:{name}={port}")
            }
            Self::OnNode(name) => write!(f, "pods-on:{name}"),
        }
    }
}

/// Translates all of `objects`; segments are numbered from `first` on.
pub(in crate::policy) fn translate(
    objects: &Objects,
    first: usize,
    sources: &[Source],
) -> Translated {
    let mut translator = Translator {
        cluster: &objects.cluster,
        index: Index::new(&objects.cluster),
        first,
        numbers: HashMap::new(),
        members: Vec::new(),
        done: Translated::default(),
    };
    for policy in &objects.policies {
        translator.policy(policy, sources);
    }
    if !objects.documents.is_empty() {
        translator.nodes();
    }
    translator.finish()
}

struct Translator<'a> {
    cluster: &'a Cluster,
    index: Index<'a>,
    first: usize,
    numbers: HashMap<Members, usize>,
    /// By segment: indexes of pods.
    members: Vec<Vec<usize>>,
    done: Translated,
}

impl Translator<'_> {
    fn policy(&mut self, policy: &Policy, sources: &[Source]) {
        let position = policy.name.span.position(sources);
        let origin = (policy.to_string(), position);
        let subject = self.segment(Members::Selected(policy.subject.clone()), &origin);
        let segment = &mut self.done.segments[subject];
        for (isolates, isolation) in [
            (policy.isolates.ingress, &mut segment.ingress),
            (policy.isolates.egress, &mut segment.egress),
        ] {
            if isolates && *isolation == Isolation::Open {
                *isolation = Isolation::Enforce;
                // The first policy that isolates it is the one to name for that.
                segment.policy.clone_from(&origin.0);
                segment.position = origin.1.clone();
            }
        }
        let order = Order::of(policy);
        for (direction, rules, isolates) in [
            (Direction::Ingress, &policy.ingress, policy.isolates.ingress),
            (Direction::Egress, &policy.egress, policy.isolates.egress),
        ] {
            // A NetworkPolicy's rules for a direction that it does not isolate mean nothing.
            if policy.tier == Tier::Application && !isolates {
                continue;
            }
            for (place, rule) in (1..).zip(rules) {
                let name = match &rule.name {
                    Some(name) => format!("{}/{name}", origin.0),
                    None => format!("{}/{}-{place}", origin.0, direction.name()),
                };
                let position = rule.span.position(sources);
                let parts = self.parts(policy, direction, rule, &origin);
                for (mine, theirs, ports) in parts {
                    let (ends, from, to) = match direction {
                        Direction::Ingress => (Ends::Ingress, theirs, mine),
                        Direction::Egress => (Ends::Egress, mine, theirs),
                    };
                    let rule = Rule {
                        name: name.clone(),
                        tier: policy.tier,
                        action: rule.action,
                        mode: Mode::Enforce,
                        log: false,
                        reject: false,
                        expires: None,
                        from,
                        to,
                        ports,
                        position: position.clone(),
                        ends,
                        built_in: false,
                    };
                    self.done.rules.push((order, rule));
                }
            }
        }
    }

    /// The subjects, peers and ports that a rule is about: one part for all ports by number, and
    /// one for each number that pods give a name to.
    fn parts(
        &mut self,
        policy: &Policy,
        direction: Direction,
        rule: &Written,
        origin: &Origin,
    ) -> Vec<(Side, Side, Vec<PortRange>)> {
        let subject = Members::Selected(policy.subject.clone());
        let mine = self.side(self.numbers[&subject]);
        let theirs = self.peers(rule, origin);
        let Some(ports) = &rule.ports else {
            return parts_of(mine, theirs, vec![PortRange::ANY]).into_iter().collect();
        };
        let mut ranges = Vec::new();
        let mut named = Vec::new();
        for port in ports {
            match port {
                Port::Range(range) => ranges.push(*range),
                Port::Named { name, protocol } => named.push((name.as_str(), *protocol)),
            }
        }
        let mut found = Vec::new();
        if !ranges.is_empty() {
            found.extend(parts_of(mine.clone(), theirs.clone(), ranges));
        }
        for name in named {
            let destinations = match direction {
                Direction::Ingress => {
                    self.named(std::slice::from_ref(&policy.subject), name, origin)
                }
                Direction::Egress => self.named(&pods(rule), name, origin),
            };
            for ((protocol, number), side) in destinations {
                let ports = vec![PortRange::one(protocol, number)];
                found.extend(match direction {
                    Direction::Ingress => parts_of(side, theirs.clone(), ports),
                    Direction::Egress => parts_of(mine.clone(), side, ports),
                });
            }
        }
        found
    }

    /// By protocol and number: those of some pods that give the port this name.
    fn named(
        &mut self,
        selectors: &[PodSelector],
        (name, protocol): (&str, Option<u8>),
        origin: &Origin,
    ) -> BTreeMap<(u8, u16), Side> {
        let mut found: BTreeMap<(u8, u16), Side> = BTreeMap::new();
        for selector in selectors {
            let all = self.segment(Members::Selected(selector.clone()), origin);
            let pods = self.members[all].iter().copied();
            let numbers = self.cluster.with_named_port(pods, name, protocol);
            for ((protocol, number), pods) in numbers {
                let key = Members::WithPort {
                    selector: selector.clone(),
                    name: name.to_owned(),
                    protocol,
                    number,
                };
                let segment = self.segment_of(key, origin, |_| pods);
                let id = self.id(segment);
                found.entry((protocol, number)).or_default().segments.push(id);
            }
        }
        found
    }

    fn peers(&mut self, rule: &Written, origin: &Origin) -> Side {
        let mut side = Side::default();
        let mut networks = Vec::new();
        let Some(peers) = &rule.peers else { return Side { any: true, ..side } };
        for peer in peers {
            match peer {
                Peer::Pods(selector) => {
                    let segment = self.segment(Members::Selected(selector.clone()), origin);
                    let id = self.id(segment);
                    if !side.segments.contains(&id) {
                        side.segments.push(id);
                    }
                }
                Peer::Nodes(selector) => networks.extend(self.node_addresses(selector)),
                Peer::Network(network) => networks.push(network.clone()),
            }
        }
        side.networks = networks.into();
        side
    }

    fn node_addresses(&self, selector: &Selector) -> Vec<Network> {
        let nodes = self.cluster.nodes.iter().filter(|node| selector.matches(&node.labels));
        let addresses = nodes.flat_map(|node| &node.addresses);
        addresses.map(|a| Network { cidr: IpNet::from(*a), except: Vec::new() }).collect()
    }

    /// A node reaches its own pods: whoever probes them must, whatever policies say.
    fn nodes(&mut self) {
        let mut on: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let selectable = |(_, pod): &(usize, &Pod)| !pod.host_network;
        for (number, pod) in self.cluster.pods.iter().enumerate().filter(selectable) {
            if let Some(node) = &pod.node {
                on.entry(node).or_default().push(number);
            }
        }
        let position = Position { file: "kubernetes".into(), line: 1, column: 1 };
        for node in &self.cluster.nodes {
            let Some(pods) = on.remove(node.name.as_str()) else { continue };
            if node.addresses.is_empty() {
                continue;
            }
            let origin = ("kubernetes".to_owned(), position.clone());
            let segment = self.segment_of(Members::OnNode(node.name.clone()), &origin, |_| pods);
            let network = |a: &std::net::IpAddr| Network { cidr: (*a).into(), except: Vec::new() };
            let networks = node.addresses.iter().map(network).collect();
            let name = format!("kubernetes/node {} reaches its pods", node.name);
            let sides = [Side { networks, ..Side::default() }, self.side(segment)];
            let rule = Rule::built_in(name, Ends::Ingress, sides, PortRange::ANY, position.clone());
            self.done.rules.push((Order::BUILT_IN, rule));
        }
    }

    /// The segment of what a selector selects.
    fn segment(&mut self, members: Members, origin: &Origin) -> usize {
        self.segment_of(members, origin, |translator| match translator {
            (index, Members::Selected(selector)) => index.pods(selector),
            _ => Vec::new(),
        })
    }

    /// The segment of some members, which are looked for when it is new.
    fn segment_of(
        &mut self,
        members: Members,
        (policy, position): &Origin,
        pods: impl FnOnce((&mut Index<'_>, &Members)) -> Vec<usize>,
    ) -> usize {
        if let Some(number) = self.numbers.get(&members) {
            return *number;
        }
        let pods = pods((&mut self.index, &members));
        let addresses = pods.iter().flat_map(|pod| &self.cluster.pods[*pod].addresses);
        let number = self.done.segments.len();
        self.done.segments.push(Segment {
            name: members.to_string(),
            policy: policy.clone(),
            ingress: Isolation::Open,
            egress: Isolation::Open,
            reject: false,
            selectors: Vec::new(),
            addresses: addresses.map(|a| IpNet::from(*a)).collect(),
            position: position.clone(),
        });
        self.numbers.insert(members, number);
        self.members.push(pods);
        number
    }

    fn id(&self, segment: usize) -> SegmentId {
        // A policy of more than 2^32 segments fits no memory.
        SegmentId(u32::try_from(self.first + segment).unwrap_or(u32::MAX))
    }

    fn side(&self, segment: usize) -> Side {
        Side { segments: vec![self.id(segment)], ..Side::default() }
    }

    fn finish(mut self) -> Translated {
        let mut sets = vec![SegmentSet::new(); self.cluster.pods.len()];
        for (segment, pods) in self.members.iter().enumerate() {
            let id = self.id(segment);
            for pod in pods {
                sets[*pod].insert(id);
            }
        }
        let placed = |(pod, segments): (&Pod, SegmentSet)| PlacedPod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            addresses: pod.addresses.clone(),
            host_network: pod.host_network,
            segments: (!pod.host_network).then_some(segments),
        };
        self.done.pods = self.cluster.pods.iter().zip(sets).map(placed).collect();
        self.done
    }
}

/// The name of a policy, and where that stands.
type Origin = (String, Position);

/// The pods among the peers of a rule to others.
fn pods(rule: &Written) -> Vec<PodSelector> {
    let Some(peers) = &rule.peers else { return vec![PodSelector::every()] };
    let pods = peers.iter().filter_map(|peer| match peer {
        Peer::Pods(selector) => Some(selector.clone()),
        Peer::Nodes(_) | Peer::Network(_) => None,
    });
    let mut pods: Vec<_> = pods.collect();
    pods.sort_unstable();
    pods.dedup();
    pods
}

/// A part of a rule, unless its peers are nobody.
fn parts_of(
    mine: Side,
    theirs: Side,
    ports: Vec<PortRange>,
) -> Option<(Side, Side, Vec<PortRange>)> {
    let somebody = |s: &Side| s.any || !s.segments.is_empty() || !s.networks.is_empty();
    (somebody(&mine) && somebody(&theirs)).then_some((mine, theirs, ports))
}
