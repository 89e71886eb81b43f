//! Random `match` entries.

use fastrand::Rng;

use super::{Container, Entry, Labels, Match, NETWORKS, PodMatch, pick};

const UNITS: [&str; 8] = [
    "a.service",
    "a*",
    "*.service",
    "*",
    "ab.service",
    "db@*.service",
    "run-*.scope",
    "user@1.service",
];
/// What stands between the slashes of a path.
const PARTS: [&str; 12] = [
    "a",
    "b",
    "a*",
    "*",
    "**",
    "**",
    "*b",
    "ab",
    "system.slice",
    "*.slice",
    "a.service",
    "x.slice",
];
const CONTAINERS: [&str; 5] = ["web-1", "web-*", "*-1", "*", "db"];
const IMAGES: [&str; 4] =
    ["registry.example/web:*", "registry.example/web:1.2", "*:1*", "docker.io/db:1"];
const NAMESPACES: [&str; 5] = ["shop", "shop*", "*", "default", "*-b"];
const ACCOUNTS: [&str; 5] = ["default", "web", "web*", "*", "*.x"];
const INTERFACES: [&str; 5] = ["tap-*", "tap-web*", "eth0", "*", "tap-db"];
/// A number is the same with zeros before it; a name is never a number.
pub(super) const USERS: [&str; 4] = ["root", "0", "33", "033"];
const LABELS: [(&str, &str); 5] =
    [("app", "web"), ("app", "db"), ("tier", "front"), ("tier", ""), ("example.org/a", "b")];

/// A random entry; `of_pods` asks for pods.
pub(super) fn entry(rng: &mut Rng, of_pods: bool) -> Entry {
    if of_pods {
        return Entry::Workloads(runs(rng, true));
    }
    match rng.u8(0..9) {
        0 => {
            let networks = (0..rng.usize(1..3)).map(|_| pick(rng, &NETWORKS));
            Entry::Addresses(networks.collect())
        }
        1 => {
            Entry::Workloads(Match { interface: Some(pick(rng, &INTERFACES)), ..Match::default() })
        }
        2 => Entry::Workloads(Match {
            host: true,
            user: (rng.u8(0..3) == 0).then(|| pick(rng, &USERS)),
            ..Match::default()
        }),
        _ => Entry::Workloads(runs(rng, false)),
    }
}

/// One of the fields that ask what runs, mostly, sometimes several.
fn runs(rng: &mut Rng, of_pods: bool) -> Match {
    let mut entry = Match::default();
    match rng.u8(0..6) {
        _ if of_pods => entry.pod = Some(pod(rng)),
        0 => entry.unit = Some(pick(rng, &UNITS)),
        1 | 2 => entry.cgroup = Some(path(rng)),
        3 => entry.container = Some(container(rng)),
        4 => entry.pod = Some(pod(rng)),
        _ => entry.user = Some(pick(rng, &USERS)),
    }
    match rng.u8(0..12) {
        0 => entry.unit = Some(pick(rng, &UNITS)),
        1 | 2 => entry.cgroup = Some(path(rng)),
        3 => entry.container = Some(container(rng)),
        4 => entry.pod = Some(pod(rng)),
        5 | 6 => entry.user = Some(pick(rng, &USERS)),
        _ => {}
    }
    entry
}

fn path(rng: &mut Rng) -> String {
    let parts = (0..pick(rng, &[1, 1, 2, 2, 3, 4])).map(|_| pick(rng, &PARTS));
    format!("/{}", parts.collect::<Vec<_>>().join("/"))
}

fn container(rng: &mut Rng) -> Container {
    let mut asked = Container::default();
    for _ in 0..pick(rng, &[1, 1, 2]) {
        match rng.u8(0..3) {
            0 => asked.name = Some(pick(rng, &CONTAINERS)),
            1 => asked.image = Some(pick(rng, &IMAGES)),
            _ => asked.labels = labels(rng, &LABELS, &[1, 1, 2]),
        }
    }
    asked
}

fn pod(rng: &mut Rng) -> PodMatch {
    let mut asked = PodMatch::default();
    for _ in 0..pick(rng, &[1, 1, 2]) {
        match rng.u8(0..3) {
            0 => asked.namespace = Some(pick(rng, &NAMESPACES)),
            1 => asked.service_account = Some(pick(rng, &ACCOUNTS)),
            _ => asked.labels = labels(rng, &LABELS, &[1, 1, 2]),
        }
    }
    asked
}

/// Some of a list of labels, each key once; at most one of `counts`.
pub(super) fn labels(
    rng: &mut Rng,
    of: &[(&'static str, &'static str)],
    counts: &[usize],
) -> Labels {
    let mut labels = Labels::new();
    for _ in 0..pick(rng, counts) {
        let label = pick(rng, of);
        if labels.iter().all(|(key, _)| *key != label.0) {
            labels.push(label);
        }
    }
    labels
}
