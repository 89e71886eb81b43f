//! The cluster-wide kinds: `AdminNetworkPolicy` and `BaselineAdminNetworkPolicy` of
//! `policy.networking.k8s.io/v1alpha1`, `ClusterNetworkPolicy` of `v1alpha2`, with the checks of
//! their CRDs. They differ in words and in how much they take.

use super::Metadata;
use super::field::{given, list, needed, one_of, string};
use super::port::{self, cidr};
use super::selector::{namespaces, pods, selector};
use crate::policy::kubernetes::model::{Kind, Peer, PodSelector, Policy, Port, Rule};
use crate::policy::model::{Directions, Spanned};
use crate::policy::parse::reader::{Context, Fields, Shape};
use crate::policy::resolved::{Action, Network, PortRange, Tier};
use crate::policy::yaml::Node;

/// How a kind differs from the others.
struct Flavour {
    spec: Shape,
    actions: &'static [(&'static str, Action)],
    /// How many rules of a direction, peers of a rule and ports of a rule it takes.
    most: usize,
    /// The field of a rule for its ports.
    ports: &'static str,
    /// Reads an entry of that.
    port: fn(&mut Context<'_>, &Node) -> Option<Port>,
    ingress: Shape,
    egress: Shape,
}

const fn spec(fields: &'static [&'static str]) -> Shape {
    Shape { what: "`spec`", fields, later: &[] }
}

const fn rule_shape(what: &'static str, fields: &'static [&'static str]) -> Shape {
    Shape { what, fields, later: &[] }
}

const ADMIN: Flavour = Flavour {
    spec: spec(&["priority", "subject", "ingress", "egress"]),
    actions: &[("Allow", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)],
    most: 100,
    ports: "ports",
    port: admin_port,
    ingress: rule_shape("an ingress rule", &["name", "action", "from", "ports"]),
    egress: rule_shape("an egress rule", &["name", "action", "to", "ports"]),
};

const BASELINE: Flavour = Flavour {
    spec: spec(&["subject", "ingress", "egress"]),
    actions: &[("Allow", Action::Allow), ("Deny", Action::Deny)],
    ..ADMIN
};

const CLUSTER: Flavour = Flavour {
    spec: spec(&["tier", "priority", "subject", "ingress", "egress"]),
    actions: &[("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)],
    most: 25,
    ports: "protocols",
    port: cluster_port,
    ingress: rule_shape("an ingress rule", &["name", "action", "from", "protocols"]),
    egress: rule_shape("an egress rule", &["name", "action", "to", "protocols"]),
};

const SUBJECT: Shape = Shape { what: "`subject`", fields: &["namespaces", "pods"], later: &[] };
const SUBJECT_EXAMPLE: &str = "`subject: { namespaces: {} }`";
const INGRESS_PEER: Shape =
    Shape { what: "a peer of an ingress rule", fields: &["namespaces", "pods"], later: &[] };
const EGRESS_PEER: Shape = Shape {
    what: "a peer of an egress rule",
    fields: &["namespaces", "pods", "nodes", "networks", "domainNames"],
    later: &[],
};
const PEER_EXAMPLE: &str = "`- namespaces: {}`";

const MAX_PRIORITY: u32 = 1000;
const MAX_RULE_NAME: usize = 100;
const MAX_NETWORKS: usize = 25;

/// Reads the `spec` of one of the three.
pub(super) fn policy(
    cx: &mut Context<'_>,
    kind: Kind,
    metadata: Metadata,
    node: &Node,
) -> Option<Policy> {
    const TIERS: &[(&str, Tier)] = &[("Admin", Tier::Admin), ("Baseline", Tier::Baseline)];
    let flavour = match kind {
        Kind::ClusterNetworkPolicy => &CLUSTER,
        Kind::BaselineAdminNetworkPolicy => &BASELINE,
        Kind::AdminNetworkPolicy | Kind::NetworkPolicy => &ADMIN,
    };
    let fields = Fields::read(cx, node, &flavour.spec, "`subject` and rules below it")?;
    let tier = match kind {
        Kind::ClusterNetworkPolicy => {
            let node = needed(cx, &fields, "tier", "`tier: Admin`");
            node.and_then(|n| cx.choice(n, "`tier`", TIERS))
        }
        Kind::BaselineAdminNetworkPolicy => Some(Tier::Baseline),
        Kind::AdminNetworkPolicy | Kind::NetworkPolicy => Some(Tier::Admin),
    };
    let priority = if kind == Kind::BaselineAdminNetworkPolicy {
        Some(None)
    } else {
        priority(cx, &fields).map(Some)
    };
    let subject = needed(cx, &fields, "subject", SUBJECT_EXAMPLE).and_then(|n| subject(cx, n));
    let ingress = rules(cx, flavour, &fields, "ingress");
    let egress = rules(cx, flavour, &fields, "egress");
    Some(Policy {
        kind,
        namespace: None,
        name: metadata.name?,
        tier: tier?,
        priority: priority?,
        isolates: Directions { ingress: false, egress: false },
        subject: subject?,
        ingress,
        egress,
    })
}

fn priority(cx: &mut Context<'_>, fields: &Fields<'_>) -> Option<Spanned<u32>> {
    let node = needed(cx, fields, "priority", "`priority: 100`; the lower number comes first")?;
    let number = cx.integer(node, "`priority`", 0..=MAX_PRIORITY)?;
    Some(Spanned::new(number, node.span))
}

fn subject(cx: &mut Context<'_>, node: &Node) -> Option<PodSelector> {
    match one_of(cx, node, &SUBJECT, SUBJECT_EXAMPLE)? {
        ("pods", node) => pods(cx, node),
        (_, node) => namespaces(cx, node),
    }
}

fn rules(
    cx: &mut Context<'_>,
    flavour: &Flavour,
    fields: &Fields<'_>,
    direction: &str,
) -> Vec<Rule> {
    let Some(node) = given(fields, direction) else { return vec![] };
    let what = format!("`{direction}`");
    let items = list(cx, node, &what, 0..=flavour.most, "`- { action: Deny, … }`");
    let items = items.unwrap_or_default().iter();
    items.filter_map(|node| rule(cx, flavour, node, direction)).collect()
}

fn rule(cx: &mut Context<'_>, flavour: &Flavour, node: &Node, direction: &str) -> Option<Rule> {
    let (shape, side, peer_shape) = if direction == "ingress" {
        (&flavour.ingress, "from", &INGRESS_PEER)
    } else {
        (&flavour.egress, "to", &EGRESS_PEER)
    };
    let fields = Fields::read(cx, node, shape, "`action`, peers, and what else it has")?;
    let name = given(&fields, "name").and_then(|n| rule_name(cx, n));
    let action = needed(cx, &fields, "action", "`action: Deny`");
    let action = action.and_then(|n| cx.choice(n, "`action`", flavour.actions));
    let whose = format!("`{side}`");
    let items = needed(cx, &fields, side, &format!("`{side}: [ {{ namespaces: {{}} }} ]`"));
    let items = items.and_then(|n| list(cx, n, &whose, 1..=flavour.most, PEER_EXAMPLE));
    let peers = items.map(|items| peers(cx, items, peer_shape));
    let ports = given(&fields, flavour.ports).and_then(|node| {
        let example = "a port; leave the field out for everything";
        let items = list(cx, node, &format!("`{}`", flavour.ports), 1..=flavour.most, example)?;
        named_where_nobody_names(cx, items, flavour, peers.as_deref().unwrap_or_default());
        Some(items.iter().filter_map(|n| (flavour.port)(cx, n)).collect())
    });
    Some(Rule { name, action: action?, peers: Some(peers?), ports, span: node.span })
}

fn rule_name(cx: &mut Context<'_>, node: &Node) -> Option<String> {
    let name = string(cx, node, "`name`", "a name such as `no-metadata`")?;
    if name.value.chars().count() > MAX_RULE_NAME {
        cx.error(name.span, "a rule's name may have 100 characters", "shorten it");
    }
    Some(name.value.to_owned()).filter(|name| !name.is_empty())
}

fn peers(cx: &mut Context<'_>, items: &[Node], shape: &Shape) -> Vec<Peer> {
    let mut peers = Vec::new();
    for item in items {
        match one_of(cx, item, shape, PEER_EXAMPLE) {
            Some(("namespaces", node)) => peers.extend(namespaces(cx, node).map(Peer::Pods)),
            Some(("pods", node)) => peers.extend(pods(cx, node).map(Peer::Pods)),
            Some(("nodes", node)) => peers.extend(selector(cx, node).map(Peer::Nodes)),
            Some(("networks", node)) => {
                let example = "`[192.0.2.0/24]`";
                let cidrs = list(cx, node, "`networks`", 1..=MAX_NETWORKS, example);
                for cidr in
                    cidrs.unwrap_or_default().iter().filter_map(|n| cidr(cx, n, "a network"))
                {
                    peers.push(Peer::Network(Network { cidr: cidr.value, except: vec![] }));
                }
            }
            Some((_, node)) => {
                let message = "`domainNames`: a DNS name as a peer is not in the language yet";
                cx.error(node.span, message, "write its addresses as `networks`");
            }
            None => {}
        }
    }
    peers
}

/// Names of ports where no peer names any. A rule that has pods among its peers is read, and its
/// names mean their ports; the experimental CRDs refuse that, the others take it.
fn named_where_nobody_names(
    cx: &mut Context<'_>,
    items: &[Node],
    flavour: &Flavour,
    peers: &[Peer],
) {
    if peers.is_empty() || peers.iter().any(|peer| matches!(peer, Peer::Pods(_))) {
        return;
    }
    let field = if flavour.ports == "ports" { "namedPort" } else { "destinationNamedPort" };
    for item in items {
        let fields = Fields::unchecked(item, "a port");
        if let Some(node) = fields.and_then(|fields| given(&fields, field)) {
            let message =
                format!("`{field}` in a rule to `nodes` or `networks`, which name no ports");
            cx.error(node.span, message, "write the port's number, or a rule for the pods alone");
        }
    }
}

/// An entry of `ports` in `v1alpha1`.
fn admin_port(cx: &mut Context<'_>, node: &Node) -> Option<Port> {
    const PORT: Shape = Shape {
        what: "an entry of `ports`",
        fields: &["portNumber", "namedPort", "portRange"],
        later: &[],
    };
    const NUMBER: Shape = Shape { what: "`portNumber`", fields: &["protocol", "port"], later: &[] };
    const RANGE: Shape =
        Shape { what: "`portRange`", fields: &["protocol", "start", "end"], later: &[] };
    match one_of(cx, node, &PORT, "`portNumber: { port: 443 }`")? {
        ("portNumber", node) => {
            let fields = Fields::read(cx, node, &NUMBER, "`{ protocol: TCP, port: 443 }`")?;
            let protocol = port::protocol(cx, &fields);
            let number = port::number(cx, &fields, "port")?;
            let range = PortRange::one(protocol?, number);
            Some(Port::Range(range))
        }
        ("portRange", node) => {
            let fields = Fields::read(cx, node, &RANGE, "`{ start: 8000, end: 8099 }`")?;
            let protocol = port::protocol(cx, &fields);
            port::range(cx, node, &fields, protocol).map(Port::Range)
        }
        (_, node) => port::name(cx, node, None),
    }
}

/// An entry of `protocols` in `v1alpha2`.
fn cluster_port(cx: &mut Context<'_>, node: &Node) -> Option<Port> {
    use ztseg_common::addr::proto;
    const PROTOCOL: Shape = Shape {
        what: "an entry of `protocols`",
        fields: &["tcp", "udp", "sctp", "destinationNamedPort"],
        later: &[],
    };
    const MATCH: Shape =
        Shape { what: "what is asked of the protocol", fields: &["destinationPort"], later: &[] };
    const PORT: Shape =
        Shape { what: "`destinationPort`", fields: &["number", "range"], later: &[] };
    const RANGE: Shape = Shape { what: "`range`", fields: &["start", "end"], later: &[] };
    const EXAMPLE: &str = "`destinationPort: { number: 443 }`";
    let (protocol, node) = match one_of(cx, node, &PROTOCOL, &format!("`tcp: {{ {EXAMPLE} }}`"))? {
        ("tcp", node) => (proto::TCP, node),
        ("udp", node) => (proto::UDP, node),
        ("sctp", node) => (proto::SCTP, node),
        (_, node) => return port::name(cx, node, None),
    };
    let (_, node) = one_of(cx, node, &MATCH, EXAMPLE)?;
    match one_of(cx, node, &PORT, EXAMPLE)? {
        ("number", node) => {
            let number = port::one_number(cx, node, "number")?;
            let range = PortRange::one(protocol, number);
            Some(Port::Range(range))
        }
        (_, node) => {
            let fields = Fields::read(cx, node, &RANGE, "`{ start: 8000, end: 8099 }`")?;
            port::range(cx, node, &fields, Some(protocol)).map(Port::Range)
        }
    }
}
