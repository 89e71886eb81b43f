//! `ztseg diff` for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::safe;
use crate::diff::{Addresses, Change, Diff, End};
use crate::explain::Answer;
use crate::policy::parse::port::bounds;
use crate::policy::resolved::PortRange;

/// How many entries of a list are shown.
const MOST: usize = 6;

/// What changes, as text of several lines.
pub fn text(diff: &Diff) -> String {
    let mut out = String::new();
    for (answer, title) in [(Answer::Deny, "now denied:"), (Answer::Allow, "now allowed:")] {
        let changes: Vec<_> = diff.changes.iter().filter(|change| change.now == answer).collect();
        if changes.is_empty() {
            continue;
        }
        // Writing to a string does not fail.
        let _ = writeln!(out, "{title}");
        for Change { from, to, ports, before, after, .. } in changes {
            let _ = writeln!(out, "  {} -> {} {}", ends(from), ends(to), words(ports));
            let _ = writeln!(out, "      before: {}", safe(before));
            let _ = writeln!(out, "      now:    {}", safe(after));
        }
    }
    if out.is_empty() {
        out.push_str("no flow changes\n");
    }
    out
}

/// Ends; those with the same addresses stand together.
fn ends(ends: &[End]) -> String {
    let mut by_addresses: BTreeMap<Option<&Addresses>, Vec<String>> = BTreeMap::new();
    for End { workload, addresses } in ends {
        let name = workload.as_ref().map_or_else(|| "hosts elsewhere".to_owned(), |w| safe(w));
        by_addresses.entry(addresses.as_ref()).or_default().push(name);
    }
    let alone =
        |names: &[String]| ends.iter().all(|end| end.workload.is_none()) && names.len() == 1;
    let group = |(part, names): (Option<&Addresses>, Vec<String>)| match part {
        None => short(&names),
        Some(part) if alone(&names) => addresses(part),
        Some(part) => format!("{} at {}", short(&names), addresses(part)),
    };
    by_addresses.into_iter().map(group).collect::<Vec<_>>().join("; ")
}

fn addresses(addresses: &Addresses) -> String {
    let Addresses { cidrs, other_ipv4, other_ipv6 } = addresses;
    let net = |net: &IpNet| match (net.prefix_len(), net.max_prefix_len()) {
        (0, 32) => "every IPv4 address".to_owned(),
        (0, _) => "every IPv6 address".to_owned(),
        (own, most) if own == most => net.addr().to_string(),
        _ => net.to_string(),
    };
    let of = |v4: bool| cidrs.iter().filter(move |net| net.addr().is_ipv4() == v4).map(net);
    let mut parts: Vec<String> = of(true).collect();
    parts.extend((*other_ipv4 && !other_ipv6).then(|| "every other IPv4 address".to_owned()));
    parts.extend(of(false));
    parts.extend((*other_ipv6 && !other_ipv4).then(|| "every other IPv6 address".to_owned()));
    parts.extend((*other_ipv4 && *other_ipv6).then(|| "every other address".to_owned()));
    if parts == ["every IPv4 address", "every IPv6 address"] {
        return "every address".to_owned();
    }
    short(&parts)
}

/// Ports; those that are not among them, where that is shorter.
fn words(ports: &[PortRange]) -> String {
    let others = complement(ports);
    let list =
        |ports: &[PortRange]| short(&ports.iter().map(ToString::to_string).collect::<Vec<_>>());
    if others.len() < ports.len() {
        return format!("every port but {}", list(&others));
    }
    list(ports)
}

/// Every protocol and port that is not in a list.
fn complement(ports: &[PortRange]) -> Vec<PortRange> {
    let mut rest = Vec::new();
    for protocol in 0..=u8::MAX {
        let (mut begin, last) = bounds(protocol);
        let own = |range: &&PortRange| range.protocol.is_none_or(|own| own == protocol);
        let mut taken: Vec<_> = ports.iter().filter(own).copied().collect();
        taken.sort_by_key(|range| range.first);
        let mut whole = true;
        for range in taken {
            if range.first > begin {
                rest.push(PortRange {
                    protocol: Some(protocol),
                    first: begin,
                    last: range.first - 1,
                });
            }
            match range.last.checked_add(1) {
                Some(next) => begin = begin.max(next),
                None => whole = false,
            }
        }
        if whole && begin <= last {
            rest.push(PortRange { protocol: Some(protocol), first: begin, last });
        }
    }
    rest
}

fn short(parts: &[String]) -> String {
    let mut text = parts.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more) = parts.len().checked_sub(MOST).filter(|more| *more > 0) {
        let _ = write!(text, " and {more} more");
    }
    text
}
