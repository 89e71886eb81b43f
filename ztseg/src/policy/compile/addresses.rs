//! Address classes, and what is known of each peer address: a sweep over all prefixes.
//!
//! All prefixes of the policy, sorted by address and then by length, are a walk through a tree in
//! which each prefix comes before those inside it. The sweep keeps the segments and the network
//! lists that hold the place where it stands, and notes at each prefix what holds there.

use std::collections::BTreeMap;

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use ztseg_common::addr::Addr;
use ztseg_common::key::{ADDRESS_FIRST, ADDRESS_UNKNOWN, PrefixKey};
use ztseg_common::value::Peer;

use super::segments::Identities;
use super::sets::{SetId, SetPool};
use super::sides::Sides;
use super::{CompileError, number};
use crate::policy::resolved::{Network, Resolved};

/// The peers of a policy.
pub(super) struct Addresses {
    /// What is known of single addresses.
    pub(super) hosts: FxHashMap<Addr, Peer>,
    /// What is known of prefixes; complete, since only the longest one is looked at.
    pub(super) prefixes: BTreeMap<PrefixKey, Peer>,
    /// By index into [`Sides::networks`]: the address classes in it.
    pub(super) matching: Vec<Vec<u32>>,
}

/// A prefix over 128 bits, host bits zero; IPv4 lies in `::ffff:0:0/96`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    const V4: Self = Self { bits: 0xffff << 32, len: 96 };

    fn new(net: &IpNet) -> Self {
        match net.trunc() {
            IpNet::V4(net) => {
                let bits = Self::V4.bits | u128::from(u32::from(net.network()));
                Self { bits, len: Self::V4.len + net.prefix_len() }
            }
            IpNet::V6(net) => Self { bits: net.network().into(), len: net.prefix_len() },
        }
    }

    const fn contains(self, other: Self) -> bool {
        let mask = match self.len {
            0 => 0,
            len => u128::MAX << (128 - len),
        };
        self.len <= other.len && other.bits & mask == self.bits
    }

    const fn addr(self) -> Addr {
        Addr { octets: self.bits.to_be_bytes() }
    }
}

/// What begins or ends at a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A segment's `addresses`.
    Segment(u32),
    /// A list in [`Sides::networks`].
    Networks(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    at: Prefix,
    what: What,
    begins: bool,
}

impl Addresses {
    /// Sweeps over the prefixes of the policy.
    pub(super) fn new(
        resolved: &Resolved,
        sides: &Sides<'_>,
        identities: &mut Identities,
    ) -> Result<Self, CompileError> {
        let edges = edges(resolved, sides, identities);
        let mut sweep = Sweep::new(resolved.segments.len(), sides.networks.len());
        let mut classes = Classes::new(sides.networks.len());
        let mut peers =
            Self { hosts: FxHashMap::default(), prefixes: BTreeMap::new(), matching: Vec::new() };
        for group in edges.chunk_by(|a, b| a.at == b.at) {
            let at = group[0].at;
            let around = sweep.enter(at);
            sweep.apply(group);
            let (segments, networks) = sweep.here();
            let peer = Peer {
                identity: classes.identity(segments, &sweep.segments.pool, identities)?,
                address: classes.address(networks, &sweep.networks.pool)?,
            };
            sweep.settle(at, peer);
            // What the next longer prefix says anyway needs no entry of its own.
            if peer == around {
                continue;
            }
            if u32::from(at.len) == u128::BITS {
                peers.hosts.insert(at.addr(), peer);
            } else {
                let key = PrefixKey { prefix_len: at.len.into(), addr: at.addr() };
                peers.prefixes.insert(key, peer);
            }
        }
        peers.matching = classes.matching;
        Ok(peers)
    }
}

/// Every place where a segment or a network list begins or ends, sorted for the sweep.
fn edges(resolved: &Resolved, sides: &Sides<'_>, identities: &Identities) -> Vec<Edge> {
    let mut edges = Vec::new();
    for (segment, addresses) in resolved.segments.iter().map(|s| &s.addresses).enumerate() {
        let segment = number(segment);
        if identities.is_peer(segment) {
            for net in addresses {
                push(&mut edges, What::Segment(segment), net, &[]);
            }
        }
    }
    for (list, networks) in sides.networks.iter().enumerate() {
        for Network { cidr, except } in *networks {
            push(&mut edges, What::Networks(number(list)), cidr, except);
        }
    }
    edges.sort_unstable();
    edges
}

fn push(edges: &mut Vec<Edge>, what: What, cidr: &IpNet, except: &[IpNet]) {
    let at = Prefix::new(cidr);
    // An IPv6 CIDR that is wide enough to hold the mapped addresses still holds no IPv4. An
    // `except` of the other family leaves nothing out.
    let wide = at.len < Prefix::V4.len && at.contains(Prefix::V4);
    let mut holes: Vec<Prefix> = except
        .iter()
        .map(Prefix::new)
        .filter(|hole| Prefix::V4.contains(at) == Prefix::V4.contains(*hole))
        .chain(wide.then_some(Prefix::V4))
        .collect();
    if holes.iter().any(|hole| hole.contains(at)) {
        return;
    }
    edges.push(Edge { at, what, begins: true });
    holes.sort_unstable();
    let mut last: Option<Prefix> = None;
    for hole in holes {
        if at.contains(hole) && !last.is_some_and(|last| last.contains(hole)) {
            edges.push(Edge { at: hole, what, begins: false });
            last = Some(hole);
        }
    }
}

/// What holds the place where the sweep stands.
struct Sweep<'a> {
    segments: Holders,
    networks: Holders,
    stack: Vec<Frame<'a>>,
}

struct Frame<'a> {
    at: Prefix,
    edges: &'a [Edge],
    segments: SetId,
    networks: SetId,
    peer: Peer,
}

/// How many prefixes of each segment or network list hold the place, and the set of those with
/// one at least.
struct Holders {
    pool: SetPool,
    counts: Vec<u32>,
}

impl Holders {
    fn new(universe: usize) -> Self {
        Self { pool: SetPool::new(universe), counts: vec![0; universe] }
    }

    fn count(&mut self, what: u32, begins: bool) {
        // Within one prefix an end may come before a begin, so the count may pass below zero.
        let count = &mut self.counts[what as usize];
        *count = if begins { count.wrapping_add(1) } else { count.wrapping_sub(1) };
    }

    fn update(&mut self, set: SetId, what: u32) -> SetId {
        match self.counts[what as usize] {
            0 => self.pool.remove(set, what),
            _ => self.pool.insert(set, what),
        }
    }
}

impl<'a> Sweep<'a> {
    fn new(segments: usize, networks: usize) -> Self {
        Self {
            segments: Holders::new(segments),
            networks: Holders::new(networks),
            stack: Vec::new(),
        }
    }

    /// Leaves the prefixes that do not hold `at`; says what is known around it.
    fn enter(&mut self, at: Prefix) -> Peer {
        while let Some(frame) = self.stack.pop_if(|frame| !frame.at.contains(at)) {
            self.count(frame.edges, false);
        }
        self.stack.last().map_or(Peer::UNKNOWN, |frame| frame.peer)
    }

    /// Goes into the prefix of these edges.
    fn apply(&mut self, edges: &'a [Edge]) {
        let (mut segments, mut networks) = self.here();
        self.count(edges, true);
        for edge in edges {
            match edge.what {
                What::Segment(s) => segments = self.segments.update(segments, s),
                What::Networks(n) => networks = self.networks.update(networks, n),
            }
        }
        let at = edges[0].at;
        self.stack.push(Frame { at, edges, segments, networks, peer: Peer::UNKNOWN });
    }

    /// Notes what is known of the prefix that was entered last.
    fn settle(&mut self, at: Prefix, peer: Peer) {
        if let Some(frame) = self.stack.last_mut() {
            debug_assert_eq!(frame.at, at);
            frame.peer = peer;
        }
    }

    /// The segments and the network lists that hold this place.
    fn here(&self) -> (SetId, SetId) {
        self.stack.last().map_or((SetId::EMPTY, SetId::EMPTY), |f| (f.segments, f.networks))
    }

    fn count(&mut self, edges: &[Edge], forward: bool) {
        for edge in edges {
            match edge.what {
                What::Segment(s) => self.segments.count(s, edge.begins == forward),
                What::Networks(n) => self.networks.count(n, edge.begins == forward),
            }
        }
    }
}

/// Numbers for the sets that the sweep finds.
struct Classes {
    identities: FxHashMap<SetId, u32>,
    addresses: FxHashMap<SetId, u32>,
    matching: Vec<Vec<u32>>,
    pairs: usize,
}

impl Classes {
    fn new(networks: usize) -> Self {
        Self {
            identities: FxHashMap::default(),
            addresses: [(SetId::EMPTY, ADDRESS_UNKNOWN)].into_iter().collect(),
            matching: vec![Vec::new(); networks],
            pairs: 0,
        }
    }

    fn identity(
        &mut self,
        set: SetId,
        pool: &SetPool,
        identities: &mut Identities,
    ) -> Result<u32, CompileError> {
        if let Some(class) = self.identities.get(&set) {
            return Ok(*class);
        }
        let mut segments = Vec::with_capacity(pool.len(set));
        pool.for_each(set, &mut |s| segments.push(s));
        let class = identities.class(segments.into_iter())?;
        self.identities.insert(set, class);
        Ok(class)
    }

    fn address(&mut self, set: SetId, pool: &SetPool) -> Result<u32, CompileError> {
        if let Some(class) = self.addresses.get(&set) {
            return Ok(*class);
        }
        let class = number(self.addresses.len()) - 1 + ADDRESS_FIRST;
        self.addresses.insert(set, class);
        self.pairs += pool.len(set);
        super::check_overlaps("addresses", self.pairs as u64, super::MAX_PAIRS)?;
        let matching = &mut self.matching;
        pool.for_each(set, &mut |list| matching[list as usize].push(class));
        Ok(class)
    }
}
