//! Scalars: quotes only where they are needed.

use std::fmt::Write as _;

use super::tree::Scalar;

/// Words that YAML 1.1 or 1.2 reads as something else than text.
const WORDS: [&str; 10] = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y"];

/// A scalar as it is written; in brackets, a few more characters need quotes.
pub(super) fn written(scalar: &Scalar, in_flow: bool) -> String {
    let text = &scalar.text;
    let one_line = !text.contains(['\n', '\r']);
    let bracketed = in_flow && text.contains([',', '[', ']', '{', '}']);
    if (scalar.plain && one_line && !bracketed) || (!scalar.plain && is_plainly_text(text)) {
        text.clone()
    } else {
        quoted(text)
    }
}

/// Whether nobody reads a text as anything else when it stands without quotes, wherever it stands.
fn is_plainly_text(text: &str) -> bool {
    let first = text.chars().next();
    let starts = first.is_some_and(|c| c.is_ascii_alphanumeric() || c == '/');
    let fine = |c: char| c.is_ascii_alphanumeric() || "/_.-+* >@=".contains(c);
    let word = text.to_ascii_lowercase();
    // A number, a date or the like; an address with its dots is none.
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let is_address = text.matches('.').count() == 3 && !text.contains(['-', ' ', '+', '_']);
    starts
        && text.chars().all(fine)
        && !text.ends_with(' ')
        && !WORDS.contains(&word.as_str())
        && word != "n"
        && (!digits || is_address)
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requoted(text: &str) -> String {
        written(&Scalar { text: text.into(), plain: false }, true)
    }

    #[test]
    fn quotes_go_where_nobody_needs_them() {
        for text in ["web", "/shop/web*", "192.0.2.0/24", "10.0.0.1", "web -> db tcp/5432", "a.b"] {
            assert_eq!(requoted(text), text);
        }
        for text in [
            "*.service",
            "2001:db8::/32",
            "true",
            "No",
            "N",
            "",
            "~",
            "1",
            "1.5",
            "2026-01-01",
            "a, b",
            "a #b",
            "a: b",
            "- a",
            "a ",
            " a",
            "@x",
            "1e3",
            "é",
            "100.1.2",
        ] {
            assert_eq!(requoted(text), format!("\"{text}\""));
        }
        assert_eq!(requoted("a\"b\\\n\u{7f}"), "\"a\\\"b\\\\\\n\\U0000007F\"");
    }

    #[test]
    fn what_stood_without_quotes_gets_them_where_brackets_ask_for_them() {
        let scalar = Scalar { text: "front, end".into(), plain: true };
        assert_eq!(written(&scalar, false), "front, end");
        assert_eq!(written(&scalar, true), "\"front, end\"");
    }
}
