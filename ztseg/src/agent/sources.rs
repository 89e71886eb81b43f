//! Policy files and folders, read.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::policy::source::Source;

/// The largest policy file, in bytes.
const FILE_LIMIT: u64 = 16 << 20;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFiles {
    /// The files, each folder's sorted by name.
    pub sources: Vec<Source>,
    /// What should be looked at though it is no error.
    pub warnings: Vec<String>,
}

/// Reads files and folders (their `*.yaml` and `*.yml`, without subfolders and hidden files), each
/// file once. A folder in `optional` may be missing.
///
/// # Errors
/// Everything that cannot be read, one line each.
pub fn read(paths: &[PathBuf], optional: &[PathBuf]) -> Result<PolicyFiles, String> {
    let mut found = PolicyFiles::default();
    let mut errors = Vec::new();
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        match list(path) {
            Ok(some) => {
                if some.is_empty() {
                    found.warnings.push(format!(
                        "{} has no *.yaml or *.yml file, so it has no policy",
                        path.display()
                    ));
                }
                files.extend(some);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && optional.contains(path) => {
                found.warnings.push(format!(
                    "{0} is not there, so it has no policy; put policy files there, or name \
                     others with --policies",
                    path.display()
                ));
            }
            Err(e) => errors.push(format!("{}: {}", path.display(), reason(&e))),
        }
    }
    let mut seen = std::collections::HashSet::new();
    files.retain(|file| seen.insert(file.clone()));
    for file in files {
        match read_one(&file) {
            Ok(source) => found.sources.push(source),
            Err(text) => errors.push(text),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors.join("\n")) }
}

/// Reads one file.
///
/// # Errors
/// Why it cannot be read, with its name.
pub fn read_one(file: &Path) -> Result<Source, String> {
    let text = read_file(file).map_err(|e| format!("{}: {}", file.display(), reason(&e)))?;
    Ok(Source { name: file.to_string_lossy().as_ref().into(), text: text.into() })
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or folder".into(),
        io::ErrorKind::PermissionDenied => "no permission to read it".into(),
        _ => error.to_string(),
    }
}

/// The policy files that a path stands for.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let hidden = file.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let yaml = file.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if yaml && !hidden && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> io::Result<String> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut bytes = Vec::new();
    let read = fs::File::open(path)?.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if read as u64 > FILE_LIMIT {
        return Err(invalid(format!("larger than {} MiB; split it", FILE_LIMIT >> 20)));
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n');
        invalid(format!("line {} is not UTF-8", line.count() + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_yaml_files_sorted_and_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["b.yaml", "a.yml", ".hidden.yaml", "notes.txt"] {
            fs::write(at(name), name).expect("written");
        }
        fs::create_dir(at("sub.yaml")).expect("made");
        let paths = [folder.path().to_owned(), at("b.yaml"), at("notes.txt")];
        let found = read(&paths, &[]).expect("read");
        let texts: Vec<&str> = found.sources.iter().map(|s| &*s.text).collect();
        assert_eq!(texts, ["a.yml", "b.yaml", "notes.txt"]);
        assert_eq!(found.warnings, [""; 0]);
    }

    #[test]
    fn what_is_missing_is_an_error_unless_it_is_optional() {
        let missing = PathBuf::from("/nonexistent/policies");
        let found = read(std::slice::from_ref(&missing), std::slice::from_ref(&missing));
        assert!(found.expect("read").warnings[0].contains("/nonexistent/policies"));
        let error = read(&[missing, "/nonexistent/other".into()], &[]).expect_err("missing");
        assert_eq!(error.lines().count(), 2, "{error}");
    }

    #[test]
    fn what_is_no_text_is_an_error_with_its_line() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("x.yaml"), b"a: 1\nb: \xff\n").expect("written");
        let error = read(&[folder.path().to_owned()], &[]).expect_err("no text");
        assert!(error.contains("line 2 is not UTF-8"), "{error}");
    }

    #[test]
    fn an_empty_folder_is_worth_a_warning() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = read(&[folder.path().to_owned()], &[]).expect("read");
        assert_eq!((found.sources.len(), found.warnings.len()), (0, 1));
    }
}
