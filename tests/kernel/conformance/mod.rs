//! Cases of Kubernetes' policies that others wrote, on this kernel, at both kinds of hooks: each pod is
//! a cgroup or what is behind an interface, and each probe a socket there. The states of one test
//! follow each other as live updates.

mod ends;
mod scene;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztseg_common::addr::proto;
use ztseg_tests::conformance::{folder, is_asked, list, read, service, text};

use self::ends::Hooks;
use self::scene::Scene;
use crate::Body;
use crate::environment::Lacking;

/// The tests of this folder.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("conformance::kubernetes_end_to_end_on_ipv4", |_| suite("k8s-e2e-ipv4", CGROUP, ALL)),
    ("conformance::kubernetes_end_to_end_on_ipv6", |_| suite("k8s-e2e-ipv6", CGROUP, ALL)),
    ("conformance::recipes", |_| suite("recipes", CGROUP, ALL)),
    ("conformance::kubernetes_end_to_end_on_ipv4_at_tc", |_| suite("k8s-e2e-ipv4", TC, ALL)),
    ("conformance::kubernetes_end_to_end_on_ipv6_at_tc", |_| suite("k8s-e2e-ipv6", TC, ALL)),
    ("conformance::recipes_at_tc", |_| suite("recipes", TC, ALL)),
    ("conformance::cyclonus_on_ipv4_at_tc", |_| suite("cyclonus-ipv4", TC, SCTP_PORTS)),
    ("conformance::cyclonus_on_ipv6_at_tc", |_| suite("cyclonus-ipv6", TC, ALL)),
    ("conformance::np_guard_at_tc", |_| suite("npguard", TC, SCTP_PORTS)),
];

const CGROUP: Hooks = Hooks::Cgroup;
const TC: Hooks = Hooks::Tc;

/// Which states of a suite are asked, and in words which and why where it is not all.
type Choice = (fn(&Value) -> bool, &'static str);

const ALL: Choice = (|_| true, "");
/// The end-to-end tests have none of these: they would not notice if the ports of SCTP meant nothing.
const SCTP_PORTS: Choice =
    (port_of_sctp_decides, " in which the port of SCTP decides (all would take too long)");

/// Whether a pair of ends has both answers over SCTP.
fn port_of_sctp_decides(state: &Value) -> bool {
    let mut answers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let probes = list(state, "probes").iter().filter(|probe| is_asked(probe));
    for probe in probes.filter(|probe| service(probe).0 == proto::SCTP) {
        let ends = (text(probe, "from"), text(probe, "to"));
        answers.entry(ends).or_default().insert(text(probe, "expect"));
    }
    answers.values().any(|answers| answers.len() > 1)
}

/// What was asked.
#[derive(Debug, Default)]
struct Tally {
    states: usize,
    updates: usize,
    allowed: usize,
    denied: usize,
    /// Of SCTP, asked or not.
    sctp: usize,
}

fn suite(name: &str, hooks: Hooks, (is_chosen, why): Choice) -> Result<()> {
    let folder = folder().map_err(Lacking)?;
    let mut cases = read(&folder.join("cases.jsonl"));
    cases.retain(|case| text(case, "suite") == name);
    ensure!(!cases.is_empty(), "there is no suite {name}");
    cases.retain(is_chosen);
    let mut tally = Tally::default();
    let mut scene = None;
    for states in cases.chunk_by(|a, b| sequence(a).is_some() && sequence(a) == sequence(b)) {
        one_after_the_other(states, hooks, &mut scene, &mut tally)
            .with_context(|| format!("in {}", text(&states[0], "name")))?;
    }
    let sctp = if hooks.judge(proto::SCTP) {
        "of SCTP among them"
    } else {
        "of SCTP not asked: these hooks do not judge it"
    };
    println!(
        "{name} at the {hooks}: {} states{why}, {} of them live updates; {} probes allowed and {} denied as \
         expected, each with an answer without a policy; {} {sctp}",
        tally.states, tally.updates, tally.allowed, tally.denied, tally.sctp
    );
    ensure!(tally.allowed > 0 && tally.denied > 0, "{tally:?}");
    Ok(())
}

/// Which test a state is a step of.
fn sequence(case: &Value) -> Option<&str> {
    case.get("sequence")?.get("id")?.as_str()
}

fn one_after_the_other(
    states: &[Value],
    hooks: Hooks,
    scene: &mut Option<Scene>,
    tally: &mut Tally,
) -> Result<()> {
    let is_ours = |probe: &&Value| is_asked(probe) && hooks.judge(service(probe).0);
    let probes = |state| list(state, "probes").iter().filter(is_ours);
    let all: Vec<&Value> = states.iter().flat_map(probes).collect();
    let sctp = |probe: &&Value| is_asked(probe) && service(probe).0 == proto::SCTP;
    tally.sctp += states.iter().flat_map(|s| list(s, "probes")).filter(sctp).count();
    tally.states += states.len();
    tally.updates += states.len() - 1;
    if all.is_empty() {
        return Ok(());
    }
    if scene.as_ref().is_none_or(|scene| !scene.has_room_for(states)) {
        // The one before ends first.
        drop(scene.take());
    }
    let scene = match scene {
        Some(scene) => scene,
        None => scene.insert(Scene::new(hooks)?),
    };
    scene.add(states, &all)?;
    // A server that is not there would look like a denial.
    scene.ask(&all, |_| true).context("without a policy")?;
    for state in states {
        scene.enforce(state)?;
        let expected = |probe: &Value| text(probe, "expect") == "allow";
        let probes: Vec<&Value> = probes(state).collect();
        scene.ask(&probes, expected).with_context(|| text(state, "name").to_owned())?;
        let allowed = probes.iter().filter(|probe| expected(probe)).count();
        tally.allowed += allowed;
        tally.denied += probes.len() - allowed;
    }
    Ok(())
}
