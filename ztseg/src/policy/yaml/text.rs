//! The text itself: what is no text, and what is no YAML.

use std::sync::Arc;

use saphyr_parser::ScanError;

use super::MAX_DEPTH;
use super::places::offset;
use crate::policy::diagnostic::{Diagnostic, Diagnostics, Span};
use crate::policy::source::Source;

/// A file's bytes as a source.
///
/// # Errors
/// The first place that is not UTF-8.
pub fn decode(name: &str, bytes: Vec<u8>) -> Result<Source, Diagnostics> {
    let name: Arc<str> = name.into();
    let error = match String::from_utf8(bytes) {
        Ok(text) => return Ok(Source { name, text: text.into() }),
        Err(error) => error,
    };
    let valid = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes());
    let before = &text[..valid];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let span = Span {
        file: 0,
        start: offset(valid),
        end: offset(valid + char::REPLACEMENT_CHARACTER.len_utf8()),
        line: offset(before.matches('\n').count() + 1),
        column: offset(before[line_start..].chars().count() + 1),
    };
    let error = Diagnostic::error(span, "the file is not UTF-8").help("save it as UTF-8");
    Err(Diagnostics::new(&[Source { name, text: text.into() }], vec![error]))
}

/// Characters that YAML 1.2.2 section 5.1 leaves out, and those that make a line look like another
/// than it is: a carriage return alone, and the bidirectional overrides.
pub(super) fn unprintable(text: &str, file: u32) -> Option<Diagnostic> {
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

pub(super) fn too_deep(span: Span) -> Diagnostic {
    let message = format!("lists and mappings are nested more than {MAX_DEPTH} deep");
    Diagnostic::error(span, message).help("policies need no more than eight levels")
}

/// The parser's error, with what to do about it.
pub(super) fn syntax_error(error: &ScanError, span: Span, text: &str) -> Diagnostic {
    let info = error.info();
    let has = |words: &str| info.contains(words);
    if has("recursion limit") {
        return too_deep(span);
    }
    let start = span.start as usize;
    let double_colon =
        [start, start + 1].iter().any(|n| text.get(..*n).is_some_and(|t| t.ends_with("::")));
    let help = if double_colon {
        "put an IPv6 address that ends in `:` into quotes"
    } else if has("tab") {
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
