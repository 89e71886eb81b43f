//! YAML trees to the model, strictly: what is not understood is an error, and every error is found.

mod icmp;
pub(crate) mod network;
pub(crate) mod port;
pub(crate) mod reader;
mod rule;
mod segment;
pub(crate) mod selector;
mod test;

use super::diagnostic::{Diagnostic, quote};
use super::model::{Parsed, Policy, Rule, Spanned};
use super::names;
use super::resolved::Mode;
use super::source::Source;
use super::yaml::{self, Node};
use reader::{Context, Fields, Shape};

/// The `apiVersion` of ztseg's own kinds.
pub const API_VERSION: &str = "ztseg.io/v1";
/// The one kind that this version reads.
pub const KIND: &str = "SegmentPolicy";

const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("audit", Mode::Audit)];

/// Kinds that a later version reads, and what to do until then.
const LATER_KINDS: &[(&str, &str)] = &[
    ("NetworkPolicy", "write it as a `kind: SegmentPolicy`"),
    ("AdminNetworkPolicy", "write it as a `kind: SegmentPolicy`"),
    ("BaselineAdminNetworkPolicy", "write it as a `kind: SegmentPolicy`"),
    ("ClusterNetworkPolicy", "write it as a `kind: SegmentPolicy`"),
    ("Workload", "remove the document"),
    ("Namespace", "remove the document"),
    ("Pod", "remove the document"),
    ("Node", "remove the document"),
    ("Service", "remove the document"),
    ("EndpointSlice", "remove the document"),
];

const DOCUMENT: Shape = Shape {
    what: "a policy document",
    fields: &["apiVersion", "kind", "metadata", "spec"],
    later: &[],
};
const DOCUMENT_EXAMPLE: &str = "`apiVersion`, `kind`, `metadata` and `spec`";

const METADATA: Shape = Shape { what: "`metadata`", fields: &["name"], later: &[] };

const SPEC: Shape = Shape {
    what: "`spec`",
    fields: &["tier", "mode", "reject", "segments", "addressGroups", "allow", "deny", "tests"],
    later: &[
        (
            "priority",
            "remove it: it orders the tiers `admin` and `baseline`, which come later, too",
        ),
        ("pass", "remove it: `pass` rules are for the tiers `admin` and `baseline`"),
    ],
};

/// Reads all documents of all sources.
pub fn parse(sources: &[Source], out: &mut Vec<Diagnostic>) -> Parsed {
    let mut parsed = Parsed { policies: vec![], complete: true };
    for (file, source) in (0u32..).zip(sources) {
        let documents = yaml::read(source, file, out);
        parsed.complete &= documents.complete;
        let mut cx = Context { source, out };
        for node in &documents.list {
            match document(&mut cx, node, &mut parsed.complete) {
                Some(policy) => parsed.policies.push(policy),
                None => parsed.complete = false,
            }
        }
    }
    parsed
}

fn document(cx: &mut Context<'_>, node: &Node, complete: &mut bool) -> Option<Policy> {
    let mapping = cx.mapping(node, DOCUMENT.what, DOCUMENT_EXAMPLE)?;
    if mapping.is_empty() {
        cx.error(node.span, "this document is empty", "remove it, or write a policy");
        return None;
    }
    kind(cx, node)?;
    let fields = Fields::read(cx, node, &DOCUMENT, DOCUMENT_EXAMPLE)?;
    let name = policy_name(cx, &fields);
    let spec = fields.need(cx, "spec", "`spec:` with `segments` and rules below it")?;
    let spec = Fields::read(cx, spec, &SPEC, "`segments:` and rules below it")?;
    tier(cx, &spec);
    let mode = spec.get("mode").and_then(|n| cx.choice(n, "`mode`", MODES)).unwrap_or_default();
    let reject = spec.get("reject").and_then(|n| cx.boolean(n, "`reject`")).unwrap_or(false);
    let mut definitions = |cx: &mut Context<'_>, field: &str, example: &str| {
        let node = spec.get(field)?;
        let found = cx.mapping(node, &format!("`{field}`"), example);
        *complete &= found.is_some();
        found
    };
    let segments = definitions(cx, "segments", "`NAME: { match: … }` below it");
    let segments = segments.unwrap_or_default().iter().map(|(k, n)| segment::segment(cx, k, n));
    let segments = segments.collect();
    let groups = definitions(cx, "addressGroups", "`NAME: { cidrs: […] }` below it");
    let groups = groups.unwrap_or_default().iter().map(|(k, n)| segment::group(cx, k, n));
    let groups = groups.collect();
    let deny = rules(cx, &spec, "deny");
    let allow = rules(cx, &spec, "allow");
    let tests =
        spec.get("tests").and_then(|n| cx.list(n, "`tests`", "`- allow: web -> db tcp/5432`"));
    let tests = tests.unwrap_or_default().iter().filter_map(|n| test::test(cx, n)).collect();
    Some(Policy { name, mode, reject, segments, groups, deny, allow, tests })
}

/// Whether the document is one that this version reads; looked at before any other field, so that
/// a document of another kind gives one error and not one for each of its fields.
fn kind(cx: &mut Context<'_>, node: &Node) -> Option<()> {
    let entries = Fields::unchecked(node, DOCUMENT.what)?;
    let kind = entries.need(cx, "kind", &format!("`kind: {KIND}`"))?;
    let kind = cx.text(kind, "`kind`", &format!("`{KIND}`"))?;
    if let Some((name, instead)) = LATER_KINDS.iter().find(|(name, _)| *name == kind.value) {
        cx.later(kind.span, &format!("`kind: {name}`"), instead);
        return None;
    }
    if kind.value != KIND {
        let kinds = LATER_KINDS.iter().map(|(name, _)| *name).chain([KIND]);
        let help = match names::nearest(kind.value, kinds) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write `kind: {KIND}`"),
        };
        cx.error(kind.span, format!("unknown kind {}", quote(kind.value)), &help);
        return None;
    }
    let version = entries.need(cx, "apiVersion", &format!("`apiVersion: {API_VERSION}`"))?;
    let version = cx.text(version, "`apiVersion`", &format!("`{API_VERSION}`"))?;
    if version.value != API_VERSION {
        let message = format!("unknown apiVersion {} for `kind: {KIND}`", quote(version.value));
        cx.error(version.span, message, &format!("write `apiVersion: {API_VERSION}`"));
        return None;
    }
    Some(())
}

fn policy_name(cx: &mut Context<'_>, fields: &Fields<'_>) -> Option<Spanned<String>> {
    let example = "`metadata: { name: NAME }`";
    let metadata = fields.need(cx, "metadata", example)?;
    let metadata = Fields::read(cx, metadata, &METADATA, "`{ name: NAME }`")?;
    let name = metadata.need(cx, "name", "`name: NAME`; rules are known as NAME/RULE")?;
    let name = cx.text(name, "`metadata.name`", "a name such as `shop`")?;
    Some(cx.name(name.value, name.span, "a policy's name"))
}

fn tier(cx: &mut Context<'_>, spec: &Fields<'_>) {
    const LATER: &[&str] = &["admin", "baseline"];
    let Some(node) = spec.get("tier") else { return };
    let Some(text) = cx.text(node, "`tier`", "`application`") else { return };
    if LATER.contains(&text.value) {
        let what = format!("the tier {}", quote(text.value));
        cx.later(text.span, &what, "leave `tier` out for the tier `application`");
    } else {
        cx.choice(node, "`tier`", &[("application", ())]);
    }
}

fn rules(cx: &mut Context<'_>, spec: &Fields<'_>, field: &str) -> Vec<Rule> {
    let Some(node) = spec.get(field) else { return vec![] };
    let list = cx.list(node, &format!("`{field}`"), "`- { from: web, to: db, ports: [tcp/5432] }`");
    // A rule that could not be read keeps its place, which unnamed rules are named by.
    list.unwrap_or_default().iter().map(|n| rule::rule(cx, n, field)).collect()
}
