//! The documents as text.

use std::fmt::Display;

use fastrand::Rng;
use ztseg_common::addr::proto;

use super::yaml::{Tree, document};
use super::{
    Container, ContainerPort, Entry, Group, Labels, Match, Peer, Pod, PodMatch, Policy, Port, Rule,
    Runs, Segment, Tier, Workload, Written,
};
use crate::policy::source::Source;

/// Policies keep their order; what describes workloads stands anywhere between them.
pub(super) fn sources(rng: &mut Rng, written: &Written) -> Vec<Source> {
    let mut documents: Vec<Tree> = written.policies.iter().map(|p| policy(rng, p)).collect();
    let mut others: Vec<Tree> = written.workloads.iter().map(|w| workload(rng, w)).collect();
    others.extend(written.pods.iter().map(|p| pod(rng, p)));
    if rng.bool() {
        let metadata = named([("name", Some("shop"))], &vec![("app", "web")]);
        others.push(of_kind("v1", "Namespace", metadata, []));
    }
    for other in others {
        documents.insert(rng.usize(0..=documents.len()), other);
    }
    let mut sources = Vec::new();
    while !documents.is_empty() {
        let count = rng.usize(1..=documents.len());
        let of_file: Vec<Tree> = documents.drain(..count).collect();
        let of_file = if rng.u8(0..8) == 0 {
            vec![mapping([
                ("apiVersion", Tree::text("v1")),
                ("kind", Tree::text("List")),
                ("items", Tree::List(of_file)),
            ])]
        } else {
            of_file
        };
        let texts: Vec<_> = of_file.iter().map(|tree| document(rng, tree)).collect();
        let name = format!("{}.yaml", sources.len()).into();
        sources.push(Source { name, text: texts.join("---\n").into() });
    }
    sources
}

fn mapping<const N: usize>(fields: [(&'static str, Tree); N]) -> Tree {
    Tree::Mapping(fields.into())
}

fn of_kind(
    version: &str,
    kind: &str,
    metadata: Tree,
    rest: impl IntoIterator<Item = (&'static str, Tree)>,
) -> Tree {
    let mut fields = vec![
        ("apiVersion", Tree::text(version)),
        ("kind", Tree::text(kind)),
        ("metadata", metadata),
    ];
    fields.extend(rest);
    Tree::Mapping(fields)
}

fn plain(value: impl Display) -> Tree {
    Tree::Plain(format!("{value}"))
}

/// A field that may say its default, or nothing.
fn flag(rng: &mut Rng, fields: &mut Vec<(&'static str, Tree)>, name: &'static str, is: bool) {
    if is || rng.u8(0..4) == 0 {
        fields.push((name, plain(is)));
    }
}

fn mode(audit: bool) -> Tree {
    Tree::text(if audit { "audit" } else { "enforce" })
}

fn policy(rng: &mut Rng, policy: &Policy) -> Tree {
    let mut spec = Vec::new();
    let tier = match policy.tier {
        Tier::Admin => Some("admin"),
        Tier::Application => rng.bool().then_some("application"),
        Tier::Baseline => Some("baseline"),
    };
    spec.extend(tier.map(|tier| ("tier", Tree::text(tier))));
    spec.extend(policy.priority.map(|number| ("priority", plain(number))));
    if policy.audit || rng.u8(0..4) == 0 {
        spec.push(("mode", mode(policy.audit)));
    }
    flag(rng, &mut spec, "reject", policy.reject);
    if !policy.segments.is_empty() {
        let segments = policy.segments.iter().map(|s| (s.name, segment(rng, s)));
        spec.push(("segments", Tree::Mapping(segments.collect())));
    }
    if !policy.groups.is_empty() {
        let groups = policy.groups.iter().map(|g| (g.name, group(g)));
        spec.push(("addressGroups", Tree::Mapping(groups.collect())));
    }
    for (field, rules) in [("deny", &policy.deny), ("allow", &policy.allow), ("pass", &policy.pass)]
    {
        if !rules.is_empty() {
            let rules = rules.iter().map(|r| rule(rng, r)).collect();
            spec.push((field, Tree::List(rules)));
        }
    }
    let spec = Tree::shuffled(rng, spec);
    let metadata = mapping([("name", Tree::text(&policy.name))]);
    of_kind("ztseg.io/v1", "SegmentPolicy", metadata, [("spec", spec)])
}

fn segment(rng: &mut Rng, segment: &Segment) -> Tree {
    let entries = segment.entries.iter().map(|entry| match entry {
        Entry::Addresses(list) => mapping([("addresses", Tree::texts(list))]),
        Entry::Workloads(asked) => {
            let fields = match_fields(asked);
            Tree::shuffled(rng, fields)
        }
    });
    let mut fields = vec![("match", Tree::List(entries.collect()))];
    fields.extend(segment.audit.map(|audit| ("mode", mode(audit))));
    if let Some([ingress, egress]) = segment.isolation {
        let words = [(ingress, "ingress"), (egress, "egress")];
        let words = words.into_iter().filter_map(|(is, word)| is.then_some(word));
        fields.push(("isolation", Tree::texts(words)));
    }
    Tree::shuffled(rng, fields)
}

fn match_fields(asked: &Match) -> Vec<(&'static str, Tree)> {
    let mut fields = Vec::new();
    let mut text = |name, value: Option<&str>| {
        fields.extend(value.map(|value| (name, Tree::text(value))));
    };
    text("unit", asked.unit);
    text("cgroup", asked.cgroup.as_deref());
    text("interface", asked.interface);
    text("user", asked.user);
    fields.extend(asked.container.as_ref().map(|c| ("container", container(c))));
    fields.extend(asked.pod.as_ref().map(|p| ("pod", pod_match(p))));
    fields.extend(asked.host.then(|| ("host", plain(true))));
    fields
}

fn named<const N: usize>(names: [(&'static str, Option<&str>); N], labels: &Labels) -> Tree {
    let is = |(name, value): (&'static str, Option<&str>)| Some((name, Tree::text(value?)));
    let mut fields: Vec<_> = names.into_iter().filter_map(is).collect();
    if !labels.is_empty() {
        fields.push(("labels", label_list(labels)));
    }
    Tree::Mapping(fields)
}

fn container(asked: &Container) -> Tree {
    named([("name", asked.name), ("image", asked.image)], &asked.labels)
}

fn pod_match(asked: &PodMatch) -> Tree {
    let names = [("namespace", asked.namespace), ("serviceAccount", asked.service_account)];
    named(names, &asked.labels)
}

fn label_list(labels: &Labels) -> Tree {
    Tree::Mapping(labels.iter().map(|(key, value)| (*key, Tree::text(*value))).collect())
}

fn group(group: &Group) -> Tree {
    let mut fields = vec![("cidrs", Tree::texts(&group.cidrs))];
    if !group.except.is_empty() {
        fields.push(("except", Tree::texts(&group.except)));
    }
    Tree::Mapping(fields)
}

fn rule(rng: &mut Rng, rule: &Rule) -> Tree {
    let from = side(rng, &rule.from);
    let mut fields = vec![("from", from), ("to", side(rng, &rule.to))];
    fields.extend(rule.name.as_ref().map(|name| ("name", Tree::text(name))));
    if !rule.ports.is_empty() {
        fields.push(("ports", Tree::texts(rule.ports.iter().map(port))));
    }
    if rule.log {
        fields.push(("log", plain(true)));
    }
    fields.extend(rule.reject.map(|reject| ("reject", plain(reject))));
    fields.extend(rule.expires.map(|end| ("expires", Tree::text(end.to_string()))));
    Tree::shuffled(rng, fields)
}

fn side(rng: &mut Rng, side: &[Peer]) -> Tree {
    let word = |peer: &Peer| match peer {
        Peer::Any => "any".to_owned(),
        Peer::Name(text) | Peer::Network(text) => (*text).to_owned(),
    };
    match side {
        [one] if rng.bool() => Tree::Text(word(one)),
        list => Tree::texts(list.iter().map(word)),
    }
}

fn protocol(number: u8) -> &'static str {
    match number {
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::SCTP => "sctp",
        proto::ICMP => "icmp",
        _ => "icmpv6",
    }
}

fn port(port: &Port) -> String {
    match port {
        Port::Any => "any".to_owned(),
        Port::Protocol(number) => protocol(*number).to_owned(),
        Port::Range(number, first, last) if first == last => {
            format!("{}/{first}", protocol(*number))
        }
        Port::Range(number, first, last) => format!("{}/{first}-{last}", protocol(*number)),
        Port::Type(number, _, name) | Port::Named(number, name) => {
            format!("{}/{name}", protocol(*number))
        }
    }
}

fn workload(rng: &mut Rng, workload: &Workload) -> Tree {
    let mut fields = match_fields(&workload.is);
    if !workload.addresses.is_empty() {
        fields.push(("addresses", Tree::texts(&workload.addresses)));
    }
    let spec = Tree::shuffled(rng, fields);
    let metadata = mapping([("name", Tree::text(&workload.name))]);
    of_kind("ztseg.io/v1", "Workload", metadata, [("spec", spec)])
}

fn pod(rng: &mut Rng, pod: &Pod) -> Tree {
    let names = [("name", Some(pod.name.as_str())), ("namespace", pod.namespace)];
    let mut spec = Vec::new();
    spec.extend(pod.service_account.map(|name| ("serviceAccountName", Tree::text(name))));
    flag(rng, &mut spec, "hostNetwork", pod.host_network);
    for (field, of_field) in [
        ("containers", &[Runs::WithPod][..]),
        ("initContainers", &[Runs::WithPodFromInit, Runs::BeforePod]),
    ] {
        let ports = pod.ports.iter().filter(|port| of_field.contains(&port.runs));
        let containers: Vec<_> = ports.map(container_of).collect();
        if !containers.is_empty() {
            spec.push((field, Tree::List(containers)));
        }
    }
    let phase = if pod.ended { pick_phase(rng) } else { "Running" };
    let mut status = vec![("phase", Tree::text(phase))];
    let addresses = pod.addresses.iter().map(|a| mapping([("ip", Tree::text(a.to_string()))]));
    let addresses: Vec<_> = addresses.collect();
    match &addresses[..] {
        [Tree::Mapping(one)] if rng.bool() => status.push(("podIP", one[0].1.clone())),
        _ => status.push(("podIPs", Tree::List(addresses))),
    }
    let rest = [("spec", Tree::Mapping(spec)), ("status", Tree::Mapping(status))];
    of_kind("v1", "Pod", named(names, &pod.labels), rest)
}

fn pick_phase(rng: &mut Rng) -> &'static str {
    if rng.bool() { "Succeeded" } else { "Failed" }
}

/// A container with one port.
fn container_of(port: &ContainerPort) -> Tree {
    let mut fields = vec![("containerPort", plain(port.number))];
    fields.extend(port.name.map(|name| ("name", Tree::text(name))));
    let word = |number| if number == proto::UDP { "UDP" } else { "TCP" };
    fields.extend(port.protocol.map(|number| ("protocol", Tree::text(word(number)))));
    let mut container = vec![("ports", Tree::List(vec![Tree::Mapping(fields)]))];
    if port.runs == Runs::WithPodFromInit {
        container.push(("restartPolicy", Tree::text("Always")));
    }
    Tree::Mapping(container)
}
