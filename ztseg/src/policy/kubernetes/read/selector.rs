//! Label selectors.

use super::field::{formed, given, needed};
use crate::policy::kubernetes::labels::{Labels, Requirement, Selector, Test, is_key, is_value};
use crate::policy::kubernetes::model::{Namespaces, PodSelector};
use crate::policy::parse::reader::{Context, Fields, Shape};
use crate::policy::yaml::Node;

const EXAMPLE: &str = "`{ matchLabels: { app: web } }`, or `{}` for everything";
const SELECTOR: Shape =
    Shape { what: "a label selector", fields: &["matchLabels", "matchExpressions"], later: &[] };
const EXPRESSION: Shape = Shape {
    what: "a `matchExpressions` entry",
    fields: &["key", "operator", "values"],
    later: &[],
};
const EXPRESSION_EXAMPLE: &str = "`{ key: app, operator: In, values: [web] }`";
const PODS: Shape =
    Shape { what: "`pods`", fields: &["namespaceSelector", "podSelector"], later: &[] };

const KEY: (fn(&str) -> bool, &str) = (is_key, "a key such as `app` or `example.com/app`");
const VALUE: (fn(&str) -> bool, &str) =
    (is_value, "at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at each end");

#[derive(Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const OPERATORS: &[(&str, Operator)] = &[
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
];

/// Reads a selector.
pub(super) fn selector(cx: &mut Context<'_>, node: &Node) -> Option<Selector> {
    let before = cx.out.len();
    let fields = Fields::read(cx, node, &SELECTOR, EXAMPLE)?;
    let mut requirements = Vec::new();
    if let Some(node) = given(&fields, "matchLabels") {
        let equal = |(key, value)| Requirement { key, test: Test::In(vec![value]) };
        requirements.extend(labels(cx, node, "`matchLabels`").into_iter().map(equal));
    }
    if let Some(node) = given(&fields, "matchExpressions") {
        let items = cx.list(node, "`matchExpressions`", EXPRESSION_EXAMPLE).unwrap_or_default();
        requirements.extend(items.iter().filter_map(|item| expression(cx, item)));
    }
    (cx.out.len() == before).then(|| Selector::new(requirements))
}

/// A selector that matches everything where it is absent.
pub(super) fn selector_or_every(
    cx: &mut Context<'_>,
    fields: &Fields<'_>,
    name: &str,
) -> Option<Selector> {
    given(fields, name).map_or_else(|| Some(Selector::default()), |node| selector(cx, node))
}

fn expression(cx: &mut Context<'_>, node: &Node) -> Option<Requirement> {
    let fields = Fields::read(cx, node, &EXPRESSION, EXPRESSION_EXAMPLE)?;
    let key = needed(cx, &fields, "key", "`key: app`");
    let key = key.and_then(|n| formed(cx, n, "a label's key", KEY));
    let operator = needed(cx, &fields, "operator", "`operator: In`");
    let operator = operator.and_then(|n| cx.choice(n, "`operator`", OPERATORS));
    let values = given(&fields, "values");
    let items = match values {
        Some(node) => cx.list(node, "`values`", "`[web]`")?,
        None => &[],
    };
    let count = items.len();
    let read = items.iter().filter_map(|n| formed(cx, n, "a label's value", VALUE));
    let list: Vec<String> = read.map(|v| v.value.to_owned()).collect();
    let whole = list.len() == count;
    let (key, operator) = (key?, operator?);
    let test = match operator {
        Operator::In | Operator::NotIn if count == 0 => {
            let message = "`In` and `NotIn` compare with `values`, and there are none";
            cx.error(values.map_or(node.span, |v| v.span), message, "write `values: [web]`");
            return None;
        }
        Operator::Exists | Operator::DoesNotExist if count > 0 => {
            let message =
                "`Exists` and `DoesNotExist` ask for the key alone, but there are `values`";
            let span = values.map_or(node.span, |v| v.span);
            cx.error(span, message, "remove `values`, or write `In` or `NotIn`");
            return None;
        }
        Operator::In => Test::In(list),
        Operator::NotIn => Test::NotIn(list),
        Operator::Exists => Test::Exists,
        Operator::DoesNotExist => Test::DoesNotExist,
    };
    whole.then(|| Requirement { key: key.value.to_owned(), test })
}

/// Labels with their values.
pub(super) fn labels(cx: &mut Context<'_>, node: &Node, what: &str) -> Labels {
    let mut labels = Labels::new();
    for (key, value) in cx.mapping(node, what, "`{ app: web }`").unwrap_or_default() {
        if !is_key(&key.text) {
            let message =
                format!("{} cannot be a label's key", crate::policy::diagnostic::quote(&key.text));
            cx.error(key.span, message, &format!("write {}", KEY.1));
        } else if let Some(value) = formed(cx, value, "a label's value", VALUE) {
            labels.insert(key.text.clone(), value.value.to_owned());
        }
    }
    labels
}

/// Pods in selected namespaces. The types of Kubernetes want both selectors, but analysers and
/// older API servers take one that is missing for one that matches everything.
pub(super) fn pods(cx: &mut Context<'_>, node: &Node) -> Option<PodSelector> {
    let fields = Fields::read(cx, node, &PODS, "`{ namespaceSelector: {}, podSelector: {} }`")?;
    let namespaces = selector_or_every(cx, &fields, "namespaceSelector");
    let pods = selector_or_every(cx, &fields, "podSelector");
    Some(PodSelector { namespaces: Namespaces::Matching(namespaces?), pods: pods? })
}

/// Every pod of selected namespaces.
pub(super) fn namespaces(cx: &mut Context<'_>, node: &Node) -> Option<PodSelector> {
    let namespaces = Namespaces::Matching(selector(cx, node)?);
    Some(PodSelector { namespaces, pods: Selector::default() })
}
