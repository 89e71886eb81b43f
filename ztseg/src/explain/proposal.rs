//! The shortest rule that would allow what is denied.

use jiff::Timestamp;
use ztseg_common::verdict::Direction;

use super::Asked;
use super::place::Place;
use crate::policy::names;
use crate::policy::oracle::{PeerFacts, decide_at};
use crate::policy::resolved::{Ends, Isolation, Network, Resolved, Rule, SegmentId, Side, Tier};
use crate::policy::source::Position;

/// An entry for `spec.allow` of a `SegmentPolicy`; `None` where no such rule would do.
pub(super) fn proposal(resolved: &Resolved, now: Timestamp, asked: &Asked) -> Option<String> {
    let (from, from_text) = side(resolved, &asked.from, Direction::Egress)?;
    let (to, to_text) = side(resolved, &asked.to, Direction::Ingress)?;
    let position = Position { file: "".into(), line: 0, column: 0 };
    let rule = Rule {
        tier: Tier::Application,
        built_in: false,
        ..Rule::built_in(String::new(), Ends::Both, [from, to], asked.service(), position)
    };
    allows(resolved, now, asked, rule)
        .then(|| format!("{{ from: {from_text}, to: {to_text}, ports: [{}] }}", asked.service()))
}

/// One end as a side of a rule, and as it is written: the segment whose isolation is in the way,
/// else any of its segments, else its address.
fn side(resolved: &Resolved, place: &Place, direction: Direction) -> Option<(Side, String)> {
    let isolates = |id: &SegmentId| {
        resolved
            .segments
            .get(id.0 as usize)
            .is_some_and(|segment| segment.isolation(direction) != Isolation::Open)
    };
    // A segment that stands for a Kubernetes selector has a name that no policy can write.
    let writable = |id: &SegmentId| {
        let segment = resolved.segments.get(id.0 as usize);
        Some(*id) != resolved.failsafe
            && segment.is_some_and(|segment| names::is_well_formed(&segment.name))
    };
    let set: Vec<SegmentId> =
        place.end.workload.iter().flatten().copied().filter(writable).collect();
    let best = set.iter().copied().find(isolates).or_else(|| set.first().copied());
    if let Some(id) = best {
        let name = resolved.segments.get(id.0 as usize)?.name.clone();
        return Some((Side { segments: vec![id], ..Side::default() }, name));
    }
    let address = place.end.address?;
    let network = Network { cidr: address.into(), except: Vec::new() };
    let text = if address.is_ipv6() { format!("\"{address}\"") } else { address.to_string() };
    Some((Side { networks: [network].into(), ..Side::default() }, text))
}

/// Whether the flow passes everything, audited things included, once there is this rule, too.
fn allows(resolved: &Resolved, now: Timestamp, asked: &Asked, rule: Rule) -> bool {
    let mut with = resolved.clone();
    let place = with.rules.iter().rposition(|r| r.tier != Tier::Baseline).map_or(0, |at| at + 1);
    with.rules.insert(place, rule);
    let facts = |place: &Place| PeerFacts {
        known: place.end.workload.clone(),
        nobody: false,
        // One that no policy names, where it is not known.
        address: place.end.address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()),
    };
    let end = |subject: &Place, peer: &Place, direction| {
        let Some(set) = &subject.end.workload else { return true };
        let service = (asked.protocol, asked.port);
        let decision = decide_at(now, &with, set, &facts(peer), direction, service);
        decision.allow && !decision.audit
    };
    end(&asked.from, &asked.to, Direction::Egress)
        && end(&asked.to, &asked.from, Direction::Ingress)
}
