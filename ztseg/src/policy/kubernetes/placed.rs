//! Pods that were read from files, with the segments that they are in.

use std::net::IpAddr;

use crate::image::SegmentSet;
use crate::inventory::Membership;
use crate::judge::End;
use crate::policy::compile::memberships_of;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It has no network of its own but its node's, whose addresses it shares with everything there.
    pub host_network: bool,
    /// Its segments; `None` for a pod of its node's network that no `SegmentPolicy` names: it is no
    /// workload of its own.
    pub segments: Option<SegmentSet>,
}

impl PlacedPod {
    /// As one end of a flow of this address family.
    pub fn end(&self, v4: bool) -> End {
        let address = self.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        End { workload: self.segments.clone(), address }
    }
}

/// What the compiler wants to know of pods that no kernel has.
pub fn memberships(pods: &[PlacedPod]) -> Vec<Membership> {
    memberships_of(pods.iter().filter_map(|pod| pod.segments.as_ref()))
}
