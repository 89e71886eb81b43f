//! What has to become of each packet, the naive way: every packet is judged by the policy that is in
//! force when it comes, from the end that opened its flow. That is all that flows are remembered for.
//!
//! It is written from ARCHITECTURE.md and shares no code with the kernel programs or with
//! `ztseg_common::state`: whatever those keep, so as not to judge each packet, must not show.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use ztseg::image::SegmentSet;
use ztseg::policy::oracle::{self, PeerFacts};
use ztseg::policy::resolved::{Isolation, Resolved, SegmentId, Side};
use ztseg_common::addr::proto;
use ztseg_common::verdict::Direction;

use super::connection::{Connection, OPENER, OTHER};
use super::packet::{Content, Packet, echo_type};

/// A timeout is exact to so many seconds before it ends: real time goes on beside the model's.
pub(super) const MARGIN: u64 = 10;

/// What has to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    Dropped,
    /// The documents do not say, or not to the second. It changes nothing.
    Open,
}

/// A packet at a workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    /// The workload's number.
    pub(super) workload: usize,
    /// The workload sends it.
    pub(super) outbound: bool,
    /// The number of what is at the other end, a workload or not, where it is behind an interface.
    pub(super) peer: Option<usize>,
    pub(super) packet: &'a Packet,
}

/// What makes a flow, seen from its workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    workload: usize,
    protocol: u8,
    local: IpAddr,
    remote: IpAddr,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ports {
        local: u16,
        remote: u16,
    },
    /// An echo and its answer are one flow, by identifier and by who asks.
    Echo {
        identifier: u16,
        workload_asks: bool,
    },
    /// Any other message is a flow of its own, one way.
    Icmp {
        outbound: bool,
        kind: u8,
    },
}

#[derive(Clone, Debug)]
struct Flow {
    /// The workload opened it.
    opened_here: bool,
    peer: Option<usize>,
    /// What rules are asked for: the port or ICMP type that its first packet asked for.
    service: u16,
    connection: Option<Connection>,
    /// When its last packet came.
    seen: u64,
    /// [`Model::changes`] at that time.
    judged: u64,
}

/// Policy, workloads, flows and clocks.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) resolved: Resolved,
    /// The segments of each workload, by number; none: it is not a workload (any more, or yet).
    pub(super) members: Vec<Option<SegmentSet>>,
    /// Who has which address.
    owners: Vec<(IpAddr, usize)>,
    /// Connections may be older than the agent.
    pub(super) adopting: bool,
    /// Seconds that have passed.
    pub(super) now: u64,
    /// How often the policy or a workload changed.
    pub(super) changes: u64,
    flows: BTreeMap<Key, Flow>,
}

impl Model {
    pub(super) fn new(owners: Vec<(IpAddr, usize)>) -> Self {
        Self {
            resolved: Resolved::default(),
            members: Vec::new(),
            owners,
            adopting: false,
            now: 0,
            changes: 0,
            flows: BTreeMap::new(),
        }
    }

    /// How many flows are remembered.
    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// For each flow, the seconds after which it will have been silent for too long.
    pub(super) fn timeouts(&self) -> impl Iterator<Item = u64> {
        self.flows
            .iter()
            .map(|(key, flow)| (flow.seen + timeout(key, flow)).saturating_sub(self.now))
    }

    fn segments(&self, workload: usize) -> Option<&SegmentSet> {
        self.members.get(workload)?.as_ref()
    }

    /// What becomes of a packet at a workload; `wall` is the time of day.
    pub(super) fn sight(&mut self, wall: Timestamp, sight: Sight<'_>) -> Fate {
        let Sight { workload, outbound, packet, .. } = sight;
        let direction = if outbound { Direction::Egress } else { Direction::Ingress };
        if self.segments(workload).is_none() {
            return Fate::Passes;
        }
        if matches!(packet.content, Content::Cut) {
            return self.without_rules(workload, direction);
        }
        if outbound && self.is_forged(workload, packet.source) {
            return Fate::Dropped;
        }
        match &packet.content {
            Content::Discovery => return Fate::Passes,
            Content::Error { about } => {
                // It goes to who sent what it is about, and that belongs to an allowed flow.
                if about.source == packet.destination {
                    let key = key(workload, !outbound, about);
                    match self.known(&key) {
                        Err(open) => return open,
                        // Which of its own packets come first after a change is not promised, nor
                        // while it hangs on the end of another rule.
                        Ok(Some(flow)) if self.allows(wall, &key, flow) => {
                            let ends = self.resolved.rules.iter().any(|r| r.expires.is_some());
                            let judged = flow.judged == self.changes && !ends;
                            return if judged { Fate::Passes } else { Fate::Open };
                        }
                        Ok(_) => {}
                    }
                }
                return self.without_rules(workload, direction);
            }
            _ => {}
        }
        self.of_flow(wall, sight)
    }

    fn of_flow(&mut self, wall: Timestamp, sight: Sight<'_>) -> Fate {
        let key = key(sight.workload, sight.outbound, sight.packet);
        let segment = match sight.packet.content {
            Content::Tcp { segment, .. } => Some(segment),
            _ => None,
        };
        let mut flow = match self.known(&key) {
            Err(open) => return open,
            Ok(flow) => flow.cloned(),
        };
        if let (Some(known), Some(segment)) = (&mut flow, segment) {
            let end = if known.opened_here == sight.outbound { OPENER } else { OTHER };
            match &mut known.connection {
                Some(connection) if !connection.is_asked_anew(segment) => {
                    connection.take(end, segment);
                }
                _ => flow = None,
            }
        }
        let goes_on = flow.is_some();
        let mut flow = flow.unwrap_or_else(|| Flow {
            opened_here: sight.outbound,
            peer: sight.peer,
            service: service(sight.packet),
            connection: segment.map(|segment| Connection::begin(OPENER, segment)),
            seen: self.now,
            judged: self.changes,
        });
        (flow.seen, flow.judged) = (self.now, self.changes);
        let mut allowed = self.allows(wall, &key, &flow);
        let stood_before = segment.is_some_and(|s| s.flags & ztseg_common::packet::tcp::SYN == 0);
        if !allowed && !goes_on && self.adopting && stood_before {
            // Perhaps the other end opened it, before anybody looked.
            flow.opened_here = !flow.opened_here;
            flow.service = sight.packet.ports()[0];
            flow.connection = segment.map(|segment| Connection::begin(OTHER, segment));
            allowed = self.allows(wall, &key, &flow);
        }
        if allowed {
            self.flows.insert(key, flow);
            return Fate::Passes;
        }
        // What is denied is not kept. Where a new flow between the same ends is, the old one stands.
        if goes_on {
            self.flows.remove(&key);
        }
        Fate::Dropped
    }

    /// The flow, unless it has been silent for too long; an error where that is not certain.
    fn known(&self, key: &Key) -> Result<Option<&Flow>, Fate> {
        let Some(flow) = self.flows.get(key) else { return Ok(None) };
        let (silent, timeout) = (self.now - flow.seen, timeout(key, flow));
        if silent > timeout {
            Ok(None)
        } else if silent + MARGIN > timeout {
            Err(Fate::Open)
        } else {
            Ok(Some(flow))
        }
    }

    fn allows(&self, wall: Timestamp, key: &Key, flow: &Flow) -> bool {
        if flow.peer == Some(key.workload) {
            return true; // A workload always reaches itself.
        }
        let direction = if flow.opened_here { Direction::Egress } else { Direction::Ingress };
        let known = flow.peer.and_then(|peer| self.segments(peer)).cloned();
        let peer = PeerFacts { known, nobody: false, address: key.remote };
        let Some(subject) = self.segments(key.workload) else { return true };
        let service = (key.protocol, flow.service);
        oracle::decide_at(wall, &self.resolved, subject, &peer, direction, service).allow
    }

    /// A source that is another workload's, or this host's.
    fn is_forged(&self, workload: usize, source: IpAddr) -> bool {
        let link_local = matches!(source, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let others = |(address, owner): &(IpAddr, usize)| {
            *address == source && *owner != workload && self.segments(*owner).is_some()
        };
        !link_local && (source.is_loopback() || self.owners.iter().any(others))
    }

    /// A packet that no rule can be asked about: denied where its direction is isolated or has rules,
    /// passed in audit mode, and passed where no policy is.
    fn without_rules(&self, workload: usize, direction: Direction) -> Fate {
        let Some(subject) = self.segments(workload) else { return Fate::Passes };
        let of_segment = |id: &SegmentId| {
            let segment = &self.resolved.segments[id.0 as usize];
            if direction == Direction::Ingress { segment.ingress } else { segment.egress }
        };
        let isolation: Vec<Isolation> = subject.iter().map(of_segment).collect();
        if isolation.contains(&Isolation::Enforce) {
            return Fate::Dropped;
        }
        if isolation.contains(&Isolation::Audit) {
            return Fate::Passes;
        }
        let concerned = |side: &Side| side.any || side.segments.iter().any(|s| subject.contains(s));
        let has_rules = self.resolved.rules.iter().any(|rule| {
            concerned(if direction == Direction::Ingress { &rule.to } else { &rule.from })
        });
        // A rule that no packet can meet is not one for the kernel, which is not written about.
        if has_rules { Fate::Open } else { Fate::Passes }
    }
}

fn key(workload: usize, outbound: bool, packet: &Packet) -> Key {
    let [source_port, destination_port] = packet.ports();
    let (local, remote) = if outbound {
        (packet.source, packet.destination)
    } else {
        (packet.destination, packet.source)
    };
    let what = match packet.content {
        Content::Echo { request, identifier } => {
            What::Echo { identifier, workload_asks: request == outbound }
        }
        Content::Icmp { kind } => What::Icmp { outbound, kind },
        _ if outbound => What::Ports { local: source_port, remote: destination_port },
        _ => What::Ports { local: destination_port, remote: source_port },
    };
    Key { workload, protocol: packet.protocol(), local, remote, what }
}

/// What a packet that opens a flow asks for.
fn service(packet: &Packet) -> u16 {
    match packet.content {
        Content::Echo { request, .. } => echo_type(packet.source.is_ipv6(), request).into(),
        Content::Icmp { kind } => kind.into(),
        _ => packet.ports()[1],
    }
}

/// Seconds. UDP and others as RFC 4787 and the documents have them.
fn timeout(key: &Key, flow: &Flow) -> u64 {
    match (&flow.connection, key.protocol) {
        (Some(connection), _) => connection.timeout(),
        (None, proto::UDP) => 180,
        (None, proto::SCTP) => 210,
        (None, _) => 30,
    }
}
