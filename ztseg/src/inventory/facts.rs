//! What is known of a workload that no kernel has told of: one that a file describes, or a runtime.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// A workload, by what selectors ask for. What is not known matches no selector that asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadFacts {
    /// Path of its cgroup below the cgroup root; `/` is the host.
    pub cgroup: Option<String>,
    /// Its unit of the system manager.
    pub unit: Option<String>,
    /// It is a container.
    pub container: Option<ContainerFacts>,
    /// It is a pod, or in one.
    pub pod: Option<PodFacts>,
    /// The interface that it is behind.
    pub interface: Option<String>,
    /// Who owns its sockets, by name or by number.
    pub user: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A container, as its runtime describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Its name.
    pub name: Option<String>,
    /// The reference of its image.
    pub image: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A pod, as the API server describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The name of its service account.
    pub service_account: Option<String>,
}
