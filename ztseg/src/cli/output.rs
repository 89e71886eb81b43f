//! Standard output and standard error.

use std::io::{ErrorKind, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use super::Failure;

/// How a listing is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One JSON document a line
    Jsonl,
}

/// Prints text as it is. A reader that went away (`ztseg events | head`) ends the process
/// quietly.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {
            Err(Failure { status: 0, text: String::new() })
        }
        other => other.map_err(|e| Failure::refused(format!("standard output: {e}"))),
    }
}

/// One JSON document of several lines.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::refused(e.to_string()))?;
    print(&format!("{text}\n"))
}

/// One JSON document a line.
pub(super) fn print_jsonl<T: Serialize>(values: &[T]) -> Result<(), Failure> {
    let mut text = String::new();
    for value in values {
        let line = serde_json::to_string(value).map_err(|e| Failure::refused(e.to_string()))?;
        text.push_str(&line);
        text.push('\n');
    }
    print(&text)
}

/// Prints an error; rendered diagnostics say `error` themselves.
pub(super) fn error(text: &str) {
    if text.is_empty() {
        return;
    }
    let text = text.trim_end();
    let rendered = text.starts_with("error") || text.starts_with('\u{1b}');
    let prefix = if rendered { "" } else { "error: " };
    // There is nowhere left to say that this failed.
    let _ = writeln!(std::io::stderr(), "{prefix}{text}");
}

/// Whether errors are coloured: on a terminal, unless `NO_COLOR` (no-color.org) says otherwise.
pub(super) fn color() -> bool {
    std::io::stderr().is_terminal() && color_is_wanted()
}

/// The same for what goes to standard output.
pub(super) fn color_of_output() -> bool {
    std::io::stdout().is_terminal() && color_is_wanted()
}

fn color_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
