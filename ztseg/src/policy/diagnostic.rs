//! What is wrong with a source, where, and what to write instead.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet};

use super::source::{Position, Source};

/// How many diagnostics [`Diagnostics::render`] shows.
pub const MAX_RENDERED: usize = 200;
/// The longest line that is shown. The renderer reads all of it for each diagnostic.
const MAX_LINE: usize = 8192;

/// A part of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Index of the source among those loaded together.
    pub file: u32,
    /// First byte.
    pub start: u32,
    /// Byte after the last.
    pub end: u32,
    /// Line of the first byte, from one.
    pub line: u32,
    /// Column of the first byte in characters, from one.
    pub column: u32,
}

impl Span {
    /// The place where it starts.
    pub fn position(&self, sources: &[Source]) -> Position {
        let file = sources.get(self.file as usize).map_or_else(|| "?".into(), |s| s.name.clone());
        Position { file, line: self.line, column: self.column }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The load is refused.
    Error,
    /// The load stands.
    Warning,
}

impl Severity {
    /// As it stands in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The check that found it, where that has a name.
    pub id: Option<&'static str>,
    /// What is wrong, in one line.
    pub message: String,
    /// Where.
    pub span: Span,
    /// A few words to stand at the place itself.
    pub label: Option<String>,
    /// Other places that have to do with it, each with a few words.
    pub related: Vec<(Span, String)>,
    /// What to write instead, in one line.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            id: None,
            message: message.into(),
            span,
            label: None,
            related: vec![],
            help: None,
        }
    }

    /// A warning.
    pub fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// Sets the name of the check that found it.
    #[must_use]
    pub fn id(self, id: &'static str) -> Self {
        Self { id: Some(id), ..self }
    }

    /// Sets the words at the place itself.
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Self {
        Self { label: Some(label.into()), ..self }
    }

    /// Sets what to write instead.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Adds another place that has to do with it.
    #[must_use]
    pub fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }
}

/// Everything that is wrong in sources that were loaded together, in their order.
#[derive(Clone, PartialEq, Eq)]
pub struct Diagnostics {
    sources: Arc<[Source]>,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Sorts `list` by source and position; the spans in it refer to `sources`.
    pub fn new(sources: &[Source], mut list: Vec<Diagnostic>) -> Self {
        list.sort_by_key(|d| (d.span.file, d.span.start));
        list.dedup();
        Self { sources: sources.into(), list }
    }

    /// One after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether an error is among them.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// How many there are, in words: `2 errors`, `1 error, 3 warnings`.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        for severity in [Severity::Error, Severity::Warning] {
            let n = self.list.iter().filter(|d| d.severity == severity).count();
            match n {
                0 => {}
                1 => parts.push(format!("1 {}", severity.name())),
                _ => parts.push(format!("{n} {}s", severity.name())),
            }
        }
        parts.join(", ")
    }

    /// The place of a span of these sources.
    pub fn place(&self, span: Span) -> Position {
        span.position(&self.sources)
    }

    /// Where a diagnostic of this list points to.
    pub fn position(&self, diagnostic: &Diagnostic) -> Position {
        diagnostic.span.position(&self.sources)
    }

    /// One diagnostic in one line: `file:line:column: error: what is wrong; what to write`.
    pub fn line(&self, d: &Diagnostic) -> String {
        let id = d.id.map_or_else(String::new, |id| format!("[{id}]"));
        let mut line = format!("{}: {}{id}: {}", self.position(d), d.severity.name(), d.message);
        for (span, label) in &d.related {
            // Writing to a string does not fail.
            let _ = write!(line, "; {label}: {}", span.position(&self.sources));
        }
        if let Some(help) = &d.help {
            let _ = write!(line, "; {help}");
        }
        line
    }

    /// They with the lines that they are about, for a terminal; the first [`MAX_RENDERED`] of them,
    /// and how many more there are.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for d in self.list.iter().take(MAX_RENDERED) {
            out.push_str(&renderer.render(&[self.group(d)]));
            out.push_str("\n\n");
        }
        if let Some(more) = self.list.len().checked_sub(MAX_RENDERED).filter(|n| *n > 0) {
            let _ = write!(out, "... and {more} more");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    fn group<'a>(&'a self, d: &'a Diagnostic) -> Group<'a> {
        let level = match d.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(d.message.as_str());
        let title = if let Some(id) = d.id { title.id(id) } else { title };
        let snippet = self.snippet(d.span, AnnotationKind::Primary, d.label.as_deref());
        let mut group = title.element(snippet);
        for (span, label) in &d.related {
            group = group.element(self.snippet(*span, AnnotationKind::Context, Some(label)));
        }
        if let Some(help) = &d.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }

    /// The line that `span` starts in, or its place alone where that line cannot be shown. The
    /// renderer gets no more than that, since it reads all that it gets, for each diagnostic anew.
    fn snippet<'a>(
        &'a self,
        span: Span,
        kind: AnnotationKind,
        label: Option<&'a str>,
    ) -> Element<'a> {
        let Some((source, line, annotated)) = self.line_of(span) else {
            let Position { file, line, column } = span.position(&self.sources);
            let origin = Origin::path(file.to_string());
            return origin.line(line as usize).char_column(column as usize).into();
        };
        Snippet::source(line)
            .path(source.name.as_ref())
            .line_start(span.line as usize)
            .annotation(kind.span(annotated).label(label))
            .into()
    }

    /// The line that `span` starts in, and the part of it that `span` takes.
    fn line_of(&self, span: Span) -> Option<(&Source, &str, Range<usize>)> {
        let source = self.sources.get(span.file as usize)?;
        let (start, end) = (span.start as usize, span.end as usize);
        let (before, after) = source.text.split_at_checked(start)?;
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let rest = after.find('\n').map_or(after, |i| &after[..i]);
        let rest = rest.strip_suffix('\r').unwrap_or(rest);
        let line_end = start + rest.len();
        let line = source.text.get(line_start..line_end).filter(|line| line.len() <= MAX_LINE)?;
        let end = if source.text.is_char_boundary(end) { end } else { start };
        let annotated = start - line_start..end.clamp(start, line_end) - line_start;
        Some((source, line, annotated))
    }
}

impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list.iter().map(|d| self.line(d))).finish()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, d) in self.list.iter().enumerate() {
            if n > 0 {
                f.write_char('\n')?;
            }
            f.write_str(&self.line(d))?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// User text for a message: in backticks, control characters escaped, cut when it is long.
pub fn quote(text: &str) -> String {
    const MOST: usize = 60;
    let mut out = String::from("`");
    for (n, c) in text.chars().enumerate() {
        if n == MOST {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('`');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "a.yaml".into(), text: text.into() }
    }

    fn span(start: u32, end: u32, line: u32, column: u32) -> Span {
        Span { file: 0, start, end, line, column }
    }

    #[test]
    fn the_order_is_that_of_the_source() {
        let at = |n| Diagnostic::error(span(n, n + 1, 1, n + 1), format!("at {n}"));
        let warning = Diagnostic::warning(span(1, 2, 1, 2), "odd").help("think");
        let found = Diagnostics::new(&[source("abcd")], vec![at(2), at(0), at(2), warning]);
        let expected = "\
a.yaml:1:1: error: at 0
a.yaml:1:2: warning: odd; think
a.yaml:1:3: error: at 2";
        assert_eq!(found.to_string(), expected);
        assert_eq!(found.summary(), "2 errors, 1 warning");
        assert!(found.has_errors());
    }

    #[test]
    fn a_line_that_is_too_long_gives_its_place_alone() {
        let long = source(&"x".repeat(MAX_LINE + 1));
        let error = Diagnostic::error(span(7, 8, 1, 8), "wrong").help("right");
        let found = Diagnostics::new(&[long], vec![error]);
        assert_eq!(found.render(false), "error: wrong\n--> a.yaml:1:8\n = help: right\n");
    }

    #[test]
    fn no_more_are_shown_than_anybody_reads() {
        let at = |n| Diagnostic::error(span(n, n + 1, 1, n + 1), "wrong");
        let many = u32::try_from(MAX_RENDERED).expect("small") + 5;
        let found = Diagnostics::new(&[source(&"x".repeat(500))], (0..many).map(at).collect());
        let text = found.render(false);
        assert_eq!(text.matches("error: wrong").count(), MAX_RENDERED);
        assert!(text.ends_with("... and 5 more\n"));
        assert_eq!(found.to_string().lines().count(), MAX_RENDERED + 5);
    }

    #[test]
    fn spans_outside_the_source_are_no_panic() {
        let text = source("ä\n");
        for s in [span(1, 1, 1, 1), span(0, 1, 1, 1), span(9, 12, 7, 7), span(3, 0, 2, 1)] {
            let found =
                Diagnostics::new(std::slice::from_ref(&text), vec![Diagnostic::error(s, "x")]);
            assert!(found.render(false).starts_with("error: x\n"));
        }
        let found = Diagnostics::new(&[], vec![Diagnostic::error(span(0, 1, 1, 1), "x")]);
        assert_eq!(found.to_string(), "?:1:1: error: x");
    }

    #[test]
    fn quoted_text_is_short_and_harmless() {
        assert_eq!(quote("web"), "`web`");
        assert_eq!(quote("a\u{1b}[1m"), "`a\\u{1b}[1m`");
        assert_eq!(quote(&"x".repeat(99)).chars().count(), 63);
    }
}
