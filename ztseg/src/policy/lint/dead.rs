//! Rules that decide nothing: which, and why.
//!
//! What is said here holds for every workload and every flow: a rule that can decide something is
//! never among them. Not every rule that decides nothing is; what is compared is told at
//! [`super::cover`].

use std::collections::HashSet;

use jiff::Timestamp;

use super::cover::{Cover, Covering, Strict};
use super::ports;
use crate::policy::resolved::{Action, Network, Resolved, Rule, SegmentId, Side};

/// Why a rule decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has ended.
    Ended(Timestamp),
    /// No workload can have it: its sides have no segment with workloads.
    NoWorkload,
    /// This rule comes before it and says the same of the same flows.
    Duplicate(usize),
    /// Each of its flows is decided before.
    Shadowed(Cover),
    /// Each of its flows is decided before, but for those to local ports that nobody listens on:
    /// an allow rule to a segment allows them, and a deny rule to a segment does not know them.
    AllButNobody(Cover),
}

impl Why {
    /// Whether no decision changes where the rule is removed.
    pub const fn is_harmless(&self) -> bool {
        !matches!(self, Self::AllButNobody(_))
    }
}

/// The rules that decide nothing from `now` on, by their index in [`Resolved::rules`].
///
/// `has_workloads` says whether a workload can be in a segment. Built-in rules are left out.
pub fn dead_rules(
    resolved: &Resolved,
    now: Timestamp,
    has_workloads: impl Fn(SegmentId) -> bool,
) -> Vec<(usize, Why)> {
    let mut covering = Covering::new(resolved, &has_workloads);
    let mut found = Vec::new();
    for (index, rule) in resolved.rules.iter().enumerate() {
        // What is built in holds only where another rule or an isolation concerns the workload.
        if rule.built_in {
            continue;
        }
        if let Some(end) = rule.expires.filter(|end| *end <= now) {
            found.push((index, Why::Ended(end)));
            continue;
        }
        let parts = covering.parts(rule);
        if parts.as_ref().is_some_and(Vec::is_empty) {
            found.push((index, Why::NoWorkload));
            continue;
        }
        let why = parts.as_ref().and_then(|parts| {
            let strictly = covering.cover(rule, parts, Strict::Yes);
            let shadowed = strictly.map(|cover| {
                let same = |other: &&usize| is_same(&resolved.rules[**other], rule);
                match cover.alone.iter().find(same) {
                    Some(first) => Why::Duplicate(*first),
                    None => Why::Shadowed(cover),
                }
            });
            shadowed.or_else(|| {
                let allows = rule.action == Action::Allow;
                let cover = allows.then(|| covering.cover(rule, parts, Strict::ButForNobody));
                cover.flatten().map(Why::AllButNobody)
            })
        });
        // What covers a rule covers all that the rule covers, so a shadowed one is not needed. It
        // would also be a poor answer to the question which rule decides.
        if !why.as_ref().is_some_and(Why::is_harmless) {
            covering.add(index, rule, parts.as_deref());
        }
        found.extend(why.map(|why| (index, why)));
    }
    found
}

/// Whether two rules say the same of the same flows at the same ends.
fn is_same(a: &Rule, b: &Rule) -> bool {
    a.action == b.action
        && a.tier == b.tier
        && a.ends == b.ends
        && same_side(&a.from, &b.from)
        && same_side(&a.to, &b.to)
        && ports::cover(&a.ports, &b.ports)
        && ports::cover(&b.ports, &a.ports)
}

fn same_side(a: &Side, b: &Side) -> bool {
    fn set<T: Eq + std::hash::Hash>(list: &[T]) -> HashSet<&T> {
        list.iter().collect()
    }
    let networks = |side: &Side| -> Vec<Network> {
        let sorted = |network: &Network| {
            let mut network = network.clone();
            network.except.sort();
            network
        };
        side.networks.iter().map(sorted).collect()
    };
    (a.any && b.any)
        || (a.any == b.any
            && set(&a.segments) == set(&b.segments)
            && set(&networks(a)) == set(&networks(b)))
}
