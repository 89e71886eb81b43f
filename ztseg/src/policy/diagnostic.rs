//! What is wrong with a source, where, and what to write instead.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::source::{Position, Source};

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
        let message = message.into();
        Self { severity: Severity::Error, message, span, label: None, related: vec![], help: None }
    }

    /// A warning.
    pub fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
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

    /// Where a diagnostic of this list points to.
    pub fn position(&self, diagnostic: &Diagnostic) -> Position {
        diagnostic.span.position(&self.sources)
    }

    /// One diagnostic in one line: `file:line:column: error: what is wrong; what to write`.
    pub fn line(&self, d: &Diagnostic) -> String {
        let mut line = format!("{}: {}: {}", self.position(d), d.severity.name(), d.message);
        for (span, label) in &d.related {
            // Writing to a string does not fail.
            let _ = write!(line, "; {label} at {}", span.position(&self.sources));
        }
        if let Some(help) = &d.help {
            let _ = write!(line, "; {help}");
        }
        line
    }

    /// All of them with the lines that they are about, for a terminal.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for d in &self.list {
            out.push_str(&renderer.render(&[self.group(d)]));
            out.push_str("\n\n");
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
        let mut group = level.primary_title(d.message.as_str()).elements(self.snippet(
            d.span,
            AnnotationKind::Primary,
            d.label.as_deref(),
        ));
        for (span, label) in &d.related {
            group = group.elements(self.snippet(*span, AnnotationKind::Context, Some(label)));
        }
        if let Some(help) = &d.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }

    /// The line that `span` starts in. The renderer gets no more than that, since it reads all that
    /// it gets, for each diagnostic anew; and what spans lines is known by its first.
    fn snippet<'a>(
        &'a self,
        span: Span,
        kind: AnnotationKind,
        label: Option<&'a str>,
    ) -> Option<Snippet<'a, annotate_snippets::Annotation<'a>>> {
        let source = self.sources.get(span.file as usize)?;
        let (start, end) = (span.start as usize, span.end as usize);
        let (before, after) = source.text.split_at_checked(start)?;
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let rest = after.find('\n').map_or(after, |i| &after[..i]);
        let rest = rest.strip_suffix('\r').unwrap_or(rest);
        let line_end = start + rest.len();
        let line = source.text.get(line_start..line_end)?;
        let end = if source.text.is_char_boundary(end) { end } else { start };
        let annotated = start - line_start..end.clamp(start, line_end) - line_start;
        let snippet = Snippet::source(line)
            .path(source.name.as_ref())
            .line_start(span.line as usize)
            .annotation(kind.span(annotated).label(label));
        Some(snippet)
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
