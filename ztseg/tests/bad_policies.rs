//! Bad policies, and what is said about them.
//!
//! Each file in `bad-policies` is one; its last lines, which start with `#!`, are what is expected:
//! `line:column: error: …`. With `BLESS=1` in the environment they are written anew, to be read
//! in the diff.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ztseg::policy::diagnostic::Diagnostics;
use ztseg::policy::source::Source;

const MARK: &str = "#! ";

fn source(name: &str, text: &str) -> Source {
    Source { name: name.into(), text: text.into() }
}

fn refused(sources: &[Source]) -> Diagnostics {
    ztseg::policy::load(sources).expect_err("is refused")
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad-policies");
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

#[test]
fn every_bad_policy_gets_its_messages() {
    let files = files();
    assert!(files.len() >= 50, "only {} files", files.len());
    let mut wrong = String::new();
    for path in &files {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).expect("UTF-8");
        let (expected, input): (Vec<_>, Vec<_>) =
            text.split_inclusive('\n').partition(|line| line.starts_with(MARK));
        let source = source(&name, &text);
        let found = match ztseg::policy::load(std::slice::from_ref(&source)) {
            Ok(_) => "nothing was found".to_owned(),
            Err(diagnostics) => diagnostics.to_string().replace(&format!("{name}:"), ""),
        };
        let found = found.lines().fold(String::new(), |all, line| all + MARK + line + "\n");
        if found != expected.concat() {
            writeln!(wrong, "{name}\nexpected:\n{}found:\n{found}", expected.concat())
                .expect("fits");
            if std::env::var_os("BLESS").is_some() {
                std::fs::write(path, input.concat() + &found).expect("writable");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

const HEAD: &str = "apiVersion: ztseg.io/v1\nkind: SegmentPolicy\n";

#[test]
fn a_typo_is_shown_in_its_line_with_what_was_meant() {
    let text = format!("{HEAD}metadata: {{ name: shop }}\nspec:\n  mode: audti # for now\n");
    let expected = "\
error: `mode` cannot be `audti`
 --> shop.yaml:5:9
  |
5 |   mode: audti # for now
  |         ^^^^^
  |
  = help: did you mean `audit`?
";
    assert_eq!(refused(&[source("shop.yaml", &text)]).render(false), expected);
}

#[test]
fn a_second_definition_shows_both_places() {
    let one = format!(
        "{HEAD}metadata: {{ name: one }}\nspec:\n  segments:\n    web: {{ match: [ {{ unit: a.service }} ] }}\n"
    );
    let two = format!(
        "{HEAD}metadata: {{ name: two }}\nspec:\n  addressGroups:\n    web: {{ cidrs: [192.0.2.0/24] }}\n"
    );
    let expected = "\
error: the name `web` is defined a second time
 --> two.yaml:6:5
  |
6 |     web: { cidrs: [192.0.2.0/24] }
  |     ^^^
  |
 ::: one.yaml:6:5
  |
6 |     web: { match: [ { unit: a.service } ] }
  |     --- first defined here, as a segment
  |
  = help: names of segments and address groups hold for all files together; rename one of them
";
    let sources = [source("one.yaml", &one), source("two.yaml", &two)];
    assert_eq!(refused(&sources).render(false), expected);
}

#[test]
fn several_errors_of_a_line_are_all_shown() {
    let text = format!(
        "{HEAD}metadata: {{ name: ops }}\nspec:\n  segments: {{ ops: {{ match: [ {{ host: true }} ] }} }}\n  allow: [ {{ from: 10.0.0.1/8, to: ops, ports: [tcp/65536] }} ]\n"
    );
    let expected = "\
error: `10.0.0.1/8` has bits set after its prefix
 --> ops.yaml:6:20
  |
6 |   allow: [ { from: 10.0.0.1/8, to: ops, ports: [tcp/65536] } ]
  |                    ^^^^^^^^^^
  |
  = help: write `10.0.0.0/8` for the network, or `10.0.0.1` for the one address

error: port `65536` is out of range
 --> ops.yaml:6:49
  |
6 |   allow: [ { from: 10.0.0.1/8, to: ops, ports: [tcp/65536] } ]
  |                                                 ^^^^^^^^^
  |
  = help: ports are 1 to 65535; leave the number out for every port
";
    let found = refused(&[source("ops.yaml", &text)]);
    assert_eq!(found.render(false), expected);
    assert_eq!((found.len(), found.summary()), (2, "2 errors".to_owned()));
}

#[test]
fn a_bracket_that_is_never_closed_is_shown_where_it_opens() {
    let text = format!("{HEAD}metadata: {{ name: shop\nspec:\n  mode: audit\n");
    let expected = "\
error: this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'
 --> shop.yaml:4:5
  |
4 | spec:
  |     ^
  |
 ::: shop.yaml:3:11
  |
3 | metadata: { name: shop
  |           - inside the `{` opened here
  |
  = help: check that every `[` and `{` is closed, with commas between the entries
";
    assert_eq!(refused(&[source("shop.yaml", &text)]).render(false), expected);
}

#[test]
fn a_long_line_is_cut_around_the_error() {
    let many = (1..=60).fold(String::new(), |all, n| all + &format!("tcp/{n}, "));
    let text = format!(
        "{HEAD}metadata: {{ name: ops }}\r\nspec:\r\n  segments: {{ ops: {{ match: [ {{ host: true }} ] }} }}\r\n  allow: [ {{ from: any, to: ops, ports: [{many}http] }} ]\r\n"
    );
    let expected = "\
error: `http` is not a protocol that ports can name
 --> ops.yaml:6:513
  |
6 | ...cp/53, tcp/54, tcp/55, tcp/56, tcp/57, tcp/58, tcp/59, tcp/60, http] } ]
  |                                                                   ^^^^
  |
  = help: write `tcp`, `udp`, `sctp`, `icmp` or `icmpv6`; `any` is every protocol
";
    assert_eq!(refused(&[source("ops.yaml", &text)]).render(false), expected);
}

#[test]
fn colours_come_only_when_asked_for() {
    let found = refused(&[source("a.yaml", "- 1\n")]);
    assert!(!found.render(false).contains('\u{1b}'));
    assert!(found.render(true).contains('\u{1b}'));
}
