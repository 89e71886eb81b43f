//! The parser's events to trees of nodes.

use std::collections::HashMap;

use saphyr_parser::{Event, ScalarStyle, Span as YamlSpan};

use super::places::Places;
use super::text::too_deep;
use super::{Key, MAX_DEPTH, Node, Value};
use crate::policy::diagnostic::{Diagnostic, Span, quote};

/// What was reported makes the rest of the source unreadable.
pub(super) struct Stop;

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

pub(super) struct Builder<'a> {
    pub(super) places: Places<'a>,
    stack: Vec<Frame>,
    pub(super) documents: Vec<Node>,
    pub(super) out: &'a mut Vec<Diagnostic>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(places: Places<'a>, out: &'a mut Vec<Diagnostic>) -> Self {
        Self { places, stack: vec![], documents: vec![], out }
    }

    pub(super) fn take(&mut self, event: Event<'_>, span: YamlSpan) -> Result<(), Stop> {
        let span = self.places.span(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let span = match style {
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                        self.places.quoted(span)
                    }
                    _ => span,
                };
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
    pub(super) fn with_open_bracket(&self, diagnostic: Diagnostic) -> Diagnostic {
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
