//! A tree to text, in one form.

use super::scalar::written;
use super::shape::Kind;
use super::tree::{Container, Entry, Line, Value};

/// The longest line, in characters, that is put into brackets.
const WIDTH: usize = 100;
const STEP: usize = 2;

/// The text of a document; `None` where something in it has no form here.
pub(super) fn print(mut root: Container) -> Option<String> {
    let mut printer = Printer { out: String::new() };
    // What stands above the first field is about the document.
    let header = root.entries.first_mut().map(|first| std::mem::take(&mut first.above));
    let header = header.unwrap_or_default();
    let gap = root.entries.first().is_some_and(|first| first.gap);
    let first = printer.lines(&header, 0, true);
    if !first && gap {
        printer.out.push('\n');
    }
    arrange(&mut root, Kind::Document);
    printer.container(&root, Kind::Document, 0)?;
    Some(printer.out)
}

/// Puts fields into their order, everywhere.
fn arrange(container: &mut Container, kind: Kind) {
    if let Some(first) = container.entries.first_mut() {
        // Where something else comes first, there is nothing to be apart from.
        first.gap &= !first.above.is_empty();
    }
    let place = |entry: &Entry| match &entry.key {
        Some(key) => kind.place(&key.text),
        None => 0,
    };
    container.entries.sort_by_key(place);
    for entry in &mut container.entries {
        let kind = kind_of(kind, entry);
        if let Value::List(inner) | Value::Mapping(inner) = &mut entry.value {
            arrange(inner, kind);
            // A test is one field, so a comment behind that is behind the test.
            if let ([only], Kind::Test, None) = (&mut *inner.entries, kind, &entry.behind) {
                entry.behind = only.behind.take();
            }
        }
        // A list's item begins with its first field: what stands above that, stands above the item.
        if let (None, Value::Mapping(inner)) = (&entry.key, &mut entry.value)
            && let Some(first) = inner.entries.first_mut()
        {
            entry.above.append(&mut first.above);
            first.gap = false;
        }
    }
}

fn kind_of(kind: Kind, entry: &Entry) -> Kind {
    kind.child(entry.key.as_ref().map(|key| key.text.as_str()))
}

struct Printer {
    out: String,
}

impl Printer {
    /// Comments on lines of their own. Gives whether what comes next is still the first thing.
    fn lines(&mut self, lines: &[Line], indent: usize, mut first: bool) -> bool {
        for line in lines {
            self.gap(line.gap, first);
            self.out.push_str(&" ".repeat(indent));
            self.out.push_str(&line.text);
            self.out.push('\n');
            first = false;
        }
        first
    }

    fn gap(&mut self, gap: bool, first: bool) {
        if gap && !first {
            self.out.push('\n');
        }
    }

    /// The entries of a block, each on a line of its own or more.
    fn container(&mut self, container: &Container, kind: Kind, indent: usize) -> Option<()> {
        self.entries(&container.entries, kind, indent, true)?;
        self.lines(&container.below, indent, false);
        Some(())
    }

    fn entries(
        &mut self,
        entries: &[Entry],
        kind: Kind,
        indent: usize,
        mut first: bool,
    ) -> Option<()> {
        for entry in entries {
            let kind = kind_of(kind, entry);
            let (above, behind) = above(entry, kind, indent);
            first = self.lines(&above, indent, first);
            self.gap(entry.gap, first);
            self.out.push_str(&" ".repeat(indent));
            self.entry(entry, behind, kind, indent)?;
            first = false;
        }
        Some(())
    }

    /// An entry, from where the line stands on.
    fn entry(
        &mut self,
        entry: &Entry,
        behind: Option<&str>,
        kind: Kind,
        indent: usize,
    ) -> Option<()> {
        match &entry.key {
            Some(key) => {
                self.out.push_str(&written(key, false));
                self.out.push(':');
            }
            None => self.out.push('-'),
        }
        if let Some(text) = one_line(entry, kind, indent) {
            if !text.is_empty() {
                self.out.push(' ');
                self.out.push_str(&text);
            }
            self.end(behind);
            return Some(());
        }
        match &entry.value {
            Value::Block { header, lines } => self.block(header, lines, behind, indent + STEP),
            Value::List(inner) | Value::Mapping(inner) if entry.key.is_some() => {
                self.end(behind);
                self.container(inner, kind, indent + STEP)
            }
            // A single value is on the line already; a list in a list is in no policy.
            Value::Scalar(_) | Value::List(_) => None,
            Value::Mapping(inner) => {
                let (first, rest) = inner.entries.split_first()?;
                self.out.push(' ');
                let first_kind = kind_of(kind, first);
                self.entry(first, first.behind.as_deref(), first_kind, indent + STEP)?;
                self.entries(rest, kind, indent + STEP, false)?;
                self.lines(&inner.below, indent + STEP, false);
                Some(())
            }
        }
    }

    fn end(&mut self, behind: Option<&str>) {
        if let Some(comment) = behind {
            self.out.push(' ');
            self.out.push_str(comment);
        }
        self.out.push('\n');
    }

    /// A literal or folded text, with another indentation.
    fn block(
        &mut self,
        header: &str,
        lines: &str,
        behind: Option<&str>,
        indent: usize,
    ) -> Option<()> {
        // With a number, or with the empty lines at its end kept, it depends on where it stands.
        if header.contains(|c: char| c.is_ascii_digit() || c == '+') {
            return None;
        }
        let lines: Vec<_> = lines.trim_end().lines().map(str::trim_end).collect();
        let first = lines.iter().find(|line| !line.is_empty())?;
        let depth = first.len() - first.trim_start_matches(' ').len();
        self.out.push(' ');
        self.out.push_str(header);
        self.end(behind);
        for line in lines {
            if !line.is_empty() {
                self.out.push_str(&" ".repeat(indent));
                self.out.push_str(line.get(depth..)?);
            }
            self.out.push('\n');
        }
        Some(())
    }
}

/// The comments that go above an entry, and the one that goes behind it: where an item of a list
/// takes several lines, the first of them is a field's.
fn above(entry: &Entry, kind: Kind, indent: usize) -> (Vec<Line>, Option<&str>) {
    let mut above = entry.above.clone();
    let behind = entry.behind.as_deref();
    let is_item = entry.key.is_none() && matches!(entry.value, Value::Mapping(_));
    if !is_item || one_line(entry, kind, indent).is_some() {
        return (above, behind);
    }
    above.extend(behind.map(|text| Line { gap: false, text: text.to_owned() }));
    (above, None)
}

/// The value of an entry where it goes onto the entry's line.
fn one_line(entry: &Entry, kind: Kind, indent: usize) -> Option<String> {
    let container = match &entry.value {
        Value::Scalar(scalar) => return Some(written(scalar, false)),
        Value::Block { .. } => return None,
        Value::List(container) | Value::Mapping(container) => container,
    };
    let scalars = container.entries.iter().all(|e| matches!(e.value, Value::Scalar(_)));
    let list = matches!(entry.value, Value::List(_));
    let wanted = container.entries.is_empty()
        || (list && scalars)
        || kind.is_one_line(container.flow, container.entries.len());
    if !wanted {
        return None;
    }
    let text = in_brackets(&entry.value)?;
    let before = entry.key.as_ref().map_or(1, |key| written(key, false).chars().count() + 1);
    (indent + before + 1 + text.chars().count() <= WIDTH).then_some(text)
}

/// A value in brackets; `None` where a comment or a literal text is in it.
fn in_brackets(value: &Value) -> Option<String> {
    let (container, open, close, list) = match value {
        Value::Scalar(scalar) => return Some(written(scalar, true)),
        Value::Block { .. } => return None,
        Value::List(container) => (container, '[', ']', true),
        Value::Mapping(container) => (container, '{', '}', false),
    };
    if !container.below.is_empty() {
        return None;
    }
    let mut parts = Vec::with_capacity(container.entries.len());
    for entry in &container.entries {
        if !entry.above.is_empty() || entry.behind.is_some() {
            return None;
        }
        let value = in_brackets(&entry.value)?;
        parts.push(match &entry.key {
            Some(key) if value.is_empty() => format!("{}:", written(key, true)),
            Some(key) => format!("{}: {value}", written(key, true)),
            None => value,
        });
    }
    if parts.is_empty() {
        return Some(format!("{open}{close}"));
    }
    let all = parts.join(", ");
    let nested = container.entries.iter().any(|e| !matches!(e.value, Value::Scalar(_)));
    Some(if list && !nested { format!("[{all}]") } else { format!("{open} {all} {close}") })
}
