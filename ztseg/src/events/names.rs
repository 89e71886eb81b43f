//! The names behind the numbers in an event: of generations, rules, segments and workloads.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use ztseg_common::key::{WorkloadKey, interface_of};
use ztseg_common::verdict::Direction;

use crate::image::Image;
use crate::policy::resolved::{Isolation, Resolved, SegmentId};

/// How many generations are remembered: an event of an older one keeps its numbers.
const GENERATIONS: usize = 8;
/// How many workloads that are gone are remembered: their last events arrive after them.
const DEPARTED: usize = 1024;

/// One generation's names.
#[derive(Debug)]
struct Generation {
    number: u32,
    policy: Arc<Resolved>,
    subjects: HashMap<u32, Vec<SegmentId>>,
}

/// A workload's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadName {
    /// Its path below the cgroup root, or its interface's name.
    pub name: String,
    /// The names of its segments.
    pub segments: Vec<String>,
}

/// All names that an event may need.
#[derive(Debug, Default)]
pub struct Names {
    generations: VecDeque<Generation>,
    workloads: HashMap<WorkloadKey, WorkloadName>,
    departed: VecDeque<(WorkloadKey, WorkloadName)>,
}

impl Names {
    /// Remembers the names of a generation that is in force now.
    pub fn commit(&mut self, number: u32, policy: Arc<Resolved>, image: &Image) {
        let subjects =
            image.classes.iter().map(|(set, c)| (c.subject, set.iter().copied().collect()));
        self.generations.push_front(Generation { number, policy, subjects: subjects.collect() });
        self.generations.truncate(GENERATIONS);
    }

    /// Remembers a workload, or its new name and segments.
    pub fn put(&mut self, key: WorkloadKey, name: WorkloadName) {
        self.workloads.insert(key, name);
    }

    /// A workload is gone; its name is kept for a while.
    pub fn remove(&mut self, key: WorkloadKey) {
        if let Some(name) = self.workloads.remove(&key) {
            self.departed.push_front((key, name));
            self.departed.truncate(DEPARTED);
        }
    }

    fn known(&self, key: WorkloadKey) -> Option<&WorkloadName> {
        let departed = || self.departed.iter().find(|(k, _)| *k == key).map(|(_, n)| n);
        self.workloads.get(&key).or_else(departed)
    }

    fn generation(&self, number: u32) -> Option<&Generation> {
        self.generations.iter().find(|g| g.number == number)
    }

    /// A workload's name; where it is not known, what its key says.
    pub fn workload(&self, key: WorkloadKey) -> String {
        match (self.known(key), interface_of(key)) {
            (Some(known), _) => known.name.clone(),
            (None, Some(index)) => format!("interface {index}"),
            (None, None) => format!("cgroup {key}"),
        }
    }

    /// The segments of a subject class in a generation; where that is forgotten, those that the
    /// workload was last known with.
    pub fn subject_segments(&self, generation: u32, subject: u32, key: WorkloadKey) -> Vec<String> {
        let names = self
            .generation(generation)
            .and_then(|g| g.subjects.get(&subject).map(|set| g.names(set.iter())));
        names.unwrap_or_else(|| self.known(key).map(|w| w.segments.clone()).unwrap_or_default())
    }

    /// The segments of a workload as it was last known.
    pub fn segments(&self, key: WorkloadKey) -> Vec<String> {
        self.known(key).map(|w| w.segments.clone()).unwrap_or_default()
    }

    /// The segments whose `addresses` contain an address.
    pub fn address_segments(&self, generation: u32, address: IpAddr) -> Vec<String> {
        let Some(generation) = self.generation(generation) else { return Vec::new() };
        let segments = generation.policy.segments.iter();
        let with = segments.filter(|s| s.addresses.iter().any(|net| net.contains(&address)));
        with.map(|s| s.name.clone()).collect()
    }

    /// The name of the rule of a rank.
    pub fn rule(&self, generation: u32, rank: u32) -> Option<String> {
        let rules = &self.generation(generation)?.policy.rules;
        let index = usize::try_from(rank.checked_sub(1)?).ok()?;
        rules.get(index).map(|r| r.name.clone())
    }

    /// The segments of a subject class that isolate a direction; with `audit` also those that
    /// only report it.
    pub fn isolating(
        &self,
        generation: u32,
        subject: u32,
        direction: Direction,
        audit: bool,
    ) -> Vec<String> {
        let Some(generation) = self.generation(generation) else { return Vec::new() };
        let set = generation.subjects.get(&subject).map(Vec::as_slice).unwrap_or_default();
        let isolates = |id: &&SegmentId| {
            let segment = generation.policy.segments.get(id.0 as usize);
            let isolation = segment.map(|s| s.isolation(direction));
            match isolation {
                Some(Isolation::Enforce) => true,
                Some(Isolation::Audit) => audit,
                Some(Isolation::Open) | None => false,
            }
        };
        generation.names(set.iter().filter(isolates))
    }
}

impl Generation {
    fn names<'a>(&self, ids: impl Iterator<Item = &'a SegmentId>) -> Vec<String> {
        self.policy.names(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_remembered_for_a_while_only() {
        let mut names = Names::default();
        for key in 0..=DEPARTED as u64 {
            names.put(key, WorkloadName { name: format!("/{key}"), segments: vec!["s".into()] });
            names.remove(key);
        }
        assert_eq!(names.workload(1), "/1");
        assert_eq!(names.segments(1), ["s"]);
        assert_eq!(names.workload(0), "cgroup 0");
        assert_eq!(names.workload(ztseg_common::key::workload_interface(3)), "interface 3");
    }

    #[test]
    fn old_generations_are_forgotten() {
        let mut names = Names::default();
        for number in 1..=9 {
            names.commit(number, Arc::default(), &Image::default());
        }
        assert!(names.generation(1).is_none());
        assert!(names.generation(2).is_some());
    }
}
