//! Which policy an agent begins with: the configured one, and with `boot: closed` where that is
//! broken the last good one, or none but failsafe.

use super::prepare::Prepared;
use super::sources::PolicyFiles;
use crate::api::types::Origin;
use crate::config::Boot;
use crate::policy::source::Source;

/// What is enforced with `boot: closed` where no policy can be loaded: everything in a cgroup, and
/// virtual machines behind the interfaces that libvirt and its like make. No other interface: a
/// veth may be this host's own uplink, whose far side must reach what failsafe keeps open.
const CLOSED: &str = "\
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: boot-closed }
spec:
  segments:
    closed:
      description: all of this host, as long as no policy can be loaded
      match:
        - host: true
        - cgroup: /*
        - interface: tap*
        - interface: vnet*
  allow:
    - { name: to-loopback, from: closed, to: [127.0.0.0/8, \"::1\"] }
    - { name: from-loopback, from: [127.0.0.0/8, \"::1\"], to: closed }
";

/// The policy that an agent begins with.
#[derive(Debug)]
pub struct First {
    /// Its files.
    pub files: PolicyFiles,
    /// It, compiled.
    pub prepared: Prepared,
    /// Where it is from.
    pub origin: Origin,
    /// Why it is not the configured one.
    pub error: Option<String>,
}

/// Chooses it: `configured` is what the configuration names, `cached` reads the last good policy.
///
/// # Errors
/// Why there is none, as text for people.
pub fn first(
    configured: Result<PolicyFiles, String>,
    boot: Boot,
    cached: impl FnOnce() -> Result<Option<Vec<Source>>, String>,
    prepare: impl Fn(&[Source]) -> Result<Prepared, String>,
) -> Result<First, String> {
    let loaded = configured.and_then(|files| Ok((prepare(&files.sources)?, files)));
    let error = match (loaded, boot) {
        (Ok((prepared, files)), _) => {
            return Ok(First { files, prepared, origin: Origin::Configured, error: None });
        }
        (Err(error), Boot::Open) => return Err(error),
        (Err(error), Boot::Closed) => error,
    };
    let not_cached = match cached() {
        Ok(Some(sources)) => match prepare(&sources) {
            Ok(prepared) => {
                let files = PolicyFiles { sources, warnings: Vec::new() };
                let error = format!(
                    "the configured policy cannot be loaded; the last good one is in force \
                     (`boot: closed`). Put the files right, and they are applied:\n{error}"
                );
                return Ok(First { files, prepared, origin: Origin::LastGood, error: Some(error) });
            }
            Err(e) => format!("the last good one neither: {e}"),
        },
        Ok(None) => "there is no last good one".to_owned(),
        Err(e) => e,
    };
    let source = Source { name: "boot: closed".into(), text: CLOSED.into() };
    let prepared = prepare(std::slice::from_ref(&source))?;
    let files = PolicyFiles { sources: vec![source], warnings: Vec::new() };
    let error = format!(
        "the configured policy cannot be loaded, and {not_cached}; everything is closed but \
         failsafe and loopback (`boot: closed`). Put the files right, and they are applied:\n{error}"
    );
    Ok(First { files, prepared, origin: Origin::Closed, error: Some(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::prepare;
    use crate::datapath::Capacity;
    use crate::inventory::Inventory;
    use crate::policy::failsafe::Failsafe;

    fn source(text: &str) -> Source {
        Source { name: "x.yaml".into(), text: text.into() }
    }

    fn compile(sources: &[Source]) -> Result<Prepared, String> {
        let (inventory, capacity) = (Inventory::new(), Capacity::default());
        prepare::prepare(sources, false, &Failsafe::default(), &inventory, &capacity)
    }

    fn files(text: &str) -> PolicyFiles {
        PolicyFiles { sources: vec![source(text)], warnings: vec![] }
    }

    const BROKEN: &str = "kind: SegmentPolicy\n";

    #[test]
    fn a_policy_that_loads_is_the_first_in_any_case() {
        for boot in [Boot::Open, Boot::Closed] {
            let found = first(Ok(files("")), boot, || panic!("not asked"), compile).expect("loads");
            assert_eq!((found.origin, found.error), (Origin::Configured, None));
        }
    }

    #[test]
    fn open_refuses_what_is_broken() {
        let found = first(Ok(files(BROKEN)), Boot::Open, || panic!("not asked"), compile);
        assert!(found.expect_err("is refused").contains("x.yaml"));
    }

    #[test]
    fn closed_takes_the_last_good_policy_else_none() {
        let first =
            |cached| first(Ok(files(BROKEN)), Boot::Closed, || cached, compile).expect("some");
        let found = first(Ok(Some(vec![source("")])));
        assert_eq!(found.origin, Origin::LastGood);
        assert!(found.error.expect("said").contains("x.yaml"));
        for (cached, says) in [
            (Ok(Some(vec![source(BROKEN)])), "the last good one neither"),
            (Ok(None), "there is no last good one"),
            (Err("disk".to_owned()), "disk"),
        ] {
            let found = first(cached);
            assert_eq!(found.origin, Origin::Closed);
            assert_eq!(found.prepared.resolved.own_segments(), 1);
            let error = found.error.expect("said");
            assert!(error.contains(says) && error.contains("x.yaml"), "{error}");
        }
        let unread = super::first(Err("gone".into()), Boot::Closed, || Ok(None), compile);
        assert!(unread.expect("some").error.expect("said").contains("gone"));
    }
}
