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
use crate::policy::resolved::{Mode, Resolved, Rule};

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
        let concerned = self.concerned_subjects(resolved, &subjects_of);
        let ends = |rule: &Rule, sides| self.ends(rule, sides, &subjects_of, &concerned);
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

    /// By direction and index into [`Sides::segments`], for the subjects of built-in rules alone:
    /// those of [`Self::subjects_of`] that a segment or a rule of some policy concerns. The others
    /// have no entries, so that what cannot be read passes there as without a policy.
    fn concerned_subjects(
        &self,
        resolved: &Resolved,
        subjects_of: &[Vec<u32>],
    ) -> [FxHashMap<u32, Vec<u32>>; 2] {
        [Direction::Ingress, Direction::Egress].map(|direction| {
            let ingress = direction == Direction::Ingress;
            let rules = || resolved.rules.iter().zip(&self.sides.rules);
            let subject = |sides: &RuleSides| if ingress { sides.to } else { sides.from };
            let holding = |built_in: bool| {
                let there =
                    rules().filter(move |(r, _)| r.built_in == built_in && r.ends.hold(direction));
                there.map(move |(_, sides)| subject(sides))
            };
            let mut built_in: Vec<u32> = holding(true).filter_map(|side| side.segments).collect();
            built_in.sort_unstable();
            built_in.dedup();
            if built_in.is_empty() {
                return FxHashMap::default();
            }
            let every = holding(false).any(|side| side.any);
            let isolated = |row: &Subject| {
                let isolation = if ingress { row.ingress } else { row.egress };
                Isolation::from_u8(isolation) != Isolation::Open
            };
            let mut concerned: Vec<bool> =
                self.subjects.rows.iter().map(|row| every || isolated(row)).collect();
            let mut seen = vec![false; subjects_of.len()];
            for list in holding(false).filter_map(|side| side.segments) {
                if !std::mem::replace(&mut seen[list as usize], true) {
                    for class in &subjects_of[list as usize] {
                        concerned[*class as usize] = true;
                    }
                }
            }
            let of = |list: u32| {
                let all = subjects_of[list as usize].iter().copied();
                (list, all.filter(|class| concerned[*class as usize]).collect())
            };
            built_in.into_iter().map(of).collect()
        })
    }

    /// The ends of a rule: egress at `from`, ingress at `to`. One at which it does not hold has no
    /// subjects.
    fn ends<'b>(
        &'b self,
        rule: &Rule,
        sides: &RuleSides,
        subjects_of: &'b [Vec<u32>],
        concerned: &'b [FxHashMap<u32, Vec<u32>>; 2],
    ) -> [End<'b>; 2] {
        let end = |direction, subject: SideRef, peer: SideRef| {
            let at = |lists: &'b [Vec<u32>], index: Option<u32>| {
                index.map_or(&[][..], |i| lists[i as usize].as_slice())
            };
            let nobody = direction == Direction::Egress
                && rule.action != Action::Deny
                && peer.segments.is_some();
            let concerned = &concerned[usize::from(direction == Direction::Egress)];
            End {
                direction,
                subjects: match subject.segments {
                    _ if !rule.ends.hold(direction) => &[],
                    Some(list) if rule.built_in => concerned.get(&list).map_or(&[], Vec::as_slice),
                    _ if subject.any => &[SUBJECT_ANY],
                    list => at(subjects_of, list),
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
