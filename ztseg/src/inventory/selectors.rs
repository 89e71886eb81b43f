//! The selectors of all segments, compiled: which segments hold a cgroup, an interface, the host, or
//! a workload that something else describes.
//!
//! Patterns for paths lie in a trie by component, so that a path costs its depth and not the
//! number of patterns.

use std::collections::{BTreeMap, BTreeSet};

use super::attributes::{Attribute, Attributes};
use super::facts::WorkloadFacts;
use super::glob::GlobIndex;
use crate::image::SegmentSet;
use crate::policy::resolved::{Resolved, SegmentId, Selector};

/// Suffixes of what is a unit of the system manager and can hold processes
/// (systemd.unit(5), systemd's `CGROUP_DELEGATION`); slices hold these.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
const SLICE: &str = ".slice";

/// What the policy says of one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    /// The segments that it is in.
    pub(super) segments: SegmentSet,
    /// Whether it is a workload of its own; else it belongs to the next ancestor that is.
    pub(super) workload: bool,
}

/// A selector of cgroups, by their paths or by what they are.
#[derive(Clone, Copy, Debug)]
struct Condition {
    segment: SegmentId,
    /// The fields that must hold.
    fields: Fields,
}

/// A set of a selector's fields.
type Fields = u8;

const CGROUP: Fields = 1;
const UNIT: Fields = 1 << 1;
const CONTAINER: Fields = 1 << 2;
const POD: Fields = 1 << 3;
const USER: Fields = 1 << 4;
/// [`Selector::host`], beside [`USER`]
const AT_HOST: Fields = 1 << 5;

/// Selectors whose patterns end here, as indexes into [`Selectors::conditions`].
type Conditions = Vec<usize>;

/// A place in the trie of path patterns.
#[derive(Clone, Debug, Default)]
struct Node {
    /// What the next component leads to.
    children: GlobIndex<Option<usize>>,
    /// The node after a `**` here.
    any_depth: Option<usize>,
    /// Whether this node is the one after a `**`: then any component leads back to it.
    repeats: bool,
    ends: Conditions,
}

/// The selectors of a policy.
#[derive(Clone, Debug)]
pub(super) struct Selectors {
    /// The first is where every path begins.
    nodes: Vec<Node>,
    units: GlobIndex<Conditions>,
    attributes: Attributes,
    /// What the host fulfils.
    at_host: Conditions,
    conditions: Vec<Condition>,
    interfaces: GlobIndex<Vec<SegmentId>>,
    host: SegmentSet,
    /// [`Resolved::failsafe`]
    failsafe: Option<SegmentId>,
}

impl Default for Selectors {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            units: GlobIndex::default(),
            attributes: Attributes::default(),
            at_host: Vec::new(),
            conditions: Vec::new(),
            interfaces: GlobIndex::default(),
            host: SegmentSet::new(),
            failsafe: None,
        }
    }
}

impl Selectors {
    pub(super) fn new(resolved: &Resolved) -> Self {
        let mut selectors = Self { failsafe: resolved.failsafe, ..Self::default() };
        for (index, segment) in resolved.segments.iter().enumerate() {
            // A policy of more than 2^32 segments fits no memory.
            let id = SegmentId(u32::try_from(index).unwrap_or(u32::MAX));
            for selector in &segment.selectors {
                selectors.add(id, selector);
            }
        }
        selectors
    }

    fn add(&mut self, segment: SegmentId, selector: &Selector) {
        let Selector { cgroup, unit, container, pod, interface, user, host } = selector;
        let set = |is: bool, field: Fields| if is { field } else { 0 };
        let fields = set(cgroup.is_some(), CGROUP)
            | set(unit.is_some(), UNIT)
            | set(container.is_some(), CONTAINER)
            | set(pod.is_some(), POD)
            | set(user.is_some(), USER);
        if let Some(pattern) = interface {
            // No interface has a cgroup, is a unit or has an owner.
            if fields == 0 && !host {
                self.interfaces.entry(pattern).push(segment);
            }
            return;
        }
        if *host && fields & USER == 0 {
            // The host is the root: no unit, and its path has no components.
            let root = |p: &String| components(p).all(|c| c == "**");
            if fields & !CGROUP == 0 && cgroup.as_ref().is_none_or(root) {
                self.host.insert(segment);
            }
            return;
        }
        let condition = self.conditions.len();
        let fields = fields | set(*host, AT_HOST);
        self.conditions.push(Condition { segment, fields });
        if let Some(path) = cgroup {
            let node = self.node(path);
            self.nodes[node].ends.push(condition);
        }
        if let Some(unit) = unit {
            self.units.entry(unit).push(condition);
        }
        if let Some(container) = container {
            self.attributes.add_container(container, condition);
        }
        if let Some(pod) = pod {
            self.attributes.add_pod(pod, condition);
        }
        if let Some(user) = user {
            self.attributes.add_user(user, condition);
        }
        if *host {
            self.at_host.push(condition);
        }
    }

    /// The node that a path pattern ends at.
    fn node(&mut self, pattern: &str) -> usize {
        let mut at = 0;
        for component in components(pattern) {
            let new = self.nodes.len();
            if component == "**" {
                if self.nodes[at].repeats {
                    continue;
                }
                at = *self.nodes[at].any_depth.get_or_insert(new);
            } else {
                at = *self.nodes[at].children.entry(component).get_or_insert(new);
            }
            if at == new {
                self.nodes.push(Node { repeats: component == "**", ..Node::default() });
            }
        }
        at
    }

    /// Where the policy puts a cgroup, by its path below the cgroup root.
    ///
    /// It depends on the path alone, not on which other cgroups there are.
    pub(super) fn cgroup(&self, path: &str) -> Placement {
        self.walk(Walk::new(self), path)
    }

    /// Where the policy puts something of which this is known, as if it were at `path`. Without one
    /// it is in no cgroup that anybody knows of, not even in `/**`.
    pub(super) fn workload(&self, facts: &WorkloadFacts, path: Option<&str>) -> Placement {
        let mut walk = Walk::new(self);
        self.attributes.matching(facts, |condition, attribute| {
            let field = match attribute {
                Attribute::Container => CONTAINER,
                Attribute::Pod => POD,
                Attribute::User => USER,
            };
            walk.hold(condition, field);
        });
        if let Some(unit) = &facts.unit {
            self.units.matching(unit, |conditions| walk.meet(conditions, UNIT));
        }
        match path {
            Some(path) => self.walk(walk, path),
            None => Placement { segments: walk.segments, workload: true },
        }
    }

    /// Goes on with a walk down a path.
    fn walk(&self, mut walk: Walk<'_>, path: &str) -> Placement {
        let mut slices_only = true;
        let mut is_unit = false;
        walk.arrive(0);
        let mut above = walk.segments.len();
        let mut depth = 0;
        for component in components(path) {
            depth += 1;
            above = walk.segments.len();
            is_unit = slices_only && UNITS.iter().any(|suffix| component.ends_with(suffix));
            slices_only = slices_only && component.ends_with(SLICE);
            if is_unit {
                self.units.matching(component, |conditions| walk.meet(conditions, UNIT));
            }
            walk.enter(component);
        }
        if depth == 0 {
            walk.meet(&self.at_host, AT_HOST);
            let mut segments = walk.segments;
            segments.extend(&self.host);
            return Placement { segments, workload: true };
        }
        let workload = is_unit || walk.segments.len() > above;
        Placement { segments: walk.segments, workload }
    }

    /// The segments of an interface. The host's side of one is the host, as far as failsafe goes.
    pub(super) fn interface(&self, name: &str, host_side: bool) -> SegmentSet {
        let mut segments = SegmentSet::new();
        self.interfaces.matching(name, |list| segments.extend(list));
        if host_side && !segments.is_empty() {
            segments.extend(self.failsafe);
        }
        segments
    }
}

/// A walk down a path, through the trie of patterns.
struct Walk<'a> {
    selectors: &'a Selectors,
    /// The nodes that the components so far lead to.
    nodes: BTreeSet<usize>,
    /// Conditions of more than one field, with the fields that hold already.
    held: BTreeMap<usize, Fields>,
    segments: SegmentSet,
}

impl<'a> Walk<'a> {
    fn new(selectors: &'a Selectors) -> Self {
        Self { selectors, nodes: BTreeSet::new(), held: BTreeMap::new(), segments: [].into() }
    }

    /// Goes on by one component.
    fn enter(&mut self, component: &str) {
        let selectors = self.selectors;
        for node in std::mem::take(&mut self.nodes) {
            let Node { children, repeats, .. } = &selectors.nodes[node];
            if *repeats {
                self.arrive(node);
            }
            if !children.is_empty() {
                children.matching(component, |child| child.iter().for_each(|c| self.arrive(*c)));
            }
        }
    }

    fn arrive(&mut self, node: usize) {
        if !self.nodes.insert(node) {
            return;
        }
        let Node { any_depth, ends, .. } = &self.selectors.nodes[node];
        self.meet(ends, CGROUP);
        if let Some(next) = any_depth {
            self.arrive(*next);
        }
    }

    /// One of their fields holds for all of these.
    fn meet(&mut self, conditions: &[usize], field: Fields) {
        for condition in conditions {
            self.hold(*condition, field);
        }
    }

    fn hold(&mut self, condition: usize, field: Fields) {
        let Condition { segment, fields } = self.selectors.conditions[condition];
        if fields == field {
            self.segments.insert(segment);
            return;
        }
        let held = self.held.entry(condition).or_default();
        *held |= field;
        if *held == fields {
            self.segments.insert(segment);
        }
    }
}

/// The components of a path or a pattern; the root has none.
fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|c| !c.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selectors(list: &[(Option<&str>, Option<&str>)]) -> Selectors {
        let mut selectors = Selectors::default();
        for (i, (cgroup, unit)) in (0..).zip(list) {
            let selector = Selector {
                cgroup: cgroup.map(str::to_owned),
                unit: unit.map(str::to_owned),
                ..Selector::default()
            };
            selectors.add(SegmentId(i), &selector);
        }
        selectors
    }

    fn placement(selectors: &Selectors, path: &str) -> (Vec<u32>, bool) {
        let p = selectors.cgroup(path);
        (p.segments.into_iter().map(|s| s.0).collect(), p.workload)
    }

    #[test]
    fn patterns_hold_for_the_cgroup_that_they_name_and_below_it() {
        let s = selectors(&[
            (Some("/shop/web"), None),
            (Some("/shop/*"), None),
            (Some("/**/job-*/run"), None),
            (Some("/shop/**/db"), None),
        ]);
        for (path, segments, workload) in [
            ("/", &[][..], true),
            ("/shop", &[], false),
            ("/shop/web", &[0, 1], true),
            ("/shop/web/worker", &[0, 1], false),
            ("/shop/api", &[1], true),
            ("/shop/db", &[1, 3], true),
            ("/shop/api/v2/db", &[1, 3], true),
            ("/shop/api/v2/db/x", &[1, 3], false),
            ("/job-1/run", &[2], true),
            ("/a/b/job-/run/deep", &[2], false),
            ("/a/job-1/x/run", &[], false),
        ] {
            assert_eq!(placement(&s, path), (segments.to_vec(), workload), "{path}");
        }
    }

    #[test]
    fn a_star_stays_within_its_component() {
        let s = selectors(&[(Some("/*/x"), None), (Some("/a*c"), None)]);
        assert!(placement(&s, "/a/b/x").0.is_empty());
        assert_eq!(placement(&s, "/abc").0, [1]);
        assert!(placement(&s, "/ab/c").0.is_empty());
    }

    #[test]
    fn units_are_those_of_the_system_manager_only() {
        let s = selectors(&[(None, Some("nginx*.service"))]);
        for (path, segments, workload) in [
            ("/system.slice/nginx.service", &[0][..], true),
            ("/nginx.service", &[0], true),
            ("/a.slice/a-b.slice/nginx-2.service", &[0], true),
            ("/system.slice/nginx.service/worker", &[0], false),
            ("/system.slice/nginx.service/nginx.service", &[0], false),
            ("/system.slice/cron.service", &[], true),
            ("/system.slice/cron.service/nginx.service", &[], false),
            ("/user.slice/user-1.slice/user@1.service/app.slice/nginx.service", &[], false),
            ("/delegated/nginx.service", &[], false),
            ("/system.slice/x/nginx.service", &[], false),
            ("/system.slice", &[], false),
            ("/nginx.slice", &[], false),
        ] {
            assert_eq!(placement(&s, path), (segments.to_vec(), workload), "{path}");
        }
        for unit in ["a.scope", "a.socket", "a.mount", "a.swap"] {
            assert!(s.cgroup(&format!("/x.slice/{unit}")).workload, "{unit}");
        }
    }

    #[test]
    fn the_fields_of_one_entry_are_anded() {
        let s = selectors(&[
            (Some("/system.slice"), Some("web.service")),
            (Some("/system.slice/web.service/worker"), Some("web.service")),
            (Some("/other.slice"), Some("web.service")),
        ]);
        assert_eq!(placement(&s, "/system.slice/web.service"), (vec![0], true));
        assert_eq!(placement(&s, "/system.slice/web.service/worker"), (vec![0, 1], true));
        assert_eq!(placement(&s, "/web.service"), (vec![], true));
        assert_eq!(placement(&s, "/other.slice/x.scope"), (vec![], true));
    }

    #[test]
    fn the_hosts_segments_are_not_inherited() {
        let mut s = selectors(&[(Some("/**"), None)]);
        s.add(SegmentId(7), &Selector { host: true, ..Selector::default() });
        let with_unit = Selector { host: true, unit: Some("*".into()), ..Selector::default() };
        s.add(SegmentId(8), &with_unit);
        assert_eq!(placement(&s, "/"), (vec![0, 7], true));
        assert_eq!(placement(&s, "/a"), (vec![0], false));
        assert_eq!(placement(&s, "/a.service"), (vec![0], true));
    }

    #[test]
    fn odd_patterns_and_paths_do_not_panic() {
        let s = selectors(&[(Some(""), None), (Some("//**/**//"), None), (Some("**/a"), None)]);
        assert_eq!(placement(&s, "a//").0, [0, 1, 2]);
        assert_eq!(placement(&s, "").0, [0, 1]);
    }
}
