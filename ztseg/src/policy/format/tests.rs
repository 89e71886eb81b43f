use std::fmt::Write as _;
use std::path::Path;

use fastrand::Rng;

use super::*;
use crate::policy::generate::{seed, seeded};
use crate::policy::load;
use crate::policy::resolved::Resolved;
use crate::policy::source::Position;

fn source(text: &str) -> Source {
    Source { name: "p.yaml".into(), text: text.into() }
}

/// The formatted text; formatting that again changes nothing.
fn formatted(text: &str) -> String {
    let once = format(&source(text)).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let twice = format(&source(&once)).unwrap_or_else(|e| panic!("{e}\n{once}"));
    assert_eq!(once, twice, "from\n{text}");
    once
}

/// What a text means, without places.
fn meaning(text: &str) -> Resolved {
    let mut resolved = load(&[source(text)]).unwrap_or_else(|e| panic!("{e}\n{text}")).resolved;
    let nowhere = Position { file: "".into(), line: 0, column: 0 };
    resolved.segments.iter_mut().for_each(|segment| segment.position = nowhere.clone());
    resolved.rules.iter_mut().for_each(|rule| rule.position = nowhere.clone());
    resolved
}

const MESSY: &str = r#"# about the file

# still about the file

kind: SegmentPolicy # the kind
# about the version
apiVersion: "ztseg.io/v1"
metadata:
  # about the name
  name:   'shop'   # named


spec:   # the spec


  # about allow
  allow: # allowed
  # first of the list
  - from: web   # who
    name: a
    # about to
    to: [ db,   # the database
      "2001:db8::/32"]
    # end of a

  - {to: db, from: "web", name: b}   # b
  -   to: db
      from:
        - web
        - 'any'
      # about the third
      name: c
  # about deny
  deny: [ {name: d, from: web, to: db} , # d
     # about e
     {name: e, from: db, to: web, log:   false}
     # end of deny
     ] # behind deny
  segments: # seg
    # about web
    web:   { match: [ {unit: "nginx.service"}, { cgroup: "/a", unit: 'b*.service' } ] } # web

    db:
      match:
      - unit: "*.service"
      # about addresses
      - addresses:
         - "192.0.2.0/24" # net
         - 2001:db8::/32
         # end of addresses
      description: >- # several lines
        several
        lines # no comment
    far: { description: "a, b # c", match: [ { addresses: [ 192.0.2.1 ] } ] }
    # end of segments
  # end of spec
# end of the document
"#;

const NEAT: &str = r#"# about the file

# still about the file

# about the version
apiVersion: ztseg.io/v1
kind: SegmentPolicy # the kind
metadata:
  # about the name
  name: shop # named

spec: # the spec
  segments: # seg
    # about web
    web: { match: [ { unit: nginx.service }, { unit: b*.service, cgroup: /a } ] } # web

    db:
      description: >- # several lines
        several
        lines # no comment
      match:
        - unit: "*.service"
        # about addresses
        - addresses:
            - 192.0.2.0/24 # net
            - 2001:db8::/32
            # end of addresses
    far: { description: "a, b # c", match: [ { addresses: [192.0.2.1] } ] }
    # end of segments
  # about deny
  deny: # behind deny
    - { name: d, from: web, to: db } # d
    # about e
    - { name: e, from: db, to: web, log: false }
    # end of deny

  # about allow
  allow: # allowed
    # first of the list
    - name: a
      from: web # who
      # about to
      to:
        - db # the database
        - "2001:db8::/32"
      # end of a

    - { name: b, from: web, to: db } # b
    # about the third
    - { name: c, from: [web, any], to: db }
  # end of spec
# end of the document
"#;

#[test]
fn comments_stay_with_what_they_stand_at() {
    let found = formatted(MESSY);
    for (number, (found, expected)) in (1..).zip(found.lines().zip(NEAT.lines())) {
        assert_eq!(found, expected, "line {number}");
    }
    assert_eq!(found.lines().count(), NEAT.lines().count());
    assert_eq!(meaning(MESSY), meaning(&found));
}

#[test]
fn documents_of_others_stay_as_they_are() {
    let namespace =
        "apiVersion:   v1\nkind: Namespace # as it is\nmetadata:   {name:   shop}\n\n\n";
    let own =
        "# own\n\napiVersion: ztseg.io/v1\nkind:   SegmentPolicy\nmetadata: {name: x}\nspec: {}\n";
    let neat =
        "# own\n\napiVersion: ztseg.io/v1\nkind: SegmentPolicy\nmetadata: { name: x }\nspec: {}\n";
    for (text, expected) in [
        (format!("{namespace}--- # next\n{own}\n\n"), format!("{namespace}--- # next\n{neat}")),
        (format!("---\n{own}---\n{namespace}"), format!("---\n{neat}---\n{namespace}")),
        (format!("\u{feff}{own}..."), format!("\u{feff}{neat}...")),
        (own.replace('\n', "\r\n"), neat.replace('\n', "\r\n")),
        ("# nothing\n\n\n".into(), "# nothing\n\n\n".into()),
        (String::new(), String::new()),
    ] {
        assert_eq!(formatted(&text), expected);
    }
}

#[test]
fn a_rule_that_is_too_long_takes_several_lines() {
    let policy = |name: &str| {
        let rule =
            format!("{{ name: {name}, from: web, to: [db, 192.0.2.0/24], ports: [tcp/5432] }}");
        let head = "apiVersion: ztseg.io/v1\nkind: SegmentPolicy\nmetadata: { name: x }\n";
        format!("{head}spec:\n  allow:\n    - {rule} # why\n")
    };
    let fits = policy(&"x".repeat(30));
    assert!(fits.lines().any(|line| line.trim_end_matches(" # why").len() == 100), "{fits}");
    assert_eq!(formatted(&fits), fits);
    let broken = formatted(&policy(&"x".repeat(31)));
    assert!(broken.contains("    # why\n    - name: xxx"), "{broken}");
    assert!(
        broken.ends_with("      to: [db, 192.0.2.0/24]\n      ports: [tcp/5432]\n"),
        "{broken}"
    );
}

#[test]
fn what_does_not_parse_is_refused_at_its_place() {
    let wrong = MESSY.replace("log:   false", "lgo: false");
    let found = format(&source(&wrong)).expect_err("an unknown field");
    assert!(found.to_string().contains("lgo"), "{found}");
    let kept = MESSY.replace("description: >-", "description: >2-");
    let found = format(&source(&kept)).expect_err("an indentation that is written");
    assert!(found.to_string().starts_with("p.yaml:1:1: error: fmt cannot write"), "{found}");
}

#[test]
fn every_policy_of_the_repository_means_the_same_afterwards() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(root.join("policies")).expect("the folder is there") {
        texts.push(std::fs::read_to_string(entry.expect("readable").path()).expect("UTF-8"));
    }
    for entry in std::fs::read_dir(root.join("docs")).expect("the folder is there") {
        let page = std::fs::read_to_string(entry.expect("readable").path()).expect("UTF-8");
        let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        texts.extend(blocks.map(str::to_owned));
    }
    assert!(texts.len() > 20);
    for text in texts {
        let found = formatted(&text);
        assert_eq!(meaning(&text), meaning(&found));
        let comments = |text: &str| text.matches("# ").count();
        assert_eq!(comments(&text), comments(&found));
    }
}

/// A text with all that writers do: fields in any order, either style, quotes, comments, gaps.
/// Each comment about a rule names it.
struct Writer<'a> {
    rng: &'a mut Rng,
    out: String,
    comments: u32,
}

impl Writer<'_> {
    fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(0..100) < percent
    }

    fn quote(&mut self, text: &str) -> String {
        match self.rng.u8(0..5) {
            0 => format!("'{text}'"),
            1 => format!("\"{text}\""),
            _ => text.to_owned(),
        }
    }

    fn list(&mut self, items: &[&str]) -> String {
        let items: Vec<_> = items.iter().map(|item| self.quote(item)).collect();
        let space = if self.chance(50) { " " } else { "" };
        format!("[{space}{}{space}]", items.join([", ", " ,  "][usize::from(self.chance(30))]))
    }

    fn above(&mut self, indent: usize, what: &str) {
        while self.chance(20) {
            self.comments += 1;
            let gap = if self.chance(30) { "\n\n" } else { "" };
            let _ = writeln!(self.out, "{gap}{:indent$}# c{} above {what}", "", self.comments);
        }
    }

    fn behind(&mut self, what: &str) -> String {
        if !self.chance(15) {
            return String::new();
        }
        self.comments += 1;
        format!("  # c{} at {what}", self.comments)
    }

    fn line(&mut self, indent: usize, text: &str, what: &str) {
        let behind = self.behind(what);
        let _ = writeln!(self.out, "{:indent$}{text}{behind}", "");
    }

    fn rule(&mut self, number: usize, indent: usize) {
        let what = format!("rule-{number}");
        let sides = ["web", "[web, db]", "[db, 198.51.100.0/24]"];
        let side = |rng: &mut Rng| sides[rng.usize(0..sides.len())];
        let ports = "[tcp/1, udp/2, icmp/echo-request, sctp/300-400]";
        let mut fields = vec![("name", what.as_str()), ("from", side(self.rng)), ("to", "db")];
        fields.extend(self.rng.bool().then_some(("ports", ports)));
        fields.extend(self.rng.bool().then_some(("log", "true")));
        self.rng.shuffle(&mut fields);
        self.above(indent, &what);
        let style = self.rng.u8(0..3);
        let end = fields.len() - 1;
        for (place, (field, value)) in fields.iter().enumerate() {
            let items: Vec<_> = value.trim_matches(['[', ']']).split(", ").collect();
            let value = match (value.starts_with('['), *value) {
                (true, _) => self.list(&items),
                (false, "true") => "true".to_owned(),
                (false, text) => self.quote(text),
            };
            match (style, place) {
                // Brackets on one line, then on several.
                (0, 0) => _ = write!(self.out, "{:indent$}- {{{field}: {value}", ""),
                (0, _) => _ = write!(self.out, ", {field}: {value}"),
                (1, _) => {
                    let open = if place == 0 { "- {" } else { "   " };
                    let comma = if place == end { "" } else { "," };
                    self.line(indent, &format!("{open} {field}: {value}{comma}"), &what);
                }
                _ => {
                    let dash = if place == 0 { "- " } else { "  " };
                    if place > 0 {
                        self.above(indent + 2, &what);
                    }
                    if items.len() > 1 && self.chance(50) {
                        self.line(indent, &format!("{dash}{field}:"), &what);
                        for item in items {
                            self.line(indent + 2, &format!("- {item}"), &what);
                        }
                    } else {
                        self.line(indent, &format!("{dash}{field}: {value}"), &what);
                    }
                }
            }
        }
        if style < 2 {
            let behind = self.behind(&what);
            let close = if style == 1 { format!("{:indent$} }}", "") } else { "}".to_owned() };
            let _ = writeln!(self.out, "{close}{behind}");
        }
    }

    fn document(&mut self, number: usize) {
        let mut parts = ["segments", "allow", "deny", "tests", "mode"];
        self.rng.shuffle(&mut parts);
        self.above(0, "the document");
        self.line(0, "kind: 'SegmentPolicy'", "kind");
        self.line(0, "apiVersion: ztseg.io/v1", "version");
        self.line(0, &format!("metadata: {{name: p{number}}}"), "metadata");
        self.line(0, "spec:", "spec");
        for part in parts {
            self.above(2, part);
            if part == "mode" {
                self.line(2, "mode: audit", part);
                continue;
            }
            if part == "segments" && number > 0 {
                continue;
            }
            self.line(2, &format!("{part}:"), part);
            match part {
                "segments" => {
                    self.line(4, "web: {match: [{unit: 'web.service'}]}", "web");
                    self.line(4, "db:", "db");
                    self.line(6, "match:", "match");
                    self.line(6, "- unit: \"*.service\"", "unit");
                    self.line(6, "- cgroup: /db", "cgroup");
                    self.line(8, "unit: d.service", "cgroup");
                    self.above(8, "nothing");
                }
                "tests" => self.line(4, "- deny: \"web -> db tcp/9\"", "test"),
                _ => {
                    let indent = [2, 4, 6][self.rng.usize(0..3)];
                    let first = if part == "deny" { 10 } else { 20 };
                    for rule in first..first + self.rng.usize(1..5) {
                        self.rule(rule, indent);
                    }
                }
            }
        }
        self.above(0, "nothing");
    }
}

/// The rule that a line's comment names, where it names one.
fn named(line: &str) -> Option<&str> {
    let (_, comment) = line.split_once("# c")?;
    comment.split(' ').next_back().filter(|what| what.starts_with("rule-"))
}

#[test]
fn whatever_people_write_keeps_its_meaning_and_its_comments() {
    let seed = seed();
    for case in 0..1000 {
        let mut rng = seeded(seed, case);
        let mut writer = Writer { rng: &mut rng, out: String::new(), comments: 0 };
        writer.document(0);
        if writer.chance(30) {
            writer.out.push_str("---\n");
            writer.document(1);
        }
        let (text, comments) = (writer.out, writer.comments);
        let found = formatted(&text);
        assert_eq!(meaning(&text), meaning(&found), "case {case}\n{text}");
        for number in 1..=comments {
            let comment = format!("# c{number} ");
            assert_eq!(found.matches(&comment).count(), 1, "case {case}: {comment}\n{text}");
        }
        // What is said about a rule stands between the one before and the one after: in its lines,
        // or in lines of comments right above it.
        let lines: Vec<_> = found.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(what) = named(line) else { continue };
            let is_empty = |line: &str| line.is_empty() || line.trim_start().starts_with('#');
            let above = line.trim_start().starts_with('#');
            let own = |line: &&&str| line.contains("- name: rule") || line.contains("{ name: rule");
            let before = lines[..=at].iter().rev().find(own);
            let after = lines[at..].iter().find(|line| !is_empty(line)).filter(own);
            let is_it = |line: Option<&&str>| {
                line.is_some_and(|line| line.split(&[' ', ','][..]).any(|word| word == what))
            };
            assert!(is_it(before) || (above && is_it(after)), "case {case}: {line}\n{found}");
        }
    }
}
