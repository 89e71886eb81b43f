//! The oracle: evaluates a resolved policy rule by rule, as its meaning is written down.
//!
//! It is slow on purpose and shares no code with the compiler or the evaluator, so that the tests
//! can hold those against it. Self traffic and packets that the kernel makes are outside: no rule
//! is asked about them.

use std::net::IpAddr;

use jiff::Timestamp;
use ztseg_common::verdict::Direction;

use super::resolved::{
    Action, Isolation, Mode, Resolved, Rule, Segment, SegmentId, Side, Tier, in_net,
};
use crate::image::SegmentSet;

/// What is known of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// The segments of its workload, where that is on this host and known.
    pub known: Option<SegmentSet>,
    /// It is a local port that nobody listens on.
    pub nobody: bool,
    /// The address that the flow uses.
    pub address: IpAddr,
}

/// What the oracle says.
#[expect(clippy::struct_excessive_bools, reason = "they are answers, each to its own question")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OracleDecision {
    /// Whether the flow passes.
    pub allow: bool,
    /// The index in [`Resolved::rules`] of the rule that decided; with `audit`, of the rule that
    /// would deny.
    pub rule: Option<usize>,
    /// The flow passes, and would not if everything enforced.
    pub audit: bool,
    /// No rule decided, but isolation; with `audit`, isolation would deny.
    pub default_deny: bool,
    /// The rule that decided asks for a report.
    pub log: bool,
    /// The rule that decided, or a segment whose isolation did, asks for an answer to that.
    pub reject: bool,
}

/// May `subject` have this flow with `peer`, as long as no rule has ended?
pub fn decide(
    resolved: &Resolved,
    subject: &SegmentSet,
    peer: &PeerFacts,
    direction: Direction,
    protocol: u8,
    port: u16,
) -> OracleDecision {
    decide_at(Timestamp::MIN, resolved, subject, peer, direction, (protocol, port))
}

/// As [`decide`], with the rules that have not ended at `now`.
pub fn decide_at(
    now: Timestamp,
    resolved: &Resolved,
    subject: &SegmentSet,
    peer: &PeerFacts,
    direction: Direction,
    (protocol, port): (u8, u16),
) -> OracleDecision {
    let isolation: Vec<Isolation> = subject
        .iter()
        .filter_map(|id| resolved.segments.get(id.0 as usize))
        .map(|s| if direction == Direction::Ingress { s.ingress } else { s.egress })
        .collect();
    // What no policy concerns needs no way out of it.
    let concerned = isolation.iter().any(|i| *i != Isolation::Open)
        || resolved.rules.iter().any(|rule| {
            let mine = if direction == Direction::Ingress { &rule.to } else { &rule.from };
            !rule.built_in && rule.ends.hold(direction) && is_subject(mine, subject)
        });
    let matching: Vec<(usize, &Rule)> = resolved
        .rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| {
            let (mine, theirs) = match direction {
                Direction::Egress => (&rule.from, &rule.to),
                Direction::Ingress => (&rule.to, &rule.from),
            };
            rule.expires.is_none_or(|end| now < end)
                && rule.ends.hold(direction)
                && is_subject(mine, subject)
                && (concerned || !rule.built_in)
                && is_peer(resolved, rule, theirs, peer, direction)
                && rule.ports.iter().any(|p| p.contains(protocol, port))
        })
        .collect();

    let enforced: Vec<_> = matching
        .iter()
        .copied()
        .filter(|(_, rule)| !(rule.action == Action::Deny && rule.mode == Mode::Audit))
        .collect();
    let mut effective = evaluate(&enforced, isolation.contains(&Isolation::Enforce));
    if effective.default_deny {
        // The isolation of any segment that denies here may ask for an answer.
        effective.reject = subject.iter().any(|id| {
            let segment = resolved.segments.get(id.0 as usize);
            let own =
                |s: &Segment| if direction == Direction::Ingress { s.ingress } else { s.egress };
            segment.is_some_and(|s| s.reject && own(s) == Isolation::Enforce)
        });
    }
    let shadow = evaluate(&matching, isolation.iter().any(|i| *i != Isolation::Open));
    if effective.allow && !shadow.allow {
        OracleDecision { allow: true, audit: true, log: false, reject: false, ..shadow }
    } else {
        effective
    }
}

fn is_subject(side: &Side, segments: &SegmentSet) -> bool {
    side.any || side.segments.iter().any(|s| segments.contains(s))
}

fn is_peer(
    resolved: &Resolved,
    rule: &Rule,
    side: &Side,
    peer: &PeerFacts,
    direction: Direction,
) -> bool {
    if side.any || side.networks.iter().any(|n| n.contains(peer.address)) {
        return true;
    }
    if peer.nobody {
        return direction == Direction::Egress
            && rule.action != Action::Deny
            && !side.segments.is_empty();
    }
    let is_in = |segment: &SegmentId| match &peer.known {
        Some(segments) => segments.contains(segment),
        None => resolved
            .segments
            .get(segment.0 as usize)
            .is_some_and(|s| s.addresses.iter().any(|net| in_net(*net, peer.address))),
    };
    side.segments.iter().any(is_in)
}

/// Tier by tier; in each, the first rule.
fn evaluate(rules: &[(usize, &Rule)], isolated: bool) -> OracleDecision {
    let decision = OracleDecision {
        allow: true,
        rule: None,
        audit: false,
        default_deny: false,
        log: false,
        reject: false,
    };
    for tier in [Tier::Admin, Tier::Application, Tier::Baseline] {
        if let Some((index, rule)) = rules.iter().find(|(_, rule)| rule.tier == tier) {
            let decided = OracleDecision { rule: Some(*index), log: rule.log, ..decision };
            match rule.action {
                Action::Allow => return decided,
                Action::Deny => {
                    return OracleDecision { allow: false, reject: rule.reject, ..decided };
                }
                Action::Pass => {}
            }
        }
        if tier == Tier::Application && isolated {
            return OracleDecision { allow: false, default_deny: true, ..decision };
        }
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::resolved::{Ends, PortRange};
    use crate::policy::source::Position;

    fn position() -> Position {
        Position { file: "p.yaml".into(), line: 1, column: 1 }
    }

    fn rule(action: Action, from: Side, to: Side) -> Rule {
        Rule {
            name: "p/r".into(),
            tier: Tier::Application,
            action,
            mode: Mode::Enforce,
            log: false,
            reject: false,
            expires: None,
            from,
            to,
            ports: vec![PortRange { protocol: Some(6), first: 80, last: 80 }],
            position: position(),
            ends: Ends::Both,
            built_in: false,
        }
    }

    fn segments(list: &[u32]) -> Side {
        Side { segments: list.iter().copied().map(SegmentId).collect(), ..Side::default() }
    }

    fn policy(rules: Vec<Rule>) -> Resolved {
        let segment = |name: &str, addresses: &[&str]| Segment {
            name: name.into(),
            policy: "p".into(),
            ingress: Isolation::Enforce,
            egress: Isolation::Enforce,
            reject: false,
            selectors: Vec::new(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            position: position(),
        };
        let segments = vec![segment("web", &[]), segment("db", &["192.0.2.0/24"])];
        Resolved { segments, rules, failsafe: None }
    }

    fn peer(known: Option<u32>, address: &str) -> PeerFacts {
        let known = known.map(|s| [SegmentId(s)].into());
        PeerFacts { known, nobody: false, address: address.parse().unwrap() }
    }

    fn egress(policy: &Resolved, peer: &PeerFacts) -> (bool, Option<usize>) {
        let d = decide(policy, &[SegmentId(0)].into(), peer, Direction::Egress, 6, 80);
        (d.allow, d.rule)
    }

    #[test]
    fn a_segment_is_met_by_identity_and_only_elsewhere_by_address() {
        let p = policy(vec![rule(Action::Allow, segments(&[0]), segments(&[1]))]);
        assert_eq!(egress(&p, &peer(Some(1), "10.0.0.1")), (true, Some(0)));
        assert_eq!(egress(&p, &peer(Some(0), "192.0.2.1")), (false, None));
        assert_eq!(egress(&p, &peer(None, "192.0.2.1")), (true, Some(0)));
        assert_eq!(egress(&p, &peer(None, "::ffff:192.0.2.1")), (true, Some(0)));
        assert_eq!(egress(&p, &peer(None, "10.0.0.1")), (false, None));
        let d =
            decide(&p, &[SegmentId(0)].into(), &peer(Some(1), "::1"), Direction::Ingress, 6, 80);
        assert!(!d.allow && d.default_deny, "the rule is egress at its `from`");
    }

    #[test]
    fn nobody_is_met_by_allow_rules_to_segments_on_egress_only() {
        let nobody = PeerFacts { nobody: true, ..peer(None, "192.0.2.1") };
        let p = policy(vec![rule(Action::Allow, segments(&[0]), segments(&[1]))]);
        assert_eq!(egress(&p, &nobody), (true, Some(0)));
        let p = policy(vec![rule(Action::Deny, segments(&[0]), segments(&[1]))]);
        assert_eq!(egress(&p, &nobody), (false, None));
        let p = policy(vec![rule(Action::Allow, segments(&[1]), segments(&[0]))]);
        let d = decide(&p, &[SegmentId(0)].into(), &nobody, Direction::Ingress, 6, 80);
        assert_eq!((d.allow, d.rule), (false, None));
    }

    #[test]
    fn a_rule_of_one_end_says_nothing_at_the_other() {
        let one = |ends| Rule { ends, ..rule(Action::Allow, segments(&[0]), segments(&[1])) };
        let asked = |ends, direction| {
            let (subject, other) = if direction == Direction::Egress { (0, 1) } else { (1, 0) };
            let p = policy(vec![one(ends)]);
            let peer = peer(Some(other), "10.0.0.1");
            decide(&p, &[SegmentId(subject)].into(), &peer, direction, 6, 80).allow
        };
        for (ends, egress, ingress) in
            [(Ends::Both, true, true), (Ends::Egress, true, false), (Ends::Ingress, false, true)]
        {
            let found = (asked(ends, Direction::Egress), asked(ends, Direction::Ingress));
            assert_eq!(found, (egress, ingress), "{ends:?}");
        }
    }
}
