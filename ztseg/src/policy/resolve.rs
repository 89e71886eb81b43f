//! The model to the resolved form: names over all sources become numbers.

mod members;
mod order;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

pub(super) use order::Order;
use ports::NamedPorts;

use super::diagnostic::{Diagnostic, Span, quote};
use super::kubernetes::placed::PlacedPod;
use super::kubernetes::translate::{Translated, translate};
use super::model::{self, End, Parsed, Peer, Policy, Port, Spanned};
use super::names;
use super::parse;
use super::resolved::{
    Action, Ends, Isolation, Mode, Network, PortRange, Resolved, Rule, Segment, SegmentId, Side,
};
use super::source::Source;
use super::testcase::{ResolvedTest, TestEnd};
use super::workload::PlacedWorkload;

/// A file full of unknown names, and ten thousand known ones, must not take minutes to refuse.
const MAX_SUGGESTIONS: u32 = 100;

/// What policies come to.
#[derive(Debug)]
pub struct Outcome {
    /// Segments and rules.
    pub resolved: Resolved,
    /// The `tests:`, in file order.
    pub tests: Vec<ResolvedTest>,
    /// The pods, with their segments.
    pub pods: Vec<PlacedPod>,
    /// The workloads that documents describe, with their segments.
    pub workloads: Vec<PlacedWorkload>,
}

/// Resolves all policies together.
///
/// What comes out is whole only if nothing was added to `out`, here or before.
pub fn resolve(parsed: &Parsed, sources: &[Source], out: &mut Vec<Diagnostic>) -> Outcome {
    let complete = parsed.complete;
    let mut resolver = Resolver {
        sources,
        complete,
        names: BTreeMap::new(),
        pods: HashMap::new(),
        workloads: HashMap::new(),
        groups: Vec::new(),
        networks: FxHashMap::default(),
        suggestions: MAX_SUGGESTIONS,
        out,
    };
    resolver.policy_names(&parsed.policies);
    resolver.workload_names(&parsed.workloads);
    order::check_priorities(parsed, resolver.out);
    let mut segments = resolver.definitions(&parsed.policies);
    let own = segments.len();
    let cluster = &parsed.kubernetes.cluster;
    let Translated { segments: selected, mut rules, mut pods } =
        translate(&parsed.kubernetes, own, sources);
    let workloads = members::place(&mut segments, cluster, &mut pods, &parsed.workloads);
    segments.extend(selected);
    let named =
        |(number, pod): (usize, &PlacedPod)| ((pod.namespace.clone(), pod.name.clone()), number);
    resolver.pods = pods.iter().enumerate().map(named).collect();
    let mut named_ports = NamedPorts::new(cluster, &pods, segments.len());
    let mut tests = Vec::new();
    for policy in &parsed.policies {
        resolver.rule_names(policy);
        for (action, kind, list) in lists(policy) {
            let order = Order::of_segment_policy(policy, action);
            for (place, rule) in (1..).zip(list) {
                let whole = resolver.rule(policy, rule, &rule_name(rule, kind, place), action);
                resolver.named_ports(rule, &whole, &segments[..own]);
                let ports = rule.ports.iter().map(|port| &port.value);
                let by_number = named_ports.rules(whole, ports, &segments);
                rules.extend(by_number.into_iter().map(|rule| (order, rule)));
            }
        }
        tests.extend(policy.tests.iter().filter_map(|test| resolver.test(test)));
    }
    for (segment, members) in named_ports.finish() {
        let id = SegmentId(u32::try_from(segments.len()).unwrap_or(u32::MAX));
        segments.push(segment);
        for pod in members {
            pods[pod].segments.get_or_insert_default().insert(id);
        }
    }
    rules.sort_by_key(|(order, _)| *order);
    let rules = rules.into_iter().map(|(_, rule)| rule).collect();
    Outcome { resolved: Resolved { segments, rules, failsafe: None }, tests, pods, workloads }
}

/// The rules of a policy, by what they do and in the order in which that is looked at.
fn lists(policy: &Policy) -> [(Action, &'static str, &[model::Rule]); 3] {
    [
        (Action::Deny, "deny", &policy.deny),
        (Action::Allow, "allow", &policy.allow),
        (Action::Pass, "pass", &policy.pass),
    ]
}

/// A name's definition.
struct Definition {
    meaning: Meaning,
    span: Span,
}

#[derive(Clone, Copy)]
enum Meaning {
    Segment(SegmentId),
    /// Index into [`Resolver::groups`].
    Group(usize),
}

/// What adds networks to a side of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Piece {
    Network(IpNet),
    /// Index into [`Resolver::groups`].
    Group(usize),
}

impl Meaning {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Segment(_) => "a segment",
            Self::Group(_) => "an address group",
        }
    }
}

struct Resolver<'a> {
    sources: &'a [Source],
    complete: bool,
    names: BTreeMap<&'a str, Definition>,
    /// The pods that there are, by namespace and name.
    pods: HashMap<(String, String), usize>,
    /// The workloads that documents describe, by name.
    workloads: HashMap<&'a str, usize>,
    /// The networks of each address group.
    groups: Vec<Arc<[Network]>>,
    /// The lists of networks of sides, by what they are made of.
    networks: FxHashMap<Vec<Piece>, Arc<[Network]>>,
    /// How many unknown names may still be compared with all known ones.
    suggestions: u32,
    out: &'a mut Vec<Diagnostic>,
}

impl<'a> Resolver<'a> {
    fn policy_names(&mut self, policies: &'a [Policy]) {
        let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
        for name in policies.iter().filter_map(|p| p.name.as_ref()) {
            if let Some(first) = seen.get(name.value.as_str()) {
                let message = format!("a second policy with the name {}", quote(&name.value));
                let error = Diagnostic::error(name.span, message).related(*first, "first here");
                self.out.push(error.help("give each policy a name of its own"));
            } else {
                seen.insert(&name.value, name.span);
            }
        }
    }

    fn workload_names(&mut self, workloads: &'a [model::Workload]) {
        for (number, workload) in workloads.iter().enumerate() {
            let Spanned { value: name, span } = &workload.name;
            if let Some(first) = self.workloads.get(name.as_str()) {
                let message = format!("a second workload with the name {}", quote(name));
                let error = Diagnostic::error(*span, message);
                let first = workloads[*first].name.span;
                let help = "give each workload a name of its own";
                self.out.push(error.related(first, "first here").help(help));
            } else {
                self.workloads.insert(name, number);
            }
        }
    }

    /// Only pods have names for their ports.
    fn named_ports(&mut self, rule: &model::Rule, resolved: &Rule, segments: &[Segment]) {
        if !rule.to.complete {
            return;
        }
        let named = rule.ports.iter().filter_map(|port| match &port.value {
            Port::Named { name, protocol } => Some((name, *protocol, port.span)),
            Port::Range(_) => None,
        });
        for (name, protocol, span) in named {
            let number = parse::port::usual_number(name);
            let no_pods = |id: &&SegmentId| {
                !segments[id.0 as usize].selectors.iter().any(|selector| selector.pod.is_some())
            };
            let message = if !resolved.to.networks.is_empty() {
                "addresses in `to` have no names for their ports; pods have".to_owned()
            } else if let Some(id) = resolved.to.segments.iter().find(no_pods) {
                let segment = quote(&segments[id.0 as usize].name);
                format!(
                    "the port's name {} is looked up at pods, and no `match` entry of {segment} asks for pods",
                    quote(name)
                )
            } else {
                continue;
            };
            let help = match number {
                Some(n) => {
                    let port = PortRange { protocol, first: n, last: n };
                    format!("write the number, such as `{port}`")
                }
                None => "write the number, or give the pods' segment a rule of its own".to_owned(),
            };
            self.out.push(Diagnostic::error(span, message).help(help));
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
                if self.define(&group.name, Meaning::Group(self.groups.len())) {
                    self.groups.push(networks(group));
                }
            }
        }
        segments
    }

    /// Whether it is the first definition of the name.
    fn define(&mut self, name: &'a Spanned<String>, meaning: Meaning) -> bool {
        if let Some(first) = self.names.get(name.value.as_str()) {
            let message = format!("the name {} is defined a second time", quote(&name.value));
            let label = format!("first defined here, as {}", first.meaning.kind());
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
            reject: policy.reject,
            selectors: segment.selectors.clone(),
            addresses: segment.addresses.clone(),
            position: segment.name.span.position(self.sources),
        }
    }

    fn rule_names(&mut self, policy: &Policy) {
        let named = |kind, rules: &'_ [model::Rule]| {
            let named = (1..).zip(rules).map(|(place, rule)| {
                let span = rule.name.as_ref().map_or(rule.span, |n| n.span);
                (span, rule_name(rule, kind, place), rule.name.is_some())
            });
            named.collect::<Vec<_>>()
        };
        let mut all: Vec<_> =
            lists(policy).into_iter().flat_map(|(_, kind, rules)| named(kind, rules)).collect();
        all.sort();
        let mut seen: BTreeMap<&str, (Span, bool)> = BTreeMap::new();
        for (span, name, explicit) in &all {
            let Some((first, first_explicit)) = seen.get(name.as_str()) else {
                seen.insert(name, (*span, *explicit));
                continue;
            };
            let message = format!("a second rule with the name {} in this policy", quote(name));
            let help = if *explicit && *first_explicit {
                "give each rule of a policy a name of its own"
            } else {
                "a rule without a name is known by its list and its place in it; rename the other"
            };
            let error = Diagnostic::error(*span, message).related(*first, "first here");
            self.out.push(error.help(help));
        }
    }

    fn rule(&mut self, policy: &Policy, rule: &model::Rule, name: &str, action: Action) -> Rule {
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
            tier: policy.tier,
            action,
            mode: policy.mode,
            log: rule.log,
            reject: action == Action::Deny && rule.reject.unwrap_or(policy.reject),
            expires: rule.expires,
            from,
            to,
            // Those by number; what has a name is looked up at the pods.
            ports: Vec::new(),
            position: rule.span.position(self.sources),
            ends: Ends::Both,
            built_in: false,
        }
    }

    fn side(&mut self, side: &model::Side) -> Side {
        let mut resolved = Side::default();
        let mut pieces = Vec::new();
        for peer in &side.peers {
            match &peer.value {
                Peer::Any => resolved.any = true,
                Peer::Network(cidr) => pieces.push(Piece::Network(*cidr)),
                Peer::Name(name) => match self.meaning(name, peer.span) {
                    Some(Meaning::Segment(id)) if resolved.segments.contains(&id) => {}
                    Some(Meaning::Segment(id)) => resolved.segments.push(id),
                    Some(Meaning::Group(group)) => pieces.push(Piece::Group(group)),
                    None => {}
                },
            }
        }
        resolved.networks = self.networks(pieces);
        resolved
    }

    /// One list for all sides that are made of the same pieces.
    fn networks(&mut self, pieces: Vec<Piece>) -> Arc<[Network]> {
        if let [Piece::Group(group)] = pieces[..] {
            return self.groups[group].clone();
        }
        if let Some(networks) = self.networks.get(&pieces) {
            return networks.clone();
        }
        let mut union = Vec::new();
        for piece in &pieces {
            match piece {
                Piece::Network(cidr) => union.push(Network { cidr: *cidr, except: Vec::new() }),
                Piece::Group(group) => union.extend_from_slice(&self.groups[*group]),
            }
        }
        let networks = distinct(union.into_iter());
        self.networks.entry(pieces).or_insert(networks).clone()
    }

    fn meaning(&mut self, name: &str, span: Span) -> Option<Meaning> {
        let found = self.names.get(name).map(|d| d.meaning);
        if found.is_none() && self.complete {
            let message = format!("there is no segment or address group {}", quote(name));
            let mut error = Diagnostic::error(span, message);
            error.help = Some("define it under `segments` or `addressGroups`".to_owned());
            if self.suggestions > 0 {
                self.suggestions -= 1;
                error.help = names::suggest(name, self.names.keys().copied()).or(error.help);
            }
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

    fn pod(&mut self, namespace: &str, name: &str, span: Span) -> Option<TestEnd> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(number) = self.pods.get(&key) {
            return Some(TestEnd::Pod(*number));
        }
        if self.complete {
            let message = format!("there is no pod {}", quote(&format!("{namespace}/{name}")));
            let there = self.pods.keys().filter(|(n, _)| n == namespace);
            let near = names::nearest(name, there.map(|(_, name)| name.as_str()));
            let help = match near {
                Some(near) => format!("did you mean `{namespace}/{near}`?"),
                None => "load its manifest, too".to_owned(),
            };
            self.out.push(Diagnostic::error(span, message).help(help));
        }
        None
    }

    fn workload(&mut self, name: &str, span: Span) -> Option<TestEnd> {
        let found = self.workloads.get(name).copied().map(TestEnd::Workload);
        if found.is_none() && self.complete {
            let message = format!("there is no workload {}", quote(name));
            let help = names::suggest(name, self.workloads.keys().copied())
                .unwrap_or_else(|| "load a document of `kind: Workload` for it, too".to_owned());
            self.out.push(Diagnostic::error(span, message).help(help));
        }
        found
    }

    fn end(&mut self, end: &Spanned<End>) -> Option<TestEnd> {
        let name = match &end.value {
            End::Address(address) => return Some(TestEnd::Address(*address)),
            End::Pod { namespace, name } => return self.pod(namespace, name, end.span),
            End::Workload(name) => return self.workload(name, end.span),
            End::Name(name) => name,
        };
        if !self.names.contains_key(name.as_str())
            && let Some(number) = self.workloads.get(name.as_str())
        {
            return Some(TestEnd::Workload(*number));
        }
        match self.meaning(name, end.span)? {
            Meaning::Segment(id) => Some(TestEnd::Segment(id)),
            Meaning::Group(group) => {
                let message = format!("{} is an address group, not one end of a flow", quote(name));
                let help = match self.groups[group].first() {
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

/// What follows the policy's name in a rule's; `place` counts from one.
fn rule_name(rule: &model::Rule, kind: &str, place: u32) -> String {
    rule.name.as_ref().map_or_else(|| format!("{kind}-{place}"), |name| name.value.clone())
}

fn policy_name(policy: &Policy) -> &str {
    policy.name.as_ref().map_or("", |n| n.value.as_str())
}

/// Each CIDR with the exceptions that lie in it.
fn networks(group: &model::AddressGroup) -> Arc<[Network]> {
    let of = |cidr: &IpNet| {
        let inside = group.except.iter().map(|e| e.value).filter(|e| cidr.contains(e));
        Network { cidr: *cidr, except: inside.collect() }
    };
    distinct(group.cidrs.iter().map(|c| of(&c.value)))
}

/// Each once, at its first place.
fn distinct(networks: impl Iterator<Item = Network>) -> Arc<[Network]> {
    let mut seen = FxHashSet::default();
    networks.filter(|network| seen.insert(network.clone())).collect()
}
