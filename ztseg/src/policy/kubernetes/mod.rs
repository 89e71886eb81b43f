//! Kubernetes' own policy objects, and the inventory that their selectors are about.
//!
//! [`read`] turns documents into the [`model`] and the [`cluster`], with the API server's own
//! validation; [`translate`] makes segments and rules of them. One model serves all four kinds: a
//! subject, and at its end rules with peers and ports. ARCHITECTURE.md says what becomes of what.

pub mod cluster;
pub mod labels;
pub mod model;
pub mod placed;
pub(super) mod read;
mod select;
pub(super) mod translate;

use super::model::Spanned;
use cluster::Cluster;
use model::Policy;

/// All Kubernetes documents of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// The policies, in the order of the sources.
    pub policies: Vec<Policy>,
    /// What namespaces, pods and nodes there are.
    pub cluster: Cluster,
    /// The kind of every document, and where that stands.
    pub documents: Vec<Spanned<&'static str>>,
}
