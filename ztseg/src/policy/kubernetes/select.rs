//! Which pods a selector selects. Each distinct selector is evaluated once, over the pods that an
//! index leaves.

use std::collections::{HashMap, HashSet};

use super::cluster::{Cluster, Pod};
use super::labels::{Labels, Selector, Test};
use super::model::{Namespaces, PodSelector};

/// The pods of a cluster that policies can select, by what selectors ask for.
pub(super) struct Index<'a> {
    cluster: &'a Cluster,
    by_namespace: HashMap<&'a str, Vec<usize>>,
    /// By key, then by value.
    by_label: HashMap<&'a str, HashMap<&'a str, Vec<usize>>>,
    /// The namespaces of selectors that were evaluated.
    namespaces: HashMap<Selector, Vec<&'a str>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let mut index = Self {
            cluster,
            by_namespace: HashMap::new(),
            by_label: HashMap::new(),
            namespaces: HashMap::new(),
        };
        // Those of the host's network are neither subjects nor peers.
        let selectable = |(_, pod): &(usize, &Pod)| !pod.host_network;
        for (number, pod) in cluster.pods.iter().enumerate().filter(selectable) {
            index.by_namespace.entry(&pod.namespace).or_default().push(number);
            for (key, value) in &pod.labels {
                index.by_label.entry(key).or_default().entry(value).or_default().push(number);
            }
        }
        index
    }

    /// The pods that a selector selects, as indexes into [`Cluster::pods`], ascending.
    pub(super) fn pods(&mut self, selector: &PodSelector) -> Vec<usize> {
        let cluster = self.cluster;
        let namespaces = match &selector.namespaces {
            Namespaces::Named(name) => Some(vec![name.as_str()]),
            Namespaces::Matching(all) if all.is_empty() => None,
            Namespaces::Matching(some) => Some(self.namespaces(some).to_vec()),
        };
        let labelled = self.shortest(&selector.pods);
        let there: Option<Vec<&[usize]>> = namespaces.as_ref().map(|names| {
            names.iter().filter_map(|n| self.by_namespace.get(*n)).map(Vec::as_slice).collect()
        });
        let size = |lists: &[&[usize]]| lists.iter().map(|list| list.len()).sum::<usize>();
        let candidates: Vec<usize> = match (labelled, there) {
            (Some(labelled), Some(there)) if size(&labelled) <= size(&there) => flat(&labelled),
            (_, Some(there)) => flat(&there),
            (Some(labelled), None) => flat(&labelled),
            (None, None) => self.by_namespace.values().flatten().copied().collect(),
        };
        // What selectors ask of a namespace was decided by its name.
        let there: Option<HashSet<&str>> = namespaces.map(|names| names.into_iter().collect());
        let mut pods: Vec<usize> = candidates
            .into_iter()
            .filter(|number| {
                let pod = &cluster.pods[*number];
                there.as_ref().is_none_or(|there| there.contains(pod.namespace.as_str()))
                    && selector.pods.matches(&pod.labels)
            })
            .collect();
        pods.sort_unstable();
        pods.dedup();
        pods
    }

    /// The pods that the most selective requirement leaves, as a union of lists; `None` where
    /// every requirement is about what a pod does not have.
    fn shortest<'s>(&'s self, selector: &Selector) -> Option<Vec<&'s [usize]>> {
        let lists = selector.requirements().iter().filter_map(|requirement| {
            let values = self.by_label.get(requirement.key.as_str());
            let lists: Vec<&[usize]> = match &requirement.test {
                Test::In(wanted) => {
                    let of = |value| values?.get(value).map(Vec::as_slice);
                    wanted.iter().filter_map(|value| of(value.as_str())).collect()
                }
                Test::Exists => {
                    values.into_iter().flat_map(HashMap::values).map(Vec::as_slice).collect()
                }
                Test::NotIn(_) | Test::DoesNotExist => return None,
            };
            Some(lists)
        });
        lists.min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>())
    }

    fn namespaces(&mut self, selector: &Selector) -> &[&'a str] {
        let cluster = self.cluster;
        self.namespaces.entry(selector.clone()).or_insert_with(|| {
            let matching = |(_, labels): &(&String, &Labels)| selector.matches(labels);
            cluster.namespaces.iter().filter(matching).map(|(name, _)| name.as_str()).collect()
        })
    }
}

fn flat(lists: &[&[usize]]) -> Vec<usize> {
    lists.concat()
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::policy::generate::{seed, seeded};
    use crate::policy::kubernetes::labels::Requirement;

    const WORDS: [&str; 4] = ["a", "b", "c", "d"];

    fn word(rng: &mut Rng) -> String {
        WORDS[rng.usize(0..WORDS.len())].to_owned()
    }

    fn labels(rng: &mut Rng) -> Labels {
        (0..rng.usize(0..4)).map(|_| (word(rng), word(rng))).collect()
    }

    fn cluster(rng: &mut Rng) -> Cluster {
        let mut cluster = Cluster::default();
        for name in WORDS {
            cluster.add_namespace(name, labels(rng));
        }
        for _ in 0..rng.usize(0..30) {
            let (namespace, labels) = (word(rng), labels(rng));
            let host_network = rng.u8(0..6) == 0;
            cluster.pods.push(Pod { namespace, labels, host_network, ..Pod::default() });
        }
        cluster
    }

    fn selector(rng: &mut Rng) -> Selector {
        let requirement = |rng: &mut Rng| {
            let values = (0..rng.usize(1..3)).map(|_| word(rng)).collect();
            let test = match rng.u8(0..4) {
                0 => Test::In(values),
                1 => Test::NotIn(values),
                2 => Test::Exists,
                _ => Test::DoesNotExist,
            };
            Requirement { key: word(rng), test }
        };
        Selector::new((0..rng.usize(0..3)).map(|_| requirement(rng)).collect::<Vec<_>>())
    }

    #[test]
    fn the_index_finds_what_a_look_at_every_pod_finds() {
        let seed = seed();
        let mut selected = 0;
        for case in 0..300 {
            let mut rng = seeded(seed, case);
            let cluster = cluster(&mut rng);
            let mut index = Index::new(&cluster);
            for _ in 0..20 {
                let namespaces = if rng.bool() {
                    Namespaces::Named(word(&mut rng))
                } else {
                    Namespaces::Matching(selector(&mut rng))
                };
                let asked = PodSelector { namespaces, pods: selector(&mut rng) };
                let matches = |pod: &Pod| {
                    let there = match &asked.namespaces {
                        Namespaces::Named(name) => *name == pod.namespace,
                        Namespaces::Matching(some) => {
                            some.matches(&cluster.namespaces[&pod.namespace])
                        }
                    };
                    there && asked.pods.matches(&pod.labels) && !pod.host_network
                };
                let naive: Vec<_> =
                    (0..cluster.pods.len()).filter(|n| matches(&cluster.pods[*n])).collect();
                assert_eq!(index.pods(&asked), naive, "seed {seed} case {case}: {asked}");
                selected += naive.len();
            }
        }
        assert!(selected > 1000);
    }
}
