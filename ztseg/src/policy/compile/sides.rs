//! The distinct sides and port lists of a policy: rules share a few of them, so that everything
//! after this looks at each once.

use std::hash::Hash;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use ztseg_common::verdict::Direction;

use super::CompileError;
use crate::policy::resolved::{Network, PortRange, Resolved, Side};

/// One side of a rule, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct SideRef {
    /// Everything; then nothing else is set, since nothing can add to it.
    pub(super) any: bool,
    /// Index into [`Sides::segments`].
    pub(super) segments: Option<u32>,
    /// Index into [`Sides::networks`]; only where the other side makes a subject for the rule,
    /// since networks match nothing but peers.
    pub(super) networks: Option<u32>,
}

impl SideRef {
    fn makes_subject(self) -> bool {
        self.any || self.segments.is_some()
    }
}

/// A rule, in numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct RuleSides {
    pub(super) from: SideRef,
    pub(super) to: SideRef,
    /// Index into [`Sides::ports`]; `None` is every protocol and port.
    pub(super) ports: Option<u32>,
}

/// The distinct parts of all rules.
#[derive(Debug, Default)]
pub(super) struct Sides<'a> {
    /// Lists of segments, ascending.
    pub(super) segments: Vec<Vec<u32>>,
    /// Which of them stand for peers in some rule.
    pub(super) peers: Vec<bool>,
    /// Lists of networks.
    pub(super) networks: Vec<&'a [Network]>,
    /// Lists of port ranges, each with a protocol.
    pub(super) ports: Vec<&'a [PortRange]>,
    /// By the rule's index.
    pub(super) rules: Vec<RuleSides>,
}

impl<'a> Sides<'a> {
    /// Collects them from a policy. The only error is a rule that names a segment that is not
    /// there.
    pub(super) fn of(resolved: &'a Resolved) -> Result<Self, CompileError> {
        let mut segments = Interner::default();
        let mut networks = Networks::default();
        let mut ports = Interner::default();
        let mut peers = Vec::new();
        let mut rules = Vec::with_capacity(resolved.rules.len());
        for rule in &resolved.rules {
            // `end` is the one that has this side for its peer.
            let mut intern = |side: &'a Side, other: &Side, end| -> Result<SideRef, CompileError> {
                if side.any {
                    return Ok(SideRef { any: true, ..SideRef::default() });
                }
                let mut list: Vec<u32> = side.segments.iter().map(|s| s.0).collect();
                if let Some(segment) =
                    list.iter().copied().find(|s| *s as usize >= resolved.segments.len())
                {
                    return Err(CompileError::UnknownSegment { by: rule.name.clone(), segment });
                }
                list.sort_unstable();
                list.dedup();
                let other_is_subject =
                    rule.ends.hold(end) && (other.any || !other.segments.is_empty());
                Ok(SideRef {
                    any: false,
                    segments: (!list.is_empty()).then(|| segments.intern(list)),
                    networks: (!side.networks.is_empty() && other_is_subject)
                        .then(|| networks.intern(&side.networks)),
                })
            };
            let from = intern(&rule.from, &rule.to, Direction::Ingress)?;
            let to = intern(&rule.to, &rule.from, Direction::Egress)?;
            peers.resize(segments.list.len(), false);
            for (side, other, end) in
                [(from, to, Direction::Ingress), (to, from, Direction::Egress)]
            {
                let is_peer = rule.ends.hold(end) && other.makes_subject();
                if let Some(list) = side.segments.filter(|_| is_peer) {
                    peers[list as usize] = true;
                }
            }
            let every_port = rule.ports.iter().any(|p| p.protocol.is_none());
            let ports = (!every_port).then(|| ports.intern(rule.ports.as_slice()));
            rules.push(RuleSides { from, to, ports });
        }
        Ok(Self {
            segments: segments.list,
            peers,
            networks: networks.distinct.list,
            ports: ports.list,
            rules,
        })
    }
}

/// Numbers for distinct lists of networks. Most of those that are equal are one list in memory, which is
/// seen without reading them.
#[derive(Default)]
struct Networks<'a> {
    distinct: Interner<&'a [Network]>,
    by_address: FxHashMap<*const [Network], u32>,
}

impl<'a> Networks<'a> {
    fn intern(&mut self, list: &'a Arc<[Network]>) -> u32 {
        let distinct = &mut self.distinct;
        *self.by_address.entry(Arc::as_ptr(list)).or_insert_with(|| distinct.intern(list))
    }
}

/// Numbers for distinct things, in the order in which they come.
struct Interner<T> {
    list: Vec<T>,
    numbers: FxHashMap<T, u32>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { list: Vec::new(), numbers: FxHashMap::default() }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    fn intern(&mut self, thing: T) -> u32 {
        if let Some(number) = self.numbers.get(&thing) {
            return *number;
        }
        // There are at most two for each rule, and rules were counted before.
        let number = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(thing.clone());
        self.numbers.insert(thing, number);
        number
    }
}
