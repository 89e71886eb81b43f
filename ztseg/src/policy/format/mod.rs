//! Policies in one form: `ztseg fmt` without its files.
//!
//! A document is read into a tree that has its comments ([`tree`]), and printed ([`print`]). What
//! comes out is read again and compared, so that neither a meaning nor a comment is ever lost.
//! Documents that are not ztseg's stay as they are, byte for byte.

mod comments;
mod print;
mod scalar;
mod shape;
#[cfg(test)]
mod tests;
mod tree;

use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::parse;
use super::source::Source;
use super::yaml::{self, Node, Value};

/// The text of a source in its one form.
///
/// # Errors
/// What is wrong with the source, names that are defined elsewhere left aside.
pub fn format(source: &Source) -> Result<String, Diagnostics> {
    let mut found = Vec::new();
    parse::parse(std::slice::from_ref(source), &mut found);
    if !found.is_empty() {
        return Err(Diagnostics::new(std::slice::from_ref(source), found));
    }
    let mut out = String::with_capacity(source.text.len());
    let (mut start, mut line) = (0, 1);
    for part in parts(&source.text) {
        match document(part) {
            Formatted::Text(text) => out.push_str(&text),
            Formatted::Untouched => out.push_str(part),
            Formatted::Impossible => {
                let start = u32::try_from(start).unwrap_or(u32::MAX);
                let span = Span { file: 0, start, end: start, line, column: 1 };
                let message = "fmt cannot write this document without a change of what it says, so it is left as it is";
                let help = "write a text of several lines with `|` alone, and no list in a list";
                let error = Diagnostic::error(span, message).help(help);
                return Err(Diagnostics::new(std::slice::from_ref(source), vec![error]));
            }
        }
        start += part.len();
        line += u32::try_from(part.matches('\n').count()).unwrap_or(0);
    }
    Ok(out)
}

/// A text in parts: documents, and the lines between them.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    // A byte order mark is no part of the first document.
    if text.starts_with('\u{feff}') {
        at = '\u{feff}'.len_utf8();
        parts.push(&text[..at]);
        start = at;
    }
    for line in text[at..].split_inclusive('\n') {
        let end = at + line.len();
        let between = ["---", "..."].iter().any(|mark| {
            line.strip_prefix(mark)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        if between || line.starts_with('%') {
            parts.push(&text[start..at]);
            parts.push(&text[at..end]);
            start = end;
        }
        at = end;
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.is_empty());
    parts
}

enum Formatted {
    Text(String),
    /// It is no policy of ztseg's.
    Untouched,
    Impossible,
}

fn document(text: &str) -> Formatted {
    let Some(node) = policy(text) else { return Formatted::Untouched };
    let windows = text.contains("\r\n");
    let printed = tree::tree(text, &node).and_then(print::print);
    match printed {
        Some(printed) if is_same(text, &node, &printed) => {
            Formatted::Text(if windows { printed.replace('\n', "\r\n") } else { printed })
        }
        _ => Formatted::Impossible,
    }
}

/// The document of a text, where it is a policy of ztseg's.
fn policy(text: &str) -> Option<Node> {
    let mut found = Vec::new();
    let source = Source { name: "".into(), text: text.into() };
    let mut documents = yaml::read(&source, 0, &mut found).list;
    let node = documents.pop().filter(|_| documents.is_empty() && found.is_empty())?;
    let Value::Mapping(entries) = &node.value else { return None };
    let is_kind =
        |node: &Node| matches!(&node.value, Value::Scalar { text, .. } if text == parse::KIND);
    entries.iter().any(|(key, value)| key.text == "kind" && is_kind(value)).then_some(node)
}

/// Whether what was printed says the same, with the same comments.
fn is_same(text: &str, node: &Node, printed: &str) -> bool {
    let comments = |text: &str, node: &Node| {
        let mut all: Vec<_> = comments::find(text, node).into_iter().map(|c| c.text).collect();
        all.sort();
        all
    };
    policy(printed).is_some_and(|again| {
        says_the_same(node, &again) && comments(text, node) == comments(printed, &again)
    })
}

/// Whether two nodes have the same fields, in whatever order, and the same values.
fn says_the_same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| says_the_same(a, b))
        }
        (Value::Mapping(a), Value::Mapping(b)) => {
            let sorted = |entries: &[(yaml::Key, Node)]| {
                let mut order: Vec<usize> = (0..entries.len()).collect();
                order.sort_by(|x, y| entries[*x].0.text.cmp(&entries[*y].0.text));
                order
            };
            let pairs = sorted(a).into_iter().zip(sorted(b));
            a.len() == b.len()
                && pairs.map(|(x, y)| (&a[x], &b[y])).all(|((key, value), (other_key, other))| {
                    key.text == other_key.text && says_the_same(value, other)
                })
        }
        (Value::Scalar { text: a, plain: x }, Value::Scalar { text: b, plain: y }) => {
            // Without quotes these two words are no text; nothing else that is quoted means more.
            a == b && (x == y || !matches!(a.as_str(), "true" | "false"))
        }
        (a, b) => a == b,
    }
}
