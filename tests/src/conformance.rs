//! Cases of Kubernetes' policies that others wrote, with what they expect of every probe.
//!
//! They lie beside the repository (`../shared/conformance`, or where `ZTSEG_CONFORMANCE` says) and
//! are no part of it. What is not as their description says makes these functions panic.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ztseg::policy::source::Source;
use ztseg_common::addr::proto;

/// Where the cases are, or why there are none.
pub fn folder() -> Result<PathBuf, String> {
    let folder = std::env::var_os("ZTSEG_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"),
        PathBuf::from,
    );
    if folder.join("cases.jsonl").is_file() && folder.join("invalid.jsonl").is_file() {
        return Ok(folder);
    }
    Err(format!("no conformance cases in {}", folder.display()))
}

/// Whether a probe is one to ask.
pub fn is_asked(probe: &Value) -> bool {
    let marked = |key: &str| probe.get(key).is_some_and(|v| *v != json!(false));
    !marked("loopback") && !marked("disputed")
}

/// The protocol and the port that a probe asks.
pub fn service(probe: &Value) -> (u8, u16) {
    let protocol = match text(probe, "proto") {
        "TCP" => proto::TCP,
        "UDP" => proto::UDP,
        "SCTP" => proto::SCTP,
        other => panic!("the protocol {other}"),
    };
    (protocol, probe["port"].as_u64().and_then(|p| u16::try_from(p).ok()).expect("a port"))
}

/// The first address of something in a list of the case, `externals`, `nodes` or `pods`.
pub fn address(thing: &Value) -> IpAddr {
    thing["ips"][0].as_str().and_then(|text| text.parse().ok()).expect("an address")
}

/// The cases of a file, one a line.
pub fn read(path: &Path) -> Vec<Value> {
    let lines = std::fs::read_to_string(path).expect("readable");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A field that is text.
pub fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// A field that is a list; empty where it is not there.
pub fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Documents as one source: JSON is YAML, too.
pub fn source(name: &str, documents: impl IntoIterator<Item = Value>) -> Source {
    let documents = documents.into_iter().map(|document| {
        let text = serde_json::to_string_pretty(&document).expect("JSON");
        format!("---\n{text}\n")
    });
    Source { name: name.into(), text: documents.collect::<String>().into() }
}

/// The policies of a case, and manifests for what it has of everything else.
pub fn sources(case: &Value) -> [Source; 2] {
    let object = |kind: &str, value: &Value, spec: Value, status: Value| {
        let mut metadata = json!({ "name": value["name"], "labels": value["labels"] });
        if let Some(namespace) = value.get("namespace") {
            metadata["namespace"] = namespace.clone();
        }
        json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status })
    };
    let namespaces = list(case, "namespaces").iter();
    let namespaces = namespaces.map(|n| object("Namespace", n, json!({}), json!({})));
    let nodes = list(case, "nodes").iter().map(|node| {
        let addresses: Vec<_> = list(node, "ips")
            .iter()
            .map(|ip| json!({ "type": "InternalIP", "address": ip }))
            .collect();
        object("Node", node, json!({}), json!({ "addresses": addresses }))
    });
    let pods = list(case, "pods").iter().map(|pod| {
        let ports: Vec<_> = list(pod, "ports")
            .iter()
            .map(|port| {
                json!({ "name": port.get("name"), "containerPort": port["port"], "protocol": port["proto"] })
            })
            .collect();
        let ips: Vec<_> = list(pod, "ips").iter().map(|ip| json!({ "ip": ip })).collect();
        let host = pod.get("hostNetwork").cloned().unwrap_or(json!(false));
        let containers = json!([{ "name": "main", "ports": ports }]);
        let spec = json!({ "hostNetwork": host, "containers": containers });
        object("Pod", pod, spec, json!({ "phase": "Running", "podIPs": ips }))
    });
    [
        source("policies", list(case, "policies").iter().cloned()),
        source("inventory", namespaces.chain(nodes).chain(pods)),
    ]
}
