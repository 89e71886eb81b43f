//! `ztseg fmt`

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::print;
use super::{Failure, output, settings};
use crate::config::Config;
use crate::policy::diagnostic::Diagnostics;
use crate::policy::format::format;
use crate::policy::yaml;

/// What stands for standard input and standard output.
const STANDARD: &str = "-";

#[derive(Debug, Args)]
pub(super) struct Fmt {
    /// Policy files, or folders of *.yaml files; `-` reads standard input and writes standard
    /// output [default: what is configured]
    #[arg(value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Change nothing, and list the files that are not in this form
    #[arg(long)]
    check: bool,
    /// Configuration file, for `policies` [default: /etc/ztseg/config.yaml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Fmt {
    pub(super) fn execute(self) -> Result<(), Failure> {
        if self.files.iter().any(|file| file == Path::new(STANDARD)) {
            return self.standard();
        }
        let sources = if self.files.is_empty() {
            let config = settings::config(self.config.as_deref())?;
            settings::policies(&config.policies, &Config::default().policies)?
        } else {
            settings::policies(&self.files, &[])?
        };
        let mut wrong = Vec::new();
        let mut changed = Vec::new();
        for source in &sources {
            match format(source) {
                Ok(text) if *text == *source.text => {}
                Ok(text) => {
                    let path = Path::new(source.name.as_ref());
                    if !self.check
                        && let Err(e) = replace(path, &text)
                    {
                        wrong
                            .push(format!("error: {}: {e}; the file is as it was", path.display()));
                        continue;
                    }
                    changed.push(source.name.as_ref());
                }
                Err(found) => wrong.push(found.render(output::color())),
            }
        }
        let listed: String = changed.iter().flat_map(|name| [*name, "\n"]).collect();
        print(&listed)?;
        if !wrong.is_empty() {
            return Err(Failure::input(wrong.join("\n")));
        }
        if self.check && !changed.is_empty() { Err(Failure::found("")) } else { Ok(()) }
    }

    fn standard(&self) -> Result<(), Failure> {
        if self.files.len() > 1 {
            return Err(Failure::input("`-` stands alone; name either it or files"));
        }
        let mut bytes = Vec::new();
        let most = yaml::MAX_LENGTH as u64 + 1;
        let read = io::stdin().lock().take(most).read_to_end(&mut bytes);
        read.map_err(|e| Failure::input(format!("standard input: {e}")))?;
        let wrong = |e: Diagnostics| Failure::input(e.render(output::color()));
        let source = yaml::decode("standard input", bytes).map_err(wrong)?;
        let text = format(&source).map_err(wrong)?;
        match (self.check, *text == *source.text) {
            (false, _) => print(&text),
            (true, true) => Ok(()),
            (true, false) => {
                print(&format!("{}\n", source.name))?;
                Err(Failure::found(""))
            }
        }
    }
}

/// Puts a file of this text in the place of another, with the same owner and mode: whoever reads it
/// sees either all of the one or all of the other.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // What a link points to is replaced, not the link.
    let path = fs::canonicalize(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Hidden, so that nobody takes it for a policy.
    let new = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = fill(file, text, &path).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written
}

fn fill(mut file: File, text: &str, like: &Path) -> io::Result<()> {
    let like = fs::metadata(like)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(like.permissions())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const MESSY: &str =
        "# why\nkind: SegmentPolicy\napiVersion: ztseg.io/v1\nmetadata: {name: x} # x\nspec: {}\n";
    const NEAT: &str = "# why\napiVersion: ztseg.io/v1\nkind: SegmentPolicy\nmetadata: { name: x } # x\nspec: {}\n";

    fn run(path: &Path, check: bool) -> Result<(), Failure> {
        Fmt { files: vec![path.to_owned()], check, config: None }.execute()
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.yaml");
        fs::write(&file, MESSY).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        let link = folder.path().join("link.yaml");
        symlink("p.yaml", &link).expect("linked");
        run(&link, false).expect("formatted");
        assert_eq!(fs::read_to_string(&file).expect("there"), NEAT);
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 2);
    }

    #[test]
    fn check_changes_nothing_and_finds_what_would_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.yaml");
        fs::write(&file, MESSY).expect("written");
        assert_eq!(run(folder.path(), true).expect_err("would change").status, 1);
        assert_eq!(fs::read_to_string(&file).expect("there"), MESSY);
        run(folder.path(), false).expect("formatted");
        run(folder.path(), true).expect("nothing to change");
    }

    #[test]
    fn a_file_that_does_not_parse_is_left_alone_and_the_others_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (good, bad) = (folder.path().join("a.yaml"), folder.path().join("b.yaml"));
        let wrong = MESSY.replace("spec", "sepc");
        fs::write(&good, MESSY).expect("written");
        fs::write(&bad, &wrong).expect("written");
        let failure = run(folder.path(), false).expect_err("wrong");
        assert!(failure.status == 2 && failure.text.contains("sepc"), "{}", failure.text);
        assert_eq!(fs::read_to_string(&bad).expect("there"), wrong);
        assert_eq!(fs::read_to_string(&good).expect("there"), NEAT);
    }
}
