//! Where things stand.

use saphyr_parser::Span as YamlSpan;

use crate::policy::diagnostic::Span;

/// A byte offset; sources are shorter than 4 GiB.
pub(super) fn offset(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Turns the parser's marks, which count characters, into byte offsets.
pub(super) struct Places<'a> {
    pub(super) text: &'a str,
    file: u32,
    /// Byte offset of every `STEP`th character; empty where each character is one byte.
    every: Vec<usize>,
}

const STEP: usize = 64;

impl<'a> Places<'a> {
    pub(super) fn new(text: &'a str, file: u32) -> Self {
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

    pub(super) fn span(&self, span: YamlSpan) -> Span {
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

    /// The span of a text in quotes, which may reach over a comment behind it, up to its last quote.
    pub(super) fn quoted(&self, span: Span) -> Span {
        let text = self.text.get(span.start as usize..span.end as usize).unwrap_or_default();
        let mut chars = text.char_indices().peekable();
        let Some((_, quote)) = chars.next() else { return span };
        while let Some((at, c)) = chars.next() {
            let escapes = match quote {
                '"' => c == '\\',
                _ => c == quote && chars.peek().is_some_and(|(_, next)| *next == quote),
            };
            if escapes {
                chars.next();
            } else if c == quote {
                return Span { end: span.start + offset(at + c.len_utf8()), ..span };
            }
        }
        span
    }
}
