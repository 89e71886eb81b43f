//! What a workload is by what runs it: a container, a pod, a user's.

use std::collections::BTreeMap;

use super::reader::{Context, Fields, Shape};
use super::selector::no_other_globs;
use crate::policy::diagnostic::quote;
use crate::policy::kubernetes::labels::{is_key, is_subdomain, is_value};
use crate::policy::names;
use crate::policy::resolved::{ContainerMatch, PodMatch};
use crate::policy::yaml::{Key, Node, Value};

pub(super) const CONTAINER: Shape =
    Shape { what: "`container`", fields: &["name", "image", "labels"], later: &[] };
const CONTAINER_EXAMPLE: &str = "`{ name: web-* }`";

pub(super) const POD: Shape =
    Shape { what: "`pod`", fields: &["namespace", "labels", "serviceAccount"], later: &[] };
const POD_EXAMPLE: &str = "`{ namespace: shop, labels: { app: web } }`";

/// The longest name of a user (`LOGIN_NAME_MAX` is 256 with its closing zero, limits.h(0p)).
const MAX_USER: usize = 255;

/// What a name may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// A pattern with `*`.
    Globs,
    /// One thing.
    Exact,
}

/// Reads what is asked of containers, or what one is.
pub(crate) fn container(cx: &mut Context<'_>, node: &Node, names: Names) -> Option<ContainerMatch> {
    let fields = filled(cx, node, &CONTAINER, CONTAINER_EXAMPLE)?;
    let before = cx.out.len();
    let found = ContainerMatch {
        name: fields.get("name").and_then(|n| {
            word(cx, n, names, "the container's name", "a name such as `web-1`", |_| true)
        }),
        image: fields.get("image").and_then(|n| {
            let example = "an image such as `registry.example/web:1.2`";
            word(cx, n, names, "the container's image", example, |_| true)
        }),
        labels: fields.get("labels").map(|n| labels(cx, n, |_, _| true)).unwrap_or_default(),
    };
    (cx.out.len() == before).then_some(found)
}

/// Reads what is asked of pods, or what one is.
pub(crate) fn pod(cx: &mut Context<'_>, node: &Node, names: Names) -> Option<PodMatch> {
    let fields = filled(cx, node, &POD, POD_EXAMPLE)?;
    let before = cx.out.len();
    let found = PodMatch {
        namespace: fields.get("namespace").and_then(|n| {
            let example = "a namespace such as `shop`";
            word(cx, n, names, "the pod's namespace", example, names::is_well_formed)
        }),
        labels: fields
            .get("labels")
            .map(|n| labels(cx, n, |key, value| is_key(key) && is_value(value)))
            .unwrap_or_default(),
        service_account: fields.get("serviceAccount").and_then(|n| {
            let example = "a service account such as `web`";
            word(cx, n, names, "the pod's service account", example, is_subdomain)
        }),
    };
    (cx.out.len() == before).then_some(found)
}

/// Reads a user's name or number.
pub(crate) fn user(cx: &mut Context<'_>, node: &Node) -> Option<String> {
    let example = "a user's name or number, such as `www-data` or `33`";
    let text = cx.text(node, "`user`", example)?.value;
    let user = quote(text);
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    // 4294967295 is nobody's number: chown(2) and setreuid(2) take it for "as it is".
    let (message, help) = if is_number && text.parse().is_ok_and(|n: u32| n < u32::MAX) {
        let number = text.trim_start_matches('0');
        return Some(if number.is_empty() { "0" } else { number }.to_owned());
    } else if is_number {
        (format!("no user has the number {user}"), "numbers of users go up to 4294967294")
    } else if text.contains('*') {
        (format!("`*` in the user {user}"), "write an entry for each user")
    } else if text.len() > MAX_USER
        || text.contains(|c: char| c.is_whitespace() || c == ':' || c == '/')
        || text.starts_with('-')
    {
        (format!("{user} is no user's name"), "write it as `id -un` or `id -u` prints it")
    } else {
        return Some(text.to_owned());
    };
    cx.error(node.span, message, help);
    None
}

/// The fields of a mapping that has at least one.
fn filled<'n>(
    cx: &mut Context<'_>,
    node: &'n Node,
    shape: &Shape,
    example: &str,
) -> Option<Fields<'n>> {
    let before = cx.out.len();
    let fields = Fields::read(cx, node, shape, example)?;
    if fields.is_empty() {
        let message = format!("{} says nothing", shape.what);
        cx.error(node.span, message, &format!("write what it is, as in {example}"));
    }
    (cx.out.len() == before).then_some(fields)
}

/// A name without spaces; `is_one` says whether something that the pattern matches can be one.
fn word(
    cx: &mut Context<'_>,
    node: &Node,
    names: Names,
    what: &str,
    example: &str,
    is_one: impl Fn(&str) -> bool,
) -> Option<String> {
    let text = cx.text(node, what, example)?.value;
    if names == Names::Exact && text.contains('*') {
        let message = format!("`*` in {what} {}", quote(text));
        cx.error(node.span, message, "write its whole name; this describes one workload");
        return None;
    }
    if no_other_globs(cx, text, node, what).is_some() {
        return None;
    }
    // Any characters may stand for `*`, such as one letter.
    if text.contains(char::is_whitespace) || !is_one(&text.replace('*', "x")) {
        let message = format!("{what} cannot be {}", quote(text));
        cx.error(node.span, message, &format!("write {example}"));
        return None;
    }
    Some(text.to_owned())
}

/// Labels with their values.
fn labels(
    cx: &mut Context<'_>,
    node: &Node,
    is_label: impl Fn(&str, &str) -> bool,
) -> BTreeMap<String, String> {
    let example = "`{ app: web }`";
    let Some(entries) = cx.mapping(node, "`labels`", example) else { return BTreeMap::new() };
    if entries.is_empty() {
        cx.error(node.span, "`labels` is empty", &format!("write {example}, or leave it out"));
    }
    let mut found = BTreeMap::new();
    for (Key { text: key, span, .. }, node) in entries {
        let what = format!("the label {}", quote(key));
        let value = match &node.value {
            // Many labels have no value, such as `node-role.kubernetes.io/control-plane: ""`.
            Value::Scalar { text, plain: false } if text.is_empty() => "",
            _ => match cx.text(node, &what, "its value, such as `web`, or `\"\"`") {
                Some(value) => value.value,
                None => continue,
            },
        };
        if key.is_empty() || !is_label(key, value) {
            let message = format!("{} is no label", quote(&format!("{key}: {value}")));
            cx.error(*span, message, &format!("write {example}"));
            continue;
        }
        found.insert(key.clone(), value.to_owned());
    }
    found
}
