use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;
use ztseg_common::addr::proto;
use ztseg_common::verdict::Verdict;

use super::*;
use crate::datapath::Capacity;
use crate::image::Image;
use crate::judge::{End, Flow, judge};
use crate::policy::compile::compile;
use crate::policy::kubernetes::placed::memberships;
use crate::policy::{Loaded, load};

/// Two nodes, a namespace that has no manifest, and the pods
/// `shop/web` (http is 80), `shop/old` (http is 8080; on the other node), `lab/dns` (TCP and UDP
/// have a port `dns`), `shop/agent` (of its node's network) and `shop/job`, which has ended.
const INVENTORY: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { team: a } }
---
apiVersion: v1
kind: Node
metadata: { name: one, labels: { role: worker } }
status: { addresses: [ { type: InternalIP, address: 192.0.2.1 }, { type: Hostname, address: one } ] }
---
apiVersion: v1
kind: Node
metadata: { name: two }
status: { addresses: [ { type: InternalIP, address: 192.0.2.2 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web } }
spec: { nodeName: one, containers: [ { ports: [ { name: http, containerPort: 80 } ] } ] }
status: { podIP: 10.0.0.1, podIPs: [ { ip: 10.0.0.1 }, { ip: \"2001:db8::1\" } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: old, namespace: shop, labels: { app: web } }
spec:
  nodeName: two
  initContainers: [ { restartPolicy: Always, ports: [ { name: http, containerPort: 8080 } ] } ]
status: { podIP: 10.0.0.2 }
---
apiVersion: v1
kind: Pod
metadata: { name: dns, namespace: lab }
spec:
  containers:
    - ports: [ { name: dns, containerPort: 53, protocol: UDP }, { name: dns, containerPort: 5353 } ]
status: { podIP: 10.0.0.3 }
---
apiVersion: v1
kind: Pod
metadata: { name: agent, namespace: shop, labels: { app: web } }
spec: { nodeName: one, hostNetwork: true }
status: { podIP: 192.0.2.1 }
---
apiVersion: v1
kind: Pod
metadata: { name: job, namespace: shop, labels: { app: web } }
status: { phase: Succeeded, podIP: 10.0.0.9 }
---
";

struct World {
    loaded: Loaded,
    image: Image,
}

fn world(policies: &str) -> World {
    let text = format!("{INVENTORY}{policies}").into();
    let loaded = match load(&[Source { name: "k.yaml".into(), text }]) {
        Ok(loaded) => loaded,
        Err(found) => panic!("{}", found.render(false)),
    };
    let image = compile(&loaded.resolved, &memberships(&loaded.pods), &Capacity::default());
    World { image: image.expect("fits"), loaded }
}

impl World {
    /// A pod by its name, or an address.
    fn end(&self, name: &str) -> End {
        match name.parse::<IpAddr>() {
            Ok(address) => End::address(address),
            Err(_) => self.loaded.pods.iter().find(|p| p.name == name).expect(name).end(true),
        }
    }

    fn allows(&self, from: &str, to: &str, protocol: u8, port: u16) -> bool {
        let flow = Flow { from: self.end(from), to: self.end(to), protocol, port };
        let judgement = judge(&self.loaded.resolved, &self.image, Timestamp::UNIX_EPOCH, &flow);
        judgement.expect("has classes").verdict() == Verdict::Allow
    }

    fn names(&self) -> Vec<&str> {
        let rules = self.loaded.resolved.rules.iter();
        rules.filter(|r| !r.built_in).map(|r| r.name.as_str()).collect()
    }
}

fn network_policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{ name: p, namespace: {namespace} }}
spec: {spec}
---
"
    )
}

#[test]
fn what_policy_types_default_to() {
    const TCP: u8 = proto::TCP;
    for (spec, ingress, egress) in [
        ("{}", false, true),
        ("{ ingress: null }", false, true),
        ("{ ingress: [ {} ] }", true, true),
        ("{ egress: [] }", false, true),
        ("{ egress: [ {} ] }", false, true),
        ("{ egress: [ { ports: [ { port: 1 } ] } ] }", false, false),
        ("{ policyTypes: [Egress] }", true, false),
        ("{ policyTypes: [Egress, Egress], ingress: [] }", true, false),
        // Rules for a direction that is not isolated isolate nothing.
        ("{ policyTypes: [Ingress], egress: [ { ports: [ { port: 1 } ] } ] }", false, true),
    ] {
        let world = world(&network_policy("shop", spec));
        let found = (world.allows("dns", "web", TCP, 80), world.allows("web", "dns", TCP, 80));
        assert_eq!(found, (ingress, egress), "{spec}");
    }
    // And they open nothing, where another policy isolates.
    let closed = network_policy("shop", "{ policyTypes: [Egress] }");
    let void = network_policy("shop", "{ policyTypes: [Ingress], egress: [ {} ] }");
    let world = world(&(closed + &void.replace("name: p", "name: void")));
    assert!(!world.allows("web", "dns", TCP, 80));
}

#[test]
fn a_named_port_is_the_destination_pods_own() {
    const TCP: u8 = proto::TCP;
    let spec = "{ podSelector: { matchLabels: { app: web } }, ingress: [ { ports: [ { port: http } ] } ] }";
    let w = world(&network_policy("shop", spec));
    for (to, port, allowed) in
        [("web", 80, true), ("web", 8080, false), ("old", 80, false), ("old", 8080, true)]
    {
        assert_eq!(w.allows("dns", to, TCP, port), allowed, "{to} {port}");
        assert_eq!(w.allows("203.0.113.1", to, TCP, port), allowed, "{to} {port}");
    }
    // The name and the protocol; and an address has no names, whoever has it.
    let spec = "{ egress: [ { ports: [ { port: dns, protocol: UDP } ] },
  { to: [ { ipBlock: { cidr: 0.0.0.0/0 } }, { podSelector: {} } ], ports: [ { port: http } ] } ] }";
    let w =
        world(&network_policy("shop", spec).replace("egress:", "policyTypes: [Egress], egress:"));
    for (to, protocol, port, allowed) in [
        ("dns", proto::UDP, 53, true),
        ("dns", TCP, 5353, false),
        ("dns", TCP, 53, false),
        ("203.0.113.1", proto::UDP, 53, false),
        ("203.0.113.1", TCP, 80, false),
        ("old", TCP, 8080, true),
        ("old", TCP, 80, false),
    ] {
        assert_eq!(w.allows("web", to, protocol, port), allowed, "{to} {protocol}/{port}");
    }
    // The cluster-wide kinds name no protocol.
    let deny = "apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: { name: no-dns }
spec:
  priority: 1
  subject: { namespaces: {} }
  ingress: [ { action: Deny, from: [ { namespaces: {} } ], ports: [ { namedPort: dns } ] } ]
";
    let w = world(deny);
    assert!(!w.allows("web", "dns", proto::UDP, 53) && !w.allows("web", "dns", TCP, 5353));
    assert!(w.allows("web", "dns", TCP, 53) && w.allows("203.0.113.1", "dns", proto::UDP, 53));
}

#[test]
fn a_node_reaches_its_own_pods_whatever_is_denied() {
    const TCP: u8 = proto::TCP;
    let deny = "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: { name: closed }
spec:
  tier: Admin
  priority: 0
  subject: { namespaces: { matchLabels: { team: a } } }
  ingress: [ { action: Deny, from: [ { namespaces: {} } ] } ]
---
";
    let w = world(&(network_policy("shop", "{}") + deny));
    // Two nodes; `agent` has its node's address.
    for (from, to, allowed) in [
        ("192.0.2.1", "web", true),
        ("192.0.2.1", "old", false),
        ("192.0.2.2", "old", true),
        ("agent", "web", true),
        ("agent", "old", false),
        ("dns", "web", false),
    ] {
        assert_eq!(w.allows(from, to, TCP, 22), allowed, "{from} {to}");
    }
    // Where nothing is denied nothing has to be allowed.
    let none = world("");
    assert!(none.image.entries.is_empty() && !none.loaded.resolved.rules.is_empty());
}

#[test]
fn pods_of_the_host_network_are_no_pods_to_policies() {
    const TCP: u8 = proto::TCP;
    let to = |peer: &str| {
        let spec = format!("{{ policyTypes: [Egress], egress: [ {{ to: [ {peer} ] }} ] }}");
        world(&network_policy("shop", &spec)).allows("web", "agent", TCP, 80)
    };
    assert!(!to("{ namespaceSelector: {}, podSelector: {} }"));
    assert!(to("{ ipBlock: { cidr: 192.0.2.0/24 } }"));
    // It is no subject, and nothing selects what has ended.
    let w = world(&network_policy("shop", "{}"));
    assert!(w.allows("web", "agent", TCP, 80));
    assert!(w.loaded.pods.iter().all(|pod| pod.name != "job"));
    let nodes = "apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: { name: default }
spec:
  subject: { pods: { namespaceSelector: { matchLabels: { team: a } }, podSelector: {} } }
  egress: [ { action: Deny, to: [ { nodes: { matchLabels: { role: worker } } } ] } ]
";
    let w = world(nodes);
    assert!(!w.allows("web", "agent", TCP, 80) && w.allows("web", "192.0.2.2", TCP, 80));
    assert!(w.allows("dns", "agent", TCP, 80));
}

#[test]
fn ordered_policies_keep_the_order_of_their_rules() {
    let policy = |kind: &str, version: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{ name: {name} }}\nspec:\n  subject: {{ namespaces: {{}} }}\n{spec}\n---\n"
        )
    };
    let anywhere = "from: [ { namespaces: {} } ]";
    let text = [
        policy(
            "BaselineAdminNetworkPolicy",
            "v1alpha1",
            "default",
            &format!("  ingress: [ {{ action: Deny, {anywhere} }} ]"),
        ),
        policy(
            "ClusterNetworkPolicy",
            "v1alpha2",
            "floor",
            &format!(
                "  tier: Baseline\n  priority: 1000\n  ingress: [ {{ action: Pass, {anywhere} }} ]"
            ),
        ),
        network_policy("shop", "{ ingress: [ {} ] }"),
        policy(
            "AdminNetworkPolicy",
            "v1alpha1",
            "late",
            &format!(
                "  priority: 9\n  ingress: [ {{ name: first, action: Pass, {anywhere} }}, {{ action: Deny, {anywhere} }} ]"
            ),
        ),
        policy(
            "ClusterNetworkPolicy",
            "v1alpha2",
            "early",
            &format!(
                "  tier: Admin\n  priority: 8\n  ingress: [ {{ action: Accept, {anywhere} }} ]"
            ),
        ),
    ];
    assert_eq!(
        world(&text.concat()).names(),
        [
            "ClusterNetworkPolicy:early/ingress-1",
            "AdminNetworkPolicy:late/first",
            "AdminNetworkPolicy:late/ingress-2",
            "NetworkPolicy:shop/p/ingress-1",
            "ClusterNetworkPolicy:floor/ingress-1",
            "BaselineAdminNetworkPolicy:default/ingress-1",
        ]
    );
}

#[test]
fn a_selector_is_one_segment_however_often_it_is_written() {
    let one = "{ podSelector: { matchLabels: { app: web } }, ingress: [ { from: [ { podSelector: { matchExpressions: [ { key: app, operator: In, values: [web] } ] } } ] } ] }";
    let two = network_policy("shop", one).replace("name: p", "name: q");
    let w = world(&(network_policy("shop", one) + &two));
    let names: Vec<_> = w.loaded.resolved.segments.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["pods:shop/app=web", "pods-on:one", "pods-on:two"]);
    let segment = &w.loaded.resolved.segments[0];
    assert_eq!((segment.policy.as_str(), segment.addresses.len()), ("NetworkPolicy:shop/p", 3));
}

#[test]
fn a_list_is_its_items() {
    let one = world(&network_policy("shop", "{}"));
    let items = "
apiVersion: v1
kind: List
metadata: { resourceVersion: \"\" }
items:
  - apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: { name: p, namespace: shop, managedFields: [ { fieldsV1: { \"f:spec\": {} } } ] }
    spec: { policyTypes: [Ingress] }
";
    let list = world(items);
    assert_eq!(one.image.entries, list.image.entries);
    assert_eq!(one.loaded.offline.len(), list.loaded.offline.len());
}

#[test]
#[ignore = "a measurement: cargo test --release -p ztseg --lib thousands_of_pods -- --ignored --nocapture"]
fn thousands_of_pods_and_policies_take_seconds() {
    let mut text = String::new();
    for n in 0..10_000 {
        let (namespace, app) = (n % 200, n % 1000);
        let _ = write!(
            text,
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p{n}, namespace: n{namespace}, labels: {{ app: a{app}, pod: p{n} }} }}\nstatus: {{ podIP: 10.{}.{}.1 }}\n---\n",
            n / 256,
            n % 256,
        );
    }
    for n in 0..5_000 {
        let (namespace, app) = (n % 200, n % 1000);
        let _ = write!(
            text,
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: p{n}, namespace: n{namespace} }}\nspec: {{ podSelector: {{ matchLabels: {{ app: a{app} }} }}, ingress: [ {{ from: [ {{ namespaceSelector: {{}}, podSelector: {{ matchLabels: {{ app: a{} }} }} }} ], ports: [ {{ port: {} }} ] }} ] }}\n---\n",
            (app + 1) % 1000,
            1 + n % 100,
        );
    }
    let source = Source { name: "k.yaml".into(), text: text.into() };
    let start = std::time::Instant::now();
    let loaded = load(std::slice::from_ref(&source)).expect("loads");
    let read = start.elapsed();
    let image = compile(&loaded.resolved, &memberships(&loaded.pods), &Capacity::default());
    let image = image.expect("fits");
    let compiled = start.elapsed().saturating_sub(read);
    eprintln!(
        "{} pods, {} segments, {} rules, {} subjects, {} entries: loaded in {read:?}, compiled in {:?}",
        loaded.pods.len(),
        loaded.resolved.segments.len(),
        loaded.resolved.rules.len(),
        image.subjects.len(),
        image.entries.len(),
        compiled,
    );
    assert!(start.elapsed().as_secs() < 10);
}
