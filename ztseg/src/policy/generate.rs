//! Random policies, workloads and questions, for the tests that hold the compiler, the evaluator
//! and the kernel programs against the oracle.
//!
//! The universe is small on purpose: few segments, a handful of nested CIDRs, the ports around
//! each other's bounds. So rules overlap often, and most questions meet several of them. All
//! addresses are of blocks for documentation and private use, except where the edges of the
//! address space are the point.

mod rules;
#[cfg(test)]
pub(crate) mod written;

use std::net::IpAddr;

use fastrand::Rng;
use ipnet::IpNet;
use jiff::Timestamp;
use ztseg_common::addr::proto;
use ztseg_common::key::{WorkloadKey, workload_interface};
use ztseg_common::verdict::Direction;

use super::failsafe::{Failsafe, Opening};
use super::oracle::PeerFacts;
use super::resolved::{
    Action, Ends, Isolation, Mode, Network, PortRange, Resolved, Rule, Segment, SegmentId,
    Selector, Side, Tier,
};
use super::source::Position;
use crate::image::SegmentSet;
use crate::inventory::Membership;

/// The environment variable that sets the seed of random tests.
pub const SEED_VARIABLE: &str = "ZTSEG_SEED";

const CIDRS: [&str; 22] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.1.2.129/32",
    "10.1.2.3/32",
    "10.2.0.0/16",
    "192.0.2.0/24",
    "192.0.2.7/32",
    "0.0.0.0/0",
    "0.0.0.0/1",
    "255.255.255.255/32",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1:2::/64",
    "2001:db8:1:2::3/128",
    "2001:db8:1:2::/127",
    "::/0",
    "::/64",
    "::fffe:0:0/95",
    "::ffff:10.1.0.0/112",
    "::ffff:0:0/96",
];

const ADDRESSES: [&str; 22] = [
    "10.0.0.0",
    "10.1.2.3",
    "10.1.2.4",
    "10.1.2.127",
    "10.1.2.128",
    "10.1.2.129",
    "10.1.3.0",
    "10.2.0.1",
    "10.255.255.255",
    "127.0.0.1",
    "192.0.2.7",
    "192.0.2.8",
    "128.0.0.1",
    "255.255.255.255",
    "2001:db8::1",
    "2001:db8:1::1",
    "2001:db8:1:2::",
    "2001:db8:1:2::3",
    "2001:db8:1:3::1",
    "2001:db9::1",
    "::1",
    "fd00::1",
];

/// With ports, with types, and a protocol that has neither.
const PROTOCOLS: [u8; 7] =
    [proto::TCP, proto::TCP, proto::UDP, proto::SCTP, proto::ICMP, proto::ICMPV6, 47];
const PORTS: [u16; 9] = [0, 1, 8, 80, 81, 128, 443, 8080, u16::MAX];

/// The middle of the [`moment`]s: about 2026.
const MOMENTS: i64 = 1_780_000_000;

/// One of a few moments, at which rules end and questions are asked.
pub fn moment(rng: &mut Rng) -> Timestamp {
    let seconds = MOMENTS + 3600 * rng.i64(-3..4);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The seed of a test: [`SEED_VARIABLE`] where that is set, else another one each time. Prints it,
/// so that a failure can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var(SEED_VARIABLE).ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| Rng::new().u64(..));
    eprintln!("{SEED_VARIABLE}={seed}");
    seed
}

/// The random numbers of one case of a test.
pub fn seeded(seed: u64, case: u64) -> Rng {
    // Seeds that differ in few bits give streams that are alike at first; a stream's own numbers
    // are far apart.
    let mut rng = Rng::with_seed(seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let next = rng.u64(..);
    Rng::with_seed(next)
}

/// A policy and the workloads of a host.
#[derive(Clone, Debug)]
pub struct World {
    /// The policy.
    pub resolved: Resolved,
    /// The workloads; never none.
    pub workloads: Vec<Membership>,
}

/// A flow at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The subject: an index into [`World::workloads`].
    pub subject: usize,
    /// The peer, where it is a known workload: an index into [`World::workloads`].
    pub peer: Option<usize>,
    /// The peer is a local port that nobody listens on.
    pub nobody: bool,
    /// The address that the flow uses for the peer.
    pub address: IpAddr,
    /// Which end opens the flow.
    pub direction: Direction,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type; zero for protocols that have neither.
    pub port: u16,
}

impl Question {
    /// The peer as the oracle wants it.
    pub fn peer_facts(&self, world: &World) -> PeerFacts {
        PeerFacts {
            known: self.peer.map(|i| world.workloads[i].segments.clone()),
            nobody: self.nobody,
            address: self.address,
        }
    }
}

/// A random policy with random workloads.
pub fn world(rng: &mut Rng) -> World {
    let count = rng.u32(0..7);
    let segments: Vec<Segment> = (0..count).map(|i| segment(rng, i)).collect();
    let mut workloads: Vec<_> = (1..=rng.u32(1..9)).map(|i| membership(rng, i, count)).collect();
    let mut resolved = Resolved { segments, rules: rules::rules(rng, count), failsafe: None };
    if rng.bool() {
        failsafe(rng).add_to(&mut resolved);
        if let Some(id) = resolved.failsafe {
            for workload in workloads.iter_mut().filter(|_| rng.bool()) {
                workload.segments.insert(id);
            }
        }
    }
    World { resolved, workloads }
}

/// A random flow at a random workload.
pub fn question(rng: &mut Rng, world: &World) -> Question {
    let protocol = pick(rng, &PROTOCOLS);
    let port = match protocol {
        proto::TCP | proto::UDP | proto::SCTP => pick(rng, &PORTS),
        proto::ICMP | proto::ICMPV6 => pick(rng, &[0, 1, 8, 80, 128, 255]),
        _ => 0,
    };
    let peer = rng.bool().then(|| rng.usize(0..world.workloads.len()));
    Question {
        subject: rng.usize(0..world.workloads.len()),
        peer,
        nobody: peer.is_none() && rng.u8(0..8) == 0,
        address: address(rng),
        direction: if rng.bool() { Direction::Egress } else { Direction::Ingress },
        protocol,
        port,
    }
}

/// A large policy, for measurements: `rules` rules between `segments` segments, one in ten with
/// CIDRs, which `addresses` single addresses are spread over.
pub fn large(rng: &mut Rng, segments: u32, rules: usize, addresses: u32) -> World {
    let mut resolved = Resolved::default();
    for i in 0..segments {
        resolved.segments.push(Segment { addresses: Vec::new(), ..segment(rng, i) });
    }
    let with_networks = (rules / 10).max(1);
    let mut hosts = 0..addresses;
    for i in 0..rules {
        let side = |rng: &mut Rng| Side {
            segments: vec![SegmentId(rng.u32(0..segments.max(1)))],
            ..Side::default()
        };
        let port = rng.u16(1..2000);
        let mut rule = Rule {
            name: format!("large/rule-{i}"),
            tier: Tier::Application,
            action: Action::Allow,
            mode: Mode::Enforce,
            log: false,
            reject: false,
            expires: None,
            from: side(rng),
            to: side(rng),
            ports: vec![PortRange::one(proto::TCP, port)],
            position: position(),
            ends: Ends::Both,
            built_in: false,
        };
        if i % 10 == 0 {
            let share = (addresses as usize).div_ceil(with_networks);
            // From 172.16.0.0 on, private; for larger numbers whatever comes after.
            let host = |n: u32| IpAddr::from(0xac10_0000_u32.wrapping_add(n).to_be_bytes());
            let network = |n: u32| Network { cidr: host(n).into(), except: Vec::new() };
            let networks = hosts.by_ref().take(share).map(network).collect();
            rule.from = Side { networks, ..Side::default() };
        }
        resolved.rules.push(rule);
    }
    let workloads = (1..=segments.min(10_000))
        .map(|i| Membership { segments: [SegmentId(i - 1)].into(), ..membership(rng, i, 0) })
        .collect();
    World { resolved, workloads }
}

fn position() -> Position {
    Position { file: "random.yaml".into(), line: 1, column: 1 }
}

fn pick<T: Copy>(rng: &mut Rng, list: &[T]) -> T {
    list[rng.usize(0..list.len())]
}

fn segment(rng: &mut Rng, i: u32) -> Segment {
    const ISOLATION: [Isolation; 3] = [Isolation::Enforce, Isolation::Audit, Isolation::Open];
    Segment {
        name: format!("s{i}"),
        policy: "p".into(),
        ingress: pick(rng, &ISOLATION),
        egress: pick(rng, &ISOLATION),
        reject: rng.u8(0..4) == 0,
        selectors: vec![Selector { cgroup: Some(format!("/s{i}")), ..Selector::default() }],
        addresses: (0..rng.usize(0..3)).map(|_| net(rng)).collect(),
        position: position(),
    }
}

fn membership(rng: &mut Rng, index: u32, segments: u32) -> Membership {
    let interface = rng.u8(0..4) == 0;
    let key: WorkloadKey =
        if interface { workload_interface(index) } else { 1000 + u64::from(index) };
    // Two or three segments at once are common, none is possible.
    let segments: SegmentSet = (0..segments).filter(|_| rng.u8(0..3) == 0).map(SegmentId).collect();
    Membership {
        key,
        name: if interface { format!("interface:tap{index}") } else { format!("/w{index}") },
        level: (!interface).then_some(1),
        segments,
    }
}

/// What stays open, whatever the policy says.
fn failsafe(rng: &mut Rng) -> Failsafe {
    let opening = |rng: &mut Rng| {
        let protocol = pick(rng, &["tcp", "udp", "sctp"]);
        let port = pick(rng, &PORTS).max(1);
        let text = match (rng.bool(), net(rng)) {
            (true, _) => format!("{protocol}:{port}"),
            (false, IpNet::V4(net)) => format!("{protocol}:{net}:{port}"),
            (false, IpNet::V6(net)) => format!("{protocol}:[{net}]:{port}"),
        };
        // An IPv4-mapped network is refused.
        Opening::parse(&text).ok()
    };
    let mut openings = || (0..rng.usize(0..4)).filter_map(|_| opening(rng)).collect();
    Failsafe { inbound: openings(), outbound: openings(), units: Vec::new() }
}

fn net(rng: &mut Rng) -> IpNet {
    // The table is valid, which a test checks; a wrong line would stand for one address.
    pick(rng, &CIDRS).parse().unwrap_or_else(|_| IpNet::from(address(rng)))
}

fn address(rng: &mut Rng) -> IpAddr {
    pick(rng, &ADDRESSES).parse().unwrap_or(IpAddr::from([0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_valid() {
        assert!(CIDRS.iter().all(|c| c.parse::<IpNet>().is_ok()));
        assert!(ADDRESSES.iter().all(|a| a.parse::<IpAddr>().is_ok()));
    }

    #[test]
    fn a_seed_repeats_a_case() {
        let make = |case| world(&mut seeded(1, case)).resolved;
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }
}
