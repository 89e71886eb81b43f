//! Workloads as documents that the offline verbs read.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::safe;
use crate::api::types::WorkloadInfo;
use crate::policy::names::{MAX_NAME, well_formed_like};

/// `kind: Workload` documents of these workloads. One whose name a document cannot have is left out,
/// with a comment.
pub fn documents(workloads: &[WorkloadInfo]) -> String {
    let mut text = String::new();
    let mut taken = HashMap::new();
    for workload in workloads {
        let (field, value) = match workload.name.strip_prefix("interface:") {
            Some(interface) => ("interface", interface),
            None if workload.name == "host" => ("cgroup", "/"),
            None => ("cgroup", workload.name.as_str()),
        };
        // Comments are for people; a name with a line break in it must not end one.
        let cannot = |c: char| c.is_control() || "*?[]{}".contains(c);
        if value.contains(cannot) || value.contains("//") {
            let _ = writeln!(text, "# left out, since no document can have it: {}", safe(value));
            continue;
        }
        let name = name(&mut taken, &workload.name);
        // JSON's strings are YAML's, too.
        let value = serde_json::Value::from(value);
        let _ = writeln!(
            text,
            "---\napiVersion: ztseg.io/v1\nkind: Workload\nmetadata: {{ name: {name} }}\nspec: {{ {field}: {value} }}"
        );
    }
    text
}

/// A name that no other of them has, close to the last part of what the workload is called.
fn name(taken: &mut HashMap<String, usize>, called: &str) -> String {
    let last = called.rsplit('/').next().unwrap_or_default();
    let like = well_formed_like(last.trim_end_matches(".service"));
    let other = if called == "host" { "this-host" } else { "workload" };
    let mut like = like.unwrap_or_else(|| other.to_owned());
    loop {
        let count = taken.entry(like.clone()).or_default();
        *count += 1;
        if *count == 1 {
            return like;
        }
        // Room for the number; the result is looked up in its turn.
        let number = format!("-{count}");
        like.truncate(MAX_NAME - number.len());
        like = like.trim_end_matches('-').to_owned() + &number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load;
    use crate::policy::source::Source;

    fn info(name: &str) -> WorkloadInfo {
        WorkloadInfo { name: name.into(), kind: String::new(), id: 1, segments: Vec::new() }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let names = [
            "host",
            "/system.slice/nginx.service",
            "/other.slice/nginx.service",
            "/nginx-2",
            "/a b/#\\\"é: ~",
            "/null",
            "interface:tap0",
            "/bad\nkind: x",
            "/glob*",
            "/-",
        ];
        let text = documents(&names.map(info));
        let source = Source { name: "w".into(), text: text.clone().into() };
        let loaded = load(&[source]).unwrap_or_else(|e| panic!("{text}\n{e}"));
        let read: Vec<_> = loaded
            .workloads
            .iter()
            .map(|w| (w.name.as_str(), w.facts.cgroup.as_deref().or(w.facts.interface.as_deref())))
            .collect();
        let expected = [
            ("this-host", "/"),
            ("nginx", "/system.slice/nginx.service"),
            ("nginx-2", "/other.slice/nginx.service"),
            ("nginx-2-2", "/nginx-2"),
            ("workload", "/a b/#\\\"é: ~"),
            ("workload-2", "/null"),
            ("interface-tap0", "tap0"),
            ("workload-3", "/-"),
        ];
        assert_eq!(read, expected.map(|(name, place)| (name, Some(place))));
        assert!(
            text.contains("# left out, since no document can have it: /bad\\nkind: x\n"),
            "{text}"
        );
        assert!(text.contains(": /glob*\n"));
    }
}
