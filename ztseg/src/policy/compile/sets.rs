//! Sets of small numbers that share their structure, so that equal sets have equal ids.
//!
//! A sweep over prefixes or ports makes each set from its neighbour by adding or taking away a few
//! elements. Kept whole, that would be quadratic; here a change costs the logarithm of the
//! universe, whatever the size of the set, and to compare two sets is to compare two numbers.
//!
//! The structure is a binary trie over the elements with 64 of them in a leaf, and every node is
//! made once (hash consing).

use rustc_hash::FxHashMap;

/// Elements in a leaf, and the bits of an element that a leaf takes.
const LEAF_BITS: u32 = 6;

/// A set in a [`SetPool`]. Two sets of one pool are equal exactly when their ids are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SetId(u32);

impl SetId {
    /// The empty set, in every pool.
    pub(super) const EMPTY: Self = Self(0);
}

#[derive(Clone, Copy)]
struct Node {
    /// A leaf's elements, or the ids of two children.
    payload: u64,
    /// Number of elements below.
    len: u32,
}

/// Sets of numbers below a bound.
pub(super) struct SetPool {
    /// Levels above the leaves.
    height: u32,
    nodes: Vec<Node>,
    ids: FxHashMap<(u32, u64), u32>,
}

impl SetPool {
    /// A pool for sets of numbers below `universe`.
    pub(super) fn new(universe: usize) -> Self {
        let height = universe.div_ceil(1 << LEAF_BITS).max(1).next_power_of_two().ilog2();
        Self { height, nodes: vec![Node { payload: 0, len: 0 }], ids: FxHashMap::default() }
    }

    /// `set` with `element`.
    pub(super) fn insert(&mut self, set: SetId, element: u32) -> SetId {
        SetId(self.change(set.0, self.height, element, true))
    }

    /// `set` without `element`.
    pub(super) fn remove(&mut self, set: SetId, element: u32) -> SetId {
        SetId(self.change(set.0, self.height, element, false))
    }

    /// What is in either set.
    pub(super) fn union(&mut self, a: SetId, b: SetId) -> SetId {
        SetId(self.merge(a.0, b.0, self.height))
    }

    /// Number of elements.
    pub(super) fn len(&self, set: SetId) -> usize {
        self.nodes[set.0 as usize].len as usize
    }

    /// Calls `each` with every element, in ascending order.
    pub(super) fn for_each(&self, set: SetId, each: &mut impl FnMut(u32)) {
        self.walk(set.0, self.height, 0, each);
    }

    fn change(&mut self, id: u32, level: u32, element: u32, present: bool) -> u32 {
        let payload = self.nodes[id as usize].payload;
        if level == 0 {
            let bit = 1u64 << (element & ((1 << LEAF_BITS) - 1));
            return self.node(0, if present { payload | bit } else { payload & !bit });
        }
        let (mut low, mut high) = children(payload);
        if element >> (LEAF_BITS + level - 1) & 1 == 0 {
            low = self.change(low, level - 1, element, present);
        } else {
            high = self.change(high, level - 1, element, present);
        }
        self.node(level, parent(low, high))
    }

    fn merge(&mut self, a: u32, b: u32, level: u32) -> u32 {
        if a == b || b == SetId::EMPTY.0 {
            return a;
        }
        if a == SetId::EMPTY.0 {
            return b;
        }
        let (x, y) = (self.nodes[a as usize].payload, self.nodes[b as usize].payload);
        if level == 0 {
            return self.node(0, x | y);
        }
        let ((x_low, x_high), (y_low, y_high)) = (children(x), children(y));
        let low = self.merge(x_low, y_low, level - 1);
        let high = self.merge(x_high, y_high, level - 1);
        self.node(level, parent(low, high))
    }

    fn node(&mut self, level: u32, payload: u64) -> u32 {
        if payload == 0 {
            return SetId::EMPTY.0;
        }
        if let Some(id) = self.ids.get(&(level, payload)) {
            return *id;
        }
        let len = if level == 0 {
            payload.count_ones()
        } else {
            let (low, high) = children(payload);
            self.nodes[low as usize].len + self.nodes[high as usize].len
        };
        // Every node holds memory of its own, so there are fewer than 2^32 of them.
        let id = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(Node { payload, len });
        self.ids.insert((level, payload), id);
        id
    }

    fn walk(&self, id: u32, level: u32, base: u32, each: &mut impl FnMut(u32)) {
        let mut payload = self.nodes[id as usize].payload;
        if level == 0 {
            while payload != 0 {
                each(base + payload.trailing_zeros());
                payload &= payload - 1;
            }
        } else if id != SetId::EMPTY.0 {
            let (low, high) = children(payload);
            self.walk(low, level - 1, base, each);
            self.walk(high, level - 1, base + (1 << (LEAF_BITS + level - 1)), each);
        }
    }
}

const fn parent(low: u32, high: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
const fn children(payload: u64) -> (u32, u32) {
    (payload as u32, (payload >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn elements(pool: &SetPool, set: SetId) -> Vec<u32> {
        let mut list = Vec::new();
        pool.for_each(set, &mut |e| list.push(e));
        list
    }

    #[test]
    fn behaves_as_a_set_and_equal_sets_have_equal_ids() {
        for universe in [1u32, 64, 65, 1000, 5000] {
            let mut rng = fastrand::Rng::with_seed(u64::from(universe));
            let mut pool = SetPool::new(universe as usize);
            let mut seen = FxHashMap::default();
            let (mut set, mut model) = (SetId::EMPTY, BTreeSet::new());
            for _ in 0..2000 {
                let e = rng.u32(0..universe.min(12)) * (universe / universe.min(12));
                if rng.bool() {
                    set = pool.insert(set, e);
                    model.insert(e);
                } else {
                    set = pool.remove(set, e);
                    model.remove(&e);
                }
                assert_eq!(elements(&pool, set), model.iter().copied().collect::<Vec<_>>());
                assert_eq!(pool.len(set), model.len());
                assert_eq!(*seen.entry(model.clone()).or_insert(set), set);
            }
            let list: Vec<_> = seen.into_iter().collect();
            for _ in 0..200 {
                let (a, b) = (rng.usize(0..list.len()), rng.usize(0..list.len()));
                let both: BTreeSet<_> = list[a].0.union(&list[b].0).copied().collect();
                let union = pool.union(list[a].1, list[b].1);
                assert_eq!(elements(&pool, union), both.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
