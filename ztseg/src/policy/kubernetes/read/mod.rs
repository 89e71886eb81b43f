//! YAML trees to Kubernetes objects. What an API server refuses is refused, and why is said.

mod cluster_policy;
mod field;
mod inventory;
mod network_policy;
mod port;
mod selector;

use std::collections::HashMap;

use self::field::{formed, given, needed};
use super::Objects;
use super::labels::{Labels, is_subdomain};
use super::model;
use crate::policy::diagnostic::{Diagnostic, Span, quote};
use crate::policy::model::Spanned;
use crate::policy::names;
use crate::policy::parse::reader::{Context, Fields, Shape};
use crate::policy::yaml::Node;

/// A kind of Kubernetes document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Kind {
    Policy(model::Kind),
    Namespace,
    Pod,
    Node,
}

/// The kinds by name, each with its `apiVersion`.
pub(in crate::policy) const KINDS: &[(&str, &str, Kind)] = &[
    ("NetworkPolicy", "networking.k8s.io/v1", Kind::Policy(model::Kind::NetworkPolicy)),
    (
        "AdminNetworkPolicy",
        "policy.networking.k8s.io/v1alpha1",
        Kind::Policy(model::Kind::AdminNetworkPolicy),
    ),
    (
        "BaselineAdminNetworkPolicy",
        "policy.networking.k8s.io/v1alpha1",
        Kind::Policy(model::Kind::BaselineAdminNetworkPolicy),
    ),
    (
        "ClusterNetworkPolicy",
        "policy.networking.k8s.io/v1alpha2",
        Kind::Policy(model::Kind::ClusterNetworkPolicy),
    ),
    ("Namespace", "v1", Kind::Namespace),
    ("Pod", "v1", Kind::Pod),
    ("Node", "v1", Kind::Node),
];

const DOCUMENT: Shape = Shape {
    what: "a Kubernetes policy",
    fields: &["apiVersion", "kind", "metadata", "spec", "status"],
    later: &[],
};
const DOCUMENT_EXAMPLE: &str = "`apiVersion`, `kind`, `metadata` and `spec`";

/// All fields of `ObjectMeta`; most are the API server's own and mean nothing to a policy.
const METADATA: Shape = Shape {
    what: "`metadata`",
    fields: &[
        "name",
        "namespace",
        "labels",
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ],
    later: &[],
};
/// The namespace of what names none.
const DEFAULT_NAMESPACE: &str = "default";
/// The one name that a `BaselineAdminNetworkPolicy` can have.
const BASELINE_NAME: &str = "default";

/// What `metadata` says.
struct Metadata {
    /// `None` where it could not be read, which was reported.
    name: Option<Spanned<String>>,
    /// Of namespaced kinds only.
    namespace: Option<String>,
    labels: Labels,
}

/// Reads the Kubernetes documents of a load, one after the other.
#[derive(Debug, Default)]
pub(in crate::policy) struct Reader {
    objects: Objects,
    /// By kind, namespace and name.
    seen: HashMap<(&'static str, Option<String>, String), Span>,
}

impl Reader {
    /// Reads a document; what is wrong with it is reported.
    pub(in crate::policy) fn document(
        &mut self,
        cx: &mut Context<'_>,
        node: &Node,
        (name, kind): (&'static str, Kind),
        place: Span,
    ) {
        self.objects.documents.push(Spanned::new(name, place));
        let fields = match kind {
            Kind::Policy(_) => Fields::read(cx, node, &DOCUMENT, DOCUMENT_EXAMPLE),
            _ => Fields::unchecked(node, "a manifest"),
        };
        let Some(fields) = fields else { return };
        let Some(metadata) = metadata(cx, &fields, kind) else { return };
        self.once(cx, name, &metadata);
        match kind {
            Kind::Policy(kind) => {
                let example = "`spec:` with what it selects and its rules";
                let Some(spec) = needed(cx, &fields, "spec", example) else { return };
                let policy = match kind {
                    model::Kind::NetworkPolicy => network_policy::policy(cx, metadata, spec),
                    _ => cluster_policy::policy(cx, kind, metadata, spec),
                };
                self.objects.policies.extend(policy);
            }
            Kind::Namespace => inventory::namespace(metadata, &mut self.objects.cluster),
            Kind::Pod => inventory::pod(cx, metadata, &fields, &mut self.objects.cluster),
            Kind::Node => inventory::node(cx, metadata, &fields, &mut self.objects.cluster),
        }
    }

    /// Everything that was read.
    pub(in crate::policy) fn finish(mut self) -> Objects {
        self.objects.cluster.add_missing_namespaces();
        self.objects
    }

    /// Reports an object that is there already.
    fn once(&mut self, cx: &mut Context<'_>, kind: &'static str, metadata: &Metadata) {
        let Some(name) = &metadata.name else { return };
        let key = (kind, metadata.namespace.clone(), name.value.clone());
        let Some(first) = self.seen.get(&key) else {
            self.seen.insert(key, name.span);
            return;
        };
        let place = key.1.map(|n| format!(" in the namespace {}", quote(&n))).unwrap_or_default();
        let message = format!("a second {kind} with the name {}{place}", quote(&name.value));
        let error = Diagnostic::error(name.span, message).related(*first, "first here");
        cx.out.push(error.help("keep one of them, or give it a name of its own"));
    }
}

fn metadata(cx: &mut Context<'_>, fields: &Fields<'_>, kind: Kind) -> Option<Metadata> {
    const NAME: (fn(&str) -> bool, &str) =
        (is_subdomain, "lower-case letters, digits, `-` and `.`, as in `web.shop`");
    const LABEL: (fn(&str) -> bool, &str) =
        (names::is_well_formed, "lower-case letters, digits and `-`, as in `shop`");
    let node = needed(cx, fields, "metadata", "`metadata: { name: NAME }`")?;
    let fields = Fields::read(cx, node, &METADATA, "`{ name: NAME }`")?;
    let form = if kind == Kind::Namespace { LABEL } else { NAME };
    let name = needed(cx, &fields, "name", "`name: NAME`");
    let name = name.and_then(|n| formed(cx, n, "the name of an object", form));
    let namespaced = matches!(kind, Kind::Pod | Kind::Policy(model::Kind::NetworkPolicy));
    let namespace = match given(&fields, "namespace") {
        Some(node) if namespaced => {
            formed(cx, node, "the name of a namespace", LABEL).map(|n| n.value.to_owned())
        }
        Some(node) => {
            let message = "this kind holds for the whole cluster, and is in no namespace";
            cx.error(node.span, message, "remove `namespace`");
            None
        }
        None => namespaced.then(|| DEFAULT_NAMESPACE.to_owned()),
    };
    if let Some(name) = name
        && kind == Kind::Policy(model::Kind::BaselineAdminNetworkPolicy)
        && name.value != BASELINE_NAME
    {
        let message = format!(
            "{} cannot be the name of a BaselineAdminNetworkPolicy: a cluster has one, named `default`",
            quote(name.value)
        );
        cx.error(name.span, message, "write `name: default`");
    }
    let labels = given(&fields, "labels").map(|n| selector::labels(cx, n, "`labels`"));
    Some(Metadata {
        name: name.map(|n| Spanned::new(n.value.to_owned(), n.span)),
        namespace,
        labels: labels.unwrap_or_default(),
    })
}
