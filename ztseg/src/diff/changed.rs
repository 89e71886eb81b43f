//! What is not the same in both policies: only flows that it can reach are looked at.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ztseg_common::verdict::Direction;

use super::Side;
use super::workloads::Workload;
use crate::image::SegmentSet;
use crate::policy::resolved::{Isolation, Resolved, Rule, SegmentId, Side as RuleSide, Tier};

/// What changed.
#[derive(Debug)]
pub(super) struct Changed<'a> {
    /// Rules that only one of the policies has, with which of the two it is.
    rules: Vec<(usize, &'a Rule)>,
    /// By workload: whether its segments or their isolation are other ones.
    workloads: Vec<bool>,
}

impl<'a> Changed<'a> {
    pub(super) fn new(sides: &'a [Side<'a>; 2], workloads: &[Workload]) -> Self {
        let [old, new] = sides.each_ref().map(|side| side.resolved);
        let moved = moved(old, new);
        let keys = [old, new].map(|resolved| {
            resolved.rules.iter().map(|rule| key(resolved, rule)).collect::<Vec<_>>()
        });
        let mentions_moved = |resolved: &Resolved, rule: &Rule| {
            let ids = rule.from.segments.iter().chain(&rule.to.segments);
            ids.filter_map(|id| name(resolved, *id)).any(|name| moved.contains(name))
        };
        // Where the order decides, all of a tier is as good as changed.
        let ordered = [Tier::Admin, Tier::Baseline].map(|tier| {
            let [old, new] = [(old, &keys[0]), (new, &keys[1])].map(|(resolved, keys)| {
                let all = resolved.rules.iter().zip(keys);
                all.filter(move |(rule, _)| rule.tier == tier).map(|(_, key)| key)
            });
            (tier, old.ne(new))
        });
        let mut rules = Vec::new();
        for (index, resolved) in [old, new].into_iter().enumerate() {
            let mut others: HashMap<&String, usize> = HashMap::new();
            for key in &keys[1 - index] {
                *others.entry(key).or_default() += 1;
            }
            for (rule, key) in resolved.rules.iter().zip(&keys[index]) {
                let same = others.get_mut(key).filter(|left| **left > 0);
                let is_same = same.map(|left| *left -= 1).is_some();
                let reordered = ordered.iter().any(|(tier, any)| *any && *tier == rule.tier);
                if !is_same || reordered || mentions_moved(resolved, rule) {
                    rules.push((index, rule));
                }
            }
        }
        let same = |workload: &Workload| {
            let facts = [0, 1].map(|index| facts(sides[index].resolved, &workload.segments[index]));
            facts[0] == facts[1]
        };
        Self { rules, workloads: workloads.iter().map(|workload| !same(workload)).collect() }
    }

    /// Whether everything about a workload has to be looked at.
    pub(super) fn workload(&self, index: usize) -> bool {
        self.workloads[index]
    }

    /// The changed rules that hold for a workload in a direction.
    pub(super) fn rules(
        &self,
        workload: &Workload,
        direction: Direction,
    ) -> Vec<(usize, &'a Rule)> {
        let concerns =
            |(index, rule): &&(usize, &Rule)| rule.concerns(&workload.segments[*index], direction);
        self.rules.iter().filter(concerns).copied().collect()
    }
}

/// Whether a rule's side may hold a peer: a workload, whatever its address, or an address.
pub(super) fn may_hold(
    resolved: &Resolved,
    side: &RuleSide,
    peer: Result<&SegmentSet, IpAddr>,
) -> bool {
    match peer {
        Ok(set) => {
            side.any || !side.networks.is_empty() || side.segments.iter().any(|id| set.contains(id))
        }
        Err(address) => side.holds(resolved, None, Some(address)),
    }
}

fn name(resolved: &Resolved, id: SegmentId) -> Option<&str> {
    resolved.segments.get(id.0 as usize).map(|segment| segment.name.as_str())
}

/// Segments whose addresses are other ones.
fn moved<'a>(old: &'a Resolved, new: &'a Resolved) -> HashSet<&'a str> {
    let of = |resolved: &'a Resolved| {
        let own = resolved.segments.iter().map(|segment| {
            let mut addresses = segment.addresses.clone();
            addresses.sort();
            (segment.name.as_str(), addresses)
        });
        own.collect::<HashMap<_, _>>()
    };
    let [old, new] = [of(old), of(new)];
    let other = |(name, addresses): (&&'a str, &Vec<_>), than: &HashMap<&str, Vec<_>>| {
        // One that the other policy does not have is as one without addresses.
        let there = than.get(*name).map_or(&[][..], |there| there.as_slice());
        (there != addresses.as_slice()).then_some(*name)
    };
    let gone = old.iter().filter_map(|segment| other(segment, &new));
    let come = new.iter().filter_map(|segment| other(segment, &old));
    gone.chain(come).collect()
}

/// What a rule means, with names for numbers.
fn key(resolved: &Resolved, rule: &Rule) -> String {
    let side = |side: &RuleSide| {
        let mut parts: Vec<String> =
            side.segments.iter().filter_map(|id| name(resolved, *id)).map(str::to_owned).collect();
        parts.extend(side.networks.iter().map(|network| format!("{network:?}")));
        parts.sort();
        (side.any, parts)
    };
    let mut ports = rule.ports.clone();
    ports.sort();
    let Rule { tier, action, mode, expires, ends, built_in, .. } = rule;
    let (from, to) = (side(&rule.from), side(&rule.to));
    format!(
        "{tier:?} {action:?} {mode:?} {expires:?} {ends:?} {built_in} {from:?} {to:?} {ports:?}"
    )
}

/// The names of a set's segments, and how strictly it is isolated.
fn facts<'a>(resolved: &'a Resolved, set: &SegmentSet) -> (Vec<&'a str>, [Option<u8>; 2]) {
    let segments: Vec<_> =
        set.iter().filter_map(|id| resolved.segments.get(id.0 as usize)).collect();
    let mut names: Vec<_> = segments.iter().map(|segment| segment.name.as_str()).collect();
    names.sort_unstable();
    let strictest = |of: fn(&crate::policy::resolved::Segment) -> Isolation| {
        segments.iter().map(|segment| of(segment) as u8).min()
    };
    (names, [strictest(|segment| segment.ingress), strictest(|segment| segment.egress)])
}
