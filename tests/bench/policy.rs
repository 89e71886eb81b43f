//! A policy with any number of rules around the one flow that is measured.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use ztseg::datapath::Capacity;
use ztseg::image::Image;
use ztseg::inventory::Membership;
use ztseg::policy::compile::compile;
use ztseg::policy::generate;
use ztseg::policy::resolved::{
    Action, Ends, Isolation, Mode, Network, PortRange, Resolved, Rule, Segment, SegmentId, Side,
    Tier,
};
use ztseg::policy::source::Position;
use ztseg_common::addr::proto;
use ztseg_common::key::workload_interface;

/// Room for 100,000 rules, and for 65,536 flows in the share of one workload (a quarter of the table);
/// everything else as by default.
pub(crate) const CAPACITY: Capacity =
    Capacity { flows: 1 << 19, verdicts: 1 << 20, peers: 262_144, workloads: 16_384 };

/// What is measured, as the policy sees it.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    /// cgroup ids from the world's root down to the client's, with their levels.
    pub(crate) cgroups: Vec<(u64, u32)>,
    /// The interface behind which the server is.
    pub(crate) ifindex: u32,
    /// The network that both ends are in.
    pub(crate) network: IpNet,
}

/// How a policy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rules in all.
    pub(crate) rules: usize,
    /// All twelve shapes of entries are in use, not only the usual three.
    pub(crate) all_lookups: bool,
    /// What is measured is allowed by a rule that logs.
    pub(crate) log: bool,
}

impl Shape {
    pub(crate) const fn usual(rules: usize) -> Self {
        Self { rules, all_lookups: false, log: false }
    }
}

/// A policy and the workloads of the host.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    resolved: Resolved,
    memberships: Vec<Membership>,
}

impl Input {
    /// The measured flow is allowed at both ends by the address of its peer and its port; the
    /// subjects have rules by identity and for any peer, too, so that three lookups are made.
    pub(crate) fn new(subjects: &Subjects, shape: Shape) -> Self {
        let mut rng = generate::seeded(1, shape.rules as u64);
        let mut own = Builder { log: shape.log, rules: Vec::new() };
        let count = u32::try_from(shape.rules / 20).unwrap_or(u32::MAX).clamp(3, 5000);
        let (client, server) = (SegmentId(count), SegmentId(count + 1));
        let near = network(subjects.network);
        let (tcp, udp) = (ports(proto::TCP, 7000, 7099), ports(proto::UDP, 7000, 60_000));
        own.allow(segment(client), near.clone(), &[tcp, udp]);
        own.allow(segment(server), near.clone(), &[tcp, udp]);
        own.allow(near, segment(server), &[tcp, udp]);
        let https = [ports(proto::TCP, 443, 443)];
        own.allow(segment(client), segment(SegmentId(0)), &https);
        own.allow(segment(SegmentId(1)), segment(server), &https);
        let dns = [ports(proto::UDP, 53, 53)];
        own.allow(segment(client), any(), &dns);
        own.allow(any(), segment(server), &dns);
        if shape.all_lookups {
            own.every_shape(client, server);
        }
        let fill = shape.rules.saturating_sub(own.rules.len());
        let addresses = u32::try_from(shape.rules / 2).unwrap_or(u32::MAX);
        let large = generate::large(&mut rng, count, fill, addresses);
        let mut resolved = large.resolved;
        for name in ["client", "server"] {
            resolved.segments.push(Segment {
                name: name.into(),
                policy: "bench".into(),
                ingress: Isolation::Enforce,
                egress: Isolation::Enforce,
                reject: false,
                selectors: Vec::new(),
                addresses: Vec::new(),
                position: position(),
            });
        }
        // The rules that decide are the last of their tier.
        resolved.rules.extend(own.rules);
        resolved.rules.sort_by_key(|rule| rule.tier as u8);
        let mut memberships = workloads(subjects, client, server);
        let ours: Vec<_> = memberships.iter().map(|m| m.key).collect();
        memberships.extend(large.workloads.into_iter().filter(|m| !ours.contains(&m.key)));
        Self { resolved, memberships }
    }

    pub(crate) fn compile(&self) -> Result<Image> {
        Ok(compile(&self.resolved, &self.memberships, &CAPACITY)?)
    }
}

fn workloads(subjects: &Subjects, client: SegmentId, server: SegmentId) -> Vec<Membership> {
    let deepest = subjects.cgroups.len().saturating_sub(1);
    let mut memberships = Vec::new();
    for (depth, (key, level)) in subjects.cgroups.iter().copied().enumerate() {
        let segments = if depth == deepest { [client].into() } else { [].into() };
        let (name, level) = (format!("/bench{depth}"), Some(level));
        memberships.push(Membership { key, name, level, segments });
    }
    memberships.push(Membership {
        key: workload_interface(subjects.ifindex),
        name: "interface:bench".into(),
        level: None,
        segments: [server].into(),
    });
    memberships
}

struct Builder {
    log: bool,
    rules: Vec<Rule>,
}

impl Builder {
    fn allow(&mut self, from: Side, to: Side, ports: &[PortRange]) {
        self.push(Tier::Application, Action::Allow, from, to, ports);
    }

    /// Rules of the last tier, which is never reached: isolation decides before.
    fn every_shape(&mut self, client: SegmentId, server: SegmentId) {
        let elsewhere = || network(IpNet::from(IpAddr::from([203, 0, 113, 1])));
        let peers = [segment(SegmentId(0)), elsewhere(), any()];
        for ports in [ports(proto::TCP, 22, 22), PortRange::ANY] {
            for peer in &peers {
                for (from, to) in [(segment(client), peer), (any(), peer)] {
                    self.push(Tier::Baseline, Action::Deny, from, to.clone(), &[ports]);
                }
                for (from, to) in [(peer, segment(server)), (peer, any())] {
                    self.push(Tier::Baseline, Action::Deny, from.clone(), to, &[ports]);
                }
            }
        }
    }

    fn push(&mut self, tier: Tier, action: Action, from: Side, to: Side, ports: &[PortRange]) {
        self.rules.push(Rule {
            name: format!("bench/rule-{}", self.rules.len()),
            tier,
            action,
            mode: Mode::Enforce,
            log: self.log && action == Action::Allow,
            reject: false,
            expires: None,
            from,
            to,
            ports: ports.to_vec(),
            position: position(),
            ends: Ends::Both,
            built_in: false,
        });
    }
}

fn segment(id: SegmentId) -> Side {
    Side { segments: vec![id], ..Side::default() }
}

fn network(cidr: IpNet) -> Side {
    Side { networks: [Network { cidr, except: Vec::new() }].into(), ..Side::default() }
}

fn any() -> Side {
    Side { any: true, ..Side::default() }
}

fn ports(protocol: u8, first: u16, last: u16) -> PortRange {
    PortRange { protocol: Some(protocol), first, last }
}

fn position() -> Position {
    Position { file: "bench.yaml".into(), line: 1, column: 1 }
}
