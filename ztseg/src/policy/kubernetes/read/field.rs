//! Fields as the API server reads them: nothing and `null` are the same, and text is text.

use std::ops::RangeInclusive;

use crate::policy::diagnostic::quote;
use crate::policy::model::Spanned;
use crate::policy::parse::reader::{Context, Fields, Shape};
use crate::policy::yaml::{Node, Value};

/// A field that may be absent.
pub(super) fn given<'n>(fields: &Fields<'n>, name: &str) -> Option<&'n Node> {
    fields.get(name).filter(|node| node.value != Value::Null)
}

/// A field that must be there.
pub(super) fn needed<'n>(
    cx: &mut Context<'_>,
    fields: &Fields<'n>,
    name: &str,
    example: &str,
) -> Option<&'n Node> {
    let node = fields.need(cx, name, example)?;
    if node.value == Value::Null {
        cx.error(node.span, format!("`{name}` has no value"), &format!("write {example}"));
        return None;
    }
    Some(node)
}

/// Text, which may be empty. What YAML takes for something else is refused, as the API server does.
pub(super) fn string<'n>(
    cx: &mut Context<'_>,
    node: &'n Node,
    what: &str,
    example: &str,
) -> Option<Spanned<&'n str>> {
    let Value::Scalar { text, plain } = &node.value else {
        cx.wrong_kind(node, what, "text", example);
        return None;
    };
    if let Some(kind) = Some(text.as_str()).filter(|_| *plain).and_then(not_text) {
        let message = format!("{what} must be text, but YAML takes {} for {kind}", quote(text));
        cx.error(node.span, message, &format!("write it in quotes: \"{text}\""));
        return None;
    }
    Some(Spanned::new(text, node.span))
}

/// What YAML, as Kubernetes reads it, takes plain text for, where that is no text.
fn not_text(text: &str) -> Option<&'static str> {
    const BOOLEANS: [&str; 6] = ["true", "false", "yes", "no", "on", "off"];
    if BOOLEANS.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return Some("a boolean");
    }
    let digits = text.trim_start_matches(['+', '-', '.']);
    let radix = |prefix: &str, radix: u32| {
        let rest = digits.strip_prefix(prefix);
        rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_digit(radix)))
    };
    let decimal = digits.starts_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok();
    (decimal || radix("0x", 16) || radix("0o", 8) || radix("0b", 2)).then_some("a number")
}

/// Text of a certain form.
pub(super) fn formed<'n>(
    cx: &mut Context<'_>,
    node: &'n Node,
    what: &str,
    (valid, example): (fn(&str) -> bool, &str),
) -> Option<Spanned<&'n str>> {
    let text = string(cx, node, what, example)?;
    if !valid(text.value) {
        let message = format!("{} cannot be {what}", quote(text.value));
        cx.error(text.span, message, &format!("write {example}"));
        return None;
    }
    Some(text)
}

/// A list of so many entries; none, or one at least.
pub(super) fn list<'n>(
    cx: &mut Context<'_>,
    node: &'n Node,
    what: &str,
    count: RangeInclusive<usize>,
    example: &str,
) -> Option<&'n [Node]> {
    let items = cx.list(node, what, example)?;
    if items.is_empty() && *count.start() > 0 {
        let help = format!("write at least one entry: {example}");
        cx.error(node.span, format!("{what} is an empty list"), &help);
        return None;
    }
    if items.len() > *count.end() {
        let message = format!("{what} has {} entries, but may have {}", items.len(), count.end());
        cx.error(items[*count.end()].span, message, "split it");
        return None;
    }
    Some(items)
}

/// The one field that a mapping of alternatives has.
pub(super) fn one_of<'n>(
    cx: &mut Context<'_>,
    node: &'n Node,
    shape: &Shape,
    example: &str,
) -> Option<(&'static str, &'n Node)> {
    let before = cx.out.len();
    let fields = Fields::read(cx, node, shape, example)?;
    let mut there = shape.fields.iter().filter_map(|f| given(&fields, f).map(|node| (*f, node)));
    match (there.next(), there.next()) {
        (Some(one), None) => Some(one),
        (Some((first, _)), Some((second, other))) => {
            let span = fields.key(second).map_or(other.span, |key| key.span);
            let message = format!("{} has both `{first}` and `{second}`", shape.what);
            cx.error(span, message, "keep one of them; an entry of its own can have the other");
            None
        }
        // What is there instead was reported.
        (None, _) if cx.out.len() > before => None,
        (None, _) => {
            let names: Vec<_> = shape.fields.iter().map(|f| format!("`{f}`")).collect();
            let message = format!("{} is empty", shape.what);
            cx.error(node.span, message, &format!("write {}", names.join(" or ")));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_yaml_takes_for_something_else() {
        for text in ["true", "No", "1", "-1.5", "1e3", ".5", "0x1F", "0b1"] {
            assert!(not_text(text).is_some(), "{text}");
        }
        for text in ["", "web", "1.2.3", "v1", "-", "inf", "nan", "1a", "0xyz", "10.0.0.0/8"] {
            assert_eq!(not_text(text), None, "{text}");
        }
    }
}
