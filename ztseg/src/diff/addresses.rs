//! The parts of the address space that both policies treat alike.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use ztseg_common::addr::Addr;
use ztseg_common::value::Peer;

use super::{Addresses, Side};
use crate::policy::resolved::Resolved;

/// Where the IPv4 addresses are among the mapped ones (RFC 4291 section 2.5.5.2).
const V4: u128 = 0xffff_0000_0000;
const V4_LAST: u128 = 0xffff_ffff_ffff;

/// A part.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Of which family it is.
    pub(super) v4: bool,
    /// What each policy knows of it.
    pub(super) peers: [Peer; 2],
    /// One of it.
    pub(super) example: IpAddr,
    /// All of it.
    pub(super) addresses: Addresses,
}

/// The family, and the classes under both policies.
type Key = (bool, [(u32, u32); 2]);

/// Divides all addresses into parts.
pub(super) fn partition(sides: &[Side<'_>; 2]) -> Vec<Part> {
    let mut begins = BTreeSet::from([0, V4, V4_LAST + 1]);
    for net in sides.iter().flat_map(|side| networks(side.resolved)) {
        let (first, last) = (bits(net.network()), bits(net.broadcast()));
        begins.insert(first);
        begins.extend(last.checked_add(1));
    }
    let begins: Vec<u128> = begins.into_iter().collect();
    let ends = begins.iter().skip(1).map(|next| next - 1).chain([u128::MAX]);
    let mut parts: BTreeMap<Key, Vec<(u128, u128)>> = BTreeMap::new();
    for (first, last) in begins.iter().copied().zip(ends) {
        let addr = Addr { octets: first.to_be_bytes() };
        let peers = sides.each_ref().map(|side| side.image.peer(&addr));
        let key = (addr.is_v4(), peers.map(|peer| (peer.identity, peer.address)));
        parts.entry(key).or_default().push((first, last));
    }
    let unknown = [(Peer::UNKNOWN.identity, Peer::UNKNOWN.address); 2];
    let part = |((v4, peers), ranges): (Key, Vec<(u128, u128)>)| Part {
        v4,
        peers: peers.map(|(identity, address)| Peer { identity, address }),
        example: address(ranges.first().map_or(0, |(first, _)| *first)),
        addresses: if peers == unknown {
            Addresses { cidrs: Vec::new(), other_ipv4: v4, other_ipv6: !v4 }
        } else {
            let cidrs = ranges.into_iter().flat_map(|(first, last)| cidrs(first, last)).collect();
            Addresses { cidrs: IpNet::aggregate(&cidrs), ..Addresses::default() }
        },
    };
    parts.into_iter().map(part).collect()
}

/// Every CIDR that a policy names.
fn networks(resolved: &Resolved) -> impl Iterator<Item = IpNet> {
    let sides = resolved.rules.iter().flat_map(|rule| [&rule.from, &rule.to]);
    let in_rules = sides.flat_map(|side| side.networks.iter());
    let in_rules = in_rules.flat_map(|n| std::iter::once(n.cidr).chain(n.except.iter().copied()));
    in_rules.chain(resolved.segments.iter().flat_map(|segment| segment.addresses.iter().copied()))
}

fn bits(address: IpAddr) -> u128 {
    u128::from_be_bytes(Addr::from(address).octets)
}

fn address(bits: u128) -> IpAddr {
    IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical()
}

/// A range in as few CIDRs as it takes.
fn cidrs(first: u128, last: u128) -> Vec<IpNet> {
    if let (IpAddr::V4(first), IpAddr::V4(last)) = (address(first), address(last)) {
        return Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect();
    }
    let (first, last) = (Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last));
    Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
}
