//! What editors know of policy files.

/// The JSON Schema of one document (draft 2020-12). It refuses nothing that the parser reads, and
/// keeps to words that draft 7 has with the same meaning, since many editors know no later one.
pub const SCHEMA: &str = include_str!("../../../schema/ztseg.schema.json");

#[cfg(test)]
mod tests;
