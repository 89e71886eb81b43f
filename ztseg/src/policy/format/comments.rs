//! Where comments and brackets are. Nodes have the places of scalars and of beginnings; what lies
//! between them is white space, comments and punctuation.

use crate::policy::diagnostic::Span;
use crate::policy::yaml::{Node, Value};

/// A comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Comment {
    /// Byte offset of its `#`.
    pub(super) start: usize,
    /// Column of its `#`, from one.
    pub(super) column: usize,
    /// Whether nothing else stands on its line.
    pub(super) alone: bool,
    /// From its `#` on.
    pub(super) text: String,
}

/// The text at a span.
pub(super) fn slice(text: &str, span: Span) -> &str {
    text.get(span.start as usize..span.end as usize).unwrap_or_default()
}

/// All comments of a text with this one document, in their order.
pub(super) fn find(text: &str, node: &Node) -> Vec<Comment> {
    let mut scalars = Vec::new();
    collect(node, &mut scalars);
    let mut found = Vec::new();
    let mut at = 0;
    for (start, end) in scalars.into_iter().chain([(text.len(), text.len())]) {
        between(text, at, start, &mut found);
        at = end.max(at);
    }
    found
}

fn collect(node: &Node, out: &mut Vec<(usize, usize)>) {
    let mut push = |span: Span| out.push((span.start as usize, span.end as usize));
    match &node.value {
        Value::Scalar { .. } => push(node.span),
        Value::List(items) => items.iter().for_each(|item| collect(item, out)),
        Value::Mapping(entries) => {
            for (key, value) in entries {
                out.push((key.span.start as usize, key.span.end as usize));
                collect(value, out);
            }
        }
        Value::Null | Value::Refused => {}
    }
}

/// The comments in a part of a text that has no scalar.
fn between(text: &str, start: usize, end: usize, out: &mut Vec<Comment>) {
    let mut at = start;
    while let Some(hash) = text.get(at..end).and_then(|part| part.find('#')).map(|n| at + n) {
        let line = text[..hash].rfind('\n').map_or(0, |n| n + 1);
        let before = &text[line..hash];
        let stop = text[hash..].find('\n').map_or(text.len(), |n| hash + n);
        out.push(Comment {
            start: hash,
            column: before.chars().count() + 1,
            alone: before.trim().is_empty(),
            text: text[hash..stop].trim_end().to_owned(),
        });
        at = stop;
    }
}

/// Whether a list or mapping stands in brackets.
pub(super) fn is_flow(text: &str, node: &Node) -> bool {
    // Some lists begin at their first item, which may stand in brackets of its own.
    let bracket = match node.value {
        Value::List(_) => '[',
        Value::Mapping(_) => '{',
        _ => return false,
    };
    text.get(node.span.start as usize..).is_some_and(|rest| rest.starts_with(bracket))
}

/// Where a node ends.
pub(super) fn end(text: &str, node: &Node) -> usize {
    let last = match &node.value {
        Value::List(items) => items.last(),
        Value::Mapping(entries) => entries.last().map(|(_, value)| value),
        _ => None,
    };
    let key = match &node.value {
        Value::Mapping(entries) => entries.last().map(|(key, _)| key.span.end as usize),
        _ => None,
    };
    let inner = last.map(|last| end(text, last)).max(key);
    if !is_flow(text, node) {
        return inner.unwrap_or(node.span.end as usize);
    }
    closing(text, inner.unwrap_or(node.span.start as usize + 1))
}

/// Behind the first closing bracket from `at` on that is in no comment.
fn closing(text: &str, mut at: usize) -> usize {
    while let Some(next) = text.get(at..).and_then(|rest| rest.chars().next()) {
        match next {
            ']' | '}' => return at + 1,
            '#' => at = text[at..].find('\n').map_or(text.len(), |n| at + n),
            _ => at += next.len_utf8(),
        }
    }
    text.len()
}

/// The least column of a comment that belongs to a list whose first item starts at `at`: that of
/// its dashes, or more where these stand right below the list's name.
pub(super) fn dash_column(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or_default();
    let line = before.rfind('\n').map_or(0, |n| n + 1);
    let column = before[line..].find('-').unwrap_or(at - line) + 1;
    let name = before[..line].lines().rev().find(|line| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with('#')
    });
    // The name may be the first field of another list's item.
    let field = |line: &str| line.len() - line.trim_start_matches([' ', '-']).len() + 1;
    let name_column = name.map_or(0, field);
    if name_column == column { column + 1 } else { column }
}
