//! Random workloads: of documents, and pods of manifests.

use std::net::IpAddr;

use fastrand::Rng;
use ztseg_common::addr::proto;

use super::match_entry::{USERS, labels};
use super::policy::{NAMED_PORTS, PORTS};
use super::{Container, ContainerPort, Match, Pod, PodMatch, Runs, Workload, address, maybe, pick};

const UNITS: [&str; 5] = ["a.service", "ab.service", "db@1.service", "run-1.scope", "b.socket"];
/// Chains of slices, which units of the system manager are below.
const SLICES: [&str; 4] = ["/system.slice", "/x.slice", "/x.slice/x-y.slice", ""];
/// Paths that have no unit, or end in or below one: what looks like another is none.
pub(super) const PATHS: [&str; 14] = [
    "/",
    "/a",
    "/a/b",
    "/a/b/ab",
    "/b/a/b",
    "/ab/a.service",
    "/a/a.service/b",
    "/system.slice",
    "/system.slice/a.service",
    "/system.slice/ab.service/a/b",
    "/x.slice/x-y.slice/run-1.scope",
    "/user.slice/user@1.service/a.service",
    "/user.slice/user@1.service/x.slice/ab.service",
    "/x.slice/a",
];
const CONTAINERS: [&str; 4] = ["web-1", "web-2", "db-1", "db"];
const IMAGES: [&str; 4] =
    ["registry.example/web:1.2", "registry.example/web:2", "docker.io/db:1", "docker.io/db:12"];
const NAMESPACES: [&str; 4] = ["shop", "shop-b", "default", "ops"];
const ACCOUNTS: [&str; 4] = ["default", "web", "web-2", "web.x"];
pub(super) const INTERFACES: [&str; 4] = ["tap-web1", "tap-db", "eth0", "veth1"];
const LABELS: [(&str, &str); 7] = [
    ("app", "web"),
    ("app", "db"),
    ("tier", "front"),
    ("tier", "back"),
    ("tier", ""),
    ("example.org/a", "b"),
    ("other", "web"),
];

/// A random `kind: Workload` document.
pub(super) fn workload(rng: &mut Rng, number: usize) -> Workload {
    let user = (rng.u8(0..3) == 0).then(|| pick(rng, &USERS));
    let mut is = Match { user, ..Match::default() };
    match rng.u8(0..8) {
        0 => is = Match { interface: Some(pick(rng, &INTERFACES)), ..Match::default() },
        1 => is.user = Some(pick(rng, &USERS)),
        2 | 3 => is.cgroup = Some(pick(rng, &PATHS).to_owned()),
        4 => unit(rng, &mut is),
        kind => {
            // `/` is the host, and a container or a pod is not.
            match rng.u8(0..4) {
                0 => is.cgroup = Some(pick(rng, &PATHS[1..]).to_owned()),
                1 => unit(rng, &mut is),
                _ => {}
            }
            is.container = (kind != 6).then(|| container(rng));
            is.pod = (kind != 5).then(|| pod_match(rng));
        }
    }
    Workload { name: format!("w{number}"), is, addresses: addresses(rng) }
}

/// A unit, alone or with a path that it is at or that is below it.
fn unit(rng: &mut Rng, is: &mut Match) {
    let unit = pick(rng, &UNITS);
    is.unit = Some(unit);
    is.cgroup = rng.bool().then(|| {
        let below = pick(rng, &["", "/a", "/b/ab", "/x.slice/ab.service"]);
        format!("{}/{unit}{below}", pick(rng, &SLICES))
    });
}

fn container(rng: &mut Rng) -> Container {
    let mut container = Container {
        name: maybe(rng, &CONTAINERS),
        image: maybe(rng, &IMAGES),
        labels: labels(rng, &LABELS, &[0, 1, 2, 3]),
    };
    if container.image.is_none() && container.labels.is_empty() {
        container.name = Some(pick(rng, &CONTAINERS));
    }
    container
}

fn pod_match(rng: &mut Rng) -> PodMatch {
    let mut pod = PodMatch {
        namespace: maybe(rng, &NAMESPACES),
        labels: labels(rng, &LABELS, &[0, 1, 2, 3]),
        service_account: maybe(rng, &ACCOUNTS),
    };
    if pod.service_account.is_none() && pod.labels.is_empty() {
        pod.namespace = Some(pick(rng, &NAMESPACES));
    }
    pod
}

/// A random pod.
pub(super) fn pod(rng: &mut Rng, number: usize) -> Pod {
    Pod {
        name: format!("p{number}"),
        namespace: (rng.u8(0..4) != 0).then(|| pick(rng, &NAMESPACES)),
        labels: labels(rng, &LABELS, &[0, 1, 2, 3]),
        service_account: maybe(rng, &ACCOUNTS),
        host_network: rng.u8(0..4) == 0,
        ended: rng.u8(0..10) == 0,
        ports: (0..rng.usize(0..4)).map(|_| container_port(rng)).collect(),
        addresses: addresses(rng),
    }
}

fn container_port(rng: &mut Rng) -> ContainerPort {
    ContainerPort {
        runs: pick(rng, &[Runs::WithPod, Runs::WithPod, Runs::WithPodFromInit, Runs::BeforePod]),
        name: (rng.u8(0..6) != 0).then(|| pick(rng, &NAMED_PORTS)),
        protocol: pick(rng, &[None, Some(proto::TCP), Some(proto::UDP)]),
        number: pick(rng, &PORTS),
    }
}

/// None to three of either family.
fn addresses(rng: &mut Rng) -> Vec<IpAddr> {
    (0..pick(rng, &[0, 1, 1, 2, 2, 3])).map(|_| address(rng)).collect()
}
