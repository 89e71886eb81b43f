//! YAML text to trees whose nodes know where they stand.
//!
//! A part of YAML that policies need: mappings with plain keys, lists and scalars, several
//! documents in a source. Everything else (anchors and aliases, tags, merge keys, keys that are no
//! text) is refused, so that a document means what it says and costs no more than its length.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as YamlSpan};

use super::diagnostic::{Diagnostic, Span, quote};
use super::source::Source;

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
    let mut builder = Builder { places, stack: vec![], documents: vec![], out };
    let mut whole = true;
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                let place = YamlSpan::empty(*error.marker());
                let diagnostic = syntax_error(&error, builder.places.span(place));
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

/// Characters that YAML 1.2.2 section 5.1 leaves out, and those that make a line look like another
/// than it is: a carriage return alone, and the bidirectional overrides.
fn unprintable(text: &str, file: u32) -> Option<Diagnostic> {
    let (mut line, mut column) = (1, 1);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, c)| *c);
        let what = match c {
            '\n' => {
                (line, column) = (line + 1, 1);
                continue;
            }
            '\t' | '\u{85}' => None,
            '\r' if next == Some('\n') => None,
            '\r' => Some(("a carriage return without a line feed", "end lines with a line feed")),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                Some(("a bidirectional control character", "remove it"))
            }
            '\u{fffe}' | '\u{ffff}' => Some(("a character that is none", "remove it")),
            c if c.is_control() => Some(("a control character", "remove it")),
            _ => None,
        };
        if let Some((what, help)) = what {
            let (start, end) = (offset(at), offset(at + c.len_utf8()));
            let message = format!("{what} (U+{:04X})", u32::from(c));
            let span = Span { file, start, end, line, column };
            return Some(Diagnostic::error(span, message).help(help));
        }
        column += 1;
    }
    None
}

fn offset(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Turns the parser's marks, which count characters, into byte offsets.
struct Places<'a> {
    text: &'a str,
    file: u32,
    /// Byte offset of every `STEP`th character; empty where each character is one byte.
    every: Vec<usize>,
}

const STEP: usize = 64;

impl<'a> Places<'a> {
    fn new(text: &'a str, file: u32) -> Self {
        let every = if text.is_ascii() {
            Vec::new()
        } else {
            text.char_indices().step_by(STEP).map(|(at, _)| at).collect()
        };
        Self { text, file, every }
    }

    fn byte(&self, index: usize) -> usize {
        if self.every.is_empty() {
            return index.min(self.text.len());
        }
        let Some(&from) = self.every.get(index / STEP) else { return self.text.len() };
        let rest = &self.text[from..];
        rest.char_indices().nth(index % STEP).map_or(self.text.len(), |(at, _)| from + at)
    }

    fn span(&self, span: YamlSpan) -> Span {
        let start = self.byte(span.start.index());
        let end = self.byte(span.end.index()).max(start);
        // Some scalars end after the white space that follows them.
        let end = self.text.get(start..end).map_or(start, |s| start + s.trim_end().len());
        Span {
            file: self.file,
            start: offset(start),
            end: offset(end),
            line: offset(span.start.line().max(1)),
            column: offset(span.start.col() + 1),
        }
    }
}

/// What was reported makes the rest of the source unreadable.
struct Stop;

enum Frame {
    List { span: Span, items: Vec<Node> },
    Mapping { span: Span, entries: Vec<(Key, Node)>, seen: HashMap<String, Span>, key: NextKey },
}

enum NextKey {
    /// The next node is a key.
    Expected,
    /// The next node is the value of this key.
    Is(Key),
    /// The next node is the value of a key that was refused.
    Refused,
}

struct Builder<'a> {
    places: Places<'a>,
    stack: Vec<Frame>,
    documents: Vec<Node>,
    out: &'a mut Vec<Diagnostic>,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: YamlSpan) -> Result<(), Stop> {
        let span = self.places.span(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_decorations(span, anchor, tag.is_some());
                let plain = style == ScalarStyle::Plain;
                let value = if plain && matches!(text.as_ref(), "" | "~" | "null") {
                    Value::Null
                } else {
                    Value::Scalar { text: text.into_owned(), plain }
                };
                self.put(Node { value, span });
            }
            Event::Alias(_) => {
                let error = Diagnostic::error(span, "aliases (`*name`) are not supported");
                self.out.push(error.help("write the value out"));
                self.put(Node { value: Value::Refused, span });
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_decorations(span, anchor, tag.is_some());
                self.push(Frame::List { span: open(span), items: vec![] })?;
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_decorations(span, anchor, tag.is_some());
                self.push(Frame::Mapping {
                    span: open(span),
                    entries: vec![],
                    seen: HashMap::new(),
                    key: NextKey::Expected,
                })?;
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Frame::List { span, items }) => {
                    self.put(Node { value: Value::List(items), span });
                }
                Some(Frame::Mapping { span, entries, .. }) => {
                    self.put(Node { value: Value::Mapping(entries), span });
                }
                None => {}
            },
            Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::StreamStart
            | Event::StreamEnd
            | Event::Nothing => {}
        }
        Ok(())
    }

    /// Where a `[` or `{` was never closed, the parser stops far behind it.
    fn with_open_bracket(&self, diagnostic: Diagnostic) -> Diagnostic {
        let Some(Frame::List { span, .. } | Frame::Mapping { span, .. }) = self.stack.last() else {
            return diagnostic;
        };
        let rest = self.places.text.get(span.start as usize..).unwrap_or_default();
        match rest.chars().next() {
            Some(bracket @ ('[' | '{')) => {
                diagnostic.related(*span, format!("inside the `{bracket}` opened here"))
            }
            _ => diagnostic,
        }
    }

    fn refuse_decorations(&mut self, span: Span, anchor: usize, tag: bool) {
        if anchor != 0 {
            let error = Diagnostic::error(span, "anchors (`&name`) are not supported");
            self.out.push(error.help("write the value out at each place"));
        }
        if tag {
            let error = Diagnostic::error(span, "tags (`!name`) are not supported");
            self.out.push(error.help("remove the tag"));
        }
    }

    fn push(&mut self, frame: Frame) -> Result<(), Stop> {
        if self.stack.len() == MAX_DEPTH {
            let (Frame::List { span, .. } | Frame::Mapping { span, .. }) = frame;
            self.out.push(too_deep(span));
            return Err(Stop);
        }
        self.stack.push(frame);
        Ok(())
    }

    fn put(&mut self, node: Node) {
        match self.stack.last_mut() {
            None if node.value == Value::Null => {}
            None => self.documents.push(node),
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Mapping { entries, seen, key, .. }) => {
                match std::mem::replace(key, NextKey::Expected) {
                    NextKey::Expected => *key = next_key(node, seen, self.out),
                    NextKey::Is(key) => entries.push((key, node)),
                    NextKey::Refused => {}
                }
            }
        }
    }
}

/// A list or mapping is known by where it starts; its end lies in the next token.
fn open(span: Span) -> Span {
    Span { end: span.start, ..span }
}

fn next_key(node: Node, seen: &mut HashMap<String, Span>, out: &mut Vec<Diagnostic>) -> NextKey {
    let span = node.span;
    if node.value == Value::Refused {
        return NextKey::Refused;
    }
    let Value::Scalar { text, plain } = node.value else {
        let message = format!("{} cannot be a field's name", node.kind());
        out.push(Diagnostic::error(span, message).help("write `name: value`"));
        return NextKey::Refused;
    };
    if plain && text == "<<" {
        let error = Diagnostic::error(span, "merge keys (`<<`) are not supported");
        out.push(error.help("write the fields out"));
        return NextKey::Refused;
    }
    if let Some(first) = seen.get(&text) {
        let message = format!("{} stands here a second time", quote(&text));
        let error = Diagnostic::error(span, message).related(*first, "first here");
        out.push(error.help("keep one of them, with all that belongs to it"));
        return NextKey::Refused;
    }
    seen.insert(text.clone(), span);
    NextKey::Is(Key { text, span })
}

fn too_deep(span: Span) -> Diagnostic {
    let message = format!("lists and mappings are nested more than {MAX_DEPTH} deep");
    Diagnostic::error(span, message).help("policies need no more than eight levels")
}

fn syntax_error(error: &ScanError, span: Span) -> Diagnostic {
    let info = error.info();
    let has = |words: &str| info.contains(words);
    if has("recursion limit") {
        return too_deep(span);
    }
    let help = if has("tab") {
        "indent with spaces"
    } else if has("mapping values are not allowed") || has("illegal placement of ':'") {
        "check the indentation; put text that has `: ` in it into quotes"
    } else if has("anchor") {
        "put text that starts with `*` or `&` into quotes"
    } else if has("',' or '}'") || has("',' or ']'") || has("bracket") || has("node content") {
        "check that every `[` and `{` is closed, with commas between the entries"
    } else if has("quoted scalar") {
        "check that the quotes are closed"
    } else if has("expected key") || has("simple key") || has("indent") || has("'-'") {
        "check the indentation here and on the line before; each field is `name: value`"
    } else {
        "check the indentation and the quotes here and on the line before"
    };
    Diagnostic::error(span, format!("this is not YAML: {info}")).help(help)
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
}
