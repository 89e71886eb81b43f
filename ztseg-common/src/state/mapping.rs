//! Where the answers of a translated flow belong.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{FLOW_MAPPING, FlowState, Phase};
use crate::addr::{Addr, Port};

/// In the flow table beside the flows, under [`crate::key::MAPPED_UDP`]: for the ends that the
/// subject's socket knows, those that its packets have behind this host's translation. Under these the
/// flow itself is in the table.
///
/// It lies over a [`FlowState`], so that it is swept, and counted in its workload's share, like one:
/// its stamp is zero, and the time and the phase are where they are in a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Mapping {
    /// Never a valid verdict.
    stamp: u64,
    local_high: [u8; 8],
    zero: u32,
    /// When a packet went this way last, in [`super::ticks`].
    pub last_seen: u32,
    role: u8,
    reason: u8,
    phase: u8,
    flags: u8,
    /// The peer's address behind the translation.
    pub remote: Addr,
    local_low: [u8; 8],
    /// The peer's port behind the translation.
    pub remote_port: Port,
    /// The subject's port behind the translation.
    pub local_port: Port,
}

impl Mapping {
    /// Of the ends behind the translation, seen at `now`.
    #[expect(clippy::many_single_char_names, reason = "the octets of an address")]
    #[inline(always)]
    pub const fn new(local: (Addr, Port), remote: (Addr, Port), now: u32) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = local.0.octets;
        Self {
            stamp: 0,
            local_high: [a, b, c, d, e, f, g, h],
            zero: 0,
            last_seen: now,
            role: 0,
            reason: 0,
            phase: Phase::Established as u8,
            flags: FLOW_MAPPING,
            remote: remote.0,
            local_low: [i, j, k, l, m, n, o, p],
            remote_port: remote.1,
            local_port: local.1,
        }
    }

    /// The mapping that an entry of the flow table is.
    #[inline(always)]
    pub fn of(state: &FlowState) -> Option<&Self> {
        if state.flags & FLOW_MAPPING != 0 { Some(bytemuck::must_cast_ref(state)) } else { None }
    }

    /// As an entry of the flow table.
    #[inline(always)]
    pub fn as_entry(&self) -> &FlowState {
        bytemuck::must_cast_ref(self)
    }

    /// The subject's address behind the translation.
    #[expect(clippy::many_single_char_names, reason = "the octets of an address")]
    #[inline(always)]
    pub const fn local(&self) -> Addr {
        let [a, b, c, d, e, f, g, h] = self.local_high;
        let [i, j, k, l, m, n, o, p] = self.local_low;
        Addr { octets: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] }
    }
}

const _: () = {
    assert!(size_of::<Mapping>() == size_of::<FlowState>());
    assert!(offset_of!(Mapping, last_seen) == offset_of!(FlowState, last_seen));
    assert!(offset_of!(Mapping, phase) == offset_of!(FlowState, phase));
    assert!(offset_of!(Mapping, flags) == offset_of!(FlowState, flags));
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_an_entry_that_is_no_flow() {
        let local = (Addr { octets: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16] }, 1);
        let remote = (Addr::v4([192, 0, 2, 7]), 2);
        let [l, r] = [local, remote].map(|(addr, port)| (addr, Port::new(port)));
        let mapping = Mapping::new(l, r, 77);
        let entry = *mapping.as_entry();
        assert_eq!((entry.stamp, entry.last_seen, entry.flags), (0, 77, FLOW_MAPPING));
        assert_eq!(entry.phase, Phase::Established as u8);
        let again = Mapping::of(&entry).expect("a mapping");
        assert_eq!((again.local(), again.local_port), l);
        assert_eq!((again.remote, again.remote_port), r);
        assert!(Mapping::of(&FlowState::default()).is_none());
    }
}
