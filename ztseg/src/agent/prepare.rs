//! From policy files to something that can be committed. Pure: nothing that runs is touched.

use std::sync::Arc;

use crate::datapath::Capacity;
use crate::image::Image;
use crate::inventory::{Inventory, Membership};
use crate::policy::compile::compile;
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::policy::failsafe::Failsafe;
use crate::policy::model::{Offline, Spanned};
use crate::policy::resolved::{Isolation, Mode, Resolved};
use crate::policy::source::Source;
use crate::policy::{Loaded, load};

/// A policy that compiled, with the inventory as it sees it.
#[derive(Debug)]
pub struct Prepared {
    /// The policy.
    pub resolved: Arc<Resolved>,
    /// This host's workloads under it.
    pub inventory: Inventory,
    /// What to commit.
    pub image: Image,
}

/// Loads, resolves and compiles `sources` for the workloads in `inventory`; with `audit` as if
/// every rule and segment were in audit mode. What `failsafe` opens comes before all of it.
///
/// # Errors
/// Everything that is wrong, as text for people.
pub fn prepare(
    sources: &[Source],
    audit: bool,
    failsafe: &Failsafe,
    inventory: &Inventory,
    capacity: &Capacity,
) -> Result<Prepared, String> {
    let loaded = load(sources).map_err(|e| e.render(false))?;
    nothing_unknown(&loaded).map_err(|e| e.render(false))?;
    let mut resolved = loaded.resolved;
    if audit {
        audit_everything(&mut resolved);
    }
    failsafe.add_to(&mut resolved);
    let mut inventory = inventory.clone();
    inventory.set_policy(&resolved);
    let image = build(&resolved, &inventory, capacity)?;
    Ok(Prepared { resolved: Arc::new(resolved), inventory, image })
}

/// This host's workloads are known by their cgroups and interfaces. What asks for more would protect
/// nothing if it were in force.
fn nothing_unknown(loaded: &Loaded) -> Result<(), Diagnostics> {
    let refused = |what: &Spanned<Offline>| {
        let (message, help) = match what.value {
            Offline::Kind("Workload") => (
                "`kind: Workload` describes workloads for the offline verbs; the agent finds its own".to_owned(),
                "leave the document to `ztseg check`, `explain` and `diff`",
            ),
            Offline::Kind(kind) => (
                format!("the agent does not know pods yet, so `kind: {kind}` would do nothing"),
                "`ztseg check` reads it; for the agent, write a `kind: SegmentPolicy`",
            ),
            Offline::Match(field) => (
                format!("the agent does not know this yet, so a `match` entry with `{field}` would hold nothing"),
                "`ztseg check` reads it; for the agent, match the `unit`, the `cgroup` or the `interface`",
            ),
            Offline::NamedPort => (
                "the agent does not know pods yet, and their names for ports".to_owned(),
                "write the number",
            ),
        };
        Diagnostic::error(what.span, message).help(help)
    };
    let found: Vec<_> = loaded.offline.iter().map(refused).collect();
    if found.is_empty() { Ok(()) } else { Err(Diagnostics::new(&loaded.sources, found)) }
}

/// Compiles a policy for the workloads in `inventory`, which must know the policy already.
///
/// # Errors
/// Why it does not compile, as text for people.
pub fn build(
    resolved: &Resolved,
    inventory: &Inventory,
    capacity: &Capacity,
) -> Result<Image, String> {
    let members: Vec<Membership> = inventory.memberships().cloned().collect();
    compile(resolved, &members, capacity).map_err(|e| e.to_string())
}

/// Puts every rule and segment into audit mode.
pub fn audit_everything(resolved: &mut Resolved) {
    for rule in &mut resolved.rules {
        rule.mode = Mode::Audit;
    }
    for segment in &mut resolved.segments {
        for isolation in [&mut segment.ingress, &mut segment.egress] {
            if *isolation == Isolation::Enforce {
                *isolation = Isolation::Audit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_drops_nothing_and_opens_nothing() {
        let text = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: p }
spec:
  segments:
    web: { isolation: [ingress], match: [ { cgroup: /web } ] }
  deny:
    - { from: any, to: web, ports: [tcp/22] }
";
        let source = Source { name: "t".into(), text: text.into() };
        let capacity = Capacity::default();
        let failsafe = Failsafe::off();
        let prepared =
            prepare(&[source], true, &failsafe, &Inventory::new(), &capacity).expect("valid");
        assert_eq!(prepared.resolved.rules[0].mode, Mode::Audit);
        let web = &prepared.resolved.segments[0];
        assert_eq!((web.ingress, web.egress), (Isolation::Audit, Isolation::Open));
    }

    #[test]
    fn a_bad_policy_is_refused_with_its_place() {
        let source = Source { name: "bad.yaml".into(), text: "kind: Nonsense".into() };
        let error =
            prepare(&[source], false, &Failsafe::off(), &Inventory::new(), &Capacity::default());
        assert!(error.expect_err("refused").contains("bad.yaml"));
    }

    #[test]
    fn what_would_protect_nothing_is_refused_with_its_place() {
        let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: closed }
spec: {}
";
        let source = Source { name: "np.yaml".into(), text: text.into() };
        let error =
            prepare(&[source], false, &Failsafe::off(), &Inventory::new(), &Capacity::default())
                .expect_err("refused");
        assert!(error.contains("the agent does not know pods yet"), "{error}");
        assert!(error.contains("np.yaml:3:7"), "{error}");
    }
}
