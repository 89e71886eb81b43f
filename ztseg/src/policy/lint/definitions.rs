//! Policies, segments and address groups that do nothing, and rules without a name.

use std::collections::HashSet;

use super::Check;
use crate::policy::diagnostic::{Diagnostic, quote};
use crate::policy::model::{End, Peer, Policy, Rule, Segment};

pub(super) fn look_at(policies: &[Policy], out: &mut Vec<Diagnostic>) {
    let used = Used::new(policies);
    for policy in policies {
        empty(policy, out);
        out.extend(policy.segments.iter().filter_map(|segment| used.segment(segment)));
        let unused =
            policy.groups.iter().filter(|g| !used.in_rules.contains(g.name.value.as_str()));
        out.extend(unused.map(|group| {
            let message = format!("no rule names the address group {}", quote(&group.name.value));
            let help = "remove it, or write its name in the `from` or `to` of a rule";
            Check::UnusedGroup.at(group.name.span, message).help(help)
        }));
        for (kind, rules) in lists(policy) {
            nameless(policy, kind, rules, out);
        }
    }
}

pub(super) fn lists(policy: &Policy) -> [(&'static str, &[Rule]); 3] {
    [("deny", &policy.deny), ("allow", &policy.allow), ("pass", &policy.pass)]
}

fn empty(policy: &Policy, out: &mut Vec<Diagnostic>) {
    let is_empty = policy.segments.is_empty()
        && policy.groups.is_empty()
        && policy.tests.is_empty()
        && lists(policy).iter().all(|(_, rules)| rules.is_empty());
    if let Some(name) = policy.name.as_ref().filter(|_| is_empty) {
        let message = format!("the policy {} has nothing in it", quote(&name.value));
        let help = "remove the document, or add `segments` and rules to its `spec`";
        out.push(Check::EmptyPolicy.at(name.span, message).help(help));
    }
}

fn nameless(policy: &Policy, kind: &str, rules: &[Rule], out: &mut Vec<Diagnostic>) {
    let of = policy.name.as_ref().map_or("", |name| name.value.as_str());
    let without = (1..).zip(rules).filter(|(_, rule)| rule.name.is_none());
    out.extend(without.map(|(place, rule): (u32, _)| {
        let known = quote(&format!("{of}/{kind}-{place}"));
        let message = format!("this rule has no name, so events and metrics call it {known}");
        let help = "add `name:`; a rule that is put before it, or taken away, changes the other";
        Check::MissingName.at(rule.span, message).help(help)
    }));
}

/// The names that are used.
struct Used<'a> {
    in_rules: HashSet<&'a str>,
    in_tests: HashSet<&'a str>,
}

impl<'a> Used<'a> {
    fn new(policies: &'a [Policy]) -> Self {
        let rules = policies.iter().flat_map(lists).flat_map(|(_, rules)| rules);
        let peers = rules.flat_map(|rule| rule.from.peers.iter().chain(&rule.to.peers));
        let in_rules = peers.filter_map(|peer| match &peer.value {
            Peer::Name(name) => Some(name.as_str()),
            Peer::Any | Peer::Network(_) => None,
        });
        let tests = policies.iter().flat_map(|policy| &policy.tests);
        let in_tests =
            tests.flat_map(|test| [&test.from.value, &test.to.value]).filter_map(|end| match end {
                End::Name(name) => Some(name.as_str()),
                End::Address(_) | End::Pod { .. } | End::Workload(_) => None,
            });
        Self { in_rules: in_rules.collect(), in_tests: in_tests.collect() }
    }

    fn segment(&self, segment: &Segment) -> Option<Diagnostic> {
        let name = segment.name.value.as_str();
        let isolates = segment.isolation.ingress || segment.isolation.egress;
        let has_workloads = !segment.selectors.is_empty();
        if !has_workloads && isolates && segment.says_isolation {
            let message = format!(
                "the segment {} isolates, but its `match` has only addresses: no workload is in it",
                quote(name)
            );
            let help = "remove `isolation`, or match workloads too, such as `- unit: NAME.service`";
            return Some(Check::SegmentWithoutWorkloads.at(segment.name.span, message).help(help));
        }
        let used = self.in_rules.contains(name) || self.in_tests.contains(name);
        if used || (isolates && has_workloads) {
            return None;
        }
        let message = format!("nothing names the segment {}, and it isolates nothing", quote(name));
        let help = "remove it, or write its name in the `from` or `to` of a rule";
        Some(Check::UnusedSegment.at(segment.name.span, message).help(help))
    }
}
