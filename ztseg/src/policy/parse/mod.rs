//! YAML trees to the model, strictly: what is not understood is an error, and every error is found.

pub(crate) mod attributes;
mod icmp;
pub(crate) mod network;
mod order;
pub(crate) mod port;
pub(crate) mod reader;
#[cfg(test)]
mod reference;
mod rule;
pub mod schema;
mod segment;
pub(crate) mod selector;
mod test;
mod workload;

use super::diagnostic::{Diagnostic, Span, quote};
use super::kubernetes::read::{KINDS, Kind as KubernetesKind, Reader};
use super::model::{Directions, Offline, Parsed, Policy, Port, Rule, Spanned};
use super::names;
use super::resolved::{Mode, Tier};
use super::source::Source;
use super::yaml::{self, Node, Value};
use reader::{Context, Fields, Shape};

/// The `apiVersion` of ztseg's own kinds.
pub const API_VERSION: &str = "ztseg.io/v1";
/// Its kind of policies.
pub const KIND: &str = "SegmentPolicy";

const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("audit", Mode::Audit)];

/// Kinds that a later version reads, and what to do until then.
const LATER_KINDS: &[(&str, &str)] =
    &[("Service", "remove the document"), ("EndpointSlice", "remove the document")];

const DOCUMENT: Shape = Shape {
    what: "a policy document",
    fields: &["apiVersion", "kind", "metadata", "spec"],
    later: &[],
};
const DOCUMENT_EXAMPLE: &str = "`apiVersion`, `kind`, `metadata` and `spec`";

const METADATA: Shape = Shape { what: "`metadata`", fields: &["name"], later: &[] };

const SPEC: Shape = Shape {
    what: "`spec`",
    fields: &[
        "tier",
        "priority",
        "mode",
        "reject",
        "segments",
        "addressGroups",
        "deny",
        "allow",
        "pass",
        "tests",
    ],
    later: &[],
};

const LIST: Shape = Shape {
    what: "a list of documents",
    fields: &["apiVersion", "kind", "metadata", "items"],
    later: &[],
};
/// The fields of a policy's parts, in the order of the reference.
pub(in crate::policy) mod fields {
    use super::{rule, segment};

    pub(in crate::policy) const DOCUMENT: &[&str] = super::DOCUMENT.fields;
    pub(in crate::policy) const METADATA: &[&str] = super::METADATA.fields;
    pub(in crate::policy) const SPEC: &[&str] = super::SPEC.fields;
    pub(in crate::policy) const SEGMENT: &[&str] = segment::SEGMENT.fields;
    pub(in crate::policy) const MATCH: &[&str] = segment::MATCH.fields;
    pub(in crate::policy) const GROUP: &[&str] = segment::GROUP.fields;
    pub(in crate::policy) const RULE: &[&str] = rule::FIELDS;
}

/// Reads all documents of all sources.
pub fn parse(sources: &[Source], out: &mut Vec<Diagnostic>) -> Parsed {
    let mut parsed = Parsed { complete: true, ..Parsed::default() };
    let mut kubernetes = Reader::default();
    for (source, documents, found) in yaml::read_all(sources) {
        out.extend(found);
        parsed.complete &= documents.complete;
        let mut cx = Context { source, out };
        let documents = documents.list.iter().flat_map(|node| entries(&mut cx, node));
        for node in documents.collect::<Vec<_>>() {
            match kind(&mut cx, node) {
                Some((Kind::Kubernetes(name, kind), place)) => {
                    let before = cx.out.len();
                    kubernetes.document(&mut cx, node, (name, kind), place);
                    // Of these, only pods have names that others use.
                    parsed.complete &= kind != KubernetesKind::Pod || cx.out.len() == before;
                }
                Some((Kind::Segment, _)) => match document(&mut cx, node, &mut parsed.complete) {
                    Some(policy) => parsed.policies.push(policy),
                    None => parsed.complete = false,
                },
                Some((Kind::Workload, place)) => {
                    parsed.offline.push(Spanned::new(Offline::Kind(workload::KIND), place));
                    match workload::document(&mut cx, node) {
                        Some(workload) => parsed.workloads.push(workload),
                        None => parsed.complete = false,
                    }
                }
                None => parsed.complete = false,
            }
        }
    }
    parsed.kubernetes = kubernetes.finish();
    let documents = parsed.kubernetes.documents.iter();
    parsed.offline.extend(documents.map(|d| Spanned::new(Offline::Kind(d.value), d.span)));
    let segments = parsed.policies.iter().flat_map(|policy| &policy.segments);
    parsed.offline.extend(segments.flat_map(|segment| &segment.offline));
    let rules = parsed.policies.iter().flat_map(|p| p.deny.iter().chain(&p.allow).chain(&p.pass));
    let named =
        rules.flat_map(|rule| &rule.ports).filter(|p| matches!(p.value, Port::Named { .. }));
    parsed.offline.extend(named.map(|port| Spanned::new(Offline::NamedPort, port.span)));
    parsed
}

fn document(cx: &mut Context<'_>, node: &Node, complete: &mut bool) -> Option<Policy> {
    let fields = Fields::read(cx, node, &DOCUMENT, DOCUMENT_EXAMPLE)?;
    let name = policy_name(cx, &fields);
    let spec = fields.need(cx, "spec", "`spec:` with `segments` and rules below it")?;
    let spec = Fields::read(cx, spec, &SPEC, "`segments:` and rules below it")?;
    let (tier, priority) = order::order(cx, &spec);
    let mode = spec.get("mode").and_then(|n| cx.choice(n, "`mode`", MODES)).unwrap_or_default();
    let reject = spec.get("reject").and_then(|n| cx.boolean(n, "`reject`")).unwrap_or(false);
    let mut definitions = |cx: &mut Context<'_>, field: &str, example: &str| {
        let node = spec.get(field)?;
        let found = cx.mapping(node, &format!("`{field}`"), example);
        *complete &= found.is_some();
        found
    };
    let segments = definitions(cx, "segments", "`NAME: { match: … }` below it");
    // Who isolates by default is the application tier; the others say what comes before and after.
    let isolated = tier == Tier::Application;
    let isolation = Directions { ingress: isolated, egress: isolated };
    let segments = segments.unwrap_or_default().iter();
    let segments = segments.map(|(k, n)| segment::segment(cx, k, n, isolation)).collect();
    let groups = definitions(cx, "addressGroups", "`NAME: { cidrs: […] }` below it");
    let groups = groups.unwrap_or_default().iter().map(|(k, n)| segment::group(cx, k, n));
    let groups = groups.collect();
    let deny = rules(cx, &spec, "deny");
    let allow = rules(cx, &spec, "allow");
    let pass = rules(cx, &spec, "pass");
    let tests =
        spec.get("tests").and_then(|n| cx.list(n, "`tests`", "`- allow: web -> db tcp/5432`"));
    let tests = tests.unwrap_or_default().iter().filter_map(|n| test::test(cx, n)).collect();
    Some(Policy { name, tier, priority, mode, reject, segments, groups, deny, allow, pass, tests })
}

/// The documents in a document: several in a `kind: List`, as `kubectl get -o yaml` writes them.
fn entries<'n>(cx: &mut Context<'_>, node: &'n Node) -> &'n [Node] {
    let kind = Fields::unchecked(node, LIST.what).and_then(|fields| fields.get("kind"));
    let is_list = |kind: &Node| matches!(&kind.value, Value::Scalar { text, .. } if text == "List");
    if !kind.is_some_and(is_list) {
        return std::slice::from_ref(node);
    }
    let items = Fields::read(cx, node, &LIST, "`items`").and_then(|fields| {
        let items = fields.need(cx, "items", "`items:` with the documents")?;
        cx.list(items, "`items`", "`- apiVersion: …`")
    });
    items.unwrap_or_default()
}

/// The kinds of documents.
enum Kind {
    Segment,
    Workload,
    Kubernetes(&'static str, KubernetesKind),
}

/// Which document this is, and where it says so; looked at before any other field, so that a
/// document of another kind gives one error and not one for each of its fields.
fn kind(cx: &mut Context<'_>, node: &Node) -> Option<(Kind, Span)> {
    let mapping = cx.mapping(node, DOCUMENT.what, DOCUMENT_EXAMPLE)?;
    if mapping.is_empty() {
        cx.error(node.span, "this document is empty", "remove it, or write a policy");
        return None;
    }
    let entries = Fields::unchecked(node, DOCUMENT.what)?;
    let kind = entries.need(cx, "kind", &format!("`kind: {KIND}`"))?;
    let kind = cx.text(kind, "`kind`", &format!("`{KIND}`"))?;
    if let Some((name, instead)) = LATER_KINDS.iter().find(|(name, _)| *name == kind.value) {
        cx.later(kind.span, &format!("`kind: {name}`"), instead);
        return None;
    }
    let kubernetes = KINDS.iter().find(|(name, _, _)| *name == kind.value);
    let (read, name, api_version) = match kubernetes {
        Some((name, version, kind)) => (Kind::Kubernetes(name, *kind), *name, *version),
        None if kind.value == KIND => (Kind::Segment, KIND, API_VERSION),
        None if kind.value == workload::KIND => (Kind::Workload, workload::KIND, API_VERSION),
        None => {
            let kinds = KINDS.iter().map(|(name, _, _)| *name);
            let kinds = kinds
                .chain(LATER_KINDS.iter().map(|(name, _)| *name))
                .chain([KIND, workload::KIND]);
            let help = match names::nearest(kind.value, kinds) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write `kind: {KIND}`"),
            };
            cx.error(kind.span, format!("unknown kind {}", quote(kind.value)), &help);
            return None;
        }
    };
    let version = entries.need(cx, "apiVersion", &format!("`apiVersion: {api_version}`"))?;
    let version = cx.text(version, "`apiVersion`", &format!("`{api_version}`"))?;
    if version.value != api_version {
        let message = format!("unknown apiVersion {} for `kind: {name}`", quote(version.value));
        cx.error(version.span, message, &format!("write `apiVersion: {api_version}`"));
        return None;
    }
    Some((read, kind.span))
}

fn policy_name(cx: &mut Context<'_>, fields: &Fields<'_>) -> Option<Spanned<String>> {
    let example = "`metadata: { name: NAME }`";
    let metadata = fields.need(cx, "metadata", example)?;
    let metadata = Fields::read(cx, metadata, &METADATA, "`{ name: NAME }`")?;
    let name = metadata.need(cx, "name", "`name: NAME`; rules are known as NAME/RULE")?;
    let name = cx.text(name, "`metadata.name`", "a name such as `shop`")?;
    Some(cx.name(name.value, name.span, "a policy's name"))
}

fn rules(cx: &mut Context<'_>, spec: &Fields<'_>, field: &str) -> Vec<Rule> {
    let Some(node) = spec.get(field) else { return vec![] };
    let list = cx.list(node, &format!("`{field}`"), "`- { from: web, to: db, ports: [tcp/5432] }`");
    // A rule that could not be read keeps its place, which unnamed rules are named by.
    list.unwrap_or_default().iter().map(|n| rule::rule(cx, n, field)).collect()
}
