//! Strict reading of nodes: every function reports what is wrong and gives `None` or less.

use std::net::Ipv6Addr;
use std::ops::RangeInclusive;

use crate::policy::diagnostic::{Diagnostic, Span, quote};
use crate::policy::model::Spanned;
use crate::policy::names;
use crate::policy::source::Source;
use crate::policy::yaml::{Key, Node, Value};

/// Where diagnostics go, and the source that nodes come from.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// The source.
    pub source: &'a Source,
    /// What was found.
    pub out: &'a mut Vec<Diagnostic>,
}

/// The fields that a mapping may have.
#[derive(Debug)]
pub(crate) struct Shape {
    /// What the mapping is, with an article: `a rule`.
    pub what: &'static str,
    /// The fields.
    pub fields: &'static [&'static str],
    /// Fields that a later version reads, with what to do until then.
    pub later: &'static [(&'static str, &'static str)],
}

impl Context<'_> {
    /// Reports an error that has something to write instead.
    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>, help: &str) {
        self.out.push(Diagnostic::error(span, message).help(help));
    }

    /// Reports something that the language has and this version does not.
    pub(crate) fn later(&mut self, span: Span, what: &str, instead: &str) {
        let message = format!("{what} is not supported yet by this version of ztseg");
        self.out.push(Diagnostic::error(span, message).help(instead));
    }

    /// Reports that a node is of another kind than it must be.
    pub(crate) fn wrong_kind(&mut self, node: &Node, what: &str, must: &str, example: &str) {
        let message = match node.value {
            Value::Refused => return,
            Value::Null => format!("{what} has no value, but must be {must}"),
            _ => format!("{what} is {}, but must be {must}", node.kind()),
        };
        self.error(node.span, message, &format!("write {example}"));
    }

    /// A single value that is not empty and has no control characters.
    pub(crate) fn text<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        example: &str,
    ) -> Option<Spanned<&'n str>> {
        let Value::Scalar { text, .. } = &node.value else {
            if let Some(address) = colon_address(node) {
                let message = format!("YAML takes the last `:` of `{address}` for a field's");
                self.error(node.span, message, &format!("write it in quotes: \"{address}\""));
                return None;
            }
            self.wrong_kind(node, what, "a single value", example);
            return None;
        };
        if text.trim().is_empty() {
            self.error(node.span, format!("{what} is empty"), &format!("write {example}"));
            return None;
        }
        if text.contains('\n') {
            let message = format!("{what} has a line break in it");
            self.error(node.span, message, "write it in one line; `>-` makes one of several");
            return None;
        }
        if text.chars().any(char::is_control) {
            let message = format!("{what} {} has control characters", quote(text));
            self.error(node.span, message, "remove them");
            return None;
        }
        Some(Spanned::new(text, node.span))
    }

    /// A list, which may be empty.
    pub(crate) fn list<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        example: &str,
    ) -> Option<&'n [Node]> {
        if let Value::List(items) = &node.value {
            return Some(items);
        }
        self.wrong_kind(node, what, "a list", example);
        None
    }

    /// A list of at least one entry.
    pub(crate) fn filled_list<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        example: &str,
        help: &str,
    ) -> Option<&'n [Node]> {
        let items = self.list(node, what, example)?;
        if items.is_empty() {
            self.error(node.span, format!("{what} is an empty list"), help);
            return None;
        }
        Some(items)
    }

    /// A mapping whose keys are names, not fields.
    pub(crate) fn mapping<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        example: &str,
    ) -> Option<&'n [(Key, Node)]> {
        if let Value::Mapping(entries) = &node.value {
            return Some(entries);
        }
        self.wrong_kind(node, what, "a mapping", example);
        None
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => Some(true),
            Value::Scalar { text, plain: true } if text == "false" => Some(false),
            Value::Refused => None,
            _ => {
                let message = format!("{what} must be `true` or `false`");
                self.error(node.span, message, "write `true` or `false`, without quotes");
                None
            }
        }
    }

    /// A whole number, without quotes.
    pub(crate) fn integer(
        &mut self,
        node: &Node,
        what: &str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let example = format!("a whole number from {} to {}", range.start(), range.end());
        let text = self.text(node, what, &example)?;
        let digits = text.value.bytes().all(|b| b.is_ascii_digit());
        let quoted = matches!(node.value, Value::Scalar { plain: false, .. });
        let number = text.value.parse().ok().filter(|n| digits && !quoted && range.contains(n));
        if number.is_none() {
            let value = quote(text.value);
            let message = match (digits, quoted) {
                (true, false) => format!("{what} {value} is out of range"),
                (true, true) => format!("{what} {value} is text, but must be a number"),
                (false, _) => format!("{what} cannot be {value}"),
            };
            let unquoted = if digits && quoted { ", without quotes" } else { "" };
            self.error(text.span, message, &format!("write {example}{unquoted}"));
        }
        number
    }

    /// One of some words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        node: &Node,
        what: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let list: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        let list = list.join(" or ");
        let text = self.text(node, what, &list)?;
        let found = words.iter().find(|(word, _)| *word == text.value);
        if found.is_none() {
            let message = format!("{what} cannot be {}", quote(text.value));
            let help = match names::nearest(text.value, words.iter().map(|(word, _)| *word)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write {list}"),
            };
            self.error(node.span, message, &help);
        }
        found.map(|(_, value)| *value)
    }

    /// The name of a segment or an address group, which is being defined.
    pub(crate) fn side_name(&mut self, text: &str, span: Span, what: &str) -> Spanned<String> {
        if names::RESERVED.contains(&text) {
            let message = format!("{} is a reserved word and cannot be {what}", quote(text));
            self.error(span, message, &format!("write for example `{text}-1`"));
            return Spanned::new(text.to_owned(), span);
        }
        self.name(text, span, what)
    }

    /// A name that is being defined. One that breaks the rules is reported and given all the same,
    /// so that its uses are no further errors.
    pub(crate) fn name(&mut self, text: &str, span: Span, what: &str) -> Spanned<String> {
        let help = |name: &str| match names::well_formed_like(name) {
            Some(like) => format!("write for example `{like}`"),
            None => "write for example `web-1`".to_owned(),
        };
        if text.is_empty() {
            self.error(span, format!("{what} is empty"), "write for example `web-1`");
        } else if text.len() > names::MAX_NAME {
            let message =
                format!("{what} has {} characters, but may have 63", text.chars().count());
            self.error(span, message, "shorten it");
        } else if !names::is_well_formed(text) {
            let message = format!(
                "{} cannot be {what}: names are lower-case letters, digits and `-`, and start and end with a letter or digit",
                quote(text)
            );
            self.error(span, message, &help(text));
        }
        Spanned::new(text.to_owned(), span)
    }

    /// The part of a scalar that its bytes `start..end` make, where the source spells it as it is;
    /// else all of it.
    pub(crate) fn part(&self, whole: Spanned<&str>, start: usize, end: usize) -> Span {
        let Spanned { value, span } = whole;
        let inner = |skip: usize| {
            let at = span.start as usize + skip;
            self.source.text.get(at..)?.starts_with(value).then_some(at)
        };
        let (Some(at), Some(before)) = (inner(0).or_else(|| inner(1)), value.get(..start)) else {
            return span;
        };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let skipped = at - span.start as usize;
        Span {
            start: number(at + start),
            end: number(at + end),
            column: span.column + number(skipped + before.chars().count()),
            ..span
        }
    }
}

/// `[fe80::]` is a list of a mapping with the key `fe80:`.
fn colon_address(node: &Node) -> Option<String> {
    let Value::Mapping(entries) = &node.value else { return None };
    let [(key, Node { value: Value::Null, .. })] = entries.as_slice() else { return None };
    let address = format!("{}:", key.text);
    address.parse::<Ipv6Addr>().is_ok().then_some(address)
}

/// The fields of one mapping.
#[derive(Debug)]
pub(crate) struct Fields<'n> {
    entries: &'n [(Key, Node)],
    what: &'static str,
    span: Span,
    /// Fields that unknown ones were probably meant to be.
    meant: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// Takes a node as a mapping of this shape; unknown fields are reported.
    pub(crate) fn read(
        cx: &mut Context<'_>,
        node: &'n Node,
        shape: &Shape,
        example: &str,
    ) -> Option<Self> {
        let entries = cx.mapping(node, shape.what, example)?;
        let mut meant = Vec::new();
        for (key, _) in entries {
            if shape.fields.contains(&key.text.as_str()) {
                continue;
            }
            if let Some((name, instead)) = shape.later.iter().find(|(name, _)| *name == key.text) {
                cx.later(key.span, &format!("`{name}` in {}", shape.what), instead);
                continue;
            }
            meant.extend(names::nearest(&key.text, shape.fields.iter().copied()));
            let message = format!("unknown field {} in {}", quote(&key.text), shape.what);
            let mut error = Diagnostic::error(key.span, message);
            error.help = names::suggest(&key.text, shape.fields.iter().copied());
            cx.out.push(error);
        }
        Some(Self { entries, what: shape.what, span: node.span, meant })
    }

    /// Takes a node as a mapping with any fields; `None` if it is none, which is not reported.
    pub(crate) fn unchecked(node: &'n Node, what: &'static str) -> Option<Self> {
        let Value::Mapping(entries) = &node.value else { return None };
        Some(Self { entries, what, span: node.span, meant: vec![] })
    }

    /// A field that may be absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }

    /// The key of a field.
    pub(crate) fn key(&self, name: &str) -> Option<&'n Key> {
        self.entries.iter().find(|(key, _)| key.text == name).map(|(key, _)| key)
    }

    /// A field that must be there. Where it is probably there under a misspelt name, that was
    /// reported, and is not reported again.
    pub(crate) fn need(&self, cx: &mut Context<'_>, name: &str, example: &str) -> Option<&'n Node> {
        let node = self.get(name);
        if node.is_none() && !self.meant.contains(&name) {
            let message = format!("{} has no `{name}`", self.what);
            cx.error(self.span, message, &format!("add {example}"));
        }
        node
    }

    /// Whether an unknown field was probably meant to be a known one; that was reported.
    pub(crate) fn misspelt(&self) -> bool {
        !self.meant.is_empty()
    }

    /// Whether it has no fields at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
