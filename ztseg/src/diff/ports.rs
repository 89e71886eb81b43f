//! The protocols and ports that both policies treat alike.

use std::collections::BTreeMap;

use ztseg_common::key::port_slot;

use super::Side;
use crate::policy::parse::port::{bounds, is_v4};
use crate::policy::resolved::PortRange;

/// A part.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// One of it.
    pub(super) protocol: u8,
    /// Port or type.
    pub(super) port: u16,
    /// The address family that it belongs to, if to one alone.
    pub(super) v4: Option<bool>,
    /// All of it.
    pub(super) ranges: Vec<PortRange>,
}

impl Part {
    pub(super) fn slot(&self) -> u32 {
        port_slot(self.protocol, self.port)
    }
}

/// Divides all protocols and ports into parts.
pub(super) fn partition(sides: &[Side<'_>; 2]) -> Vec<Part> {
    let class = |protocol, port| {
        let slot = port_slot(protocol, port) as usize;
        sides.each_ref().map(|side| side.image.ports.get(slot).copied().unwrap_or_default())
    };
    let mut parts: BTreeMap<(Option<bool>, [u16; 2]), Vec<PortRange>> = BTreeMap::new();
    for protocol in 0..=u8::MAX {
        let family = is_v4(protocol);
        let (first, last) = bounds(protocol);
        if (first, last) == (0, u16::MAX) {
            // It has no ports.
            let whole = PortRange { protocol: Some(protocol), first, last };
            parts.entry((family, class(protocol, 0))).or_default().push(whole);
            continue;
        }
        let mut begin = first;
        for port in first..=last {
            let own = class(protocol, port);
            if port == last || class(protocol, port + 1) != own {
                let range = PortRange { protocol: Some(protocol), first: begin, last: port };
                parts.entry((family, own)).or_default().push(range);
                begin = port.saturating_add(1);
            }
        }
    }
    let part = |((v4, _), ranges): ((Option<bool>, _), Vec<PortRange>)| {
        let first = ranges.first()?;
        Some(Part { protocol: first.protocol?, port: first.first, v4, ranges })
    };
    parts.into_iter().filter_map(part).collect()
}
