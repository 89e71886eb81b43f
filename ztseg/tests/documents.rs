//! Every example in `docs` loads, and its tests hold.

use std::path::Path;

use jiff::Timestamp;
use ztseg::policy::source::Source;

/// The `yaml` blocks of a page, each with its place as its name.
fn examples(path: &Path) -> Vec<Source> {
    let page = std::fs::read_to_string(path).expect("UTF-8");
    let mut examples = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (line, text) in (1..).zip(page.lines()) {
        block = match (block, text) {
            (None, "```yaml") => Some((line, String::new())),
            (Some((start, all)), "```") => {
                let name = format!("{}, the example in line {start}", path.display());
                examples.push(Source { name: name.into(), text: all.into() });
                None
            }
            (Some((start, all)), text) => Some((start, all + text + "\n")),
            (None, _) => None,
        };
    }
    examples
}

#[test]
fn every_example_loads_and_its_tests_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        for source in examples(&entry.expect("readable").path()) {
            let loaded = match ztseg::policy::load(std::slice::from_ref(&source)) {
                Ok(loaded) => loaded,
                Err(found) => panic!("{}", found.render(false)),
            };
            assert!(!loaded.tests.is_empty(), "{} has no tests", source.name);
            let failed = ztseg::check::check(&loaded, Timestamp::now()).expect("compiles");
            assert!(failed.is_empty(), "{}", failed.render(false));
            count += 1;
        }
    }
    assert!(count >= 4, "only {count} examples");
}
