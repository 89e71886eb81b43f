//! From a resolved policy and the workloads of this host to an [`Image`].
//!
//! 1. [`sides`] finds the distinct sides and port lists of all rules.
//! 2. [`segments`], [`ports`] and [`addresses`] give numbers to what rules treat alike.
//! 3. [`entries`] writes each rule under the classes that it matches.
//!
//! Each step is near-linear in what it reads; [`sets`] is why. The number of entries is the
//! product of the classes on both sides of each rule, so it is counted before it is written, and a
//! policy that does not fit is refused before it takes memory.
//!
//! Architecture invariant: the oracle shares no code with this module.

mod addresses;
mod entries;
mod error;
mod expiry;
mod members;
mod ports;
mod segments;
mod sets;
mod sides;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::BitOr;

use ztseg_common::key::MAX_CGROUP_LEVEL;
use ztseg_common::value::{RULE_LOG, RULE_REJECT, Rule, Workload};

use self::addresses::Addresses;
pub use self::error::{CompileError, Largest, Needed};
pub use self::members::Members;
use self::ports::Ports;
use self::segments::{Identities, Subjects};
use self::sides::Sides;
use super::resolved::Resolved;
use crate::datapath::Capacity;
use crate::image::{Hosts, Image, SegmentSet, nanoseconds};
use crate::inventory::Membership;

/// Pairs of (class, side of a rule that holds it) that one policy may have of each kind: 128 MiB.
const MAX_PAIRS: u64 = 1 << 25;

/// Compiles a whole policy for the workloads of this host, or refuses it whole.
///
/// The same input gives the same image, number by number.
pub fn compile(
    resolved: &Resolved,
    memberships: &[Membership],
    capacity: &Capacity,
) -> Result<Image, CompileError> {
    compile_with_members(resolved, memberships, &Members::new(), capacity)
}

/// As [`compile`], with members elsewhere.
pub fn compile_with_members(
    resolved: &Resolved,
    memberships: &[Membership],
    members: &Members,
    capacity: &Capacity,
) -> Result<Image, CompileError> {
    fits("workloads", memberships.len(), capacity.workloads, "workloads")?;
    let sides = Sides::of(resolved)?;
    let ports = Ports::new(&sides.ports)?;
    let mut identities = Identities::new(resolved, &sides);
    let subjects = Subjects::new(resolved, memberships, &mut identities)?;
    let mut addresses = Addresses::new(resolved, &sides, &mut identities)?;
    let placed = members::place(members, resolved.segments.len(), &addresses, &mut identities)?;
    let hosts = Hosts::new(std::mem::take(&mut addresses.hosts), placed);
    let peers = hosts.len() + addresses.prefixes.len();
    fits("peer addresses and prefixes", peers, capacity.peers, "peers")?;
    let entries::Entries { verdicts, rows, fallbacks } = entries::Classes {
        sides: &sides,
        subjects: &subjects,
        identities: &identities,
        addresses: &addresses,
        ports: &ports,
    }
    .entries(resolved, capacity.verdicts)?;

    let Subjects { classes, .. } = subjects;
    let workload = |m: &Membership| {
        let classes = classes.get(&m.segments)?;
        let (subject, identity) = (classes.subject, classes.identity);
        Some((m.key, Workload { subject, identity, ..Workload::default() }))
    };
    Ok(Image {
        workloads: memberships.iter().filter_map(workload).collect(),
        levels: memberships.iter().filter_map(|m| m.level).map(level_bit).fold(0, BitOr::bitor),
        subjects: rows,
        rules: rules(resolved),
        fallbacks,
        ports: ports.classes,
        entries: verdicts.into(),
        hosts,
        prefixes: addresses.prefixes.into(),
        classes,
        identities: identities.known().into(),
    })
}

/// Compiles a policy for questions alone: with classes for these sets of segments, and no workload
/// that any kernel has. What a host has room for does not matter.
///
/// # Errors
/// The policy is too large for any host.
pub fn for_questions<'a>(
    resolved: &Resolved,
    sets: impl IntoIterator<Item = &'a SegmentSet>,
) -> Result<Image, CompileError> {
    let ceiling = Capacity {
        verdicts: u32::MAX,
        peers: u32::MAX,
        workloads: u32::MAX,
        ..Capacity::default()
    };
    compile(resolved, &memberships_of(sets), &ceiling)
}

/// One membership for each of these sets of segments. Their keys are no workload's, so an image that is
/// made of them is good for questions alone.
pub fn memberships_of<'a>(sets: impl IntoIterator<Item = &'a SegmentSet>) -> Vec<Membership> {
    let sets: BTreeSet<&SegmentSet> = sets.into_iter().collect();
    let membership = |(key, segments): (u64, &SegmentSet)| Membership {
        key,
        name: format!("set-{key}"),
        level: None,
        segments: segments.clone(),
    };
    (1..).zip(sets).map(membership).collect()
}

/// A cgroup below the deepest level that the programs look at belongs to its ancestors.
fn level_bit(level: u32) -> u32 {
    if level <= MAX_CGROUP_LEVEL { 1 << level } else { 0 }
}

fn rules(resolved: &Resolved) -> Vec<Rule> {
    let row = |rule: &super::resolved::Rule| Rule {
        action: rule.action as u8,
        flags: if rule.log { RULE_LOG } else { 0 } | if rule.reject { RULE_REJECT } else { 0 },
        expires: rule.expires.map_or(0, nanoseconds),
        ..Rule::default()
    };
    std::iter::once(Rule::default()).chain(resolved.rules.iter().map(row)).collect()
}

fn fits(
    what: &'static str,
    needed: usize,
    limit: u32,
    option: &'static str,
) -> Result<(), CompileError> {
    if needed <= limit as usize {
        return Ok(());
    }
    let needed = Needed::Exactly(needed as u64);
    Err(CompileError::Capacity { what, needed, limit, option, largest: None })
}

fn check_overlaps(what: &'static str, overlaps: u64, limit: u64) -> Result<(), CompileError> {
    if overlaps <= limit { Ok(()) } else { Err(CompileError::Overlap { what, overlaps, limit }) }
}

/// An index as the number of a class, a segment or a side.
///
/// Everything that is counted here has some bytes of policy behind it, so a number that does not
/// fit 32 bits cannot come up on a machine that has read the policy.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
