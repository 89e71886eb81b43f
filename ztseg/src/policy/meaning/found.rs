//! What random documents have found, each as small as it can be.

use jiff::Timestamp;

use crate::check::check;
use crate::policy::load;
use crate::policy::source::Source;

/// Runs the `tests:` of documents.
fn holds(text: &str) {
    let source = Source { name: "p.yaml".into(), text: text.into() };
    let loaded = load(&[source]).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert!(!loaded.tests.is_empty());
    let failed = check(&loaded, Timestamp::UNIX_EPOCH).expect("compiles");
    assert_eq!(failed.to_string(), "");
}

#[test]
fn a_workload_whose_cgroup_nobody_knows_is_below_no_path() {
    holds(
        r#"
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: p }
spec:
  segments: { every: { match: [ { cgroup: "/**" } ] } }
  tests:
    - { allow: somewhere -> 192.0.2.1 tcp/80 }
    - { allow: shop/p -> 192.0.2.1 tcp/80 }
    - { deny: here -> 192.0.2.1 tcp/80 }
---
apiVersion: ztseg.io/v1
kind: Workload
metadata: { name: somewhere }
spec: { user: root }
---
apiVersion: ztseg.io/v1
kind: Workload
metadata: { name: here }
spec: { user: root, cgroup: /a }
---
apiVersion: v1
kind: Pod
metadata: { name: p, namespace: shop }
"#,
    );
}

#[test]
fn a_cgroup_and_a_user_are_met_where_no_other_entry_names_the_cgroup() {
    holds(
        r"
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: p }
spec:
  segments:
    of-bob: { isolation: [egress], match: [ { cgroup: /shop/*, user: bob } ] }
    rest: { isolation: [ingress], match: [ { host: true } ] }
  tests:
    - { deny: bob -> 192.0.2.1 tcp/80 }
    - { allow: 192.0.2.1 -> bob tcp/80 } # it is not the host's
    - { allow: alice -> 192.0.2.1 tcp/80 }
---
apiVersion: ztseg.io/v1
kind: Workload
metadata: { name: bob }
spec: { cgroup: /shop/a/b, user: bob }
---
apiVersion: ztseg.io/v1
kind: Workload
metadata: { name: alice }
spec: { cgroup: /shop/a, user: alice }
",
    );
}
