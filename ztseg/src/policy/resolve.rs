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

/// A file full of unknown names, and ten thousand known ones, must not take minutes to refuse.
const MAX_SUGGESTIONS: u32 = 100;

/// Resolves all policies together.
///
/// What comes out is whole only if nothing was added to `out`, here or before.
pub fn resolve(
    parsed: &Parsed,
    sources: &[Source],
    out: &mut Vec<Diagnostic>,
) -> (Resolved, Vec<ResolvedTest>) {
    let complete = parsed.complete;
    let mut resolver =
        Resolver { sources, complete, names: BTreeMap::new(), suggestions: MAX_SUGGESTIONS, out };
    resolver.policy_names(&parsed.policies);
    let segments = resolver.definitions(&parsed.policies);
    let mut deny = Vec::new();
    let mut allow = Vec::new();
    let mut tests = Vec::new();
    for policy in &parsed.policies {
        resolver.rule_names(policy);
        let lists = [
            (Action::Deny, "deny", &policy.deny, &mut deny),
            (Action::Allow, "allow", &policy.allow, &mut allow),
        ];
        for (action, kind, list, rules) in lists {
            for (place, rule) in (1..).zip(list) {
                let name = rule_name(rule, kind, place);
                rules.push(resolver.rule(policy, rule, &name, action));
            }
        }
        tests.extend(policy.tests.iter().filter_map(|test| resolver.test(test)));
    }
    deny.append(&mut allow);
    (Resolved { segments, rules: deny, failsafe: None }, tests)
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
            Self::Segment(_) => "a segment",
            Self::Group(_) => "an address group",
        }
    }
}

struct Resolver<'a> {
    sources: &'a [Source],
    complete: bool,
    names: BTreeMap<&'a str, Definition>,
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
        let mut all = named("deny", &policy.deny);
        all.extend(named("allow", &policy.allow));
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
            tier: Tier::Application,
            action,
            mode: policy.mode,
            log: rule.log,
            reject: action == Action::Deny && rule.reject.unwrap_or(policy.reject),
            expires: rule.expires,
            from,
            to,
            ports: rule.ports.clone(),
            position: rule.span.position(self.sources),
            built_in: None,
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
                        for network in networks {
                            add(&mut resolved.networks, network);
                        }
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

/// What follows the policy's name in a rule's; `place` counts from one.
fn rule_name(rule: &model::Rule, kind: &str, place: u32) -> String {
    rule.name.as_ref().map_or_else(|| format!("{kind}-{place}"), |name| name.value.clone())
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::policy::diagnostic::Diagnostics;
    use crate::policy::testcase::Expect;
    use crate::policy::{Loaded, load};

    fn load_all(texts: &[&str]) -> Result<Loaded, Diagnostics> {
        let source = |(n, text): (usize, &&str)| Source {
            name: format!("{n}.yaml").into(),
            text: format!("apiVersion: ztseg.io/v1\nkind: SegmentPolicy\n{text}").into(),
        };
        load(&texts.iter().enumerate().map(source).collect::<Vec<_>>())
    }

    const FIRST: &str = "
metadata: { name: one }
spec:
  mode: audit
  segments:
    web: { match: [ { unit: web.service }, { cgroup: /web, unit: w.scope }, { addresses: [192.0.2.0/24] } ] }
    db: { mode: enforce, isolation: [ingress], match: [ { interface: tap* } ] }
  addressGroups:
    office: { cidrs: [198.51.100.0/24, 203.0.113.0/24], except: [198.51.100.66] }
  allow:
    - { from: web, to: db }
    - { name: front, from: [office, office, any, web], to: web, log: true, ports: [tcp/80, icmp] }
  deny:
    - { from: web, to: [10.0.0.1, 10.0.0.1/32] }
  tests:
    - { allow: web -> cache tcp/6379 }
";
    const SECOND: &str = "
metadata: { name: two }
spec:
  segments: { cache: { isolation: [], match: [ { host: true } ] } }
  deny:
    - { name: no, from: any, to: cache }
  allow:
    - { from: web, to: cache }
  tests:
    - { deny: \"2001:db8::1 -> cache icmpv6/echo-request\" }
";

    #[test]
    fn denies_of_all_files_come_before_allows() {
        let loaded = load_all(&[FIRST, SECOND]).expect("loads");
        let rules = &loaded.resolved.rules;
        let names: Vec<_> = rules.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["one/deny-1", "two/no", "one/allow-1", "one/front", "two/allow-1"]);
        let modes: Vec<_> = rules.iter().map(|r| r.mode == Mode::Audit).collect();
        assert_eq!(modes, [true, false, true, true, false]);
        let actions: Vec<_> = rules.iter().map(|r| r.action == Action::Deny).collect();
        assert_eq!(actions, [true, true, false, false, false]);
        assert_eq!(rules[1].position.to_string(), "1.yaml:8:7");
    }

    #[test]
    fn what_a_policy_denies_is_told_unless_a_rule_says_otherwise() {
        let text = "
metadata: { name: told }
spec:
  reject: true
  segments: { web: { match: [ { unit: web.service } ] } }
  deny:
    - { name: default, from: web, to: 192.0.2.1 }
    - { name: silent, from: web, to: 192.0.2.2, reject: false }
  allow:
    - { name: out, from: web, to: any }
";
        let rejects = |text: &str| {
            let resolved = load_all(&[text]).expect("loads").resolved;
            let rules = resolved.rules.iter().map(|r| r.reject).collect::<Vec<_>>();
            (resolved.segments[0].reject, rules)
        };
        assert_eq!(rejects(text), (true, vec![true, false, false]));
        assert_eq!(
            rejects(&text.replace("reject: true", "reject: false")),
            (false, vec![false, false, false])
        );
        let one = text.replace("  reject: true\n", "").replace("reject: false", "reject: true");
        assert_eq!(rejects(&one), (false, vec![false, true, false]));
    }

    #[test]
    fn isolation_follows_directions_and_modes() {
        let loaded = load_all(&[FIRST, SECOND]).expect("loads");
        let of = |n: usize| {
            let s = &loaded.resolved.segments[n];
            (s.name.as_str(), s.policy.as_str(), s.ingress, s.egress)
        };
        assert_eq!(of(0), ("web", "one", Isolation::Audit, Isolation::Audit));
        assert_eq!(of(1), ("db", "one", Isolation::Enforce, Isolation::Open));
        assert_eq!(of(2), ("cache", "two", Isolation::Open, Isolation::Open));
        let web = &loaded.resolved.segments[0];
        assert_eq!(web.selectors.len(), 2);
        assert_eq!(web.selectors[1].unit.as_deref(), Some("w.scope"));
        assert_eq!(web.addresses, ["192.0.2.0/24".parse().expect("a CIDR")]);
    }

    #[test]
    fn sides_are_unions_without_repetition() {
        let loaded = load_all(&[FIRST, SECOND]).expect("loads");
        let front = &loaded.resolved.rules[3];
        assert!(front.log && front.from.any && !front.to.any);
        assert_eq!(front.from.segments, [SegmentId(0)]);
        let nets: Vec<_> =
            front.from.networks.iter().map(|n| (n.cidr.to_string(), n.except.len())).collect();
        assert_eq!(nets, [("198.51.100.0/24".to_owned(), 1), ("203.0.113.0/24".to_owned(), 0)]);
        assert_eq!(front.ports.len(), 2);
        assert_eq!(loaded.resolved.rules[0].to.networks.len(), 1);
    }

    #[test]
    fn tests_name_segments_of_other_files() {
        let loaded = load_all(&[FIRST, SECOND]).expect("loads");
        let [first, second] = loaded.tests.as_slice() else { panic!("{:?}", loaded.tests) };
        assert_eq!(
            (first.from, first.to),
            (TestEnd::Segment(SegmentId(0)), TestEnd::Segment(SegmentId(2)))
        );
        assert_eq!((first.expect, first.protocol, first.port), (Expect::Allow, 6, 6379));
        let address: IpAddr = "2001:db8::1".parse().expect("an address");
        assert_eq!(second.from, TestEnd::Address(address));
        assert_eq!((second.expect, second.protocol, second.port), (Expect::Deny, 58, 128));
        assert_eq!(second.text, "2001:db8::1 -> cache icmpv6/echo-request");
        assert_eq!(second.position.to_string(), "1.yaml:12:15");
    }

    #[test]
    fn names_hold_over_all_files() {
        let again = SECOND.replace("two", "one").replace("cache: {", "office: {");
        let found = load_all(&[FIRST, &again]).expect_err("is refused").to_string();
        let lines: Vec<_> = found.lines().collect();
        assert_eq!(
            lines[0],
            "0.yaml:18:23: error: there is no segment or address group `cache`; there are `db`, `office`, `web`"
        );
        assert_eq!(
            lines[1],
            "1.yaml:4:19: error: a second policy with the name `one`; first here: 0.yaml:4:19; give each policy a name of its own"
        );
        assert_eq!(
            lines[2],
            "1.yaml:6:15: error: the name `office` is defined a second time; first defined here, as an address group: 0.yaml:11:5; names of segments and address groups hold for all files together; rename one of them"
        );
    }

    #[test]
    fn nothing_is_an_empty_policy() {
        assert_eq!(load(&[]), Ok(Loaded::default()));
        let text = "# nothing\n---\n---\n...\n".into();
        let loaded = load(&[Source { name: "a".into(), text }]).expect("loads");
        assert_eq!(loaded.resolved, Resolved::default());
    }
}
