//! Members elsewhere: single addresses that are in segments beside what the policy itself says.
//!
//! The same steps as [`Image::host_of`] takes for one of them, but that a class that is not there yet
//! is made.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use ztseg_common::addr::Addr;
use ztseg_common::value::Peer;

use super::CompileError;
use super::addresses::Addresses;
use super::segments::Identities;
use crate::image::{SegmentSet, longest_prefix};
use crate::policy::resolved::SegmentId;

#[cfg(doc)]
use crate::image::Image;

/// The segments of single addresses, beside those whose own `addresses` hold them.
pub type Members = BTreeMap<Addr, SegmentSet>;

/// The members whose entry among the hosts is not what the policy alone gives them.
pub(super) fn place(
    members: &Members,
    segments: usize,
    addresses: &Addresses,
    identities: &mut Identities,
) -> Result<FxHashMap<Addr, Option<Peer>>, CompileError> {
    let mut lengths: Vec<u32> = addresses.prefixes.keys().map(|key| key.prefix_len).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
    let mut placed = FxHashMap::default();
    for (address, set) in members {
        if let Some(SegmentId(segment)) = set.last().filter(|s| s.0 as usize >= segments) {
            let by = std::net::IpAddr::from(*address).to_string();
            return Err(CompileError::UnknownSegment { by, segment: *segment });
        }
        let around = longest_prefix(&addresses.prefixes, lengths.iter().copied(), address);
        let of_policy = addresses.hosts.get(address).copied();
        let policy = of_policy.unwrap_or(around);
        let peer = Peer { identity: identities.joined(policy.identity, set)?, ..policy };
        let host = (peer != around).then_some(peer);
        if host != of_policy {
            placed.insert(*address, host);
        }
    }
    Ok(placed)
}
