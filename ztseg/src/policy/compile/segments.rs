//! Subject classes and identity classes: what rules know of a set of segments.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use ztseg_common::key::{IDENTITY_FIRST, IDENTITY_UNKNOWN, SUBJECT_UNMANAGED};
use ztseg_common::value::{
    Isolation, SUBJECT_FAILSAFE, SUBJECT_REJECT_EGRESS, SUBJECT_REJECT_INGRESS, Subject,
};

use super::sets::{SetId, SetPool};
use super::sides::Sides;
use super::{CompileError, number};
use crate::image::{Classes, Identities as Known, SegmentSet};
use crate::inventory::Membership;
use crate::policy::resolved::{Resolved, SegmentId};

/// Numbers of sides that an image keeps at most, to find classes by: 16 MiB.
const MAX_KEPT: usize = 1 << 22;

/// Gives out identity classes. Two sets of segments share one when the same peer sides of rules
/// hold a segment of each.
pub(super) struct Identities {
    pool: SetPool,
    /// By segment: the peer sides (indexes into [`Sides::segments`]) that hold it.
    sides_of: Vec<SetId>,
    classes: FxHashMap<SetId, u32>,
    /// By class: the peer sides that match it. Of a number that is no class, none.
    signatures: Vec<SetId>,
    /// By index into [`Sides::segments`]: the identity classes that match it.
    pub(super) matching: Vec<Vec<u32>>,
    pairs: usize,
}

impl Identities {
    pub(super) fn new(resolved: &Resolved, sides: &Sides<'_>) -> Self {
        let mut pool = SetPool::new(sides.segments.len());
        let mut sides_of = vec![SetId::EMPTY; resolved.segments.len()];
        for (side, segments) in sides.segments.iter().enumerate() {
            if sides.peers[side] {
                for segment in segments {
                    let set = &mut sides_of[*segment as usize];
                    *set = pool.insert(*set, number(side));
                }
            }
        }
        Self {
            pool,
            sides_of,
            classes: [(SetId::EMPTY, IDENTITY_UNKNOWN)].into_iter().collect(),
            signatures: vec![SetId::EMPTY; IDENTITY_FIRST as usize],
            matching: vec![Vec::new(); sides.segments.len()],
            pairs: 0,
        }
    }

    /// Whether any rule has this segment on a peer side.
    pub(super) fn is_peer(&self, segment: u32) -> bool {
        self.sides_of[segment as usize] != SetId::EMPTY
    }

    /// The class of a set of segments.
    pub(super) fn class(
        &mut self,
        segments: impl Iterator<Item = u32>,
    ) -> Result<u32, CompileError> {
        self.class_beside(SetId::EMPTY, segments)
    }

    /// The class of a peer that has the class `base`, and is in these segments besides.
    pub(super) fn joined(&mut self, base: u32, segments: &SegmentSet) -> Result<u32, CompileError> {
        let signature = self.signatures[base as usize];
        self.class_beside(signature, segments.iter().map(|s| s.0))
    }

    fn class_beside(
        &mut self,
        mut signature: SetId,
        segments: impl Iterator<Item = u32>,
    ) -> Result<u32, CompileError> {
        for segment in segments {
            signature = self.pool.union(signature, self.sides_of[segment as usize]);
        }
        if let Some(class) = self.classes.get(&signature) {
            return Ok(*class);
        }
        // The map holds the unknown class, the numbers below IDENTITY_FIRST hold one more.
        let class = number(self.classes.len()) - 1 + IDENTITY_FIRST;
        self.classes.insert(signature, class);
        self.signatures.push(signature);
        self.pairs += self.pool.len(signature);
        super::check_overlaps("segments", self.pairs as u64, super::MAX_PAIRS)?;
        let matching = &mut self.matching;
        self.pool.for_each(signature, &mut |side| matching[side as usize].push(class));
        Ok(class)
    }

    /// All of them, for an image to keep; of a policy that has too many, none.
    pub(super) fn known(&self) -> Known {
        let of_segments: usize = self.sides_of.iter().map(|set| self.pool.len(*set)).sum();
        if of_segments + self.pairs > MAX_KEPT {
            return Known::default();
        }
        let sides = |set: SetId| {
            let mut list = Vec::with_capacity(self.pool.len(set));
            self.pool.for_each(set, &mut |side| list.push(side));
            list
        };
        let of_segment = self.sides_of.iter().map(|set| sides(*set).into()).collect();
        let of_class = |(set, class): (&SetId, &u32)| (*class, Arc::from(sides(*set)));
        Known::new(of_segment, self.classes.iter().map(of_class))
    }
}

/// Gives out subject classes, one for each set of segments.
pub(super) struct Subjects {
    /// By class; shape masks are not filled yet.
    pub(super) rows: Vec<Subject>,
    /// By segment: the classes whose set holds it, ascending.
    pub(super) of_segment: Vec<Vec<u32>>,
    /// Both classes of each set.
    pub(super) classes: BTreeMap<SegmentSet, Classes>,
}

impl Subjects {
    pub(super) fn new(
        resolved: &Resolved,
        memberships: &[Membership],
        identities: &mut Identities,
    ) -> Result<Self, CompileError> {
        let mut subjects = Self {
            rows: vec![Subject::default(); SUBJECT_UNMANAGED as usize],
            of_segment: vec![Vec::new(); resolved.segments.len()],
            classes: BTreeMap::new(),
        };
        subjects.add(resolved, &SegmentSet::new(), identities)?;
        for segment in 0..resolved.segments.len() {
            subjects.add(resolved, &[SegmentId(number(segment))].into(), identities)?;
        }
        for membership in memberships {
            let unknown =
                membership.segments.last().filter(|s| s.0 as usize >= resolved.segments.len());
            if let Some(SegmentId(segment)) = unknown {
                let by = membership.name.clone();
                return Err(CompileError::UnknownSegment { by, segment: *segment });
            }
            subjects.add(resolved, &membership.segments, identities)?;
        }
        Ok(subjects)
    }

    fn add(
        &mut self,
        resolved: &Resolved,
        set: &SegmentSet,
        identities: &mut Identities,
    ) -> Result<(), CompileError> {
        if self.classes.contains_key(set) {
            return Ok(());
        }
        let subject = number(self.rows.len());
        let identity = identities.class(set.iter().map(|s| s.0))?;
        let (mut ingress, mut egress) = (Isolation::Open as u8, Isolation::Open as u8);
        let mut flags = 0;
        for SegmentId(segment) in set {
            // Isolation's numbers grow with leniency, so the strictest is the least.
            let isolating = &resolved.segments[*segment as usize];
            ingress = ingress.min(isolating.ingress as u8);
            egress = egress.min(isolating.egress as u8);
            for (isolation, flag) in [
                (isolating.ingress, SUBJECT_REJECT_INGRESS),
                (isolating.egress, SUBJECT_REJECT_EGRESS),
            ] {
                // One that asks for an answer is enough, and only one that denies is asked.
                if isolating.reject && isolation == Isolation::Enforce {
                    flags |= flag;
                }
            }
            if resolved.failsafe == Some(SegmentId(*segment)) {
                flags |= SUBJECT_FAILSAFE;
            }
            self.of_segment[*segment as usize].push(subject);
        }
        self.rows.push(Subject { ingress, egress, flags, ..Subject::default() });
        self.classes.insert(set.clone(), Classes { subject, identity });
        Ok(())
    }
}
