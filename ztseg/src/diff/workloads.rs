//! The workloads that two policies are compared for.

use std::collections::{BTreeMap, HashSet};

use crate::image::SegmentSet;
use crate::inventory::Inventory;
use crate::policy::Loaded;
use crate::policy::resolved::{Resolved, SegmentId, Selector};

/// A unit that nobody has in mind.
const NOTHING: &str = "/system.slice/ztseg-example.service";

/// A workload under both policies. Those with the same segments are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// How it is called: by its segments.
    pub name: String,
    /// Its segments under the old and under the new policy.
    pub segments: [SegmentSet; 2],
}

/// Every kind of workload that a selector of either policy can select by itself, each segment
/// alone, one that nothing selects, and those with these names (`/shop/web`, `interface:eth0`,
/// `host`).
pub fn of<'a>(
    old: &Resolved,
    new: &Resolved,
    names: impl IntoIterator<Item = &'a str>,
) -> Vec<Workload> {
    let inventories = [old, new].map(|resolved| {
        let mut inventory = Inventory::new();
        inventory.set_policy(resolved);
        inventory
    });
    let selectors = [old, new].into_iter().flat_map(|resolved| &resolved.segments);
    let typical = selectors.flat_map(|segment| &segment.selectors).map(example);
    let placed = std::iter::once(NOTHING.to_owned())
        .chain(typical)
        .chain(names.into_iter().map(str::to_owned))
        .map(|name| inventories.each_ref().map(|inventory| place(inventory, &name)));
    let alone = |resolved: &Resolved, name: &str| -> SegmentSet {
        let own = &resolved.segments[..resolved.own_segments()];
        let at = own.iter().position(|segment| segment.name == name);
        at.and_then(|at| u32::try_from(at).ok()).map(SegmentId).into_iter().collect()
    };
    let own = [old, new].into_iter().flat_map(|r| &r.segments[..r.own_segments()]);
    let alone = own.map(|segment| [alone(old, &segment.name), alone(new, &segment.name)]);
    let mut seen = HashSet::new();
    let sets: Vec<[SegmentSet; 2]> =
        placed.chain(alone).filter(|sets| seen.insert(sets.clone())).collect();
    sets.into_iter()
        .map(|segments| Workload { name: name(old, new, &segments), segments })
        .collect()
}

/// Adds the kinds of pods and workloads that are described for either side; one that only one side
/// has is in no segment on the other.
pub fn add_described(workloads: &mut Vec<Workload>, sides: [&Loaded; 2]) {
    let mut seen: HashSet<_> = workloads.iter().map(|w| w.segments.clone()).collect();
    // By name, with what either side makes of it; a pod of its node's network can be none.
    let mut described: BTreeMap<String, [Option<Option<SegmentSet>>; 2]> = BTreeMap::new();
    for (side, loaded) in sides.into_iter().enumerate() {
        let pods = loaded
            .pods
            .iter()
            .map(|pod| (format!("pods like {}/{}", pod.namespace, pod.name), pod.segments.clone()));
        let others = loaded.workloads.iter().map(|workload| {
            (format!("workloads like {}", workload.name), Some(workload.segments.clone()))
        });
        for (name, segments) in pods.chain(others) {
            described.entry(name).or_default()[side] = Some(segments);
        }
    }
    for (name, sets) in described {
        if sets.iter().flatten().all(Option::is_none) {
            continue;
        }
        let segments = sets.map(|set| set.flatten().unwrap_or_default());
        if seen.insert(segments.clone()) {
            workloads.push(Workload { name, segments });
        }
    }
}

fn place(inventory: &Inventory, name: &str) -> SegmentSet {
    match name.strip_prefix("interface:") {
        Some(interface) => inventory.interface(interface),
        None if name == "host" => inventory.owner_of("/").1,
        None => inventory.owner_of(name).1,
    }
}

/// The name of a workload that a selector selects; others may select it, too.
fn example(selector: &Selector) -> String {
    let Selector { cgroup, unit, container, pod, interface, user, host } = selector;
    if container.is_some() || pod.is_some() || user.is_some() {
        // Its place alone does not make it one.
        return NOTHING.to_owned();
    }
    let filled = |pattern: &str| pattern.replace("**", "x").replace('*', "x");
    match (cgroup, unit, interface) {
        _ if *host => "host".to_owned(),
        (None, None, Some(interface)) => format!("interface:{}", filled(interface)),
        (None, Some(unit), None) => format!("/system.slice/{}", filled(unit)),
        (Some(cgroup), Some(unit), None) => {
            let (path, unit) = (filled(cgroup), filled(unit));
            if path.ends_with(&unit) { path } else { format!("{path}/{unit}") }
        }
        (Some(cgroup), ..) => filled(cgroup),
        // Selects nothing.
        _ => NOTHING.to_owned(),
    }
}

fn name(old: &Resolved, new: &Resolved, segments: &[SegmentSet; 2]) -> String {
    let [before, after] = [(old, &segments[0]), (new, &segments[1])].map(|(resolved, set)| {
        let names = resolved.names(set);
        let built_in = resolved.failsafe.is_some_and(|id| set.contains(&id));
        match (names.is_empty(), built_in) {
            (false, false) => names.join("+"),
            (false, true) => format!("{} (failsafe)", names.join("+")),
            (true, false) => "workloads in no segment".to_owned(),
            (true, true) => "the host and failsafe units".to_owned(),
        }
    });
    if before == after { before } else { format!("{before} (now {after})") }
}
