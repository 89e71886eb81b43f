//! `ztseg explain` for people.

use std::fmt::Write as _;

use super::safe;
use super::table::table;
use crate::explain::{Answer, Considered, EndExplanation, EndInfo, Explanation, Outcome};

/// Rules that do not match are listed whole up to here; beyond, those that nearly do.
const MOST: usize = 30;

/// The answer as text of several lines.
pub fn text(explanation: &Explanation) -> String {
    let Explanation { from, to, service, egress, ingress, proposal, notes, .. } = explanation;
    let verdict = match (explanation.verdict, explanation.audit) {
        (Answer::Deny, _) => "denied",
        (Answer::Allow, false) => "allowed",
        (Answer::Allow, true) => "allowed, but without audit mode it would be denied",
    };
    let mut out = format!("{} -> {} {service}: {verdict}\n", safe(&from.name), safe(&to.name));
    for (end, info) in [(egress, from), (ingress, to)] {
        out.push('\n');
        match end {
            Some(end) => section(&mut out, end, info),
            None => {
                // Writing to a string does not fail.
                let _ = writeln!(out, "{}: no workload, so nothing is judged there", who(info));
            }
        }
    }
    if let Some(rule) = proposal {
        out.push_str("\nThis would allow it, in `spec.allow` of a SegmentPolicy:\n");
        let _ = writeln!(out, "    - {rule}");
    }
    for note in notes {
        let _ = writeln!(out, "\nnote: {}", safe(note));
    }
    out
}

fn who(info: &EndInfo) -> String {
    let mut text = safe(&info.name);
    if let Some(workload) = &info.workload {
        let _ = write!(text, " in workload {}", safe(workload));
    }
    let noun = match info.segments.len() {
        0 => return text,
        1 => "segment",
        _ => "segments",
    };
    let names = info.segments.join(", ");
    if names != info.name {
        let _ = write!(text, " ({noun} {})", safe(&names));
    }
    text
}

fn section(out: &mut String, end: &EndExplanation, info: &EndInfo) {
    let _ = writeln!(out, "{}: {}", who(info), safe(&end.summary));
    let is_near = |rule: &&Considered| rule.outcome != Outcome::NoMatch || !rule.why.contains("; ");
    let all = end.rules.len();
    let shown: Vec<&Considered> = if all <= MOST {
        end.rules.iter().collect()
    } else {
        let matching = end.rules.iter().filter(|rule| rule.outcome != Outcome::NoMatch).count();
        let near = end.rules.iter().filter(is_near);
        near.take(MOST.max(matching)).collect()
    };
    let row = |rule: &&Considered| {
        [
            format!("  {}", rule.rule),
            rule.action.clone(),
            rule.tier.clone(),
            rule.position.clone(),
            rule.why.clone(),
        ]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    if !rows.is_empty() {
        out.push_str(&table(["  rule", "does", "tier", "at", "here"], &rows));
    }
    let hidden = all - shown.len();
    if hidden > 0 {
        let _ = writeln!(out, "  and {hidden} that match less (`-o json` has them all)");
    }
    let (count, noun) = match end.others {
        0 => return,
        1 => (1, "rule is"),
        n => (n, "rules are"),
    };
    let _ = writeln!(out, "  {count} other {noun} about other workloads or the other direction");
}
