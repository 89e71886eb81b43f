//! YAML text to trees whose nodes know where they stand.
//!
//! A part of YAML that policies need: mappings with plain keys, lists and scalars, several
//! documents in a source. Everything else (anchors and aliases, tags, merge keys, keys that are no
//! text) is refused, so that a document means what it says and costs no more than its length.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as YamlSpan};

use super::diagnostic::{Diagnostic, Span, quote};
use super::source::Source;

/// How deep lists and mappings may lie in each other; policies need eight levels.
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
                let error = Diagnostic::error(span, "aliases (`*name`) are not read");
                self.out.push(error.help("write the value out"));
                self.put(Node { value: Value::Null, span });
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

    fn refuse_decorations(&mut self, span: Span, anchor: usize, tag: bool) {
        if anchor != 0 {
            let error = Diagnostic::error(span, "anchors (`&name`) are not read");
            self.out.push(error.help("write the value out at each place"));
        }
        if tag {
            let error = Diagnostic::error(span, "tags (`!name`) are not read");
            self.out.push(error.help("remove the tag"));
        }
    }

    fn push(&mut self, frame: Frame) -> Result<(), Stop> {
        if self.stack.len() == MAX_DEPTH {
            let (Frame::List { span, .. } | Frame::Mapping { span, .. }) = frame;
            let message =
                format!("lists and mappings lie in each other more than {MAX_DEPTH} deep");
            self.out.push(Diagnostic::error(span, message));
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
    let Value::Scalar { text, plain } = node.value else {
        let message = format!("{} cannot be a field's name", node.kind());
        out.push(Diagnostic::error(span, message).help("write `name: value`"));
        return NextKey::Refused;
    };
    if plain && text == "<<" {
        let error = Diagnostic::error(span, "merge keys (`<<`) are not read");
        out.push(error.help("write the fields out"));
        return NextKey::Refused;
    }
    if let Some(first) = seen.get(&text) {
        let message = format!("{} stands here a second time", quote(&text));
        let error = Diagnostic::error(span, message).related(*first, "the first one is");
        out.push(error.help("keep one of them, with all that belongs to it"));
        return NextKey::Refused;
    }
    seen.insert(text.clone(), span);
    NextKey::Is(Key { text, span })
}

fn syntax_error(error: &ScanError, span: Span) -> Diagnostic {
    let info = error.info();
    let has = |words: &str| info.contains(words);
    let help = if has("tab") {
        "indent with spaces"
    } else if has("mapping values are not allowed") || has("illegal placement of ':'") {
        "check the indentation; put text that has `: ` in it into quotes"
    } else if has("anchor") {
        "put text that starts with `*` or `&` into quotes"
    } else if has("',' or '}'") || has("',' or ']'") || has("misplaced bracket") {
        "check that every `[` and `{` is closed, and that commas stand between the entries"
    } else if has("quoted scalar") {
        "check that the quotes are closed"
    } else if has("expected key") || has("simple key") || has("indent") || has("'-'") {
        "check the indentation here and on the line before; each field is `name: value`"
    } else if has("recursion limit") {
        "lists and mappings lie in each other too deep"
    } else {
        "check the indentation and the quotes here and on the line before"
    };
    Diagnostic::error(span, format!("this is not YAML: {info}")).help(help)
}
