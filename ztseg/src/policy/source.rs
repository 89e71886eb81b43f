//! Source files and positions in them.

use std::fmt;
use std::sync::Arc;

/// A policy file as it was read: the name to show, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name to show, normally the path as the user gave it.
    pub name: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
}

/// A place in a source file; line and column count from one, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// [`Source::name`].
    pub file: Arc<str>,
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
