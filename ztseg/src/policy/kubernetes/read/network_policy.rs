//! `NetworkPolicy` of `networking.k8s.io/v1`, with the checks of the API server
//! (`pkg/apis/networking/validation`).

use super::Metadata;
use super::field::{given, list, needed};
use super::port::{self, cidr};
use super::selector::{selector, selector_or_every};
use crate::policy::kubernetes::labels::Selector;
use crate::policy::kubernetes::model::{Kind, Namespaces, Peer, PodSelector, Policy, Port, Rule};
use crate::policy::model::Directions;
use crate::policy::parse::reader::{Context, Fields, Shape};
use crate::policy::resolved::{Action, Network, PortRange, Tier};
use crate::policy::yaml::Node;

const SPEC: Shape = Shape {
    what: "the `spec` of a NetworkPolicy",
    fields: &["podSelector", "policyTypes", "ingress", "egress"],
    later: &[],
};
const INGRESS: Shape =
    Shape { what: "an ingress rule of a NetworkPolicy", fields: &["from", "ports"], later: &[] };
const EGRESS: Shape =
    Shape { what: "an egress rule of a NetworkPolicy", fields: &["to", "ports"], later: &[] };
const PEER: Shape = Shape {
    what: "a peer of a NetworkPolicy",
    fields: &["podSelector", "namespaceSelector", "ipBlock"],
    later: &[],
};
const PEER_EXAMPLE: &str = "`- podSelector: { matchLabels: { app: web } }`";
const BLOCK: Shape = Shape { what: "`ipBlock`", fields: &["cidr", "except"], later: &[] };
const PORT: Shape =
    Shape { what: "an entry of `ports`", fields: &["protocol", "port", "endPort"], later: &[] };

/// Reads its `spec`.
pub(super) fn policy(cx: &mut Context<'_>, metadata: Metadata, spec: &Node) -> Option<Policy> {
    let fields = Fields::read(cx, spec, &SPEC, "`{ podSelector: {}, policyTypes: [Ingress] }`")?;
    let namespace = metadata.namespace?;
    let pods = selector_or_every(cx, &fields, "podSelector");
    let ingress = rules(cx, &fields, "ingress", &INGRESS, &namespace);
    let egress = rules(cx, &fields, "egress", &EGRESS, &namespace);
    let isolates = policy_types(cx, &fields, !egress.is_empty());
    let subject = PodSelector { namespaces: Namespaces::Named(namespace.clone()), pods: pods? };
    Some(Policy {
        kind: Kind::NetworkPolicy,
        namespace: Some(namespace),
        name: metadata.name?,
        tier: Tier::Application,
        priority: None,
        isolates,
        subject,
        ingress,
        egress,
    })
}

/// What is missing means ingress, and egress where there are rules for it.
fn policy_types(cx: &mut Context<'_>, fields: &Fields<'_>, has_egress: bool) -> Directions {
    const TYPES: &[(&str, bool)] = &[("Ingress", true), ("Egress", false)];
    let default = Directions { ingress: true, egress: has_egress };
    let Some(node) = given(fields, "policyTypes") else { return default };
    let what = "`policyTypes`";
    let Some(items) = list(cx, node, what, 0..=2, "`[Ingress, Egress]`") else { return default };
    let types: Vec<bool> = items.iter().filter_map(|n| cx.choice(n, what, TYPES)).collect();
    if types.is_empty() {
        return default;
    }
    Directions { ingress: types.contains(&true), egress: types.contains(&false) }
}

fn rules(
    cx: &mut Context<'_>,
    fields: &Fields<'_>,
    name: &str,
    shape: &Shape,
    namespace: &str,
) -> Vec<Rule> {
    let Some(node) = given(fields, name) else { return vec![] };
    let items = cx.list(node, &format!("`{name}`"), "`- {}` for everything, or rules");
    let items = items.unwrap_or_default().iter();
    items.filter_map(|node| rule(cx, node, shape, namespace)).collect()
}

fn rule(cx: &mut Context<'_>, node: &Node, shape: &Shape, namespace: &str) -> Option<Rule> {
    let side = shape.fields[0];
    let fields = Fields::read(cx, node, shape, "`{}`, or `ports` and peers")?;
    let peers = given(&fields, side).and_then(|n| cx.list(n, &format!("`{side}`"), PEER_EXAMPLE));
    let peers = peers
        .filter(|items| !items.is_empty())
        .map(|items| items.iter().filter_map(|n| peer(cx, n, namespace)).collect::<Vec<_>>());
    let items = given(&fields, "ports").and_then(|n| cx.list(n, "`ports`", "`- port: 443`"));
    let items = items.filter(|items| !items.is_empty());
    let ports = items.map(|items| items.iter().filter_map(|n| one_port(cx, n)).collect::<Vec<_>>());
    let only_addresses = side == "to"
        && peers.as_ref().is_some_and(|peers| {
            !peers.is_empty() && peers.iter().all(|p| matches!(p, Peer::Network(_)))
        });
    if let Some(items) = items.filter(|_| only_addresses) {
        for item in items {
            if let Some(name) = named_port(item) {
                let message = "a port's name means nothing at an `ipBlock`: pods name ports";
                cx.error(name.span, message, "write the port's number");
            }
        }
    }
    Some(Rule { name: None, action: Action::Allow, peers, ports, span: node.span })
}

/// The name in an entry of `ports`, if it is a name.
fn named_port(item: &Node) -> Option<&Node> {
    let port = Fields::unchecked(item, PORT.what).and_then(|fields| given(&fields, "port"));
    port.filter(|node| !port::is_number(node))
}

fn peer(cx: &mut Context<'_>, node: &Node, namespace: &str) -> Option<Peer> {
    let before = cx.out.len();
    let fields = Fields::read(cx, node, &PEER, PEER_EXAMPLE)?;
    let pods = given(&fields, "podSelector");
    let namespaces = given(&fields, "namespaceSelector");
    match (given(&fields, "ipBlock"), pods, namespaces) {
        (Some(block), None, None) => ip_block(cx, block).map(Peer::Network),
        (Some(_), _, _) => {
            let span = fields.key("ipBlock").map_or(node.span, |key| key.span);
            let message = "`ipBlock` and selectors in one peer";
            cx.error(span, message, "write an entry of its own for `ipBlock`");
            None
        }
        // What is there instead was reported.
        (None, None, None) if cx.out.len() > before => None,
        (None, None, None) => {
            let message = "this peer names nobody";
            let help = "write `podSelector`, `namespaceSelector` or `ipBlock`; leave the whole list out for everybody";
            cx.error(node.span, message, help);
            None
        }
        (None, pods, namespaces) => {
            let pods = pods.map_or(Some(Selector::default()), |node| selector(cx, node));
            let namespaces = match namespaces {
                Some(node) => Namespaces::Matching(selector(cx, node)?),
                None => Namespaces::Named(namespace.to_owned()),
            };
            Some(Peer::Pods(PodSelector { namespaces, pods: pods? }))
        }
    }
}

fn ip_block(cx: &mut Context<'_>, node: &Node) -> Option<Network> {
    let fields = Fields::read(cx, node, &BLOCK, "`{ cidr: 192.0.2.0/24 }`")?;
    let whole = needed(cx, &fields, "cidr", "`cidr: 192.0.2.0/24`");
    let whole = whole.and_then(|n| cidr(cx, n, "`cidr`"));
    let except = given(&fields, "except").and_then(|n| cx.list(n, "`except`", "`[192.0.2.7/32]`"));
    let except: Vec<_> = except
        .unwrap_or_default()
        .iter()
        .filter_map(|node| cidr(cx, node, "an `except` entry"))
        .collect();
    let whole = whole?.value;
    for part in &except {
        if !whole.contains(&part.value) || whole == part.value {
            let message = format!("`except` {} is no true part of {whole}", part.value);
            cx.error(part.span, message, "write a longer prefix that lies in the `cidr`");
        }
    }
    Some(Network { cidr: whole, except: except.into_iter().map(|part| part.value).collect() })
}

fn one_port(cx: &mut Context<'_>, node: &Node) -> Option<Port> {
    let fields = Fields::read(cx, node, &PORT, "`{ protocol: TCP, port: 443 }`")?;
    let protocol = port::protocol(cx, &fields);
    let end = given(&fields, "endPort");
    let port = given(&fields, "port");
    let Some(node) = port.filter(|node| port::is_number(node)) else {
        if let Some(end) = end {
            let message = "`endPort` needs a number in `port` to start from";
            cx.error(end.span, message, "write the first port's number in `port`");
            return None;
        }
        if let Some(node) = port {
            return port::name(cx, node, Some(protocol?));
        }
        // Every port of the protocol.
        let range = PortRange { protocol: Some(protocol?), first: 0, last: u16::MAX };
        return Some(Port::Range(range));
    };
    let first = port::one_number(cx, node, "port");
    let last = end.map_or(first, |end| port::one_number(cx, end, "endPort"));
    let (first, last) = (first?, last?);
    if let Some(end) = end.filter(|_| last < first) {
        let message = format!("`endPort` {last} is below `port` {first}");
        cx.error(end.span, message, "write the lower number as `port`");
        return None;
    }
    Some(Port::Range(PortRange { protocol: Some(protocol?), first, last }))
}
