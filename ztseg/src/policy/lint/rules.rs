//! Rules that decide nothing, and rules that allow nearly everything.

use std::collections::{HashMap, HashSet};

use ztseg_common::addr::proto;

use super::definitions::lists;
use super::{Check, Cover, Why, ports};
use crate::policy::Loaded;
use crate::policy::diagnostic::{Diagnostic, Span, quote};
use crate::policy::model::Policy;
use crate::policy::resolved::{Action, PortRange, Rule, Side, Tier};
use crate::policy::source::{Position, Source};

/// How many rules that cover another together are shown.
const MOST_SHOWN: usize = 4;

pub(super) fn look_at(
    loaded: &Loaded,
    policies: &[Policy],
    dead: Vec<(usize, Why)>,
    out: &mut Vec<Diagnostic>,
) {
    let rules = &loaded.resolved.rules;
    let teller = Teller { loaded, places: Places::new(policies, &loaded.sources) };
    let idle: HashSet<usize> =
        dead.iter().filter(|(_, why)| why.is_harmless()).map(|(index, _)| *index).collect();
    // A rule with names for ports is several here; it is dead where all of them are.
    let dead_ones: HashSet<usize> = dead.iter().map(|(index, _)| *index).collect();
    let alive = rules.iter().enumerate().filter(|(index, _)| !dead_ones.contains(index));
    let alive: HashSet<&Position> = alive.map(|(_, rule)| &rule.position).collect();
    let mut told = HashSet::new();
    for (index, why) in dead {
        let position = &rules[index].position;
        if !alive.contains(position) && told.insert(position) {
            out.extend(teller.dead(&rules[index], why));
        }
    }
    out.extend(rules.iter().filter_map(|rule| teller.without_pods(rule)));
    let live = rules.iter().enumerate().filter(|(index, _)| !idle.contains(index));
    for (_, rule) in live.filter(|(_, rule)| rule.action == Action::Allow) {
        out.extend(teller.places.own(rule).and_then(|span| wide_open(rule, span)));
    }
}

/// Where rules stand.
struct Places<'a> {
    sources: &'a [Source],
    /// By what [`Rule::position`] says, the rules of segment policies: their name where they have
    /// one, since a rule itself is known by its first character.
    own: HashMap<Position, Span>,
}

impl<'a> Places<'a> {
    fn new(policies: &[Policy], sources: &'a [Source]) -> Self {
        let rules = policies.iter().flat_map(lists).flat_map(|(_, rules)| rules);
        let own = rules.map(|rule| {
            let shown = rule.name.as_ref().map_or(rule.span, |name| name.span);
            (rule.span.position(sources), shown)
        });
        Self { own: own.collect(), sources }
    }

    /// The place of a rule, where that is of a segment policy.
    fn own(&self, rule: &Rule) -> Option<Span> {
        self.own.get(&rule.position).copied().filter(|_| !rule.built_in)
    }

    fn any(&self, rule: &Rule) -> Span {
        self.own(rule).unwrap_or_else(|| {
            let Position { file, line, column } = &rule.position;
            let file = self.sources.iter().position(|source| source.name == *file);
            let file = file.and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
            // Outside the text, so that the line and column alone are shown.
            Span { file, start: u32::MAX, end: u32::MAX, line: *line, column: *column }
        })
    }
}

struct Teller<'a> {
    loaded: &'a Loaded,
    places: Places<'a>,
}

impl Teller<'_> {
    /// A rule for a port's name that no pod has; without any manifest of a pod, nobody knows.
    fn without_pods(&self, rule: &Rule) -> Option<Diagnostic> {
        let span = self.places.own(rule).filter(|_| rule.to == Side::default())?;
        let message = format!(
            "the rule {} matches nothing: no pod in `to` has a port of this name",
            quote(&rule.name)
        );
        let help = "write a name that the containers of its pods have for a port, or the number";
        (!self.loaded.pods.is_empty()).then(|| Check::NeverMatches.at(span, message).help(help))
    }

    fn dead(&self, rule: &Rule, why: Why) -> Option<Diagnostic> {
        let span = self.places.own(rule)?;
        let name = quote(&rule.name);
        Some(match why {
            Why::Ended(end) => Check::EndedRule
                .at(span, format!("the rule {name} ended at {end}"))
                .help("remove it, or write a later `expires`"),
            Why::NoWorkload => {
                let message =
                    format!("the rule {name} matches nothing: no segment of it has workloads");
                let help = "name a segment that matches workloads in `from` or `to`; one that has only addresses is a peer";
                Check::NeverMatches.at(span, message).help(help)
            }
            Why::Duplicate(first) => {
                let first = &self.loaded.resolved.rules[first];
                let other = quote(&first.name);
                let message =
                    format!("the rule {name} says the same as {other}, which comes first");
                let label = "this rule says the same";
                let found = Check::DuplicateRule.at(span, message);
                let found = found.related(self.places.any(first), label);
                found.help(unless_told("remove one of them", rule, first))
            }
            Why::Shadowed(cover) => {
                let message = format!("the rule {name} never decides: {}", self.cause(&cover));
                let help = self.help(rule, &cover);
                self.related(Check::ShadowedRule.at(span, message), &cover).help(help)
            }
            Why::AllButNobody(cover) => {
                let message = format!("the rule {name} allows nothing: {}", self.cause(&cover));
                let found = self.related(Check::DeniedRule.at(span, message), &cover);
                found.help(
                    "remove it, or narrow what denies; only ports of this host that nobody listens on answer `connection refused` thanks to it",
                )
            }
        })
    }

    /// The rules that a cover names.
    fn rules(&self, cover: &Cover) -> Vec<&Rule> {
        let first = cover.alone.iter().take(1);
        first.chain(&cover.together).map(|index| &self.loaded.resolved.rules[*index]).collect()
    }

    fn cause(&self, cover: &Cover) -> String {
        let rules = self.rules(cover);
        let segments = &self.loaded.resolved.segments;
        let isolating = cover.isolating.iter().filter_map(|id| segments.get(id.0 as usize));
        let isolating: Vec<_> = isolating.map(|segment| quote(&segment.name)).collect();
        let mut causes = Vec::new();
        match rules.as_slice() {
            [] => {}
            [one] => causes.push(format!("{} decides all of its flows before", quote(&one.name))),
            several => {
                let names: Vec<_> =
                    several.iter().take(MOST_SHOWN).map(|rule| quote(&rule.name)).collect();
                let more = several.len() - names.len();
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                let names = names.join(", ");
                causes.push(format!("{names}{more} decide all of its flows before"));
            }
        }
        if !isolating.is_empty() {
            let of = if isolating.len() == 1 { "segment" } else { "segments" };
            let named = isolating.join(", ");
            causes.push(format!(
                "the isolation of {of} {named} ends what comes to the tier `baseline`"
            ));
        }
        causes.join("; ")
    }

    fn related(&self, found: Diagnostic, cover: &Cover) -> Diagnostic {
        let shown = self.rules(cover).into_iter().take(MOST_SHOWN);
        shown.fold(found, |found, rule| {
            let label = match rule.action {
                Action::Allow => "allowed before by this rule",
                Action::Deny => "denied before by this rule",
                Action::Pass => "passed on before by this rule",
            };
            found.related(self.places.any(rule), label)
        })
    }

    fn help(&self, rule: &Rule, cover: &Cover) -> String {
        let rules = self.rules(cover);
        let Some(first) = rules.first() else {
            return "remove it, or write it as a rule of the tier `application`".to_owned();
        };
        let contradicts = rules.iter().any(|other| other.action != rule.action);
        let what = if rules.len() == 1 { quote(&first.name) } else { "those rules".to_owned() };
        if first.tier == Tier::Application && rule.tier == first.tier && contradicts {
            return format!(
                "remove it, or narrow {what}: a deny rule beats every allow rule of the tier `application`"
            );
        }
        unless_told(&format!("remove it, or narrow {what}"), rule, first)
    }
}

/// What to do, and what would be lost: nobody reads the report of a rule that does not decide.
fn unless_told(help: &str, rule: &Rule, first: &Rule) -> String {
    if rule.log && !first.log && rule.action == first.action {
        format!("{help}; its `log: true` has no effect, set it at {}", quote(&first.name))
    } else {
        help.to_owned()
    }
}

/// A rule that lets everybody in, or out to everybody, on every port.
fn wide_open(rule: &Rule, span: Span) -> Option<Diagnostic> {
    let (from, to) = (everybody(&rule.from), everybody(&rule.to));
    let whole = [proto::TCP, proto::UDP].map(|p| PortRange { protocol: Some(p), ..PortRange::ANY });
    let which = if ports::cover(&rule.ports, &[PortRange::ANY]) {
        "every port of every protocol"
    } else if ports::cover(&rule.ports, &whole) {
        "every port of TCP and UDP"
    } else if ports::cover(&rule.ports, &whole[..1]) {
        "every port of TCP"
    } else if ports::cover(&rule.ports, &whole[1..]) {
        "every port of UDP"
    } else {
        return None;
    };
    let name = quote(&rule.name);
    let message = match (from, to) {
        (Some(who), _) => format!("the rule {name} lets {who} in, on {which}"),
        (None, Some(who)) => format!("the rule {name} lets its workloads out to {who}, on {which}"),
        (None, None) => return None,
    };
    let help = if from.is_some() {
        "name the ports that are needed, such as `ports: [tcp/443]`, or who may come"
    } else {
        "name the ports that are needed, such as `ports: [tcp/443]`, or where they may go"
    };
    Some(Check::WideOpen.at(span, message).help(help))
}

/// In words, whether a side is everybody, or everybody with an IPv4 or an IPv6 address.
fn everybody(side: &Side) -> Option<&'static str> {
    let whole = |v4: bool| {
        side.networks.iter().any(|network| {
            let cidr = network.cidr;
            cidr.prefix_len() == 0 && cidr.addr().is_ipv4() == v4 && network.except.is_empty()
        })
    };
    match (side.any, whole(true), whole(false)) {
        (true, _, _) | (_, true, true) => Some("everybody"),
        (_, true, _) => Some("every IPv4 address"),
        (_, _, true) => Some("every IPv6 address"),
        _ => None,
    }
}
