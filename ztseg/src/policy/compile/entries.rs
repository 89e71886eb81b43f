//! Verdict entries: what each rule says to each (subject class, peer class, port class).

use rustc_hash::FxHashMap;
use ztseg_common::key::{
    EntryKey, IDENTITY_NOBODY, PORT_ANY, PeerKind, SHAPES, SUBJECT_ANY, SUBJECT_UNMANAGED,
};
use ztseg_common::value::{Action, Entry, Fallback, Isolation, Subject};
use ztseg_common::verdict::Direction;

use super::addresses::Addresses;
use super::expiry::Fallbacks;
use super::ports::Ports;
use super::segments::{Identities, Subjects};
use super::sides::{RuleSides, SideRef, Sides};
use super::{CompileError, Largest, Needed, number};
use crate::policy::resolved::{Mode, Resolved, Rule, SegmentId};

/// Steps after which a policy is refused: some seconds of work.
const MAX_STEPS: u64 = 1 << 27;

/// What rules match, by class.
pub(super) struct Classes<'a> {
    pub(super) sides: &'a Sides<'a>,
    pub(super) subjects: &'a Subjects,
    pub(super) identities: &'a Identities,
    pub(super) addresses: &'a Addresses,
    pub(super) ports: &'a Ports,
}

/// What comes of them.
pub(super) struct Entries {
    pub(super) verdicts: FxHashMap<EntryKey, Entry>,
    /// The subjects with their shape masks.
    pub(super) rows: Vec<Subject>,
    pub(super) fallbacks: Vec<Fallback>,
}

/// One end of a rule, in classes.
struct End<'a> {
    direction: Direction,
    subjects: &'a [u32],
    identities: &'a [u32],
    nobody: &'a [u32],
    addresses: &'a [u32],
    any: &'a [u32],
    ports: &'a [u16],
}

impl End<'_> {
    /// How many entries it writes.
    fn steps(&self) -> u64 {
        let peers = [self.identities, self.nobody, self.addresses, self.any];
        let peers: u64 = peers.iter().map(|list| list.len() as u64).sum();
        (self.subjects.len() as u64).saturating_mul(peers).saturating_mul(self.ports.len() as u64)
    }
}

impl Classes<'_> {
    /// The entries of all rules.
    pub(super) fn entries(&self, resolved: &Resolved, limit: u32) -> Result<Entries, CompileError> {
        let subjects_of = self.subjects_of();
        let built_in = self.built_in_subjects(resolved, &subjects_of);
        let ends = |rule: &Rule, sides| self.ends(rule, sides, &subjects_of, &built_in);
        let mut total = 0u64;
        let mut largest: Option<Largest> = None;
        for (rule, sides) in resolved.rules.iter().zip(&self.sides.rules) {
            let entries =
                ends(rule, sides).iter().fold(0u64, |sum, end| sum.saturating_add(end.steps()));
            total = total.saturating_add(entries);
            if largest.as_ref().is_none_or(|l| l.entries < entries) {
                largest = Some(Largest { rule: rule.name.clone(), entries });
            }
        }
        // The two ends of one rule share no entry, and neither do two steps of an end.
        let too_many = |largest: Option<Largest>| CompileError::Capacity {
            what: "verdict entries",
            needed: Needed::MoreThanLimit { at_most: total },
            limit,
            option: "verdicts",
            largest,
        };
        if largest.as_ref().is_some_and(|l| l.entries > u64::from(limit)) {
            return Err(too_many(largest));
        }
        let mut entries = FxHashMap::default();
        entries.reserve(usize::try_from(total.min(limit.into())).unwrap_or(0));
        let mut shapes = vec![[0u16; 2]; self.subjects.rows.len()];
        let mut fallbacks = Fallbacks::new(resolved);
        let mut steps = 0u64;
        for (index, (rule, sides)) in resolved.rules.iter().zip(&self.sides.rules).enumerate() {
            for end in ends(rule, sides) {
                steps = steps.saturating_add(end.steps());
                super::check_overlaps("entries", steps, MAX_STEPS)?;
                let rank = number(index) + 1;
                write(&end, (rank, rule), &mut entries, &mut fallbacks, &mut shapes)?;
            }
            if entries.len() > limit as usize {
                return Err(too_many(largest));
            }
        }
        Ok(Entries { verdicts: entries, rows: self.rows(&shapes), fallbacks: fallbacks.all })
    }

    /// By index into [`Sides::segments`]: the subject classes that hold one of the segments.
    fn subjects_of(&self) -> Vec<Vec<u32>> {
        let mut seen = vec![u32::MAX; self.subjects.rows.len()];
        let one = |(side, segments): (usize, &Vec<u32>)| {
            let mut list = Vec::new();
            for segment in segments {
                for class in &self.subjects.of_segment[*segment as usize] {
                    if std::mem::replace(&mut seen[*class as usize], number(side)) != number(side) {
                        list.push(*class);
                    }
                }
            }
            list
        };
        self.sides.segments.iter().enumerate().map(one).collect()
    }

    /// By direction: the subject classes of the built-in segment that a segment or a rule of some
    /// policy concerns. The others have no entries, so that what cannot be read passes there as
    /// without a policy.
    fn built_in_subjects(&self, resolved: &Resolved, subjects_of: &[Vec<u32>]) -> [Vec<u32>; 2] {
        let Some(SegmentId(failsafe)) = resolved.failsafe else { return [Vec::new(), Vec::new()] };
        [Direction::Ingress, Direction::Egress].map(|direction| {
            let ingress = direction == Direction::Ingress;
            let mut every = false;
            let mut named = vec![false; subjects_of.len()];
            for (rule, sides) in resolved.rules.iter().zip(&self.sides.rules) {
                let subject = if ingress { sides.to } else { sides.from };
                if rule.built_in.is_none() {
                    every |= subject.any;
                    subject.segments.into_iter().for_each(|list| named[list as usize] = true);
                }
            }
            let isolated = |class: usize| {
                let row = &self.subjects.rows[class];
                Isolation::from_u8(if ingress { row.ingress } else { row.egress })
                    != Isolation::Open
            };
            let mut concerned: Vec<bool> =
                (0..self.subjects.rows.len()).map(|class| every || isolated(class)).collect();
            for list in subjects_of.iter().zip(named).filter_map(|(l, named)| named.then_some(l)) {
                for class in list {
                    concerned[*class as usize] = true;
                }
            }
            let own = self.subjects.of_segment[failsafe as usize].iter().copied();
            own.filter(|class| concerned[*class as usize]).collect()
        })
    }

    /// The two ends of a rule: egress at `from`, ingress at `to`.
    fn ends<'b>(
        &'b self,
        rule: &Rule,
        sides: &RuleSides,
        subjects_of: &'b [Vec<u32>],
        built_in: &'b [Vec<u32>; 2],
    ) -> [End<'b>; 2] {
        let end = |direction, subject: SideRef, peer: SideRef| {
            let at = |lists: &'b [Vec<u32>], index: Option<u32>| {
                index.map_or(&[][..], |i| lists[i as usize].as_slice())
            };
            let nobody = direction == Direction::Egress
                && rule.action != Action::Deny
                && peer.segments.is_some();
            End {
                direction,
                subjects: match rule.built_in {
                    Some(only) if only != direction => &[],
                    Some(Direction::Ingress) => &built_in[0],
                    Some(Direction::Egress) => &built_in[1],
                    None if subject.any => &[SUBJECT_ANY],
                    None => at(subjects_of, subject.segments),
                },
                identities: at(&self.identities.matching, peer.segments),
                nobody: if nobody { &[IDENTITY_NOBODY] } else { &[] },
                addresses: at(&self.addresses.matching, peer.networks),
                any: if peer.any { &[0] } else { &[] },
                ports: sides
                    .ports
                    .map_or(&[PORT_ANY], |i| self.ports.matching[i as usize].as_slice()),
            }
        };
        [
            end(Direction::Egress, sides.from, sides.to),
            end(Direction::Ingress, sides.to, sides.from),
        ]
    }

    /// The subjects with their shape masks.
    fn rows(&self, shapes: &[[u16; 2]]) -> Vec<Subject> {
        let mut rows = self.subjects.rows.clone();
        let [any_ingress, any_egress] = shapes[SUBJECT_ANY as usize];
        for (row, [ingress, egress]) in rows.iter_mut().zip(shapes).skip(SUBJECT_UNMANAGED as usize)
        {
            row.ingress_shapes = ingress | any_ingress << SHAPES;
            row.egress_shapes = egress | any_egress << SHAPES;
        }
        rows
    }
}

fn write(
    end: &End<'_>,
    (rank, rule): (u32, &Rule),
    entries: &mut FxHashMap<EntryKey, Entry>,
    fallbacks: &mut Fallbacks<'_>,
    shapes: &mut [[u16; 2]],
) -> Result<(), CompileError> {
    let takes_effect = rule.mode == Mode::Enforce || rule.action != Action::Deny;
    let peers = [
        (PeerKind::Identity, end.identities),
        (PeerKind::Identity, end.nobody),
        (PeerKind::Address, end.addresses),
        (PeerKind::Any, end.any),
    ];
    let direction = end.direction as u8;
    for subject in end.subjects {
        let shapes =
            &mut shapes[*subject as usize][usize::from(end.direction == Direction::Egress)];
        for (kind, peers) in peers {
            for peer in peers {
                for port in end.ports {
                    let key = EntryKey {
                        subject: *subject,
                        peer: *peer,
                        port: *port,
                        kind: kind as u8,
                        direction,
                    };
                    *shapes |= key.shape();
                    let ranks = &mut entries.entry(key).or_default().tiers[rule.tier as usize];
                    fallbacks.append(&mut ranks.shadow, rank, rule)?;
                    if takes_effect {
                        fallbacks.append(&mut ranks.effective, rank, rule)?;
                    }
                }
            }
        }
    }
    Ok(())
}
