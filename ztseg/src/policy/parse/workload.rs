//! `kind: Workload`: what the offline verbs take for a workload that is there.

use super::attributes::{self, Names};
use super::reader::{Context, Fields, Shape};
use super::{DOCUMENT, DOCUMENT_EXAMPLE, METADATA, network, selector};
use crate::inventory::facts::{ContainerFacts, PodFacts, WorkloadFacts};
use crate::policy::diagnostic::quote;
use crate::policy::model::Workload;
use crate::policy::resolved::{ContainerMatch, PodMatch};
use crate::policy::yaml::Node;

pub(super) const KIND: &str = "Workload";

pub(super) const SPEC: Shape = Shape {
    what: "a workload's `spec`",
    fields: &["cgroup", "unit", "container", "pod", "interface", "user", "addresses"],
    later: &[],
};
const EXAMPLE: &str = "`{ cgroup: /shop/web }`";
const WHOLE: Shape =
    Shape { what: "a workload's document", fields: DOCUMENT.fields, later: DOCUMENT.later };

/// Reads a document; `None` if something is wrong with it.
pub(super) fn document(cx: &mut Context<'_>, node: &Node) -> Option<Workload> {
    let before = cx.out.len();
    let fields = Fields::read(cx, node, &WHOLE, DOCUMENT_EXAMPLE)?;
    let name = fields.need(cx, "metadata", "`metadata: { name: NAME }`").and_then(|metadata| {
        let metadata = Fields::read(cx, metadata, &METADATA, "`{ name: NAME }`")?;
        let name = metadata.need(cx, "name", "`name: NAME`")?;
        let name = cx.text(name, "`metadata.name`", "a name such as `web-1`")?;
        Some(cx.side_name(name.value, name.span, "a workload's name"))
    });
    let spec = fields.need(cx, "spec", "`spec: { cgroup: /shop/web }`")?;
    let facts = facts(cx, spec)?;
    let name = name?;
    (cx.out.len() == before).then_some(Workload { name, facts })
}

fn facts(cx: &mut Context<'_>, node: &Node) -> Option<WorkloadFacts> {
    let fields = Fields::read(cx, node, &SPEC, EXAMPLE)?;
    if SPEC.fields.iter().all(|field| *field == "addresses" || fields.get(field).is_none()) {
        if !fields.misspelt() {
            let message = "this says nothing that a `match` entry could ask for";
            cx.error(node.span, message, &format!("write what runs it, as in {EXAMPLE}"));
        }
        return None;
    }
    let facts = WorkloadFacts {
        cgroup: fields.get("cgroup").and_then(|n| one(cx, n, "`cgroup`", cgroup)),
        unit: fields.get("unit").and_then(|n| one(cx, n, "`unit`", selector::unit)),
        container: fields
            .get("container")
            .and_then(|n| attributes::container(cx, n, Names::Exact))
            .map(|ContainerMatch { name, image, labels }| ContainerFacts { name, image, labels }),
        pod: fields.get("pod").and_then(|n| attributes::pod(cx, n, Names::Exact)).map(
            |PodMatch { namespace, labels, service_account }| PodFacts {
                namespace,
                labels,
                // What the API server gives a pod that names none.
                service_account: Some(service_account.unwrap_or_else(|| "default".to_owned())),
            },
        ),
        interface: fields
            .get("interface")
            .and_then(|n| one(cx, n, "`interface`", selector::interface)),
        user: fields.get("user").and_then(|n| attributes::user(cx, n)),
        addresses: addresses(cx, &fields),
    };
    if let Some(key) = fields.key("interface")
        && let Some(other) = ["cgroup", "unit", "container", "pod", "user"]
            .iter()
            .find(|field| fields.get(field).is_some())
    {
        let message = format!("no workload is behind an interface and has a `{other}` here");
        cx.error(key.span, message, "write a document for each");
    }
    Some(facts)
}

/// `/` is the host.
fn cgroup(cx: &mut Context<'_>, node: &Node) -> Option<String> {
    match node.text() {
        Some("/") => Some("/".to_owned()),
        _ => selector::cgroup(cx, node),
    }
}

/// What a selector would ask for, without a `*`.
fn one(
    cx: &mut Context<'_>,
    node: &Node,
    what: &str,
    read: impl Fn(&mut Context<'_>, &Node) -> Option<String>,
) -> Option<String> {
    if let Some(text) = node.text()
        && text.contains('*')
    {
        let message = format!("`*` in {what} {}", quote(text));
        cx.error(node.span, message, "write its whole name; this describes one workload");
        return None;
    }
    read(cx, node)
}

fn addresses(cx: &mut Context<'_>, fields: &Fields<'_>) -> Vec<std::net::IpAddr> {
    let example = "`[192.0.2.7]`";
    let list = fields.get("addresses").and_then(|n| cx.list(n, "`addresses`", example));
    let mut found = Vec::new();
    for node in list.unwrap_or_default() {
        let Some(text) = cx.text(node, "an address", "`192.0.2.7`") else { continue };
        match network::address(text.value) {
            Ok(address) => found.push(address),
            Err(error) => cx.error(text.span, error.message, &error.help),
        }
    }
    found
}
