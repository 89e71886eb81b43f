//! `Namespace`, `Pod` and `Node`: only what policies ask about.
//!
//! These manifests come from elsewhere and have hundreds of fields; what is not asked about is not
//! looked at.

use std::net::IpAddr;

use super::Metadata;
use super::field::{given, string};
use super::port::{self, one_number};
use crate::policy::diagnostic::quote;
use crate::policy::kubernetes::cluster::{Cluster, ContainerPort, Node as ClusterNode, Pod};
use crate::policy::parse::reader::{Context, Fields};
use crate::policy::yaml::{Node, Value};

/// What a part of a manifest has.
fn part<'n>(fields: &Fields<'n>, name: &'static str) -> Option<Fields<'n>> {
    Fields::unchecked(given(fields, name)?, name)
}

fn entries<'n>(fields: &Fields<'n>, name: &str) -> &'n [Node] {
    match given(fields, name).map(|node| &node.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn text<'n>(fields: &Fields<'n>, name: &str) -> Option<&'n str> {
    match &given(fields, name)?.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}

/// Takes a namespace.
pub(super) fn namespace(metadata: Metadata, cluster: &mut Cluster) {
    if let Some(name) = metadata.name {
        cluster.add_namespace(&name.value, metadata.labels);
    }
}

/// Takes a pod, unless it has ended: its addresses may be another's by now.
pub(super) fn pod(
    cx: &mut Context<'_>,
    metadata: Metadata,
    document: &Fields<'_>,
    cluster: &mut Cluster,
) {
    let (Some(name), Some(namespace)) = (metadata.name, metadata.namespace) else { return };
    let spec = part(document, "spec");
    let status = part(document, "status");
    let ended = |s: &Fields<'_>| matches!(text(s, "phase"), Some("Succeeded" | "Failed"));
    if status.as_ref().is_some_and(ended) {
        return;
    }
    let mut pod = Pod { namespace, name: name.value, labels: metadata.labels, ..Pod::default() };
    // What the API server's admission gives a pod that names none.
    let account = spec.as_ref().and_then(|spec| text(spec, "serviceAccountName"));
    account
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
        .clone_into(&mut pod.service_account);
    if let Some(spec) = &spec {
        pod.node = text(spec, "nodeName").map(str::to_owned);
        if let Some(node) = given(spec, "hostNetwork") {
            pod.host_network = cx.boolean(node, "`hostNetwork`").unwrap_or_default();
        }
        pod.ports = ports(cx, spec);
    }
    if let Some(status) = &status {
        let list = entries(status, "podIPs").iter().filter_map(|n| Fields::unchecked(n, "podIPs"));
        pod.addresses = list.filter_map(|f| given(&f, "ip").and_then(|n| address(cx, n))).collect();
        // Which is the first of the list, where there is one.
        if pod.addresses.is_empty() {
            pod.addresses.extend(given(status, "podIP").and_then(|n| address(cx, n)));
        }
    }
    cluster.pods.push(pod);
}

/// The ports that have names, of all containers that run as long as the pod does.
fn ports(cx: &mut Context<'_>, spec: &Fields<'_>) -> Vec<ContainerPort> {
    let stays = |fields: &Fields<'_>| text(fields, "restartPolicy") == Some("Always");
    let of = |name| entries(spec, name).iter().filter_map(|n| Fields::unchecked(n, "a container"));
    let containers = of("containers").chain(of("initContainers").filter(stays));
    let mut ports = Vec::new();
    for fields in containers.flat_map(|c| entries(&c, "ports")) {
        let Some(fields) = Fields::unchecked(fields, "a container's port") else { continue };
        let (Some(name), Some(node)) = (given(&fields, "name"), given(&fields, "containerPort"))
        else {
            continue;
        };
        let name = string(cx, name, "`name`", "the port's name");
        let number = one_number(cx, node, "containerPort");
        let protocol = port::protocol(cx, &fields);
        if let (Some(name), Some(number), Some(protocol)) = (name, number, protocol) {
            ports.push(ContainerPort { name: name.value.to_owned(), protocol, number });
        }
    }
    ports
}

/// Takes a node.
pub(super) fn node(
    cx: &mut Context<'_>,
    metadata: Metadata,
    document: &Fields<'_>,
    cluster: &mut Cluster,
) {
    let Some(name) = metadata.name else { return };
    let mut node =
        ClusterNode { name: name.value, labels: metadata.labels, ..ClusterNode::default() };
    if let Some(status) = part(document, "status") {
        let list = entries(&status, "addresses").iter();
        for fields in list.filter_map(|n| Fields::unchecked(n, "addresses")) {
            // The others are names.
            if matches!(text(&fields, "type"), Some("InternalIP" | "ExternalIP")) {
                let found = given(&fields, "address").and_then(|n| address(cx, n));
                node.addresses.extend(found);
            }
        }
    }
    cluster.nodes.push(node);
}

fn address(cx: &mut Context<'_>, node: &Node) -> Option<IpAddr> {
    let text = string(cx, node, "an address", "an address such as `192.0.2.7`")?;
    let address = text.value.parse::<IpAddr>().ok();
    if address.is_none() {
        let message = format!("{} is not an IP address", quote(text.value));
        cx.error(text.span, message, "write an address such as `192.0.2.7`");
    }
    address.map(|address| address.to_canonical())
}
