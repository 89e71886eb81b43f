//! "May this end open a flow to that one?", asked of a compiled policy.
//!
//! The same evaluator answers as in the kernel; this module finds the classes of the two ends and
//! puts names to the answer. Self traffic and packets that the kernel makes are outside.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use ztseg_common::addr::Addr;
use ztseg_common::eval::{Decision, Query, decide};
use ztseg_common::key::port_slot;
use ztseg_common::value::{Isolation, Peer};
use ztseg_common::verdict::{Direction, Reason, Verdict};

use crate::image::{Image, SegmentSet};
use crate::policy::resolved::{Resolved, Rule, Segment, SegmentId};

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct End {
    /// The segments of a workload of this host; `None` for an end elsewhere.
    pub workload: Option<SegmentSet>,
    /// The address that the flow uses for this end; `None` where it is not known: then no CIDR
    /// holds it.
    pub address: Option<IpAddr>,
}

impl End {
    /// A workload of this host that is in exactly these segments.
    pub fn workload(segments: impl IntoIterator<Item = SegmentId>) -> Self {
        Self { workload: Some(segments.into_iter().collect()), address: None }
    }

    /// An address that belongs to no workload of this host.
    pub const fn address(address: IpAddr) -> Self {
        Self { workload: None, address: Some(address) }
    }
}

/// A flow to judge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who opens it.
    pub from: End,
    /// Who is asked.
    pub to: End,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, or ICMP type; zero for protocols that have neither.
    pub port: u16,
}

/// What the two ends say. An end that is not on this host says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement<'a> {
    /// The opener's end.
    pub egress: Option<EndJudgement<'a>>,
    /// The other end.
    pub ingress: Option<EndJudgement<'a>>,
}

impl<'a> Judgement<'a> {
    /// Allowed when neither end denies. A flow with no end on this host is nobody's to deny here.
    pub fn verdict(&self) -> Verdict {
        if self.denying().is_some() { Verdict::Deny } else { Verdict::Allow }
    }

    /// The end that denies; egress where both do, since there the flow ends first.
    pub fn denying(&self) -> Option<&EndJudgement<'a>> {
        self.ends().find(|end| end.decision.verdict == Verdict::Deny)
    }

    /// Both ends that say something, egress first.
    pub fn ends(&self) -> impl Iterator<Item = &EndJudgement<'a>> {
        self.egress.iter().chain(&self.ingress)
    }
}

/// What one end says, and why; displayed as one line without a final stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndJudgement<'a> {
    /// Which end this is.
    pub direction: Direction,
    /// The evaluator's answer.
    pub decision: Decision,
    /// The rule that decided; with `audit`, the one that would deny.
    pub rule: Option<&'a Rule>,
    /// Where isolation decided: the segments that isolate this direction.
    pub isolating: Vec<&'a Segment>,
}

/// Judges a flow at a moment. `image` must be compiled from `resolved`.
///
/// `None` when a workload is in a set of segments that the image has no classes for.
pub fn judge<'a>(
    resolved: &'a Resolved,
    image: &Image,
    now: Timestamp,
    flow: &Flow,
) -> Option<Judgement<'a>> {
    let end = |direction, subject: &End, peer: &End| {
        let Some(segments) = &subject.workload else {
            return Some(None);
        };
        let query = Query {
            subject: image.classes.get(segments)?.subject,
            peer: peer_of(image, peer)?,
            port_slot: port_slot(flow.protocol, flow.port),
            direction,
        };
        let decision = decide(&image.at(now), &query);
        Some(Some(explain(resolved, segments, direction, decision)))
    };
    Some(Judgement {
        egress: end(Direction::Egress, &flow.from, &flow.to)?,
        ingress: end(Direction::Ingress, &flow.to, &flow.from)?,
    })
}

/// The first of the [`variants`] of a flow on which the verdict is not `expected`, with what was
/// found instead; `None` when all agree.
pub fn counterexample<'a>(
    resolved: &'a Resolved,
    image: &Image,
    now: Timestamp,
    flow: &Flow,
    expected: Verdict,
) -> Option<(Flow, Judgement<'a>)> {
    variants(image, flow).find_map(|flow| {
        let judgement = judge(resolved, image, now, &flow)?;
        (judgement.verdict() != expected).then_some((flow, judgement))
    })
}

/// The flow as it is asked, then the same flow between workloads that are in further segments too,
/// for every set of segments that the image knows.
pub fn variants(image: &Image, flow: &Flow) -> impl Iterator<Item = Flow> {
    let from = supersets(image, &flow.from);
    let to = supersets(image, &flow.to);
    let (protocol, port) = (flow.protocol, flow.port);
    from.into_iter().flat_map(move |from| {
        let to = to.clone();
        to.into_iter().map(move |to| Flow { from: from.clone(), to, protocol, port })
    })
}

fn supersets(image: &Image, end: &End) -> Vec<End> {
    let mut ends = vec![end.clone()];
    // The empty set stands for a workload that no segment knows, not for every workload.
    if let Some(segments) = end.workload.as_ref().filter(|s| !s.is_empty()) {
        let wider = |set: &&SegmentSet| set.len() > segments.len() && set.is_superset(segments);
        let end = |set: &SegmentSet| End { workload: Some(set.clone()), address: end.address };
        ends.extend(image.classes.keys().filter(wider).map(end));
    }
    ends
}

fn peer_of(image: &Image, end: &End) -> Option<Peer> {
    let by_address = end.address.map_or(Peer::UNKNOWN, |a| image.peer(&Addr::from(a)));
    match &end.workload {
        Some(segments) => {
            let identity = image.classes.get(segments)?.identity;
            Some(Peer { identity, ..by_address })
        }
        None => Some(by_address),
    }
}

fn explain<'a>(
    resolved: &'a Resolved,
    segments: &SegmentSet,
    direction: Direction,
    decision: Decision,
) -> EndJudgement<'a> {
    let rule = decision.rule.checked_sub(1).and_then(|i| resolved.rules.get(i as usize));
    // A default deny is the doing of those that enforce; what audit reports, of those in audit
    // mode.
    let strictness = if decision.audit { Isolation::Audit } else { Isolation::Enforce };
    let isolates = |segment: &&Segment| segment.isolation(direction) == strictness;
    let isolating = if decision.reason == Reason::Isolation {
        let segments = segments.iter().filter_map(|s| resolved.segments.get(s.0 as usize));
        segments.filter(isolates).collect()
    } else {
        Vec::new()
    };
    EndJudgement { direction, decision, rule, isolating }
}

impl fmt::Display for EndJudgement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = self.direction.name();
        let verdict = match (self.decision.verdict, self.decision.audit) {
            (Verdict::Deny, _) => "denied",
            (Verdict::Allow, false) => "allowed",
            (Verdict::Allow, true) => "allowed, but without audit mode it would be denied",
        };
        write!(f, "{direction} {verdict}")?;
        match (self.rule, self.decision.reason) {
            (Some(rule), _) => write!(f, " by rule {} ({})", rule.name, rule.position),
            (None, Reason::Isolation) => {
                let names: Vec<_> = self.isolating.iter().map(|s| s.name.as_str()).collect();
                let (noun, verb) = match names.len() {
                    1 => ("segment", "isolates"),
                    _ => ("segments", "isolate"),
                };
                let names = names.join(", ");
                write!(f, ": no rule allows it, and {noun} {names} {verb} {direction}")
            }
            (None, Reason::NoIsolation) => {
                write!(f, ": no rule matches, and no segment of this workload isolates {direction}")
            }
            (None, reason) => write!(f, ": {}", reason.name()),
        }?;
        // A denial is reported in any case.
        if self.decision.log && self.decision.verdict == Verdict::Allow {
            f.write_str("; it is reported (`log`)")?;
        }
        if self.decision.reject {
            f.write_str("; who asks is told at once (`reject`)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ztseg_common::addr::proto;

    use super::*;
    use crate::datapath::Capacity;
    use crate::inventory::Membership;
    use crate::policy::compile::compile;
    use crate::policy::resolved::{Action, Ends, Mode, Network, PortRange, Side, Tier};
    use crate::policy::source::Position;

    fn segment(name: &str, isolation: Isolation, addresses: &[&str]) -> Segment {
        Segment {
            name: name.into(),
            policy: "shop".into(),
            ingress: isolation,
            egress: isolation,
            reject: false,
            selectors: Vec::new(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            position: Position { file: "shop.yaml".into(), line: 3, column: 5 },
        }
    }

    fn rule(name: &str, action: Action, from: Side, to: Side) -> Rule {
        Rule {
            name: format!("shop/{name}"),
            tier: Tier::Application,
            action,
            mode: Mode::Enforce,
            log: false,
            reject: false,
            expires: None,
            from,
            to,
            ports: vec![PortRange { protocol: Some(proto::TCP), first: 5432, last: 5432 }],
            position: Position { file: "shop.yaml".into(), line: 9, column: 7 },
            ends: Ends::Both,
            built_in: false,
        }
    }

    fn side(segment: u32) -> Side {
        Side { segments: vec![SegmentId(segment)], ..Side::default() }
    }

    fn network(cidr: &str) -> Side {
        let network = Network { cidr: cidr.parse().unwrap(), except: Vec::new() };
        Side { networks: [network].into(), ..Side::default() }
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const WEB: u32 = 0;
    const DB: u32 = 1;
    const STAGE: u32 = 2;

    fn policy() -> Resolved {
        Resolved {
            segments: vec![
                segment("web", Isolation::Enforce, &["192.0.2.0/24"]),
                segment("db", Isolation::Enforce, &[]),
                segment("stage", Isolation::Audit, &[]),
            ],
            rules: vec![
                rule("no-guest", Action::Deny, network("192.0.2.66/32"), side(DB)),
                rule("no-stage", Action::Deny, side(STAGE), side(DB)),
                rule("web-to-db", Action::Allow, side(WEB), side(DB)),
            ],
            failsafe: None,
        }
    }

    fn flow(from: End, to: End) -> Flow {
        Flow { from, to, protocol: proto::TCP, port: 5432 }
    }

    fn local(segment: u32) -> End {
        End::workload([SegmentId(segment)])
    }

    fn elsewhere(address: &str) -> End {
        End::address(address.parse().unwrap())
    }

    fn image(resolved: &Resolved, sets: &[&[u32]]) -> Image {
        let memberships: Vec<_> = (1..)
            .zip(sets)
            .map(|(index, set)| Membership {
                key: index,
                name: format!("/w{index}"),
                level: Some(1),
                segments: set.iter().copied().map(SegmentId).collect(),
            })
            .collect();
        compile(resolved, &memberships, &Capacity::default()).unwrap()
    }

    #[test]
    fn both_ends_are_asked_and_say_why() {
        let resolved = policy();
        let image = image(&resolved, &[]);
        let says = |from: End, to: End| {
            let judgement = judge(&resolved, &image, NOW, &flow(from, to)).unwrap();
            let lines: Vec<_> = judgement.ends().map(ToString::to_string).collect();
            (judgement.verdict(), lines.join("; "))
        };
        for (from, to, verdict, text) in [
            (
                local(WEB),
                local(DB),
                Verdict::Allow,
                "egress allowed by rule shop/web-to-db (shop.yaml:9:7); \
                 ingress allowed by rule shop/web-to-db (shop.yaml:9:7)",
            ),
            (
                local(DB),
                local(WEB),
                Verdict::Deny,
                "egress denied: no rule allows it, and segment db isolates egress; \
                 ingress denied: no rule allows it, and segment web isolates ingress",
            ),
            (
                elsewhere("192.0.2.1"),
                local(DB),
                Verdict::Allow,
                "ingress allowed by rule shop/web-to-db (shop.yaml:9:7)",
            ),
            (
                elsewhere("192.0.2.66"),
                local(DB),
                Verdict::Deny,
                "ingress denied by rule shop/no-guest (shop.yaml:9:7)",
            ),
            (
                local(STAGE),
                elsewhere("198.51.100.1"),
                Verdict::Allow,
                "egress allowed, but without audit mode it would be denied: no rule allows it, \
                 and segment stage isolates egress",
            ),
            (
                End::workload([]),
                elsewhere("198.51.100.1"),
                Verdict::Allow,
                "egress allowed: no rule matches, and no segment of this workload isolates egress",
            ),
            (elsewhere("198.51.100.1"), elsewhere("198.51.100.2"), Verdict::Allow, ""),
        ] {
            assert_eq!(says(from, to), (verdict, text.to_owned()));
        }
    }

    #[test]
    fn who_is_told_is_said() {
        let mut resolved = policy();
        for rule in &mut resolved.rules {
            rule.log = true;
            rule.reject = rule.action == Action::Deny;
        }
        let image = image(&resolved, &[]);
        for (from, text) in [
            (
                "192.0.2.1",
                "ingress allowed by rule shop/web-to-db (shop.yaml:9:7); it is reported (`log`)",
            ),
            (
                "192.0.2.66",
                "ingress denied by rule shop/no-guest (shop.yaml:9:7); who asks is told at once \
                 (`reject`)",
            ),
        ] {
            let judgement = judge(&resolved, &image, NOW, &flow(elsewhere(from), local(DB)));
            let ingress = judgement.and_then(|judgement| judgement.ingress).unwrap();
            assert_eq!(ingress.to_string(), text);
        }
    }

    #[test]
    fn a_workload_in_more_segments_can_contradict() {
        let resolved = policy();
        let alone = image(&resolved, &[&[WEB]]);
        let asked = flow(local(WEB), local(DB));
        assert_eq!(counterexample(&resolved, &alone, NOW, &asked, Verdict::Allow), None);
        let mixed = image(&resolved, &[&[WEB], &[WEB, STAGE]]);
        let (flow, judgement) = counterexample(&resolved, &mixed, NOW, &asked, Verdict::Allow)
            .expect("stage is denied");
        assert_eq!(flow.from, End::workload([SegmentId(WEB), SegmentId(STAGE)]));
        let denying = judgement.denying().and_then(|end| end.rule);
        assert_eq!(denying.map(|r| r.name.as_str()), Some("shop/no-stage"));
    }

    #[test]
    fn a_set_without_classes_has_no_answer() {
        let resolved = policy();
        let both = End::workload([SegmentId(WEB), SegmentId(DB)]);
        assert_eq!(judge(&resolved, &image(&resolved, &[]), NOW, &flow(both, local(DB))), None);
    }
}
