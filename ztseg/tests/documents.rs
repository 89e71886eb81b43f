//! Every example in `docs` loads, its tests hold, and the commands below it print what is there; every
//! link leads somewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use ztseg::policy::source::Source;

/// A fenced block of a page.
struct Block {
    language: String,
    line: usize,
    text: String,
}

fn blocks(page: &Path) -> Vec<Block> {
    let page = std::fs::read_to_string(page).expect("UTF-8");
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, text) in (1..).zip(page.lines()) {
        open = match (open, text.strip_prefix("```")) {
            (None, Some(language)) => {
                Some(Block { language: language.to_owned(), line, text: String::new() })
            }
            (Some(block), Some(_)) => {
                blocks.push(block);
                None
            }
            (Some(block), None) => Some(Block { text: block.text + text + "\n", ..block }),
            (None, None) => None,
        };
    }
    blocks
}

fn pages() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut pages: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    pages.sort();
    pages
}

#[test]
fn every_example_loads_and_its_tests_hold() {
    let mut count = 0;
    for page in pages() {
        for block in blocks(&page).into_iter().filter(|block| block.language == "yaml") {
            let name = format!("{}, the example in line {}", page.display(), block.line);
            let source = Source { name: name.into(), text: block.text.into() };
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
    assert!(count >= 16, "only {count} examples");
}

/// What a block of commands prints, with the commands (`$ …`) themselves.
fn printed(block: &Block, folder: &Path) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_ztseg"));
    let mut path = program.parent().expect("a folder").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut all = String::new();
    for line in block.text.lines() {
        let Some(command) = line.strip_prefix("$ ") else { continue };
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(folder)
            .env("PATH", &path)
            .output()
            .expect("a shell");
        all += line;
        all += "\n";
        all += &String::from_utf8_lossy(&output.stdout);
        all += &String::from_utf8_lossy(&output.stderr);
    }
    all
}

/// An example whose first line is a comment with a name is a file of that name to the commands.
#[test]
fn commands_print_what_is_below_them() {
    let mut count = 0;
    for page in pages() {
        let folder = tempfile::tempdir().expect("a folder");
        for block in blocks(&page) {
            let first = block.text.lines().next().and_then(|line| line.strip_prefix("# "));
            let name = first.and_then(|line| line.strip_suffix(".yaml"));
            match (block.language.as_str(), name) {
                ("yaml", Some(name)) => {
                    let file = folder.path().join(format!("{name}.yaml"));
                    std::fs::write(file, &block.text).expect("written");
                }
                ("console", _) => {
                    let found = printed(&block, folder.path());
                    assert_eq!(found, block.text, "{}, line {}", page.display(), block.line);
                    count += 1;
                }
                _ => {}
            }
        }
    }
    assert!(count >= 5, "only {count} blocks of commands");
}

/// The links of a page to files of the repository, with their lines.
fn links(page: &str) -> Vec<(usize, String)> {
    let link = |(line, text): (usize, &str)| {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let here = targets.filter(|target| !target.contains("://"));
        here.map(|target| (line, target.to_owned())).collect::<Vec<_>>()
    };
    (1..).zip(page.lines()).flat_map(link).collect()
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut count = 0;
    for page in pages().into_iter().chain(["README.md", "ARCHITECTURE.md"].map(|p| root.join(p))) {
        let text = std::fs::read_to_string(&page).expect("UTF-8");
        for (line, link) in links(&text) {
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().expect("a folder").join(path),
            };
            let place = format!("{}:{line}: {link}", page.display());
            assert!(target.exists(), "{place}: there is no such file");
            if !heading.is_empty() {
                let target = std::fs::read_to_string(&target).expect("UTF-8");
                let headings = target.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
                assert!(anchors.any(|found| found == heading), "{place}: no such heading");
            }
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} links");
}
