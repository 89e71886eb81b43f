//! What written policies mean, evaluated the naive way, by the words of the reference alone.
//!
//! It asks the documents as they were written, for each flow anew, and shares no code with the
//! parser, the resolver, the inventory, the compiler or the evaluator.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;

use super::members::{is_at, segments_of, segments_of_place, segments_of_pod};
use crate::policy::generate::written::{
    Group, Peer, Pod, Policy, Port, Rule, Runs, Segment, Tier, Written,
};

/// One end of a flow, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Pod(String),
    Workload(String),
    /// What is at the path of a cgroup, or behind an `interface:`.
    Place(String),
    /// A workload in this segment alone.
    Segment(&'static str),
    /// What has this address, if any, and is no workload of this host.
    Address(IpAddr),
}

#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) from: Who,
    pub(super) to: Who,
    /// Its address family.
    pub(super) v4: bool,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// What one end says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    pub(super) because: Because,
    /// Report what is allowed.
    pub(super) log: bool,
    /// Tell who is denied.
    pub(super) reject: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Deny,
    /// It passes, and would not if everything enforced; what decides is what would deny.
    Audit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Because {
    Rule(String),
    /// The isolation of these segments.
    Isolation(BTreeSet<String>),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Deny,
    Allow,
    Pass,
}

type Set = BTreeSet<&'static str>;

/// A rule with the policy that it is in.
#[derive(Clone, Copy)]
struct Placed<'a> {
    policy: &'a Policy,
    rule: &'a Rule,
    action: Action,
    /// In its list, from one.
    place: usize,
}

/// An end, with what is known of it.
struct End<'a> {
    /// Its segments, if it is a workload of this host.
    segments: Option<Set>,
    address: Option<IpAddr>,
    pod: Option<&'a Pod>,
}

/// What the end of a flow says that this direction has; `None` where it is no workload of this host.
pub(super) fn ask(
    written: &Written,
    now: Timestamp,
    flow: &Flow,
    direction: Direction,
) -> Option<Answer> {
    let (from, to) = (end(written, &flow.from, flow.v4), end(written, &flow.to, flow.v4));
    let subject = if direction == Direction::Egress { &from } else { &to };
    let own = subject.segments.as_ref()?;
    let holds = |placed: &Placed<'_>| {
        let rule = placed.rule;
        rule.expires.is_none_or(|end| end > now)
            && is_from(written, rule, &from, direction)
            && (by_number(rule, flow) && is_to(written, rule, &to, direction)
                || by_name(written, rule, flow, &to))
    };
    let mut matching = ordered(written);
    matching.retain(holds);
    let isolating = isolating(written, own, direction);
    let is_enforced = |placed: &Placed<'_>| placed.action != Action::Deny || !placed.policy.audit;
    let enforced: Vec<_> = matching.iter().copied().filter(is_enforced).collect();
    let of_mode = |audit: bool| {
        let of = isolating.iter().filter(move |(p, s)| s.audit.unwrap_or(p.audit) == audit);
        of.map(|(policy, segment)| (policy.reject, segment.name)).collect::<Vec<_>>()
    };
    let (enforcing, auditing) = (of_mode(false), of_mode(true));
    let names = |list: &[(bool, &'static str)]| {
        Because::Isolation(list.iter().map(|(_, name)| (*name).to_owned()).collect())
    };
    let reject = enforcing.iter().any(|(reject, _)| *reject);
    let effective = tiers(&enforced, !enforcing.is_empty());
    let shadow = tiers(&matching, !isolating.is_empty());
    let answer = |verdict, because| Answer { verdict, because, log: false, reject: false };
    Some(match (effective, shadow) {
        (Decided::By(placed), _) if placed.action == Action::Deny => Answer {
            reject: placed.rule.reject.unwrap_or(placed.policy.reject),
            ..answer(Verdict::Deny, named(placed))
        },
        (Decided::Isolation, _) => Answer { reject, ..answer(Verdict::Deny, names(&enforcing)) },
        (_, Decided::By(placed)) if placed.action == Action::Deny => {
            answer(Verdict::Audit, named(placed))
        }
        (_, Decided::Isolation) => answer(Verdict::Audit, names(&auditing)),
        (Decided::By(placed), _) => {
            Answer { log: placed.rule.log, ..answer(Verdict::Allow, named(placed)) }
        }
        (Decided::Nothing, _) => answer(Verdict::Allow, Because::Nothing),
    })
}

enum Decided<'a> {
    By(Placed<'a>),
    Isolation,
    Nothing,
}

/// Tier by tier, the first rule of each.
fn tiers<'a>(matching: &[Placed<'a>], isolated: bool) -> Decided<'a> {
    for tier in [Tier::Admin, Tier::Application, Tier::Baseline] {
        let first = matching.iter().find(|placed| placed.policy.tier == tier);
        if let Some(placed) = first.filter(|placed| placed.action != Action::Pass) {
            return Decided::By(*placed);
        }
        if tier == Tier::Application && isolated {
            return Decided::Isolation;
        }
    }
    Decided::Nothing
}

/// All rules, those of a tier in the order in which they are looked at.
fn ordered(written: &Written) -> Vec<Placed<'_>> {
    let all = || written.policies.iter().flat_map(rules);
    let application =
        |action| all().filter(move |p| p.policy.tier == Tier::Application && p.action == action);
    let mut others: Vec<_> = all().filter(|p| p.policy.tier != Tier::Application).collect();
    // Of two tiers it does not matter which is before the other here.
    others.sort_by_key(|placed| placed.policy.priority);
    others.into_iter().chain(application(Action::Deny)).chain(application(Action::Allow)).collect()
}

/// Those of a policy.
fn rules(policy: &Policy) -> impl Iterator<Item = Placed<'_>> {
    let lists = [
        (Action::Deny, &policy.deny),
        (Action::Allow, &policy.allow),
        (Action::Pass, &policy.pass),
    ];
    lists.into_iter().flat_map(move |(action, list)| {
        (1..).zip(list).map(move |(place, rule)| Placed { policy, rule, action, place })
    })
}

fn named(placed: Placed<'_>) -> Because {
    let Placed { policy, rule, action, place } = placed;
    let list = match action {
        Action::Deny => "deny",
        Action::Allow => "allow",
        Action::Pass => "pass",
    };
    Because::Rule(match &rule.name {
        Some(name) => format!("{}/{name}", policy.name),
        None => format!("{}/{list}-{place}", policy.name),
    })
}

/// The segments of a workload that isolate a direction, with their policies.
fn isolating<'a>(
    written: &'a Written,
    own: &Set,
    direction: Direction,
) -> Vec<(&'a Policy, &'a Segment)> {
    let segments = written.policies.iter().flat_map(|p| p.segments.iter().map(move |s| (p, s)));
    let isolates = |(policy, segment): &(&Policy, &Segment)| {
        let default = [policy.tier == Tier::Application; 2];
        let [ingress, egress] = segment.isolation.unwrap_or(default);
        own.contains(segment.name) && if direction == Direction::Ingress { ingress } else { egress }
    };
    segments.filter(isolates).collect()
}

fn end<'a>(written: &'a Written, who: &Who, v4: bool) -> End<'a> {
    let of_family = |list: &[IpAddr]| list.iter().copied().find(|a| a.is_ipv4() == v4);
    let (segments, address, pod) = match who {
        Who::Segment(name) => (Some([*name].into()), None, None),
        Who::Address(address) => (None, Some(*address), None),
        Who::Place(place) => (Some(segments_of_place(written, place)), None, None),
        Who::Workload(name) => match written.workloads.iter().find(|w| w.name == *name) {
            Some(w) => (Some(segments_of(written, &w.is)), of_family(&w.addresses), None),
            None => (None, None, None),
        },
        Who::Pod(name) => match written.pods.iter().find(|p| p.name == *name) {
            Some(p) => (workload_of(written, p), of_family(&p.addresses), Some(p)),
            None => (None, None, None),
        },
    };
    End { segments, address, pod }
}

/// The segments of a pod; `None` where it is no workload: one of its node's network is one where a
/// segment names it.
fn workload_of(written: &Written, pod: &Pod) -> Option<Set> {
    let segments = segments_of_pod(written, pod);
    (!pod.host_network || !segments.is_empty()).then_some(segments)
}

/// Whether `from` holds: as the subject where it opens the flow, as the peer at the other end.
fn is_from(written: &Written, rule: &Rule, from: &End<'_>, direction: Direction) -> bool {
    match direction {
        Direction::Egress => is_subject(&rule.from, from),
        Direction::Ingress => is_peer(written, &rule.from, from),
    }
}

fn is_to(written: &Written, rule: &Rule, to: &End<'_>, direction: Direction) -> bool {
    match direction {
        Direction::Egress => is_peer(written, &rule.to, to),
        Direction::Ingress => is_subject(&rule.to, to),
    }
}

fn is_subject(side: &[Peer], end: &End<'_>) -> bool {
    side.iter().any(|peer| match peer {
        Peer::Any => end.segments.is_some(),
        Peer::Name(name) => end.segments.as_ref().is_some_and(|set| set.contains(name)),
        Peer::Network(_) => false,
    })
}

fn is_peer(written: &Written, side: &[Peer], end: &End<'_>) -> bool {
    side.iter().any(|peer| match peer {
        Peer::Any => true,
        Peer::Network(network) => end.address.is_some_and(|a| is_in(network, a)),
        Peer::Name(name) => match group(written, name) {
            Some(group) => end.address.is_some_and(|a| is_in_group(group, a)),
            // A workload of this host is known by what it is, whatever its address.
            None => match &end.segments {
                Some(set) => set.contains(name),
                None => end.address.is_some_and(|a| is_at(written, name, a)),
            },
        },
    })
}

fn group<'a>(written: &'a Written, name: &str) -> Option<&'a Group> {
    written.policies.iter().flat_map(|p| &p.groups).find(|g| g.name == name)
}

fn is_in_group(group: &Group, address: IpAddr) -> bool {
    let is_in = |list: &[&str]| list.iter().any(|network| is_in(network, address));
    is_in(&group.cidrs) && !is_in(&group.except)
}

/// Whether an address is in an address or a CIDR; bit by bit.
pub(super) fn is_in(network: &str, address: IpAddr) -> bool {
    let (base, length) = network.split_once('/').unwrap_or((network, "128"));
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => format!("{:032b}", v4.to_bits()),
        IpAddr::V6(v6) => format!("{:0128b}", v6.to_bits()),
    };
    let base: IpAddr = base.parse().expect("an address");
    let (one, other) = (bits(base), bits(address));
    let length = length.parse::<usize>().expect("a length").min(one.len());
    one.len() == other.len() && one[..length] == other[..length]
}

/// Whether one of the ports that a rule has by number is asked for.
fn by_number(rule: &Rule, flow: &Flow) -> bool {
    rule.ports.is_empty()
        || rule.ports.iter().any(|port| match *port {
            Port::Any => true,
            Port::Protocol(protocol) => protocol == flow.protocol,
            Port::Range(protocol, first, last) => {
                protocol == flow.protocol && first <= flow.port && flow.port <= last
            }
            Port::Type(protocol, number, _) => protocol == flow.protocol && number == flow.port,
            Port::Named(..) => false,
        })
}

/// Whether a pod in `to` is asked for one of the ports that a rule has by name.
fn by_name(written: &Written, rule: &Rule, flow: &Flow, to: &End<'_>) -> bool {
    let is_asked = |pod: &Pod| {
        rule.ports.iter().any(|port| match port {
            Port::Named(protocol, name) => {
                *protocol == flow.protocol && has_port(pod, name, (flow.protocol, flow.port))
            }
            _ => false,
        })
    };
    let is_in_side = |pod: &Pod| {
        workload_of(written, pod).is_some_and(|segments| {
            let end = End { segments: Some(segments), address: None, pod: None };
            is_subject(&rule.to, &end)
        })
    };
    match (to.pod, &to.segments, to.address) {
        (Some(pod), Some(_), _) => is_in_side(pod) && is_asked(pod),
        // Who is elsewhere is a pod by its address, unless that is its node's.
        (_, None, Some(address)) => written.pods.iter().any(|pod| {
            !pod.ended
                && !pod.host_network
                && pod.addresses.contains(&address)
                && is_in_side(pod)
                && is_asked(pod)
        }),
        _ => false,
    }
}

/// Whether a container that runs as long as the pod does calls this port so.
fn has_port(pod: &Pod, name: &str, (protocol, number): (u8, u16)) -> bool {
    const TCP: u8 = 6;
    pod.ports.iter().any(|port| {
        port.runs != Runs::BeforePod
            && port.name == Some(name)
            && port.protocol.unwrap_or(TCP) == protocol
            && port.number == number
    })
}
