//! The identity classes of an image, by what rules tell them apart by.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::SegmentSet;

/// Finds the class of any set of segments that has one.
///
/// A class is a set of peer sides of rules: of those that hold one of the segments. Sides have numbers
/// that mean nothing outside.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    /// By segment, ascending.
    of_segment: Vec<Box<[u32]>>,
    /// By class, ascending; of a number that is no class, nothing.
    of_class: Vec<Arc<[u32]>>,
    classes: FxHashMap<Arc<[u32]>, u32>,
}

impl Identities {
    /// From the sides of each segment, and of each class.
    pub(crate) fn new(
        of_segment: Vec<Box<[u32]>>,
        sides: impl IntoIterator<Item = (u32, Arc<[u32]>)>,
    ) -> Self {
        let mut known = Self { of_segment, ..Self::default() };
        for (class, sides) in sides {
            let index = class as usize;
            if known.of_class.len() <= index {
                known.of_class.resize(index + 1, Arc::default());
            }
            known.of_class[index] = sides.clone();
            known.classes.insert(sides, class);
        }
        known
    }

    /// The class of a peer that has the class `base`, and is in these segments besides. `None`: there is
    /// none yet, or it is not known here.
    pub(crate) fn joined(&self, base: u32, segments: &SegmentSet) -> Option<u32> {
        let mut sides = self.of_class.get(base as usize)?.to_vec();
        for segment in segments {
            sides.extend_from_slice(self.of_segment.get(segment.0 as usize)?);
        }
        sides.sort_unstable();
        sides.dedup();
        self.classes.get(sides.as_slice()).copied()
    }
}
