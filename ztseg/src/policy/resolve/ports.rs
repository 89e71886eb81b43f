//! Ports by the names that pods give them: each number becomes a rule of its own, to the pods that
//! have it.

use std::collections::HashMap;

use ipnet::IpNet;

use crate::image::SegmentSet;
use crate::policy::kubernetes::cluster::{Cluster, PodsByPort};
use crate::policy::kubernetes::placed::PlacedPod;
use crate::policy::model::Port;
use crate::policy::resolved::{Isolation, PortRange, Rule, Segment, SegmentId, Side};

/// The pods that have a name for a port, and that port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Destination {
    pods: Vec<usize>,
    name: String,
    protocol: u8,
    number: u16,
}

/// The segments that named ports need, behind those that there are.
#[derive(Debug)]
pub(super) struct NamedPorts<'a> {
    cluster: &'a Cluster,
    /// In the order of the cluster's pods.
    pods: &'a [PlacedPod],
    first: usize,
    numbers: HashMap<Destination, SegmentId>,
    added: Vec<(Segment, Vec<usize>)>,
}

impl<'a> NamedPorts<'a> {
    /// `first` is the number of segments that there are.
    pub(super) fn new(cluster: &'a Cluster, pods: &'a [PlacedPod], first: usize) -> Self {
        Self { cluster, pods, first, numbers: HashMap::new(), added: Vec::new() }
    }

    /// A rule, and one more for each number that pods among its destinations have a name for.
    /// `names` are the names of segments.
    pub(super) fn rules(
        &mut self,
        rule: Rule,
        ports: impl Iterator<Item = &'a Port>,
        segments: &[Segment],
    ) -> Vec<Rule> {
        let (mut ranges, mut named) = (Vec::new(), Vec::new());
        for port in ports {
            match port {
                Port::Range(range) => ranges.push(*range),
                Port::Named { name, protocol } => named.push((name.as_str(), *protocol)),
            }
        }
        let mut rules = Vec::new();
        for (name, protocol) in named {
            for (service, pods) in self.destinations(&rule.to, name, protocol) {
                let id = self.segment(&rule, segments, name, service, pods);
                let (protocol, number) = service;
                rules.push(Rule {
                    to: Side { segments: vec![id], ..Side::default() },
                    ports: vec![PortRange::one(protocol, number)],
                    ..rule.clone()
                });
            }
        }
        if !ranges.is_empty() {
            rules.insert(0, Rule { ports: ranges, ..rule });
        } else if rules.is_empty() {
            // It stays where people look for it, and is about nobody.
            let to = Side::default();
            rules.push(Rule { to, ports: vec![PortRange::ANY], ..rule });
        }
        rules
    }

    /// The pods on a rule's side that give a port this name.
    fn destinations(&self, to: &Side, name: &str, protocol: Option<u8>) -> PodsByPort {
        let is_there = |set| to.any || to.segments.iter().any(|id| SegmentSet::contains(set, id));
        let placed = self.pods.iter().enumerate();
        let there = placed.filter(|(_, pod)| pod.segments.as_ref().is_some_and(is_there));
        self.cluster.with_named_port(there.map(|(number, _)| number), name, protocol)
    }

    fn segment(
        &mut self,
        rule: &Rule,
        segments: &[Segment],
        name: &str,
        (protocol, number): (u8, u16),
        pods: Vec<usize>,
    ) -> SegmentId {
        let next = u32::try_from(self.first + self.added.len()).unwrap_or(u32::MAX);
        let destination = Destination { pods, name: name.to_owned(), protocol, number };
        if let Some(id) = self.numbers.get(&destination) {
            return *id;
        }
        let of = |id: &SegmentId| segments.get(id.0 as usize).map(|segment| segment.name.as_str());
        let side = if rule.to.any {
            "any".to_owned()
        } else {
            rule.to.segments.iter().filter_map(of).collect::<Vec<_>>().join("+")
        };
        let port = PortRange::one(protocol, number);
        let pods = destination.pods.clone();
        let own = pods.iter().filter(|pod| !self.cluster.pods[**pod].host_network);
        let addresses = own.flat_map(|pod| &self.cluster.pods[*pod].addresses);
        let segment = Segment {
            name: format!("pods:{side}:{name}={port}"),
            policy: rule.name.split('/').next().unwrap_or_default().to_owned(),
            ingress: Isolation::Open,
            egress: Isolation::Open,
            reject: false,
            selectors: Vec::new(),
            addresses: addresses.map(|address| IpNet::from(*address)).collect(),
            position: rule.position.clone(),
        };
        self.added.push((segment, pods));
        self.numbers.insert(destination, SegmentId(next));
        SegmentId(next)
    }

    /// The new segments, each with the pods that are in it.
    pub(super) fn finish(self) -> Vec<(Segment, Vec<usize>)> {
        self.added
    }
}
