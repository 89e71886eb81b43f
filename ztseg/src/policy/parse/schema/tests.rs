//! The schema says what the parser reads: the same fields and words, and no more is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::{Value as Json, json};

use super::SCHEMA;
use crate::policy::kubernetes::read::KINDS;
use crate::policy::load;
use crate::policy::names;
use crate::policy::parse::{
    API_VERSION, DOCUMENT, KIND, LIST, METADATA, MODES, SPEC, attributes, order, rule, segment,
    test, workload,
};
use crate::policy::source::Source;
use crate::policy::yaml::{self, Node, Value};

fn schema() -> Json {
    serde_json::from_str(SCHEMA).expect("is JSON")
}

fn validator(draft: jsonschema::Draft) -> Validator {
    jsonschema::options().with_draft(draft).build(&schema()).expect("is a schema")
}

fn source(name: &str, text: &str) -> Source {
    Source { name: name.into(), text: text.into() }
}

/// What an editor makes of a node: plain scalars by the core schema (YAML 1.2.2 section 10.3.2).
fn as_editors_read(node: &Node) -> Json {
    match &node.value {
        Value::Null | Value::Refused => Json::Null,
        Value::Scalar { text, plain: true } => match text.as_str() {
            "true" | "True" | "TRUE" => json!(true),
            "false" | "False" | "FALSE" => json!(false),
            text => number(text).unwrap_or_else(|| json!(text)),
        },
        Value::Scalar { text, plain: false } => json!(text),
        Value::List(items) => items.iter().map(as_editors_read).collect(),
        Value::Mapping(entries) => {
            let entry = |(key, node): &(yaml::Key, Node)| (key.text.clone(), as_editors_read(node));
            Json::Object(entries.iter().map(entry).collect())
        }
    }
}

fn number(text: &str) -> Option<Json> {
    let begins = text.trim_start_matches(['-', '+']).trim_start_matches('.');
    if !begins.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let radix = |prefix, radix| i64::from_str_radix(text.strip_prefix(prefix)?, radix).ok();
    let integer = text.parse().ok().or_else(|| radix("0x", 16)).or_else(|| radix("0o", 8));
    match integer {
        Some(integer) => Some(json!(integer)),
        None => text.parse::<f64>().ok().map(|float| json!(float)),
    }
}

fn documents(source: &Source) -> Vec<Json> {
    let documents = yaml::read(source, 0, &mut Vec::new());
    documents.list.iter().map(as_editors_read).collect()
}

/// Why the schema refuses a source; empty if it does not.
fn refusals(validator: &Validator, source: &Source) -> Vec<String> {
    let mut all = Vec::new();
    for document in documents(source) {
        let errors = validator.iter_errors(&document);
        all.extend(errors.map(|e| format!("{}: {}: {e}", source.name, e.instance_path())));
    }
    all
}

/// The repository's files.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository(folder)).expect("the folder is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

/// Every policy of the repository that loads: examples, those of the pages, the fuzzer's seeds.
fn accepted() -> Vec<Source> {
    let read = |path: &Path| {
        let text = fs::read(path).expect("readable");
        source(&path.to_string_lossy(), &String::from_utf8_lossy(&text))
    };
    let mut all: Vec<_> = files("policies").iter().map(|path| read(path)).collect();
    all.extend(files("tests/fuzz/corpus/policy").iter().map(|path| read(path)));
    for page in files("docs").iter().chain([&repository("README.md")]) {
        let page = read(page);
        let blocks = page.text.split("```yaml\n").skip(1);
        let blocks = blocks.filter_map(|rest| rest.split("```\n").next());
        all.extend(blocks.map(|text| source(&page.name, text)));
    }
    all.retain(|source| load(std::slice::from_ref(source)).is_ok());
    all
}

#[test]
fn what_the_repository_has_is_accepted() {
    let accepted = accepted();
    assert!(accepted.len() >= 15, "only {}", accepted.len());
    // Draft 7 is what many editors know.
    for draft in [jsonschema::Draft::Draft202012, jsonschema::Draft::Draft7] {
        let validator = validator(draft);
        for source in &accepted {
            assert_eq!(refusals(&validator, source), [""; 0]);
        }
    }
}

/// With any one line left out, or any one word made another, whatever still loads is accepted.
#[test]
fn what_changed_and_still_loads_is_accepted() {
    const WORDS: &[&str] = &["1e3", "true", "[]"];
    let validator = validator(jsonschema::Draft::Draft202012);
    let mut loaded = 0;
    for original in accepted() {
        let lines: Vec<_> = original.text.split_inclusive('\n').collect();
        for n in 0..lines.len() {
            let (before, after) = (lines[..n].concat(), lines[n + 1..].concat());
            let value = lines[n].trim_end().rsplit_once(": ").map(|(field, _)| field);
            let changed = value
                .into_iter()
                .flat_map(|field| WORDS.iter().map(move |word| format!("{field}: {word}\n")));
            for line in changed.chain([String::new()]) {
                let changed = source("changed", &format!("{before}{line}{after}"));
                if load(std::slice::from_ref(&changed)).is_ok() {
                    loaded += 1;
                    assert_eq!(refusals(&validator, &changed), [""; 0], "{}", changed.text);
                }
            }
        }
    }
    assert!(loaded > 100, "only {loaded}");
}

/// Every form that a field has, with what editors take for no text where the parser does.
#[test]
fn every_form_is_accepted() {
    let text = r#"
apiVersion: "ztseg.io/v1"
kind: SegmentPolicy
metadata: { name: 1e3 }
spec:
  tier: baseline
  priority: 007
  mode: audit
  reject: false
  segments:
    pods-only: { match: [ { pod: { namespace: "*" } } ] }
    8080: { match: [ { unit: "nginx*" }, { unit: a@b.service, cgroup: /shop/**/web-* } ] }
    0x1f: { description: 3, isolation: [], match: [ { interface: 7 }, { interface: true } ] }
    pods: { match: [ { pod: { namespace: 1*, labels: { a: 1, b: "" }, serviceAccount: true } }, { container: { name: 7, image: "a:*", labels: { x: true } } }, { user: 033 }, { host: true, user: no } ] }
    me: { mode: enforce, isolation: [egress, ingress], match: [ { host: true }, { addresses: ["64:FF9B::192.0.2.1", 192.0.2.0/024] } ] }
  addressGroups:
    4: { cidrs: [0.0.0.0/0, "::/0", 192.0.2.1], except: ["2001:DB8::/32"] }
    5: { cidrs: ["::"], except: [] }
  deny:
    - { name: true, from: any, to: 8080, log: true, reject: true, expires: 20301231T180000Z }
  allow:
    - { from: [4, 192.0.2.0/24, "2001:db8::1", me], to: 0x1f, reject: false, expires: 2030-12-31 18:00+02 }
    - { from: any, to: pods-only, ports: [tcp/http, sctp/x-1, udp/53] }
    - { from: 8080, to: any, ports: [any, tcp, tcp/0443, udp/8000-8099, sctp, icmp, icmp/echo-request, icmpv6/128] }
  pass:
    - { from: me, to: me, log: false, reject: false }
  tests:
    - { deny: "  8080   -> me tcp/22-22 " }
    - { allow: "2001:db8::1 -> me icmpv6/echo-request" }
    - { allow: "workload:1e3 -> workload:true-1 udp/53" }
---
apiVersion: ztseg.io/v1
kind: Workload
metadata: { name: 1e3 }
spec: { cgroup: /, unit: a.service, user: 0, container: { image: "a@sha256:0" }, pod: { labels: { a: 0x1 } }, addresses: ["::1", 192.0.2.1] }
---
apiVersion: ztseg.io/v1
kind: Workload
metadata: { name: true-1 }
spec: { interface: 7, addresses: [] }
---
kind: List
items:
  - { apiVersion: v1, kind: Pod, metadata: { name: a, namespace: ~, uid: x }, spec: { other: [1] } }
  - { apiVersion: v1, kind: Namespace, metadata: { name: b }, other: 1 }
"#;
    let source = source("forms", text);
    if let Err(found) = load(std::slice::from_ref(&source)) {
        panic!("{}", found.render(false));
    }
    assert_eq!(refusals(&validator(jsonschema::Draft::Draft202012), &source), [""; 0]);
}

#[test]
fn what_is_bad_in_itself_is_refused() {
    let validator = validator(jsonschema::Draft::Draft202012);
    for (name, place) in [
        ("cidrs", "/spec/addressGroups/office/cidrs/3"),
        ("document-api-version", "/apiVersion"),
        ("document-without-kind", ""),
        ("group-fields", "/spec/addressGroups/home"),
        ("later-kinds", "/kind"),
        ("match-attributes", "/spec/segments/web/match/0/container"),
        ("workload", "/spec"),
        ("match-empty-entry", "/spec/segments/web/match/0"),
        ("match-nothing-can", "/spec/segments/web/match/1"),
        ("match-unknown-field", "/spec/segments/web/match/0"),
        ("metadata-without-name", "/metadata"),
        ("ports", "/spec/allow/0/ports/0"),
        ("rule-pass", "/spec"),
        ("rule-pass-fields", "/spec/pass/0/log"),
        ("segment-isolation", "/spec/segments/db/isolation/0"),
        ("segment-names", "/spec/segments"),
        ("segment-without-match", "/spec/segments/cache/match"),
        ("spec-missing", ""),
        ("spec-priority-missing", "/spec"),
        ("spec-tier-misspelt", "/spec/tier"),
        ("spec-unknown-field", "/spec"),
        ("spec-wrong-types", "/spec/tests"),
        ("tests-form", "/spec/tests/2"),
    ] {
        let file = format!("ztseg/tests/bad-policies/{name}.yaml");
        let text = fs::read_to_string(repository(&file)).expect("is there");
        let found = refusals(&validator, &source(name, &text));
        let at = format!("{name}: {place}: ");
        assert!(found.iter().any(|line| line.starts_with(&at)), "{at}: {found:#?}");
    }
}

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    words.into_iter().collect()
}

fn listed<'a>(schema: &'a Json, pointer: &str) -> BTreeSet<&'a str> {
    let list = schema.pointer(pointer).and_then(Json::as_array).expect(pointer);
    list.iter().map(|word| word.as_str().expect("a word")).collect()
}

#[test]
fn fields_are_those_of_the_parser() {
    let schema = schema();
    let definitions = schema["$defs"].as_object().expect("definitions");
    let shapes = [
        ("list", LIST.fields),
        ("segmentPolicy", DOCUMENT.fields),
        ("workload", DOCUMENT.fields),
        ("workloadSpec", workload::SPEC.fields),
        ("container", attributes::CONTAINER.fields),
        ("pod", attributes::POD.fields),
        ("metadata", METADATA.fields),
        ("spec", SPEC.fields),
        ("segment", segment::SEGMENT.fields),
        ("match", segment::MATCH.fields),
        ("addressGroup", segment::GROUP.fields),
        ("rule", rule::FIELDS),
        ("test", test::SHAPE.fields),
    ];
    for (name, fields) in shapes {
        let definition = &definitions[name];
        let properties = definition["properties"].as_object().expect(name);
        assert_eq!(words(properties.keys().map(String::as_str)), words(fields.iter().copied()));
        assert_eq!(definition["additionalProperties"], json!(false), "{name}");
        for (field, property) in properties {
            let described = match property["$ref"].as_str() {
                Some(other) => schema.pointer(&other[1..]).expect(other),
                None => property,
            };
            assert!(described["description"].is_string(), "{name}.{field} is not described");
        }
    }
    // A mapping with fields of its own is one of these, or no field of it has a meaning here.
    let others = ["document", "kubernetesObject"];
    let with_fields = definitions.iter().filter(|(_, d)| d["properties"].is_object());
    let known = words(shapes.map(|(name, _)| name).into_iter().chain(others));
    assert_eq!(words(with_fields.map(|(name, _)| name.as_str())), known);
}

#[test]
fn words_are_those_of_the_parser() {
    let schema = schema();
    let tiers = order::TIERS.iter().map(|(word, _)| *word);
    assert_eq!(listed(&schema, "/$defs/spec/properties/tier/enum"), words(tiers));
    assert_eq!(
        schema["$defs"]["spec"]["properties"]["priority"]["maximum"],
        json!(order::MAX_PRIORITY)
    );
    let modes = MODES.iter().map(|(word, _)| *word);
    assert_eq!(listed(&schema, "/$defs/mode/enum"), words(modes));
    let reserved = names::RESERVED.iter().copied();
    assert_eq!(listed(&schema, "/$defs/sideName/not/enum"), words(reserved));
}

#[test]
fn kinds_and_their_versions_are_those_of_the_parser() {
    let schema = schema();
    let validator = validator(jsonschema::Draft::Draft202012);
    let kinds = || KINDS.iter().map(|(name, version, _)| (*name, *version));
    let all = || kinds().chain([(KIND, API_VERSION), (workload::KIND, API_VERSION)]);
    let listed = |field: &str| listed(&schema, &format!("/$defs/document/properties/{field}/enum"));
    assert_eq!(listed("kind"), words(all().map(|(kind, _)| kind)));
    assert_eq!(listed("apiVersion"), words(all().map(|(_, version)| version)));
    for (kind, right) in all() {
        for (_, version) in all() {
            // What a workload cannot be without is nothing that a policy has.
            let spec =
                if kind == workload::KIND { json!({ "unit": "a.service" }) } else { json!({}) };
            let document = json!({
                "apiVersion": version, "kind": kind, "metadata": { "name": "x" }, "spec": spec,
            });
            let accepted = validator.is_valid(&document);
            assert_eq!(accepted, version == right, "{kind} {version}");
        }
    }
}
