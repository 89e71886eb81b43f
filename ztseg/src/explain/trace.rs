//! Each rule that holds for an end, with what it said and why.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ztseg_common::verdict::Direction;

use super::Asked;
use super::place::Place;
use crate::policy::resolved::{Action, Isolation, Mode, PortRange, Resolved, Rule, Side, Tier};

/// What became of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It matches and decides.
    Decides,
    /// It matches and would deny, but is in audit mode.
    Audit,
    /// It matches and hands over to the next tier.
    Passes,
    /// It matches, but something before it decided.
    TooLate,
    /// It does not match.
    NoMatch,
}

/// A rule that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Considered {
    /// `policy/name`
    pub rule: String,
    /// Where it stands.
    pub position: String,
    /// `admin`, `application` or `baseline`.
    pub tier: String,
    /// `allow`, `deny` or `pass`.
    pub action: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, in a few words.
    pub why: String,
}

/// Which end is asked, and who is at the other.
pub(super) struct Ends<'a> {
    pub(super) subject: &'a Place,
    pub(super) peer: &'a Place,
    pub(super) direction: Direction,
}

impl Ends<'_> {
    /// Whether a rule is about this end.
    fn concern(&self, rule: &Rule) -> bool {
        let set = self.subject.end.workload.as_ref();
        set.is_some_and(|set| rule.concerns(set, self.direction))
    }

    fn peers<'r>(&self, rule: &'r Rule) -> &'r Side {
        rule.sides(self.direction).1
    }
}

/// The rules that hold for an end in the order of evaluation, and how many others there are.
pub(super) fn trace(
    resolved: &Resolved,
    now: Timestamp,
    ends: &Ends<'_>,
    service: PortRange,
) -> (Vec<Considered>, usize) {
    let own: Vec<(usize, &Rule)> =
        resolved.rules.iter().enumerate().filter(|(_, rule)| ends.concern(rule)).collect();
    let set = ends.subject.end.workload.iter().flatten();
    let segments = set.filter_map(|id| resolved.segments.get(id.0 as usize));
    let isolation = segments.map(|segment| segment.isolation(ends.direction));
    // The strictest comes first.
    let isolation = isolation.min_by_key(|i| *i as u8).unwrap_or(Isolation::Open);
    // What no policy concerns needs no way out of it, so the built-in rules do not hold for it.
    let concerned = isolation != Isolation::Open || own.iter().any(|(_, rule)| !rule.built_in);
    let own: Vec<_> = own.into_iter().filter(|(_, rule)| concerned || !rule.built_in).collect();
    let others = resolved.own_rules() - own.iter().filter(|(_, rule)| !rule.built_in).count();
    let misses: Vec<Option<String>> =
        own.iter().map(|(_, rule)| miss(resolved, now, ends, service, rule)).collect();
    let matching: Vec<(usize, &Rule)> =
        own.iter().zip(&misses).filter(|(_, miss)| miss.is_none()).map(|(own, _)| *own).collect();
    let in_force: Vec<_> = matching.iter().copied().filter(|(_, rule)| !in_audit(rule)).collect();
    let decided = Deciders {
        effective: decider(&in_force, isolation == Isolation::Enforce),
        shadow: decider(&matching, isolation != Isolation::Open),
    };
    let considered = own.iter().zip(misses).map(|((index, rule), miss)| {
        let (outcome, why) = match miss {
            Some(why) => (Outcome::NoMatch, why),
            None => matched(*index, rule, &in_force, &decided),
        };
        Considered {
            rule: rule.name.clone(),
            position: rule.position.to_string(),
            tier: rule.tier.name().into(),
            action: rule.action.name().into(),
            outcome,
            why,
        }
    });
    (considered.collect(), others)
}

fn in_audit(rule: &Rule) -> bool {
    rule.action == Action::Deny && rule.mode == Mode::Audit
}

/// What decides at an end.
#[derive(Clone, Copy, Debug)]
enum Decider<'a> {
    Rule(usize, &'a Rule),
    Isolation,
    Nothing,
}

/// What decides, and what would if everything enforced.
struct Deciders<'a> {
    effective: Decider<'a>,
    shadow: Decider<'a>,
}

/// Tier by tier the first that matches; a pass leaves it to the next tier.
fn decider<'a>(matching: &[(usize, &'a Rule)], isolated: bool) -> Decider<'a> {
    for tier in [Tier::Admin, Tier::Application, Tier::Baseline] {
        match matching.iter().find(|(_, rule)| rule.tier == tier) {
            Some((index, rule)) if rule.action != Action::Pass => {
                return Decider::Rule(*index, rule);
            }
            _ if tier == Tier::Application && isolated => return Decider::Isolation,
            _ => {}
        }
    }
    Decider::Nothing
}

/// What became of a rule that matches.
fn matched(
    index: usize,
    rule: &Rule,
    in_force: &[(usize, &Rule)],
    decided: &Deciders<'_>,
) -> (Outcome, String) {
    if matches!(decided.effective, Decider::Rule(at, _) if at == index) {
        return (Outcome::Decides, "it decides".into());
    }
    if in_audit(rule) {
        let why = if matches!(decided.shadow, Decider::Rule(at, _) if at == index) {
            "it would deny, but its policy is in audit mode"
        } else {
            "it matches, but its policy is in audit mode"
        };
        return (Outcome::Audit, why.into());
    }
    let before = in_force.iter().find(|(at, other)| *at < index && other.tier == rule.tier);
    if let Some((_, other)) = before {
        return (Outcome::TooLate, format!("it matches, but `{}` does before it", other.name));
    }
    let before = match decided.effective {
        Decider::Rule(at, first) if at < index => {
            format!("`{}` of the {} tier", first.name, first.tier.name())
        }
        Decider::Isolation if rule.tier == Tier::Baseline => "isolation".to_owned(),
        // Whatever matches and does not decide, with nothing before it, passes.
        _ if rule.tier == Tier::Admin => {
            return (Outcome::Passes, "it hands over to the application tier".into());
        }
        _ => return (Outcome::Passes, "it hands over, and nothing comes after it".into()),
    };
    (Outcome::TooLate, format!("it matches, but {before} decides before it"))
}

/// Why a rule does not match; `None` where it does.
fn miss(
    resolved: &Resolved,
    now: Timestamp,
    ends: &Ends<'_>,
    service: PortRange,
    rule: &Rule,
) -> Option<String> {
    let mut why = Vec::new();
    if let Some(end) = rule.expires.filter(|end| *end <= now) {
        why.push(format!("it ended at {end}"));
    }
    let other = ends.peers(rule);
    let peer = &ends.peer.end;
    if !other.holds(resolved, peer.workload.as_ref(), peer.address) {
        why.push(format!("{} is not in {}", ends.peer.name, side(resolved, other)));
    }
    let (protocol, port) = (service.protocol.unwrap_or_default(), service.first);
    if !rule.ports.iter().any(|range| range.contains(protocol, port)) {
        let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
        why.push(format!("{service} is not in {}", listed(&ports)));
    }
    (!why.is_empty()).then(|| why.join("; "))
}

/// A side of a rule in words.
fn side(resolved: &Resolved, side: &Side) -> String {
    let segments = side.segments.iter().filter_map(|id| resolved.segments.get(id.0 as usize));
    let mut parts: Vec<_> = segments.map(|segment| segment.name.clone()).collect();
    parts.extend(side.networks.iter().map(|network| {
        let mut text = network.cidr.to_string();
        if !network.except.is_empty() {
            let except: Vec<_> = network.except.iter().map(ToString::to_string).collect();
            // Writing to a string does not fail.
            let _ = write!(text, " except {}", listed(&except));
        }
        text
    }));
    listed(&parts)
}

/// A list that is short enough to read.
fn listed(parts: &[String]) -> String {
    const MOST: usize = 4;
    let mut text = parts.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more) = parts.len().checked_sub(MOST).filter(|more| *more > 0) {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// What the answer rests on that may be otherwise for a real packet: the addresses that are not
/// known.
pub(super) fn notes(resolved: &Resolved, asked: &Asked) -> Vec<String> {
    let mut notes = Vec::new();
    for (subject, peer, direction) in
        [(&asked.from, &asked.to, Direction::Egress), (&asked.to, &asked.from, Direction::Ingress)]
    {
        let ends = Ends { subject, peer, direction };
        if peer.end.address.is_some() || subject.is_elsewhere() {
            continue;
        }
        let by_address = |rule: &&Rule| ends.concern(rule) && !ends.peers(rule).networks.is_empty();
        if let Some(rule) = resolved.rules.iter().find(by_address) {
            notes.push(format!(
                "the address of `{name}` is not known here, and `{}` names addresses: no CIDR was \
                 taken to hold it; ask with `{name}@ADDRESS`",
                rule.name,
                name = peer.name,
            ));
        }
    }
    notes
}
