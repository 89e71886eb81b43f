//! What people see: one model, several presenters. Pure.

pub mod compact;
pub mod diff;
pub mod explain;
pub mod junit;
pub mod metrics;
pub mod status;
pub mod table;
pub mod tested;
pub mod workloads;

/// Text for a terminal: control characters are spelled out, since names of cgroups and processes
/// are chosen by whoever runs in a workload.
pub fn safe(text: &str) -> String {
    let spell = |c: char| -> Box<dyn Iterator<Item = char>> {
        if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) }
    };
    text.chars().flat_map(spell).collect()
}

/// A number of things: `1 test`, `2 tests`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(safe("/a\u{1b}[2Jb\nc\u{9b}"), "/a\\u{1b}[2Jb\\nc\\u{9b}");
        assert_eq!(safe("/ünit"), "/ünit");
    }
}
