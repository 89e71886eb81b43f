//! YAML text to trees whose nodes know where they stand.
//!
//! A part of YAML that policies need: mappings with plain keys, lists and scalars, several
//! documents in a source. Everything else (anchors and aliases, tags, merge keys, keys that are no
//! text) is refused, so that a document means what it says and costs no more than its length.

mod build;
mod places;
mod side_by_side;
mod text;

use saphyr_parser::{Parser, Span as YamlSpan};

use super::diagnostic::{Diagnostic, Span};
use super::source::Source;
use build::{Builder, Stop};
use places::Places;
pub use side_by_side::read_all;
pub use text::decode;
use text::{syntax_error, unprintable};

/// How deep lists and mappings may be nested; policies need eight levels.
pub const MAX_DEPTH: usize = 32;
/// The longest source in bytes.
pub const MAX_LENGTH: usize = 16 << 20;

/// A node and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it stands; of a list or a mapping, where it starts.
    pub span: Span,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar, unescaped.
    Scalar {
        /// Its text.
        text: String,
        /// Whether it stands without quotes, so that `true` is a boolean.
        plain: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the source; no key twice.
    Mapping(Vec<(Key, Node)>),
    /// Something that was refused and reported; no further error is needed.
    Refused,
}

/// The key of a mapping's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

impl Node {
    /// The text of a single value.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// What it is, for a message.
    pub const fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Refused => "something unreadable",
        }
    }
}

/// The documents of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// Those that could be read, empty ones left out.
    pub list: Vec<Node>,
    /// Whether that is all of them, with all that is in them.
    pub complete: bool,
}

/// Reads the documents of a source, which is the `file`th of those loaded together.
pub fn read(source: &Source, file: u32, out: &mut Vec<Diagnostic>) -> Documents {
    let text = &source.text;
    if text.len() > MAX_LENGTH {
        let message = format!("the file has {} bytes; more than 16 MiB are not read", text.len());
        let span = Span { file, line: 1, column: 1, ..Span::default() };
        out.push(Diagnostic::error(span, message).help("split it into several files"));
        return Documents::default();
    }
    if let Some(diagnostic) = unprintable(text, file) {
        out.push(diagnostic);
        return Documents::default();
    }
    let before = out.len();
    let places = Places::new(text, file);
    let mut builder = Builder::new(places, out);
    let mut whole = true;
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                let place = YamlSpan::empty(*error.marker());
                let diagnostic = syntax_error(&error, builder.places.span(place), text);
                let diagnostic = builder.with_open_bracket(diagnostic);
                builder.out.push(diagnostic);
                Err(Stop)
            }
        };
        if step.is_err() {
            whole = false;
            break;
        }
    }
    let list = builder.documents;
    Documents { list, complete: whole && out.len() == before }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> (Documents, Vec<Diagnostic>) {
        let mut out = Vec::new();
        let source = Source { name: "a".into(), text: text.into() };
        (read(&source, 0, &mut out), out)
    }

    fn at(span: Span, text: &str) -> (u32, u32, &str) {
        (span.line, span.column, &text[span.start as usize..span.end as usize])
    }

    #[test]
    fn spans_count_characters_and_slice_bytes() {
        let long = "ä".repeat(200);
        let text = format!("# {long}\nkéy: \"väl\"\n{long}: [ø, plain ]   # end\n");
        let (documents, out) = read_text(&text);
        assert!(out.is_empty() && documents.complete);
        let Value::Mapping(entries) = &documents.list[0].value else { panic!("a mapping") };
        assert_eq!(at(entries[0].0.span, &text), (2, 1, "kéy"));
        assert_eq!(at(entries[0].1.span, &text), (2, 6, "\"väl\""));
        let Value::List(items) = &entries[1].1.value else { panic!("a list") };
        assert_eq!(at(items[0].span, &text), (3, 204, "ø"));
        assert_eq!(at(items[1].span, &text), (3, 207, "plain"));
    }

    #[test]
    fn a_text_in_quotes_ends_before_the_comment_behind_it() {
        let text = "a: 'it''s' # it\nb: \"\\\"x\\\\\"   # x\nc: [ 'd' # d\n ]\n'e' : f # f\n";
        let (documents, out) = read_text(text);
        assert!(out.is_empty(), "{out:?}");
        let Value::Mapping(entries) = &documents.list[0].value else { panic!("a mapping") };
        let part = |span: Span| at(span, text).2;
        assert_eq!(part(entries[0].1.span), "'it''s'");
        assert_eq!(part(entries[1].1.span), "\"\\\"x\\\\\"");
        let Value::List(items) = &entries[2].1.value else { panic!("a list") };
        assert_eq!(part(items[0].span), "'d'");
        assert_eq!(part(entries[3].0.span), "'e'");
        assert_eq!(part(entries[3].1.span), "f");
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        let (documents, out) = read_text("---\na: 1\n---\n# nothing\n---\nb: 2\n...\n");
        assert!(out.is_empty());
        assert_eq!(documents.list.len(), 2);
        assert_eq!(documents.list[1].span.line, 6);
    }

    #[test]
    fn quotes_keep_null_and_booleans_text() {
        let (documents, _) = read_text("[~, null, '', \"null\", true, 'true']");
        let Value::List(items) = &documents.list[0].value else { panic!("a list") };
        let scalar = |text: &str, plain| Value::Scalar { text: text.to_owned(), plain };
        let values: Vec<_> = items.iter().map(|n| n.value.clone()).collect();
        let expected = [
            Value::Null,
            Value::Null,
            scalar("", false),
            scalar("null", false),
            scalar("true", true),
            scalar("true", false),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn documents_before_a_syntax_error_are_kept_as_a_part() {
        let (documents, out) = read_text("a: 1\n---\nb: ]\n");
        assert_eq!((documents.list.len(), documents.complete, out.len()), (1, false, 1));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        for bracket in ["[", "{a: "] {
            let (documents, out) = read_text(&bracket.repeat(100_000));
            assert!(!documents.complete);
            assert_eq!(out[0].message, "lists and mappings are nested more than 32 deep");
        }
        let (_, out) = read_text(&"- ".repeat(100_000));
        assert_eq!(out.len(), 1);
        let (_, out) = read_text(&" ".repeat(MAX_LENGTH + 1));
        assert!(out[0].message.contains("more than 16 MiB"), "{}", out[0].message);
    }

    #[test]
    fn text_after_a_zero_is_not_lost() {
        let (documents, out) = read_text("a: 1\n\0\nb: 2\n");
        assert!(!documents.complete);
        assert_eq!(out[0].message, "a control character (U+0000)");
        assert_eq!((out[0].span.line, out[0].span.column), (2, 1));
    }

    #[test]
    fn bytes_that_are_no_text_have_a_place() {
        let found = decode("a", b"a: 1\nb: \xff\xfe\n".to_vec()).expect_err("is refused");
        assert_eq!(found.to_string(), "a:2:4: error: the file is not UTF-8; save it as UTF-8");
        assert!(found.render(false).contains("2 | b: "));
        assert_eq!(decode("a", b"\xc3\xa4".to_vec()).map(|s| s.text), Ok("ä".into()));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let (documents, out) = read_text("\u{feff}a: 1\n");
        assert!(out.is_empty());
        let Value::Mapping(entries) = &documents.list[0].value else { panic!("a mapping") };
        assert_eq!(entries[0].0.text, "a");
    }
}
