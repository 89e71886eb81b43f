//! A document with its comments: each stands with the thing that it stood at.

use super::comments::{self, Comment};
use crate::policy::diagnostic::Span;
use crate::policy::yaml::{Key, Node, Value as Read};

/// A comment on a line of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Whether an empty line stands before it.
    pub(super) gap: bool,
    pub(super) text: String,
}

/// An entry of a mapping, or an item of a list.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) above: Vec<Line>,
    /// Whether an empty line stands before it, and behind the comments above it.
    pub(super) gap: bool,
    /// Of a mapping's entry.
    pub(super) key: Option<Scalar>,
    pub(super) value: Value,
    /// The comment on its line; where its value takes several, on the first.
    pub(super) behind: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    /// A literal or folded text, as it is written.
    Block {
        /// `|`, `>-` and the like.
        header: String,
        /// With the indentation that they have.
        lines: String,
    },
    List(Container),
    Mapping(Container),
}

#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Whether it stood without quotes.
    pub(super) plain: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Container {
    /// Whether it stood in brackets.
    pub(super) flow: bool,
    pub(super) entries: Vec<Entry>,
    /// Comments behind the last entry.
    pub(super) below: Vec<Line>,
}

/// The tree of a document; `None` where that is no mapping.
pub(super) fn tree(text: &str, node: &Node) -> Option<Container> {
    let comments = comments::find(text, node);
    let mut builder = Builder { text, comments, next: 0 };
    let (value, _) = builder.value(node, text.len());
    let Value::Mapping(mut root) = value else { return None };
    root.below.extend(builder.lines(text.len()));
    Some(root)
}

struct Builder<'a> {
    text: &'a str,
    comments: Vec<Comment>,
    /// The first comment that has no place yet.
    next: usize,
}

impl Builder<'_> {
    /// The comments before `limit` that have no place yet.
    fn lines(&mut self, limit: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(comment) = self.comments.get(self.next).filter(|c| c.start < limit) {
            lines.push(self.line(comment));
            self.next += 1;
        }
        lines
    }

    fn line(&self, comment: &Comment) -> Line {
        Line { gap: gap_before(self.text, comment.start), text: comment.text.clone() }
    }

    /// The comment on the line that ends at `end`, if it is the next one and before `limit`.
    fn behind(&mut self, end: usize, limit: usize) -> Option<String> {
        let comment = self.comments.get(self.next)?;
        let between = self.text.get(end..comment.start)?;
        if comment.start >= limit || comment.alone || between.contains('\n') {
            return None;
        }
        self.next += 1;
        Some(comment.text.clone())
    }

    /// A literal or folded text. Its node begins somewhere behind its header.
    fn block(&self, key: &Key, node: &Node) -> Option<Value> {
        if !matches!(node.value, Read::Scalar { plain: false, .. }) {
            return None;
        }
        let between = self.text.get(key.span.end as usize..node.span.end as usize)?;
        let value = between.strip_prefix(':')?.trim_start();
        let (header, lines) = value.strip_prefix(['|', '>']).and(value.split_once('\n'))?;
        let header = header.split_whitespace().next()?;
        Some(Value::Block { header: header.to_owned(), lines: lines.to_owned() })
    }

    /// A node with the comments in it, and where it ends. `limit` is where the next thing begins.
    fn value(&mut self, node: &Node, limit: usize) -> (Value, usize) {
        let end = comments::end(self.text, node);
        let flow = comments::is_flow(self.text, node);
        let inner = if flow { end } else { limit };
        let value = match &node.value {
            Read::Mapping(entries) => {
                let children: Vec<_> = entries.iter().map(|(k, n)| (Some(k), n)).collect();
                Value::Mapping(self.container(node.span, flow, &children, inner))
            }
            Read::List(items) => {
                let children: Vec<_> = items.iter().map(|n| (None, n)).collect();
                Value::List(self.container(node.span, flow, &children, inner))
            }
            Read::Scalar { text, plain } => {
                Value::Scalar(Scalar { text: text.clone(), plain: *plain })
            }
            Read::Null | Read::Refused => {
                let text = comments::slice(self.text, node.span).to_owned();
                Value::Scalar(Scalar { text, plain: true })
            }
        };
        (value, end)
    }

    fn container(
        &mut self,
        span: Span,
        flow: bool,
        children: &[(Option<&Key>, &Node)],
        limit: usize,
    ) -> Container {
        let start = |(key, node): &(Option<&Key>, &Node)| {
            key.map_or(node.span.start, |key| key.span.start) as usize
        };
        let mut entries = Vec::with_capacity(children.len());
        for (number, child) in children.iter().enumerate() {
            let limit = children.get(number + 1).map_or(limit, start);
            entries.push(self.entry(*child, start(child), limit));
        }
        let below = if flow {
            self.lines(limit)
        } else {
            let least = match children.first() {
                Some((None, _)) => comments::dash_column(self.text, span.start as usize),
                _ => span.column as usize,
            };
            self.lines_of_block(least, limit)
        };
        Container { flow, entries, below }
    }

    /// The comments behind the last entry of a block that are indented as it is.
    fn lines_of_block(&mut self, least: usize, limit: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(comment) = self.comments.get(self.next)
            && comment.start < limit
            && comment.alone
            && comment.column >= least
        {
            lines.push(self.line(comment));
            self.next += 1;
        }
        lines
    }

    fn entry(&mut self, (key, node): (Option<&Key>, &Node), start: usize, limit: usize) -> Entry {
        let mut above = self.lines(start);
        let gap = gap_before(self.text, start);
        let mut behind = None;
        if let Some(key) = key {
            let after = key.span.end as usize;
            let value = (node.span.start as usize).max(after);
            let is_empty = node.span.start == node.span.end && node.value == Read::Null;
            if !is_empty {
                behind = self.behind(after, value);
                // What stands above the first line of a block is about that line.
                if !is_block(node) || comments::is_flow(self.text, node) {
                    above.extend(self.lines(value));
                }
            }
        }
        let (value, end) = match key.and_then(|key| self.block(key, node)) {
            Some(block) => (block, node.span.end as usize),
            None => self.value(node, limit),
        };
        let one_line = match &value {
            Value::Scalar(_) => true,
            Value::Block { .. } => false,
            Value::List(container) | Value::Mapping(container) => container.flow,
        };
        if one_line && let Some(comment) = self.behind(end, limit) {
            let first = behind.replace(comment);
            above.extend(first.map(|text| Line { gap: false, text }));
        }
        let key = key.map(|key| {
            let quoted = comments::slice(self.text, key.span).starts_with(['"', '\'']);
            Scalar { text: key.text.clone(), plain: !quoted }
        });
        Entry { above, gap, key, value, behind }
    }
}

const fn is_block(node: &Node) -> bool {
    matches!(node.value, Read::List(_) | Read::Mapping(_))
}

/// Whether what starts at `at` is the first of its line, and the line before is empty.
fn gap_before(text: &str, at: usize) -> bool {
    let before = text.get(..at).unwrap_or_default();
    let line = before.rfind('\n').map_or(0, |end| end + 1);
    let is_first = before[line..].chars().all(|c| matches!(c, ' ' | '-' | '#'));
    let Some(above) = before[..line].strip_suffix('\n') else { return false };
    is_first && above.rsplit('\n').next().is_some_and(|line| line.trim().is_empty())
}
