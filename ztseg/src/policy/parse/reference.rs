//! The reference (`docs`) has each field, and each form of `ports`, in an example that notices when
//! it does nothing.
//!
//! Each is left out in turn, or made to say what the example does not mean. Something must be
//! otherwise then: a test's result, or the answer to a question that stands below the example.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;

use super::attributes::{CONTAINER, POD};
use super::order::MAX_PRIORITY;
use super::port::PROTOCOLS;
use super::segment::{GROUP, MATCH, SEGMENT};
use super::{DOCUMENT, KIND, METADATA, SPEC, icmp, rule, test, workload};
use crate::check;
use crate::explain::place::Places;
use crate::explain::{Asked, Question, explain};
use crate::inventory::Inventory;
use crate::policy::compile::for_questions;
use crate::policy::diagnostic::Span;
use crate::policy::source::Source;
use crate::policy::yaml::{self, Key, Node, Value};
use crate::policy::{Loaded, load};

/// Text for people, which nothing evaluates.
const WITHOUT_EFFECT: &[&str] = &["segment.description"];

/// Without one of these, a document is refused.
const NEEDED: &[&str] = &[
    "document.apiVersion",
    "document.kind",
    "document.metadata",
    "document.spec",
    "spec.segments",
    "spec.addressGroups",
];

/// Mappings that must say something; their fields often stand alone.
const STANDS_ALONE: &[&str] = &["match.", "workload.spec."];

/// An example of the reference.
struct Example {
    place: String,
    documents: Vec<Node>,
    /// What `ztseg explain` is asked below it.
    questions: Vec<Question>,
}

fn examples() -> Vec<Example> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut pages: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    pages.sort();
    let mut examples: Vec<Example> = Vec::new();
    for path in pages {
        let page = std::fs::read_to_string(&path).expect("UTF-8");
        let mut block: Option<(usize, String)> = None;
        for (line, text) in (1..).zip(page.lines()) {
            match (&mut block, text) {
                (None, "```yaml") => block = Some((line, String::new())),
                (Some((start, all)), "```") => {
                    let place = format!("{}:{start}", path.display());
                    let documents = documents(all);
                    examples.push(Example { place, documents, questions: Vec::new() });
                    block = None;
                }
                (Some((_, all)), text) => {
                    all.push_str(text);
                    all.push('\n');
                }
                (None, text) => {
                    if let Some((asked, last)) = question(text).zip(examples.last_mut()) {
                        last.questions.push(asked);
                    }
                }
            }
        }
    }
    examples
}

fn documents(text: &str) -> Vec<Node> {
    let mut out = Vec::new();
    let source = Source { name: "example".into(), text: text.into() };
    let documents = yaml::read(&source, 0, &mut out);
    assert!(out.is_empty(), "{out:?}");
    documents.list.into_iter().flat_map(each).collect()
}

/// The documents in a document; those of a list are read as if each stood alone.
fn each(document: Node) -> Vec<Node> {
    if let Value::Mapping(entries) = &document.value
        && let Some((_, node)) = entries.iter().find(|(key, _)| key.text == "items")
        && let Value::List(items) = &node.value
    {
        return items.clone();
    }
    vec![document]
}

/// `$ ztseg explain -f FILE FROM TO SERVICE | …`
fn question(line: &str) -> Option<Question> {
    let command = line.strip_prefix("$ ztseg explain -f ")?;
    let mut words = command.split_whitespace().skip(1).map(str::to_owned);
    Some(Question { from: words.next()?, to: words.next()?, service: words.next()? })
}

/// What mappings of a kind have in them.
enum Inside {
    Value,
    Fields(&'static str),
    /// Names, with mappings of this kind.
    Named(&'static str),
    /// A list of mappings of this kind.
    Each(&'static str),
    Ports,
}

fn inside(kind: &str, field: &str) -> Inside {
    match (kind, field) {
        ("document", "metadata") => Inside::Fields("metadata"),
        ("document", "spec") => Inside::Fields("spec"),
        ("workload", "spec") => Inside::Fields("workload.spec"),
        ("spec", "segments") => Inside::Named("segment"),
        ("spec", "addressGroups") => Inside::Named("addressGroup"),
        ("spec", "deny" | "allow" | "pass") => Inside::Each("rule"),
        ("spec", "tests") => Inside::Each("test"),
        ("segment", "match") => Inside::Each("match"),
        ("match", "container") => Inside::Fields("container"),
        ("match", "pod") => Inside::Fields("pod"),
        ("rule", "ports") => Inside::Ports,
        _ => Inside::Value,
    }
}

/// Calls `each` with every field and port below a node: what it is, and where, as a place in each
/// mapping and list on the way.
fn walk(node: &Node, what: &Inside, at: &mut Vec<usize>, each: &mut impl FnMut(String, &[usize])) {
    let mut into = |number: usize, name: Option<String>, node: &Node, what: &Inside| {
        at.push(number);
        if let Some(name) = name {
            each(name, at);
        }
        walk(node, what, at, each);
        at.pop();
    };
    match (what, &node.value) {
        (Inside::Fields(kind), Value::Mapping(entries)) => {
            for (number, (Key { text, .. }, node)) in entries.iter().enumerate() {
                into(number, Some(format!("{kind}.{text}")), node, &inside(kind, text));
            }
        }
        (Inside::Named(kind), Value::Mapping(entries)) => {
            for (number, (_, node)) in entries.iter().enumerate() {
                into(number, None, node, &Inside::Fields(kind));
            }
        }
        (Inside::Each(kind), Value::List(items)) => {
            for (number, node) in items.iter().enumerate() {
                into(number, None, node, &Inside::Fields(kind));
            }
        }
        (Inside::Ports, Value::List(items)) => {
            for (number, node) in items.iter().enumerate() {
                into(number, Some(form(text(node))), node, &Inside::Value);
            }
        }
        _ => {}
    }
}

fn text(node: &Node) -> &str {
    match &node.value {
        Value::Scalar { text, .. } => text,
        _ => "",
    }
}

/// The form of an entry of `ports`: `tcp/N`, `tcp/N-N`, `icmp/NAME`.
fn form(text: &str) -> String {
    let Some((protocol, port)) = text.split_once('/') else { return text.to_owned() };
    let form = match (port.parse::<u16>(), port.split_once('-')) {
        (Ok(_), _) => "N",
        (_, Some((first, _))) if first.bytes().all(|b| b.is_ascii_digit()) => "N-N",
        _ => "NAME",
    };
    format!("{protocol}/{form}")
}

fn scalar(text: &str) -> Node {
    let value = Value::Scalar { text: text.to_owned(), plain: true };
    Node { value, span: Span::default() }
}

fn list(items: Vec<Node>) -> Node {
    Node { value: Value::List(items), span: Span::default() }
}

/// A field of a cgroup that no test and no question is about.
fn nothing() -> (Key, Node) {
    (Key { text: "cgroup".into(), span: Span::default() }, scalar("/nothing-there"))
}

/// What stands in place of a field that cannot be left out, or that would be missed for that alone.
fn instead(field: &str, value: &Node) -> Option<Node> {
    Some(match field {
        "metadata.name" => scalar("another"),
        "segment.match" => {
            list(vec![Node { value: Value::Mapping(vec![nothing()]), span: Span::default() }])
        }
        "addressGroup.cidrs" => list(vec![scalar("203.0.113.255")]),
        "rule.from" | "rule.to" => scalar("any"),
        "spec.priority" => {
            let number: u32 = text(value).parse().expect("a number");
            scalar(&(MAX_PRIORITY - number).to_string())
        }
        _ => return None,
    })
}

/// A document without the effect of the field, or of the port, that is at a place.
fn without(document: &Node, field: &str, at: &[usize]) -> Node {
    let mut document = document.clone();
    let (&last, way) = at.split_last().expect("not the document itself");
    let parent = way.iter().fold(&mut document, |node, &number| match &mut node.value {
        Value::List(items) => &mut items[number],
        Value::Mapping(entries) => &mut entries[number].1,
        _ => panic!("nothing is in a single value"),
    });
    match &mut parent.value {
        // A port that nobody asks for.
        Value::List(ports) => ports[last] = scalar("sctp/7"),
        Value::Mapping(entries) => match (instead(field, &entries[last].1), field) {
            (Some(node), _) => entries[last].1 = node,
            (None, "test.allow") => entries[last].0.text = "deny".to_owned(),
            (None, "test.deny") => entries[last].0.text = "allow".to_owned(),
            (None, _) => {
                entries.remove(last);
                if entries.is_empty() && STANDS_ALONE.iter().any(|kind| field.starts_with(kind)) {
                    entries.push(nothing());
                }
            }
        },
        _ => panic!("nothing is in a single value"),
    }
    document
}

/// A node as YAML in one line.
fn written(node: &Node) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match &node.value {
        Value::Null | Value::Refused => "~".to_owned(),
        Value::Scalar { text, plain } => {
            let is_word = text.bytes().all(|b| b.is_ascii_alphanumeric());
            if *plain && is_word { text.clone() } else { format!("{text:?}") }
        }
        Value::List(items) => format!("[{}]", joined(items.iter().map(written).collect())),
        Value::Mapping(entries) => {
            let entry = |(key, node): &(Key, Node)| format!("{:?}: {}", key.text, written(node));
            format!("{{ {} }}", joined(entries.iter().map(entry).collect()))
        }
    }
}

/// What an example comes to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Each test, and whether it holds.
    tests: Vec<(String, bool)>,
    answers: Vec<String>,
}

/// `None` where it does not load.
fn outcome(documents: &[Node], questions: &[Question]) -> Option<Outcome> {
    let text: Vec<_> = documents.iter().map(written).collect();
    let source = Source { name: "example".into(), text: text.join("\n---\n").into() };
    let loaded = load(&[source]).ok()?;
    let now = Timestamp::now();
    let tests = check::outcomes(&loaded, now).expect("compiles");
    let tests = tests.iter().map(|o| (o.test.text.clone(), o.failure.is_none()));
    let mut inventory = Inventory::new();
    inventory.set_policy(&loaded.resolved);
    let resolved = &loaded.resolved;
    let Loaded { pods, workloads: described, .. } = &loaded;
    let places = Places { resolved, inventory: &inventory, pods, workloads: described };
    let answer = |question: &Question| {
        let asked = match Asked::new(&places, question) {
            Ok(asked) => asked,
            Err(error) => return error,
        };
        let image = for_questions(resolved, asked.sets()).expect("compiles");
        let found = explain(resolved, &image, now, &asked).expect("has classes");
        let ends = [(&found.from, &found.egress), (&found.to, &found.ingress)];
        // Places are other ones as soon as something is left out.
        let said = ends.map(|(end, said)| {
            let said = said.as_ref();
            let said = said.map(|s| (s.verdict, s.audit, s.log, s.reject, &s.rule, &s.isolated_by));
            (&end.segments, said)
        });
        format!("{said:?}")
    };
    Some(Outcome { tests: tests.collect(), answers: questions.iter().map(answer).collect() })
}

/// Every field that a policy can have, and every form of a port.
fn all() -> BTreeSet<String> {
    let shapes = [
        ("document", DOCUMENT.fields),
        ("metadata", METADATA.fields),
        ("spec", SPEC.fields),
        ("segment", SEGMENT.fields),
        ("match", MATCH.fields),
        ("container", CONTAINER.fields),
        ("pod", POD.fields),
        ("addressGroup", GROUP.fields),
        ("rule", rule::FIELDS),
        ("workload.spec", workload::SPEC.fields),
        ("test", test::SHAPE.fields),
    ];
    let named = |(kind, fields): (&str, &'static [&str])| {
        let kind = kind.to_owned();
        fields.iter().map(move |field| format!("{kind}.{field}"))
    };
    let forms = PROTOCOLS.iter().flat_map(|(name, protocol)| {
        let other = if icmp::types(*protocol).is_empty() { "N-N" } else { "NAME" };
        [(*name).to_owned(), format!("{name}/N"), format!("{name}/{other}")]
    });
    let others = ["any", "tcp/NAME"].map(str::to_owned);
    shapes.into_iter().flat_map(named).chain(forms).chain(others).collect()
}

#[test]
fn every_field_and_form_is_missed_where_it_does_nothing() {
    let (mut shown, mut missed) = (BTreeSet::new(), BTreeSet::new());
    for Example { place, documents, questions } in examples() {
        let whole = outcome(&documents, &questions).unwrap_or_else(|| panic!("{place}: refused"));
        for (number, document) in documents.iter().enumerate() {
            let Value::Mapping(entries) = &document.value else { panic!("{place}: a mapping") };
            let kind = entries.iter().find(|(key, _)| key.text == "kind");
            let what = match kind.map(|(_, node)| text(node)) {
                Some(KIND) => Inside::Fields("document"),
                Some(workload::KIND) => Inside::Fields("workload"),
                _ => continue,
            };
            let mut places = Vec::new();
            walk(document, &what, &mut Vec::new(), &mut |field, at| {
                places.push((field, at.to_owned()));
            });
            for (field, at) in places {
                if !missed.contains(&field) {
                    let mut changed = documents.clone();
                    changed[number] = without(document, &field, &at);
                    let is_missed = match outcome(&changed, &questions) {
                        Some(outcome) => outcome != whole,
                        None => NEEDED.contains(&field.as_str()),
                    };
                    if is_missed {
                        missed.insert(field.clone());
                    }
                }
                shown.insert(field);
            }
        }
    }
    let nowhere: Vec<_> = all().difference(&shown).cloned().collect();
    assert!(nowhere.is_empty(), "in no example of docs: {nowhere:?}");
    let not_missed: Vec<_> = all().difference(&missed).cloned().collect();
    assert_eq!(
        not_missed, WITHOUT_EFFECT,
        "no example of docs notices when one of these is missing"
    );
}
