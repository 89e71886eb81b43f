//! What selectors ask of containers, pods and users, by what a workload must have for it.
//!
//! A workload meets those selectors alone that share a label with it, or its namespace, its user, or
//! that ask for neither: a cluster has thousands of selectors and tens of thousands of pods.

use std::collections::{BTreeMap, HashMap};

use super::facts::{ContainerFacts, PodFacts, WorkloadFacts};
use super::glob;
use crate::policy::resolved::{ContainerMatch, PodMatch};

/// What a condition asks for, and its index in the list of all conditions.
type Asked<T> = Vec<(T, usize)>;

/// Conditions on containers, pods and users.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes {
    containers: Labelled<ContainerMatch>,
    pods: Labelled<PodMatch>,
    users: HashMap<Box<str>, Vec<usize>>,
}

/// Conditions by one of the labels that they ask for, else by a name that they ask for.
#[derive(Clone, Debug)]
struct Labelled<T> {
    by_label: HashMap<(Box<str>, Box<str>), Asked<T>>,
    by_name: HashMap<Box<str>, Asked<T>>,
    others: Asked<T>,
}

impl<T> Default for Labelled<T> {
    fn default() -> Self {
        Self { by_label: HashMap::new(), by_name: HashMap::new(), others: Vec::new() }
    }
}

impl<T> Labelled<T> {
    fn add(
        &mut self,
        asked: T,
        labels: &BTreeMap<String, String>,
        name: Option<&str>,
        condition: usize,
    ) {
        let literal = name.filter(|name| !name.contains('*'));
        let list = match (labels.iter().next(), literal) {
            (Some((key, value)), _) => {
                let label = (key.as_str().into(), value.as_str().into());
                self.by_label.entry(label).or_default()
            }
            (None, Some(name)) => self.by_name.entry(name.into()).or_default(),
            (None, None) => &mut self.others,
        };
        list.push((asked, condition));
    }

    /// Those that something with these labels and this name can fulfil.
    fn candidates<'a>(
        &'a self,
        labels: &'a BTreeMap<String, String>,
        name: Option<&str>,
    ) -> impl Iterator<Item = &'a (T, usize)> {
        let labelled = labels.iter().filter_map(|(key, value)| {
            self.by_label.get(&(key.as_str().into(), value.as_str().into()))
        });
        let named = name.and_then(|name| self.by_name.get(name));
        labelled.chain(named).chain([&self.others]).flatten()
    }
}

/// Which attribute fulfils a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Container,
    Pod,
    User,
}

impl Attributes {
    pub(super) fn add_container(&mut self, asked: &ContainerMatch, condition: usize) {
        self.containers.add(asked.clone(), &asked.labels, asked.name.as_deref(), condition);
    }

    pub(super) fn add_pod(&mut self, asked: &PodMatch, condition: usize) {
        self.pods.add(asked.clone(), &asked.labels, asked.namespace.as_deref(), condition);
    }

    pub(super) fn add_user(&mut self, user: &str, condition: usize) {
        self.users.entry(user.into()).or_default().push(condition);
    }

    /// Calls `each` with every condition that a workload fulfils by one of its attributes.
    pub(super) fn matching(&self, facts: &WorkloadFacts, mut each: impl FnMut(usize, Attribute)) {
        if let Some(container) = &facts.container {
            let all = self.containers.candidates(&container.labels, container.name.as_deref());
            for (_, condition) in all.filter(|(asked, _)| is_container(asked, container)) {
                each(*condition, Attribute::Container);
            }
        }
        if let Some(pod) = &facts.pod {
            let all = self.pods.candidates(&pod.labels, pod.namespace.as_deref());
            for (_, condition) in all.filter(|(asked, _)| is_pod(asked, pod)) {
                each(*condition, Attribute::Pod);
            }
        }
        let user = facts.user.as_deref().and_then(|user| self.users.get(user));
        for condition in user.into_iter().flatten() {
            each(*condition, Attribute::User);
        }
    }
}

fn is_container(asked: &ContainerMatch, container: &ContainerFacts) -> bool {
    is_named(asked.name.as_deref(), container.name.as_deref())
        && is_named(asked.image.as_deref(), container.image.as_deref())
        && has_labels(&asked.labels, &container.labels)
}

fn is_pod(asked: &PodMatch, pod: &PodFacts) -> bool {
    is_named(asked.namespace.as_deref(), pod.namespace.as_deref())
        && is_named(asked.service_account.as_deref(), pod.service_account.as_deref())
        && has_labels(&asked.labels, &pod.labels)
}

fn is_named(pattern: Option<&str>, name: Option<&str>) -> bool {
    pattern.is_none_or(|pattern| name.is_some_and(|name| glob::matches(pattern, name)))
}

fn has_labels(asked: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    asked.iter().all(|(key, value)| labels.get(key) == Some(value))
}
