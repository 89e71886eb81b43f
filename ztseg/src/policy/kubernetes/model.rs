//! Kubernetes policies as they are written, of all four kinds, with what they default to.

use std::fmt;

use super::labels::Selector;
use crate::policy::diagnostic::Span;
pub use crate::policy::model::Port;
use crate::policy::model::{Directions, Spanned};
use crate::policy::resolved::{Action, Network, Tier};

/// The kinds of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `networking.k8s.io/v1`
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`; there is one at most, with the name `default`.
    BaselineAdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`
    ClusterNetworkPolicy,
}

impl Kind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; of a `NetworkPolicy` only.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Spanned<String>,
    /// The tier that its rules are in.
    pub tier: Tier,
    /// Its place in the tier, where it says one.
    pub priority: Option<Spanned<u32>>,
    /// The directions in which its subject has nothing but what rules allow.
    pub isolates: Directions,
    /// The pods at which its rules hold.
    pub subject: PodSelector,
    /// Rules for flows that others open to the subject, in order.
    pub ingress: Vec<Rule>,
    /// Rules for flows that the subject opens, in order.
    pub egress: Vec<Rule>,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind.name())?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name.value)
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it does.
    pub action: Action,
    /// Who is at the other end, a union; `None` is everybody.
    pub peers: Option<Vec<Peer>>,
    /// Which ports of the destination, a union; `None` is everything.
    pub ports: Option<Vec<Port>>,
    /// Where it stands.
    pub span: Span,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods, but none of the host's network.
    Pods(PodSelector),
    /// Nodes, by their labels: their addresses.
    Nodes(Selector),
    /// Addresses.
    Network(Network),
}

/// Some pods of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodSelector {
    /// Where they are.
    pub namespaces: Namespaces,
    /// Which ones there.
    pub pods: Selector,
}

impl PodSelector {
    /// Every pod of the cluster.
    pub fn every() -> Self {
        Self { namespaces: Namespaces::Matching(Selector::default()), pods: Selector::default() }
    }
}

/// Some namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Namespaces {
    /// This one.
    Named(String),
    /// By labels.
    Matching(Selector),
}

/// `shop/app=web`, `{team=a}/*`: the namespace or the selector for them, then the pods there.
impl fmt::Display for PodSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Namespaces::Named(name) => write!(f, "{name}/{}", self.pods),
            Namespaces::Matching(all) if all.is_empty() => write!(f, "*/{}", self.pods),
            Namespaces::Matching(some) => write!(f, "{{{some}}}/{}", self.pods),
        }
    }
}
