//! Random rules: of several policies, in all tiers, in the order of evaluation.

use fastrand::Rng;

use super::{PORTS, PROTOCOLS, moment, net, pick, position};
use crate::policy::resolved::{
    Action, Ends, Mode, Network, PortRange, Rule, SegmentId, Side, Tier,
};

/// One of several policies.
struct Policy {
    tier: Tier,
    /// No two policies have the same.
    priority: usize,
    mode: Mode,
}

/// The rules of some policies, in the order of evaluation.
pub(super) fn rules(rng: &mut Rng, segments: u32) -> Vec<Rule> {
    const TIERS: [Tier; 5] =
        [Tier::Application, Tier::Application, Tier::Admin, Tier::Admin, Tier::Baseline];
    let mut priorities: Vec<usize> = (0..rng.usize(1..7)).collect();
    rng.shuffle(&mut priorities);
    let policy = |priority| Policy {
        tier: pick(rng, &TIERS),
        priority,
        mode: pick(rng, &[Mode::Enforce, Mode::Enforce, Mode::Audit]),
    };
    let policies: Vec<Policy> = priorities.into_iter().map(policy).collect();
    let mut rules = Vec::new();
    for place in 0..rng.usize(0..20) {
        let policy = &policies[rng.usize(0..policies.len())];
        let Some(mut rule) = rule(rng, segments, policy) else { continue };
        rule.name = format!("p{}/rule-{place}", policy.priority);
        // All policies of the application tier are looked at together.
        let ordered = policy.tier != Tier::Application;
        let priority = if ordered { policy.priority } else { 0 };
        rules.push(((policy.tier, priority, rule.action), rule));
    }
    rules.sort_by_key(|(order, _)| *order);
    rules.into_iter().map(|(_, rule)| rule).collect()
}

/// A rule, unless no side at which it holds makes a subject.
fn rule(rng: &mut Rng, segments: u32, policy: &Policy) -> Option<Rule> {
    let actions: &[Action] = match policy.tier {
        Tier::Application => &[Action::Deny, Action::Allow],
        Tier::Admin | Tier::Baseline => &[Action::Deny, Action::Allow, Action::Pass],
    };
    let (from, to) = (side(rng, segments), side(rng, segments));
    let is_subject = |side: &Side| side.any || !side.segments.is_empty();
    let action = pick(rng, actions);
    let ends = if rng.bool() { Ends::Both } else { pick(rng, &[Ends::Ingress, Ends::Egress]) };
    let has_subject = match ends {
        Ends::Both => is_subject(&from) || is_subject(&to),
        Ends::Ingress => is_subject(&to),
        Ends::Egress => is_subject(&from),
    };
    has_subject.then(|| Rule {
        name: String::new(),
        tier: policy.tier,
        action,
        mode: policy.mode,
        log: rng.bool(),
        reject: action == Action::Deny && rng.u8(0..4) == 0,
        expires: (rng.u8(0..3) == 0).then(|| moment(rng)),
        from,
        to,
        ports: (0..rng.usize(1..3)).map(|_| ports(rng)).collect(),
        position: position(),
        ends,
        built_in: false,
    })
}

fn side(rng: &mut Rng, segments: u32) -> Side {
    let mut side = Side::default();
    if rng.u8(0..8) == 0 {
        side.any = true;
        // `[any, office]` is allowed.
        if rng.bool() {
            return side;
        }
    }
    if segments > 0 && rng.u8(0..3) != 0 {
        side.segments = (0..rng.usize(1..3)).map(|_| SegmentId(rng.u32(0..segments))).collect();
    }
    if side.segments.is_empty() || rng.u8(0..4) == 0 {
        side.networks = (0..rng.usize(1..3)).map(|_| network(rng)).collect();
    }
    side
}

fn network(rng: &mut Rng) -> Network {
    let except = if rng.bool() { 0 } else { rng.usize(0..4) };
    Network { cidr: net(rng), except: (0..except).map(|_| net(rng)).collect() }
}

fn ports(rng: &mut Rng) -> PortRange {
    if rng.u8(0..6) == 0 {
        return PortRange::ANY;
    }
    let protocol = Some(pick(rng, &PROTOCOLS));
    let (a, b) = (pick(rng, &PORTS), pick(rng, &PORTS));
    match rng.u8(0..3) {
        0 => PortRange { protocol, first: 0, last: u16::MAX },
        1 => PortRange { protocol, first: a, last: a },
        _ => PortRange { protocol, first: a.min(b), last: a.max(b) },
    }
}
