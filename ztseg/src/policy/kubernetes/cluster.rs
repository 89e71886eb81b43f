//! What there is in a Kubernetes cluster: the inventory that selectors are about.
//!
//! Plain data, from manifests in files or from wherever else; nothing here asks anybody.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::labels::Labels;

/// The label that every namespace has, with its name (`NamespaceDefaultLabelName`).
pub const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Namespaces, pods and nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// By name, with their labels.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods that run or are about to.
    pub pods: Vec<Pod>,
    /// Nodes.
    pub nodes: Vec<Node>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// The name of its service account.
    pub service_account: String,
    /// Its addresses; with `host_network` those of its node.
    pub addresses: Vec<IpAddr>,
    /// The ports that its containers name.
    pub ports: Vec<ContainerPort>,
    /// The node that it is on, where that is known.
    pub node: Option<String>,
    /// It has no network of its own but its node's.
    pub host_network: bool,
}

/// A port that a container has a name for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// Its name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Its number.
    pub number: u16,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// By IP protocol number and port: pods, as indexes into [`Cluster::pods`].
pub type PodsByPort = BTreeMap<(u8, u16), Vec<usize>>;

impl Cluster {
    /// Those of some pods whose containers give a port this name, by that port; without a `protocol`,
    /// whatever the pod says. `pods` are indexes into [`Self::pods`].
    pub fn with_named_port(
        &self,
        pods: impl IntoIterator<Item = usize>,
        name: &str,
        protocol: Option<u8>,
    ) -> PodsByPort {
        let mut found = PodsByPort::new();
        for number in pods {
            let asked = self.pods[number].ports.iter().filter(|port| {
                port.name == name && protocol.is_none_or(|asked| asked == port.protocol)
            });
            for port in asked {
                found.entry((port.protocol, port.number)).or_default().push(number);
            }
        }
        found
    }

    /// Adds a namespace, with the label that the API server would add.
    pub fn add_namespace(&mut self, name: &str, labels: Labels) {
        let labels = self.namespaces.entry(name.to_owned()).or_insert(labels);
        labels.insert(NAMESPACE_LABEL.to_owned(), name.to_owned());
    }

    /// Adds the namespaces that pods are in and no manifest describes.
    pub fn add_missing_namespaces(&mut self) {
        let missing = |pod: &&Pod| !self.namespaces.contains_key(&pod.namespace);
        let names: Vec<String> =
            self.pods.iter().filter(missing).map(|pod| pod.namespace.clone()).collect();
        for name in names {
            self.add_namespace(&name, Labels::new());
        }
    }
}
