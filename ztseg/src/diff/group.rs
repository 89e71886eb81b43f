//! Flips that are alike, put together so that a person can read them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::flows::{self, Flip, Scene};
use super::{Addresses, Change, End};
use crate::explain::Answer;
use crate::policy::resolved::PortRange;

/// What has to be the same for two groups to become one.
type Rest = (Answer, [String; 2]);

/// Parts of the ports.
type Ports = BTreeSet<usize>;

/// Ports, and the addresses of both ends: each of the one end to each of the other.
type Rectangle = (Ports, [BTreeSet<usize>; 2]);

pub(super) fn group(flips: Vec<Flip>, scene: &Scene<'_>) -> Vec<Change> {
    // Ports that are alike between the same ends are one. The address families stay apart: no flow
    // has one of each.
    let mut ports: BTreeMap<(Rest, bool, flows::End, flows::End), Ports> = BTreeMap::new();
    for Flip { from, to, port, now, because } in flips {
        let v4 = from.addresses.first().is_some_and(|first| scene.addresses[*first].v4);
        ports.entry(((now.into(), because), v4, from, to)).or_default().insert(port);
    }
    // Then addresses of one end, where all else is alike; then those of the other.
    let mut by_to: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
    for ((rest, v4, from, to), ports) in ports {
        by_to.entry((rest, v4, from.workload, to, ports)).or_default().extend(from.addresses);
    }
    let mut by_from: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
    for ((rest, v4, from, to, ports), from_addresses) in by_to {
        let from = flows::End { workload: from, addresses: from_addresses };
        by_from.entry((rest, from, to.workload, ports, v4)).or_default().extend(to.addresses);
    }
    // Then the families, where they say the same: no flow has one of each, so their ends can be put
    // together, and so can a port that only one of them has.
    let mut families: BTreeMap<_, [Vec<Rectangle>; 2]> = BTreeMap::new();
    for ((rest, from, to, ports, v4), to_addresses) in by_from {
        let of_both = |port: &usize| scene.ports[*port].v4.is_none();
        let common: Ports = ports.iter().copied().filter(of_both).collect();
        let key = (rest, from.workload, to, common);
        let found = (ports, [from.addresses, to_addresses]);
        families.entry(key).or_default()[usize::from(v4)].push(found);
    }
    let mut found = Vec::new();
    for ((rest, from, to, _), rectangles) in families {
        let mut push = |ports, addresses| found.push(((rest.clone(), from, to, ports), addresses));
        match rectangles {
            [v6, v4] if v6.len() == 1 && v4.len() == 1 => {
                let both = v6.into_iter().zip(v4);
                for ((mut ports, [mut from, mut to]), (more, [more_from, more_to])) in both {
                    ports.extend(more);
                    from.extend(more_from);
                    to.extend(more_to);
                    push(ports, [from, to]);
                }
            }
            apart => {
                for (ports, addresses) in apart.into_iter().flatten() {
                    push(ports, addresses);
                }
            }
        }
    }
    let mut by_to: BTreeMap<_, BTreeSet<End>> = BTreeMap::new();
    for ((rest, from, to, ports), [from_addresses, to_addresses]) in found {
        let from = end(scene, from, &from_addresses, &ports);
        let to = end(scene, to, &to_addresses, &ports);
        by_to.entry((rest, from, ports)).or_default().insert(to);
    }
    let mut by_from: BTreeMap<_, BTreeSet<End>> = BTreeMap::new();
    for ((rest, from, ports), to) in by_to {
        by_from.entry((rest, to, ports)).or_default().insert(from);
    }
    let mut changes: Vec<Change> = by_from
        .into_iter()
        .map(|(((now, [before, after]), to, ports), from)| Change {
            now,
            from: from.into_iter().collect(),
            to: to.into_iter().collect(),
            ports: together_ports(scene, &ports),
            before,
            after,
        })
        .collect();
    changes
        .sort_by(|a, b| (b.now, &a.from, &a.to, &a.ports).cmp(&(a.now, &b.from, &b.to, &b.ports)));
    changes
}

/// One end, as it is told: the addresses of a workload only where they matter.
fn end(
    scene: &Scene<'_>,
    workload: Option<usize>,
    own: &BTreeSet<usize>,
    ports: &BTreeSet<usize>,
) -> End {
    let possible = |v4: bool| {
        let fits = |port: &usize| scene.ports[*port].v4.is_none_or(|only| only == v4);
        if ports.iter().any(fits) { scene.family(v4) } else { BTreeSet::new() }
    };
    let matter = || [true, false].into_iter().any(|v4| !possible(v4).is_subset(own));
    End {
        workload: workload.map(|index| scene.workloads[index].name.clone()),
        addresses: (workload.is_none() || matter()).then(|| together(scene, own)),
    }
}

fn together(scene: &Scene<'_>, parts: &BTreeSet<usize>) -> Addresses {
    let mut found = Addresses::default();
    for v4 in [true, false] {
        let mut family = scene.addresses.iter().enumerate().filter(|(_, part)| part.v4 == v4);
        if family.clone().all(|(index, _)| parts.contains(&index)) {
            let every = if v4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() };
            found.cidrs.push(every);
            continue;
        }
        for (_, part) in family.by_ref().filter(|(index, _)| parts.contains(index)) {
            found.cidrs.extend(&part.addresses.cidrs);
            found.other_ipv4 |= part.addresses.other_ipv4;
            found.other_ipv6 |= part.addresses.other_ipv6;
        }
    }
    found.cidrs = IpNet::aggregate(&found.cidrs);
    found
}

/// All ranges of some parts; neighbours become one.
fn together_ports(scene: &Scene<'_>, parts: &BTreeSet<usize>) -> Vec<PortRange> {
    if parts.len() == scene.ports.len() {
        return vec![PortRange::ANY];
    }
    let mut ranges: Vec<PortRange> =
        parts.iter().flat_map(|index| scene.ports[*index].ranges.iter().copied()).collect();
    ranges.sort();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last)
                if last.protocol == range.protocol
                    && last.last.checked_add(1) == Some(range.first) =>
            {
                last.last = range.last;
            }
            _ => merged.push(range),
        }
    }
    merged
}
