//! Workloads that were read from files, with the segments that they are in.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashSet;

use super::resolved::{Resolved, Segment};
use crate::image::SegmentSet;
use crate::inventory::Inventory;
use crate::inventory::facts::WorkloadFacts;
use crate::judge::End;

/// A workload that a document describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedWorkload {
    /// Its name.
    pub name: String,
    /// What is known of it.
    pub facts: WorkloadFacts,
    /// Its segments.
    pub segments: SegmentSet,
}

impl PlacedWorkload {
    /// As one end of a flow of this address family.
    pub fn end(&self, v4: bool) -> End {
        let address = self.facts.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        End { workload: Some(self.segments.clone()), address }
    }
}

/// Finds the segments of workloads under a policy.
pub(super) fn place(resolved: &Resolved, workloads: &mut [PlacedWorkload]) {
    let mut inventory = Inventory::new();
    inventory.set_policy(resolved);
    for workload in workloads {
        workload.segments = inventory.described(&workload.facts);
    }
}

/// Makes addresses members of segments, for whoever meets them from elsewhere.
pub(super) fn add_addresses<'a>(
    segments: &mut [Segment],
    members: impl IntoIterator<Item = (&'a SegmentSet, &'a [IpAddr])>,
) {
    let mut grown = BTreeSet::new();
    for (set, addresses) in members {
        for id in set.iter().filter(|_| !addresses.is_empty()) {
            if let Some(segment) = segments.get_mut(id.0 as usize) {
                segment.addresses.extend(addresses.iter().map(|address| IpNet::from(*address)));
                grown.insert(id.0 as usize);
            }
        }
    }
    for number in grown {
        let mut seen = FxHashSet::default();
        segments[number].addresses.retain(|net| seen.insert(*net));
    }
}
