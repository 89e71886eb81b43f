//! Segments and address groups.

use ipnet::IpNet;

use super::attributes::{self, Names};
use super::reader::{Context, Fields, Shape};
use super::{MODES, network, selector};
use crate::policy::diagnostic::quote;
use crate::policy::model::{AddressGroup, Directions, Offline, Segment, Spanned};
use crate::policy::resolved::Selector;
use crate::policy::yaml::{Key, Node};

pub(super) const SEGMENT: Shape =
    Shape { what: "a segment", fields: &["description", "mode", "isolation", "match"], later: &[] };
const SEGMENT_EXAMPLE: &str = "`{ match: [ { unit: nginx.service } ] }`";

pub(super) const MATCH: Shape = Shape {
    what: "a `match` entry",
    fields: &["unit", "cgroup", "container", "pod", "interface", "user", "host", "addresses"],
    later: &[],
};

pub(super) const GROUP: Shape =
    Shape { what: "an address group", fields: &["cidrs", "except"], later: &[] };
const GROUP_EXAMPLE: &str = "`{ cidrs: [192.0.2.0/24] }`";

/// Reads a segment; what is wrong with it is reported, its name is defined in any case.
/// `isolation` is what it isolates where it does not say so itself.
pub(super) fn segment(
    cx: &mut Context<'_>,
    key: &Key,
    node: &Node,
    isolation: Directions,
) -> Segment {
    let name = cx.side_name(&key.text, key.span, "a segment's name");
    let mut segment = Segment {
        name,
        description: None,
        mode: None,
        isolation,
        says_isolation: false,
        selectors: vec![],
        addresses: vec![],
        offline: vec![],
    };
    let Some(fields) = Fields::read(cx, node, &SEGMENT, SEGMENT_EXAMPLE) else { return segment };
    segment.description = fields
        .get("description")
        .and_then(|n| cx.text(n, "`description`", "a line of text"))
        .map(|text| text.value.to_owned());
    segment.mode = fields.get("mode").and_then(|n| cx.choice(n, "`mode`", MODES));
    if let Some(written) = fields.get("isolation").and_then(|n| directions(cx, n)) {
        segment.isolation = written;
        segment.says_isolation = true;
    }
    let example = "`match:` with a list of what is in it, such as `- unit: nginx.service`";
    if let Some(node) = fields.need(cx, "match", example) {
        matches(cx, node, &mut segment);
    }
    segment
}

fn directions(cx: &mut Context<'_>, node: &Node) -> Option<Directions> {
    let example = "`[ingress, egress]`, `[ingress]`, `[egress]`, or `[]` for none";
    let items = cx.list(node, "`isolation`", example)?;
    let mut found = Directions { ingress: false, egress: false };
    for item in items {
        let words = [("ingress", true), ("egress", false)];
        let ingress = cx.choice(item, "a direction in `isolation`", &words)?;
        let seen = if ingress { &mut found.ingress } else { &mut found.egress };
        if std::mem::replace(seen, true) {
            cx.error(item.span, "this direction stands here a second time", "write it once");
        }
    }
    Some(found)
}

fn matches(cx: &mut Context<'_>, node: &Node, segment: &mut Segment) {
    let example = "a list: `- unit: nginx.service`";
    let help = "write at least one entry, such as `- unit: nginx.service`";
    let Some(items) = cx.filled_list(node, "`match`", example, help) else { return };
    for item in items {
        let Some(fields) = Fields::read(cx, item, &MATCH, "`unit: nginx.service`") else {
            continue;
        };
        if fields.is_empty() {
            let help = "write one of `unit`, `cgroup`, `container`, `pod`, `interface`, `user`, `host`, `addresses`";
            cx.error(item.span, "this `match` entry is empty", help);
            continue;
        }
        if let Some(node) = fields.get("addresses") {
            addresses(cx, &fields, node, segment);
            continue;
        }
        let asked = ["container", "pod", "user"].into_iter();
        let asked = asked.filter_map(|field| Some((field, fields.key(field)?)));
        segment.offline.extend(asked.map(|(f, key)| Spanned::new(Offline::Match(f), key.span)));
        segment.selectors.extend(workloads(cx, &fields, item));
    }
}

fn addresses(cx: &mut Context<'_>, fields: &Fields<'_>, node: &Node, segment: &mut Segment) {
    if let Some(other) = ["unit", "cgroup", "container", "pod", "interface", "user", "host"]
        .iter()
        .find_map(|f| fields.key(f))
    {
        let message = format!(
            "`addresses` and {} in one `match` entry are not supported yet by this version of ztseg",
            quote(&other.text)
        );
        cx.error(other.span, message, "write `addresses` as an entry of its own");
    }
    let read = networks(cx, node, "`addresses`");
    segment.addresses.extend(read.iter().map(|n| n.value));
}

fn workloads(cx: &mut Context<'_>, fields: &Fields<'_>, item: &Node) -> Option<Selector> {
    let before = cx.out.len();
    let selector = Selector {
        cgroup: fields.get("cgroup").and_then(|n| selector::cgroup(cx, n)),
        unit: fields.get("unit").and_then(|n| selector::unit(cx, n)),
        container: fields.get("container").and_then(|n| attributes::container(cx, n, Names::Globs)),
        pod: fields.get("pod").and_then(|n| attributes::pod(cx, n, Names::Globs)),
        interface: fields.get("interface").and_then(|n| selector::interface(cx, n)),
        user: fields.get("user").and_then(|n| attributes::user(cx, n)),
        host: fields.get("host").is_some_and(|n| selector::host(cx, n)),
    };
    let runs = ["cgroup", "unit", "container", "pod"].iter().any(|f| fields.get(f).is_some());
    let kinds = [runs, selector.interface.is_some(), selector.host];
    if kinds.into_iter().filter(|k| *k).count() > 1 {
        let message = "nothing matches this entry: a workload is either a cgroup (`cgroup`, `unit`, `container`, `pod`), an `interface`, or the `host`";
        cx.error(item.span, message, "write an entry for each");
    } else if let (Some(_), Some(key)) = (&selector.interface, fields.key("user")) {
        let message = "nothing matches this entry: what is behind an interface has no user here";
        cx.error(key.span, message, "leave `user` out, or write an entry for each");
    }
    (cx.out.len() == before).then_some(selector)
}

/// Reads an address group; what is wrong with it is reported, its name is defined in any case.
pub(super) fn group(cx: &mut Context<'_>, key: &Key, node: &Node) -> AddressGroup {
    let name = cx.side_name(&key.text, key.span, "an address group's name");
    let mut group = AddressGroup { name, cidrs: vec![], except: vec![] };
    let Some(fields) = Fields::read(cx, node, &GROUP, GROUP_EXAMPLE) else { return group };
    let before = cx.out.len();
    if let Some(node) = fields.need(cx, "cidrs", "`cidrs: [192.0.2.0/24]`") {
        group.cidrs = networks(cx, node, "`cidrs`");
    }
    if let Some(node) = fields.get("except")
        && let Some(items) = cx.list(node, "`except`", "`[192.0.2.66]`")
    {
        group.except =
            items.iter().filter_map(|n| one_network(cx, n, "an `except` entry")).collect();
    }
    if cx.out.len() == before {
        exceptions(cx, &group);
    }
    group
}

/// An exception must take something, and leave something.
fn exceptions(cx: &mut Context<'_>, group: &AddressGroup) {
    for except in &group.except {
        if let Some(cidr) = group.cidrs.iter().find(|c| except.value.contains(&c.value)) {
            let message = format!("`except` {} leaves nothing of {}", except.value, cidr.value);
            cx.error(except.span, message, "remove both, or write a longer prefix");
        } else if !group.cidrs.iter().any(|c| c.value.contains(&except.value)) {
            let message = format!("`except` {} is in none of the group's `cidrs`", except.value);
            cx.error(
                except.span,
                message,
                "remove it, or add the CIDR that it is to be left out of",
            );
        }
    }
}

fn networks(cx: &mut Context<'_>, node: &Node, what: &str) -> Vec<Spanned<IpNet>> {
    let help = "write at least one, such as `192.0.2.0/24`";
    let items = cx.filled_list(node, what, "`[192.0.2.0/24]`", help);
    let entry = format!("an entry of {what}");
    items.unwrap_or_default().iter().filter_map(|n| one_network(cx, n, &entry)).collect()
}

fn one_network(cx: &mut Context<'_>, node: &Node, what: &str) -> Option<Spanned<IpNet>> {
    let text = cx.text(node, what, "`192.0.2.0/24`")?;
    match network::network(text.value) {
        Ok(net) => Some(Spanned::new(net, text.span)),
        Err(_) if network::looks_like_dns(text.value) => {
            let message = format!("{} is a DNS name, not an address", quote(text.value));
            cx.error(text.span, message, "write its addresses");
            None
        }
        Err(error) => {
            cx.error(text.span, error.message, &error.help);
            None
        }
    }
}
