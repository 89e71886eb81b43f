//! The order of evaluation, over policies of all kinds.

use std::collections::BTreeMap;

use crate::policy::diagnostic::{Diagnostic, Span, quote};
use crate::policy::kubernetes::model::{Kind, Policy as KubernetesPolicy};
use crate::policy::model::{Parsed, Policy};
use crate::policy::resolved::{Action, Tier};

/// A rule's place; where two have the same, they stay in the order of the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::policy) struct Order {
    tier: Tier,
    /// Of the policy in its tier.
    place: u64,
    /// Of a kind of rules in its policy; in the application tier, in all of them.
    kind: u8,
}

impl Order {
    /// Before everything.
    pub(in crate::policy) const BUILT_IN: Self = Self { tier: Tier::Admin, place: 0, kind: 0 };

    /// Of the rules of a segment policy that do this.
    pub(super) fn of_segment_policy(policy: &Policy, action: Action) -> Self {
        let place = policy.priority.map_or(0, |p| u64::from(p.value)) + 1;
        Self { tier: policy.tier, place, kind: action as u8 }
    }

    /// Of the rules of a Kubernetes policy. They stay as they are written, but for those of the
    /// application tier, which have no order and allow.
    pub(in crate::policy) fn of(policy: &KubernetesPolicy) -> Self {
        let (place, kind) = match policy.kind {
            Kind::NetworkPolicy => (1, Action::Allow as u8),
            // It has no priority, since there is one of it, for what all others leave open.
            Kind::BaselineAdminNetworkPolicy => (u64::MAX, 0),
            Kind::AdminNetworkPolicy | Kind::ClusterNetworkPolicy => {
                (policy.priority.map_or(0, |p| u64::from(p.value)) + 1, 0)
            }
        };
        Self { tier: policy.tier, place, kind }
    }
}

/// Reports policies of one tier with one priority: they would have no order.
pub(super) fn check_priorities(parsed: &Parsed, out: &mut Vec<Diagnostic>) {
    let own = parsed.policies.iter().filter_map(|policy| {
        let name = policy.name.as_ref().map_or_else(String::new, |name| name.value.clone());
        Some((policy.tier, policy.priority?, name))
    });
    let kubernetes = parsed
        .kubernetes
        .policies
        .iter()
        .filter_map(|policy| Some((policy.tier, policy.priority?, policy.to_string())));
    let mut all: Vec<_> = own.chain(kubernetes).collect();
    all.sort_by_key(|(_, priority, _)| priority.span);
    let mut seen: BTreeMap<(Tier, u32), (String, Span)> = BTreeMap::new();
    for (tier, priority, name) in all {
        let Some((other, first)) = seen.get(&(tier, priority.value)) else {
            seen.insert((tier, priority.value), (name, priority.span));
            continue;
        };
        let message = format!(
            "{} and {} both have the priority {} in the tier `{}`, so neither comes first",
            quote(other),
            quote(&name),
            priority.value,
            tier.name(),
        );
        let error = Diagnostic::error(priority.span, message).related(*first, "the other one");
        out.push(error.help(
            "give each policy of a tier a priority of its own; the lower one is looked at first",
        ));
    }
}
