//! The ends of a question: from what people write to a workload's segments and an address.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::image::SegmentSet;
use crate::inventory::Inventory;
use crate::judge::End;
use crate::policy::diagnostic::quote;
use crate::policy::kubernetes::placed::PlacedPod;
use crate::policy::names;
use crate::policy::resolved::{Resolved, SegmentId};
use crate::policy::workload::PlacedWorkload;

/// What an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A workload that is in this segment and in no other.
    Segment,
    /// A cgroup, by its path below the cgroup root.
    Cgroup,
    /// What is in no other workload of this host.
    Host,
    /// What is behind an interface.
    Interface,
    /// A pod that was read from a manifest.
    Pod,
    /// A workload that a document describes.
    Workload,
    /// An address of no workload.
    Address,
}

/// One end, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As it was written.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The workload that it belongs to, where that has another name.
    pub workload: Option<String>,
    /// What the evaluator is asked with.
    pub end: End,
    /// The addresses that it may have; for a pod, one for each family.
    addresses: Vec<IpAddr>,
}

impl Place {
    #[cfg(test)]
    pub(super) fn new(name: &str, kind: Kind, end: End) -> Self {
        let addresses = end.address.into_iter().collect();
        Self { name: name.to_owned(), kind, workload: None, end, addresses }
    }

    pub(super) fn is_elsewhere(&self) -> bool {
        self.end.workload.is_none()
    }

    /// Its address family, if it has only one.
    pub(super) fn is_v4(&self) -> Option<bool> {
        let (first, rest) = self.addresses.split_first()?;
        rest.iter().all(|a| a.is_ipv4() == first.is_ipv4()).then_some(first.is_ipv4())
    }

    /// With its address of a family; IPv4 where nothing says which.
    pub(super) fn of_family(mut self, v4: Option<bool>) -> Self {
        let wanted = |v4: bool| self.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        self.end.address = match v4 {
            Some(v4) => wanted(v4),
            None => wanted(true).or_else(|| wanted(false)),
        };
        self
    }
}

/// What is known of the ends that a question can name.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The policy.
    pub resolved: &'a Resolved,
    /// The workloads of this host, under that policy; without any, cgroups and interfaces are
    /// placed by their names alone, as they would be.
    pub inventory: &'a Inventory,
    /// Pods that were read from manifests.
    pub pods: &'a [PlacedPod],
    /// Workloads that documents describe.
    pub workloads: &'a [PlacedWorkload],
}

impl Places<'_> {
    /// Finds an end: a segment's name; a cgroup's path (`/shop.slice/web.service`); `host`;
    /// `interface:NAME`; a pod as `NAMESPACE/NAME`; a workload that a document describes, as
    /// `workload:NAME` or, where no segment has it, its name; an address. A workload with the address
    /// that the flow uses for it is written `web@192.0.2.7`.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn find(&self, text: &str) -> Result<Place, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.address(text, address.to_canonical()));
        }
        // Units have an `@` in their names, too: /system.slice/getty@tty1.service
        let is_meant =
            |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'.' | b':'));
        let (name, address) = match text.rsplit_once('@') {
            Some((name, address)) => match address.parse::<IpAddr>() {
                Ok(address) => (name, Some(address.to_canonical())),
                Err(_) if name.starts_with('/') && !is_meant(address) => (text, None),
                Err(_) => return Err(format!("{} is not an address", quote(address))),
            },
            None => (text, None),
        };
        let mut place = self.workload(name)?;
        text.clone_into(&mut place.name);
        if let Some(address) = address {
            place.addresses = vec![address];
        }
        Ok(place)
    }

    fn address(&self, text: &str, address: IpAddr) -> Place {
        let its = |pod: &&PlacedPod| !pod.host_network && pod.addresses.contains(&address);
        let pod = self.pods.iter().find(its);
        let workload = self.workloads.iter().find(|w| w.facts.addresses.contains(&address));
        let (kind, workload, segments) = match (pod, workload) {
            (Some(pod), _) => (Kind::Pod, Some(pod_name(pod)), pod.segments.clone()),
            (None, Some(workload)) => {
                (Kind::Workload, Some(workload.name.clone()), Some(workload.segments.clone()))
            }
            (None, None) => (Kind::Address, None, None),
        };
        let end = End { workload: segments, address: Some(address) };
        Place { name: text.to_owned(), kind, workload, end, addresses: vec![address] }
    }

    fn workload(&self, name: &str) -> Result<Place, String> {
        let place = |kind, workload: Option<String>, segments| Place {
            name: name.to_owned(),
            kind,
            workload: workload.filter(|workload| workload != name),
            end: End { workload: Some(segments), address: None },
            addresses: Vec::new(),
        };
        if name.starts_with('/') {
            let (owner, segments) = self.inventory.owner_of(name);
            return Ok(place(Kind::Cgroup, Some(owner), segments));
        }
        if name == "host" {
            return Ok(place(Kind::Host, None, self.inventory.owner_of("/").1));
        }
        if let Some(interface) = name.strip_prefix("interface:") {
            let segments = self.inventory.interface(interface);
            if segments.is_empty() {
                return Err(format!(
                    "no segment names the interface {}, so nothing is judged there",
                    quote(interface)
                ));
            }
            return Ok(place(Kind::Interface, None, segments));
        }
        if name.contains('/') {
            return self.pod(name);
        }
        if let Some(described) = name.strip_prefix("workload:") {
            return self.described(name, described).ok_or_else(|| {
                let known = self.workloads.iter().map(|w| w.name.as_str());
                let help = names::suggest(described, known).unwrap_or_else(|| {
                    "load its document of `kind: Workload` with --file, too".to_owned()
                });
                format!("there is no workload {}; {help}", quote(described))
            });
        }
        let segments = &self.resolved.segments[..self.resolved.own_segments()];
        if let Some(at) = segments.iter().position(|segment| segment.name == name) {
            let id = SegmentId(u32::try_from(at).unwrap_or(u32::MAX));
            return Ok(place(Kind::Segment, None, SegmentSet::from([id])));
        }
        if let Some(described) = self.described(name, name) {
            return Ok(described);
        }
        let described = self.workloads.iter().map(|w| w.name.as_str());
        let known = segments.iter().map(|segment| segment.name.as_str()).chain(described);
        let help = names::suggest(name, known).unwrap_or_else(|| {
            "write a cgroup's path (`/web.service`), a pod (`NAMESPACE/NAME`) or an address"
                .to_owned()
        });
        let what = if self.workloads.is_empty() { "segment" } else { "segment or workload" };
        Err(format!("there is no {what} {}; {help}", quote(name)))
    }

    /// A workload that a document describes; `text` is how it was asked for.
    fn described(&self, text: &str, name: &str) -> Option<Place> {
        let workload = self.workloads.iter().find(|workload| workload.name == name)?;
        Some(Place {
            name: text.to_owned(),
            kind: Kind::Workload,
            workload: None,
            end: End { workload: Some(workload.segments.clone()), address: None },
            addresses: workload.facts.addresses.clone(),
        })
    }

    fn pod(&self, name: &str) -> Result<Place, String> {
        let Some(pod) = self.pods.iter().find(|pod| pod_name(pod) == name) else {
            let all: Vec<_> = self.pods.iter().map(pod_name).collect();
            let help = match names::nearest(name, all.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "load its manifest with --file, too".to_owned(),
            };
            return Err(format!("there is no pod {}; {help}", quote(name)));
        };
        Ok(Place {
            name: name.to_owned(),
            kind: Kind::Pod,
            workload: None,
            end: End { workload: pod.segments.clone(), address: None },
            addresses: pod.addresses.clone(),
        })
    }
}

fn pod_name(pod: &PlacedPod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}
