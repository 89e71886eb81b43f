//! The model to the resolved form: names over all sources become numbers.

use std::collections::{BTreeMap, HashSet};

use super::diagnostic::{Diagnostic, Span, quote};
use super::model::{self, End, Parsed, Peer, Policy, Spanned};
use super::names;
use super::resolved::{
    Action, Isolation, Mode, Network, Resolved, Rule, Segment, SegmentId, Side, Tier,
};
use super::source::Source;
use super::testcase::{ResolvedTest, TestEnd};

/// Resolves all policies together.
///
/// What comes out is whole only if nothing was added to `out`, here or before.
pub fn resolve(
    parsed: &Parsed,
    sources: &[Source],
    out: &mut Vec<Diagnostic>,
) -> (Resolved, Vec<ResolvedTest>) {
    let mut resolver = Resolver { sources, complete: parsed.complete, names: BTreeMap::new(), out };
    resolver.policy_names(&parsed.policies);
    let segments = resolver.definitions(&parsed.policies);
    let mut deny = Vec::new();
    let mut allow = Vec::new();
    let mut tests = Vec::new();
    for policy in &parsed.policies {
        let mut seen = BTreeMap::new();
        let lists = [
            (Action::Deny, "deny", &policy.deny, &mut deny),
            (Action::Allow, "allow", &policy.allow, &mut allow),
        ];
        for (action, kind, list, rules) in lists {
            for (place, rule) in (1..).zip(list) {
                let name = resolver.rule_name(rule, kind, place, &mut seen);
                rules.push(resolver.rule(policy, rule, name, action));
            }
        }
        tests.extend(policy.tests.iter().filter_map(|test| resolver.test(test)));
    }
    deny.append(&mut allow);
    (Resolved { segments, rules: deny }, tests)
}

/// A name's definition.
struct Definition {
    meaning: Meaning,
    span: Span,
}

#[derive(Clone)]
enum Meaning {
    Segment(SegmentId),
    Group(Vec<Network>),
}

impl Meaning {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Segment(_) => "segment",
            Self::Group(_) => "address group",
        }
    }
}

struct Resolver<'a> {
    sources: &'a [Source],
    complete: bool,
    names: BTreeMap<&'a str, Definition>,
    out: &'a mut Vec<Diagnostic>,
}

impl<'a> Resolver<'a> {
    fn policy_names(&mut self, policies: &'a [Policy]) {
        let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
        for name in policies.iter().filter_map(|p| p.name.as_ref()) {
            if let Some(first) = seen.get(name.value.as_str()) {
                let message = format!("a second policy with the name {}", quote(&name.value));
                let error =
                    Diagnostic::error(name.span, message).related(*first, "the first one is");
                self.out.push(error.help("give each policy a name of its own"));
            } else {
                seen.insert(&name.value, name.span);
            }
        }
    }

    fn definitions(&mut self, policies: &'a [Policy]) -> Vec<Segment> {
        let mut segments = Vec::new();
        for policy in policies {
            for segment in &policy.segments {
                let id = SegmentId(u32::try_from(segments.len()).unwrap_or(u32::MAX));
                if self.define(&segment.name, Meaning::Segment(id)) {
                    segments.push(self.segment(policy, segment));
                }
            }
            for group in &policy.groups {
                self.define(&group.name, Meaning::Group(networks(group)));
            }
        }
        segments
    }

    /// Whether it is the first definition of the name.
    fn define(&mut self, name: &'a Spanned<String>, meaning: Meaning) -> bool {
        if let Some(first) = self.names.get(name.value.as_str()) {
            let message = format!("the name {} is defined a second time", quote(&name.value));
            let label = format!("its first definition, as {}, is", first.meaning.kind());
            let error = Diagnostic::error(name.span, message).related(first.span, label);
            self.out.push(error.help(
                "names of segments and address groups hold for all files together; rename one of them",
            ));
            return false;
        }
        self.names.insert(&name.value, Definition { meaning, span: name.span });
        true
    }

    fn segment(&self, policy: &Policy, segment: &model::Segment) -> Segment {
        let isolation = |isolated| match (isolated, segment.mode.unwrap_or(policy.mode)) {
            (false, _) => Isolation::Open,
            (true, Mode::Enforce) => Isolation::Enforce,
            (true, Mode::Audit) => Isolation::Audit,
        };
        Segment {
            name: segment.name.value.clone(),
            policy: policy_name(policy).to_owned(),
            ingress: isolation(segment.isolation.ingress),
            egress: isolation(segment.isolation.egress),
            selectors: segment.selectors.clone(),
            addresses: segment.addresses.clone(),
            position: segment.name.span.position(self.sources),
        }
    }

    fn rule_name<'p>(
        &mut self,
        rule: &'p model::Rule,
        kind: &str,
        place: u32,
        seen: &mut BTreeMap<String, &'p model::Rule>,
    ) -> String {
        let name = match &rule.name {
            Some(name) => name.value.clone(),
            None => format!("{kind}-{place}"),
        };
        let at = |rule: &model::Rule| rule.name.as_ref().map_or(rule.span, |n| n.span);
        if let Some(first) = seen.get(&name) {
            let message = format!("a second rule with the name {} in this policy", quote(&name));
            let help = if rule.name.is_none() || first.name.is_none() {
                "a rule without a name is known by its list and its place in it; rename the other"
            } else {
                "give each rule of a policy a name of its own"
            };
            let error = Diagnostic::error(at(rule), message).related(at(first), "the first one is");
            self.out.push(error.help(help));
        } else {
            seen.insert(name.clone(), rule);
        }
        name
    }

    fn rule(&mut self, policy: &Policy, rule: &model::Rule, name: String, action: Action) -> Rule {
        let before = self.out.len();
        let from = self.side(&rule.from);
        let to = self.side(&rule.to);
        let whole = rule.from.complete && rule.to.complete && self.out.len() == before;
        if whole && self.complete && from.segments.is_empty() && to.segments.is_empty() {
            let message = "neither side of this rule is a segment, so no workload would have it";
            self.out.push(Diagnostic::error(rule.span, message).help(
                "name a segment in `from` or `to`; a rule takes effect at the workloads of its segments",
            ));
        }
        Rule {
            name: format!("{}/{name}", policy_name(policy)),
            tier: Tier::Application,
            action,
            mode: policy.mode,
            log: rule.log,
            from,
            to,
            ports: rule.ports.clone(),
            position: rule.span.position(self.sources),
        }
    }

    fn side(&mut self, side: &model::Side) -> Side {
        let mut resolved = Side::default();
        let mut seen = HashSet::new();
        let mut add = |list: &mut Vec<Network>, network: Network| {
            if seen.insert(network.clone()) {
                list.push(network);
            }
        };
        for peer in &side.peers {
            match &peer.value {
                Peer::Any => resolved.any = true,
                Peer::Network(cidr) => {
                    add(&mut resolved.networks, Network { cidr: *cidr, except: vec![] });
                }
                Peer::Name(name) => match self.meaning(name, peer.span) {
                    Some(Meaning::Segment(id)) if resolved.segments.contains(&id) => {}
                    Some(Meaning::Segment(id)) => resolved.segments.push(id),
                    Some(Meaning::Group(networks)) => {
                        networks.into_iter().for_each(|n| add(&mut resolved.networks, n));
                    }
                    None => {}
                },
            }
        }
        resolved
    }

    fn meaning(&mut self, name: &str, span: Span) -> Option<Meaning> {
        let found = self.names.get(name).map(|d| d.meaning.clone());
        if found.is_none() && self.complete {
            let message = format!("there is no segment or address group {}", quote(name));
            let mut error = Diagnostic::error(span, message);
            error.help = names::suggest(name, self.names.keys().copied())
                .or_else(|| Some("define it under `segments` or `addressGroups`".to_owned()));
            self.out.push(error);
        }
        found
    }

    fn test(&mut self, test: &model::Test) -> Option<ResolvedTest> {
        let from = self.end(&test.from);
        let to = self.end(&test.to);
        let (from, to) = (from?, to?);
        if matches!((from, to), (TestEnd::Address(_), TestEnd::Address(_))) {
            let message = "neither end of this test is a segment, so no policy holds for the flow";
            let error = Diagnostic::error(test.text.span, message);
            self.out.push(error.help("write the name of a segment for one of the addresses"));
            return None;
        }
        Some(ResolvedTest {
            expect: test.expect,
            from,
            to,
            protocol: test.protocol,
            port: test.port,
            text: test.text.value.clone(),
            position: test.text.span.position(self.sources),
            span: test.text.span,
        })
    }

    fn end(&mut self, end: &Spanned<End>) -> Option<TestEnd> {
        let name = match &end.value {
            End::Address(address) => return Some(TestEnd::Address(*address)),
            End::Name(name) => name,
        };
        match self.meaning(name, end.span)? {
            Meaning::Segment(id) => Some(TestEnd::Segment(id)),
            Meaning::Group(networks) => {
                let message = format!("{} is an address group, not one end of a flow", quote(name));
                let help = match networks.first() {
                    Some(first) => {
                        format!("write one address of it, such as `{}`", first.cidr.addr())
                    }
                    None => "write one address of it".to_owned(),
                };
                self.out.push(Diagnostic::error(end.span, message).help(help));
                None
            }
        }
    }
}

fn policy_name(policy: &Policy) -> &str {
    policy.name.as_ref().map_or("", |n| n.value.as_str())
}

/// Each CIDR with the exceptions that lie in it.
fn networks(group: &model::AddressGroup) -> Vec<Network> {
    let of = |cidr: &ipnet::IpNet| {
        let inside = group.except.iter().map(|e| e.value).filter(|e| cidr.contains(e));
        Network { cidr: *cidr, except: inside.collect() }
    };
    group.cidrs.iter().map(|c| of(&c.value)).collect()
}
