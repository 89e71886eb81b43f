//! The example policies at the top of the repository load as they are, alone and together.

use std::path::Path;

use ztseg::policy::source::Source;
use ztseg::policy::testcase::Expect;

fn examples() -> Vec<Source> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into();
        Source { name, text: std::fs::read_to_string(path).expect("UTF-8").into() }
    };
    paths.iter().map(read).collect()
}

#[test]
fn every_example_loads_and_tests_itself() {
    let examples = examples();
    assert!(examples.len() >= 6);
    for source in &examples {
        let loaded = match ztseg::policy::load(std::slice::from_ref(source)) {
            Ok(loaded) => loaded,
            Err(diagnostics) => panic!("{}", diagnostics.render(false)),
        };
        for expect in [Expect::Allow, Expect::Deny] {
            let has = loaded.tests.iter().any(|test| test.expect == expect);
            assert!(has, "{} has no {} test", source.name, expect.name());
        }
        let failed = ztseg::check::check(&loaded, jiff::Timestamp::now()).expect("compiles");
        assert!(failed.is_empty(), "{}", failed.render(false));
    }
}

/// So that `ztseg check policies` works, and a folder can hold several of them.
#[test]
fn all_examples_load_together() {
    if let Err(diagnostics) = ztseg::policy::load(&examples()) {
        panic!("{}", diagnostics.render(false));
    }
}

#[test]
fn the_demo_has_what_the_demonstration_shows() {
    let demo: Vec<_> =
        examples().into_iter().filter(|source| source.name.as_ref() == "demo.yaml").collect();
    let loaded = ztseg::policy::load(&demo).expect("loads");
    for name in ["web", "api", "db"] {
        let segment = loaded.resolved.segments.iter().find(|s| s.name == name).expect(name);
        assert_eq!(segment.selectors[0].cgroup, Some(format!("/{name}")));
    }
    assert!(loaded.resolved.rules[0].name.starts_with("demo/no-"), "denies come first");
}
