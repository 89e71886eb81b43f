//! Who is in which segment, the naive way: each `match` entry is asked of each workload, at each
//! part of its path.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::naive::is_in;
use crate::policy::generate::written::{
    Container, Entry, Labels, Match, Pod, PodMatch, Workload, Written,
};

type Set = BTreeSet<&'static str>;

/// Where a workload is in the tree of cgroups, as far as anybody knows.
type At<'a> = Option<&'a [&'a str]>;

/// The segments of a cgroup by its path, or of an `interface:`.
pub(super) fn segments_of_place(written: &Written, place: &str) -> Set {
    match place.strip_prefix("interface:") {
        Some(name) => segments_of_interface(written, name),
        None => segments_of(written, &Match { cgroup: Some(place.to_owned()), ..Match::default() }),
    }
}

fn segments_of_interface(written: &Written, name: &str) -> Set {
    segments(written, |asked| asked.interface.is_some_and(|pattern| matches(pattern, name)))
}

/// The segments of a workload that a document describes.
pub(super) fn segments_of(written: &Written, is: &Match) -> Set {
    if let Some(name) = is.interface {
        return segments_of_interface(written, name);
    }
    let path = match (&is.cgroup, is.unit) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(unit)) => Some(format!("/system.slice/{unit}")),
        (None, None) => None,
    };
    let path: Option<Vec<&str>> = path.as_ref().map(|path| components(path));
    let at = |at: At<'_>| segments(written, |asked| asks_for(asked, is, at));
    let Some(path) = path else { return at(None) };
    if is.container.is_some() || is.pod.is_some() {
        return at(Some(&path));
    }
    // The nearest cgroup that is a workload: a unit, or one whose segments are not its parent's.
    for depth in (1..=path.len()).rev() {
        let here = at(Some(&path[..depth]));
        if unit_at(&path) == Some(depth) || here != at(Some(&path[..depth - 1])) {
            return here;
        }
    }
    let is_user = |asked: &Match| asked.user.is_none() || is_users(asked, is);
    let mut host = at(Some(&[]));
    host.extend(segments(written, |asked| asked.host && is_user(asked)));
    host
}

/// The segments of a pod; one that has ended is in none.
pub(super) fn segments_of_pod(written: &Written, pod: &Pod) -> Set {
    if pod.ended {
        return Set::new();
    }
    let is = Match {
        pod: Some(PodMatch {
            namespace: Some(pod.namespace.unwrap_or("default")),
            labels: pod.labels.clone(),
            service_account: pod.service_account,
        }),
        ..Match::default()
    };
    segments(written, |asked| asks_for(asked, &is, None))
}

/// Whether an address is a member of a segment, for who meets it from elsewhere.
pub(super) fn is_at(written: &Written, segment: &str, address: IpAddr) -> bool {
    let entries = written.policies.iter().flat_map(|p| &p.segments).filter(|s| s.name == segment);
    let is_listed = entries.flat_map(|s| &s.entries).any(|entry| match entry {
        Entry::Addresses(list) => list.iter().any(|network| is_in(network, address)),
        Entry::Workloads(_) => false,
    });
    let of_pod = |pod: &Pod| {
        !pod.host_network
            && pod.addresses.contains(&address)
            && segments_of_pod(written, pod).contains(segment)
    };
    let of_workload = |workload: &Workload| {
        workload.addresses.contains(&address)
            && segments_of(written, &workload.is).contains(segment)
    };
    is_listed || written.pods.iter().any(of_pod) || written.workloads.iter().any(of_workload)
}

/// The segments with an entry that holds.
fn segments(written: &Written, holds: impl Fn(&Match) -> bool) -> Set {
    let all = written.policies.iter().flat_map(|policy| &policy.segments);
    let is_one = |entry: &Entry| match entry {
        Entry::Workloads(asked) => holds(asked),
        Entry::Addresses(_) => false,
    };
    all.filter(|segment| segment.entries.iter().any(is_one)).map(|segment| segment.name).collect()
}

/// Whether all fields of an entry hold for something at a cgroup, which is not the host.
fn asks_for(asked: &Match, is: &Match, at: At<'_>) -> bool {
    let unit = |pattern: &str| {
        let of_path = at.and_then(|path| Some(path[unit_at(path)? - 1]));
        is.unit.into_iter().chain(of_path).any(|unit| matches(pattern, unit))
    };
    let cgroup = |pattern: &String| {
        at.is_some_and(|path| (0..=path.len()).any(|n| is_path(&components(pattern), &path[..n])))
    };
    let container = |asked| is.container.as_ref().is_some_and(|is| is_container(asked, is));
    let pod = |asked| is.pod.as_ref().is_some_and(|is| is_pod(asked, is));
    !asked.host
        && asked.interface.is_none()
        && asked.unit.is_none_or(unit)
        && asked.cgroup.as_ref().is_none_or(cgroup)
        && asked.container.as_ref().is_none_or(container)
        && asked.pod.as_ref().is_none_or(pod)
        && (asked.user.is_none() || is_users(asked, is))
}

/// A user's number is the same with zeros before it.
fn is_users(asked: &Match, is: &Match) -> bool {
    let number = |user: &str| user.parse::<u32>().map_err(|_| user.to_owned());
    asked.user.zip(is.user).is_some_and(|(asked, is)| number(asked) == number(is))
}

fn is_container(asked: &Container, is: &Container) -> bool {
    is_named(asked.name, is.name)
        && is_named(asked.image, is.image)
        && has_labels(&asked.labels, &is.labels)
}

/// A pod that names no service account has the one of its namespace.
fn is_pod(asked: &PodMatch, is: &PodMatch) -> bool {
    is_named(asked.namespace, is.namespace)
        && is_named(asked.service_account, is.service_account.or(Some("default")))
        && has_labels(&asked.labels, &is.labels)
}

fn is_named(pattern: Option<&str>, name: Option<&str>) -> bool {
    pattern.is_none_or(|pattern| name.is_some_and(|name| matches(pattern, name)))
}

fn has_labels(asked: &Labels, labels: &Labels) -> bool {
    asked.iter().all(|label| labels.contains(label))
}

/// `*` stands for any characters, also none.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_at_checked(1) {
        None => name.is_empty(),
        Some(("*", rest)) => (0..=name.len()).any(|n| matches(rest, &name[n..])),
        Some((letter, rest)) => name.strip_prefix(letter).is_some_and(|name| matches(rest, name)),
    }
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

/// `**` stands for any number of parts, also none.
fn is_path(pattern: &[&str], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((&"**", rest)) => (0..=path.len()).any(|n| is_path(rest, &path[n..])),
        Some((part, rest)) => path
            .split_first()
            .is_some_and(|(first, below)| matches(part, first) && is_path(rest, below)),
    }
}

/// How deep the unit of the system manager is that a path is in: the first thing below slices.
fn unit_at(path: &[&str]) -> Option<usize> {
    const UNITS: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];
    let kind = |part: &str| part.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    let slices = path.iter().take_while(|part| kind(part) == "slice").count();
    let unit = path.get(slices)?;
    (unit.contains('.') && UNITS.contains(&kind(unit).as_str())).then_some(slices + 1)
}
