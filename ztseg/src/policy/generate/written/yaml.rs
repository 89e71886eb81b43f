//! Trees as YAML text, in any of the styles that people write.

use std::fmt::Write as _;

use fastrand::Rng;

/// A tree to write.
#[derive(Clone, Debug)]
pub(super) enum Tree {
    Text(String),
    /// `true`, `false` or a number, which never has quotes.
    Plain(String),
    List(Vec<Tree>),
    Mapping(Vec<(&'static str, Tree)>),
}

impl Tree {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A list of texts.
    pub(super) fn texts<T: ToString>(list: impl IntoIterator<Item = T>) -> Self {
        Self::List(list.into_iter().map(|text| Self::Text(text.to_string())).collect())
    }

    /// A mapping in a random order.
    pub(super) fn shuffled(rng: &mut Rng, mut fields: Vec<(&'static str, Self)>) -> Self {
        rng.shuffle(&mut fields);
        Self::Mapping(fields)
    }
}

/// Writes a tree as a document, over several lines.
pub(super) fn document(rng: &mut Rng, tree: &Tree) -> String {
    let mut out = String::new();
    block(rng, tree, 0, &mut out);
    out
}

// Writing to a string does not fail.
fn block(rng: &mut Rng, tree: &Tree, indent: usize, out: &mut String) {
    match tree {
        Tree::Mapping(fields) => {
            for (key, value) in fields {
                let _ = write!(out, "{:indent$}{key}:", "");
                value_of(rng, value, indent, out);
            }
        }
        Tree::List(items) => {
            for item in items {
                let _ = write!(out, "{:indent$}-", "");
                value_of(rng, item, indent, out);
            }
        }
        Tree::Text(_) | Tree::Plain(_) => {
            let text = flow(rng, tree);
            let _ = writeln!(out, "{:indent$}{text}", "");
        }
    }
}

fn value_of(rng: &mut Rng, tree: &Tree, indent: usize, out: &mut String) {
    let is_filled = match tree {
        Tree::Mapping(fields) => !fields.is_empty(),
        Tree::List(items) => !items.is_empty(),
        Tree::Text(_) | Tree::Plain(_) => false,
    };
    if is_filled && (indent < 4 || rng.u8(0..4) == 0) {
        out.push('\n');
        block(rng, tree, indent + 2, out);
    } else {
        let text = flow(rng, tree);
        let _ = writeln!(out, " {text}");
    }
}

fn flow(rng: &mut Rng, tree: &Tree) -> String {
    match tree {
        Tree::Plain(text) => text.clone(),
        Tree::Text(text) => scalar(rng, text),
        Tree::List(items) => {
            let items: Vec<_> = items.iter().map(|item| flow(rng, item)).collect();
            format!("[{}]", items.join(", "))
        }
        Tree::Mapping(fields) => {
            let field = |(key, value): &(&str, Tree)| format!("{key}: {}", flow(rng, value));
            let fields: Vec<_> = fields.iter().map(field).collect();
            format!("{{ {} }}", fields.join(", "))
        }
    }
}

/// With quotes where it needs them, and sometimes where it does not.
fn scalar(rng: &mut Rng, text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'@');
    let plain = text.bytes().all(is_plain) && text.starts_with(|c: char| c != '-' && c != '@');
    match rng.u8(0..6) {
        0 => format!("'{text}'"),
        1 => format!("\"{text}\""),
        _ if plain && !text.is_empty() => text.to_owned(),
        _ => format!("\"{text}\""),
    }
}
