//! The configuration file and the flags that override it.

use std::path::{Path, PathBuf};

use super::{Failure, output};
use crate::agent::sources;
use crate::config::{Config, DEFAULT_PATH};
use crate::policy::source::Source;

/// Reads the configuration: the named file, else the default one, else the defaults.
pub(super) fn config(named: Option<&Path>) -> Result<Config, Failure> {
    let path = named.unwrap_or(Path::new(DEFAULT_PATH));
    if named.is_none() && !path.exists() {
        return Ok(Config::default());
    }
    let source = sources::read_one(path).map_err(Failure::input)?;
    Config::from_yaml(&source).map_err(|e| Failure::input(e.render(output::color())))
}

/// Reads policy files and folders; those in `optional` may be missing.
pub(super) fn policies(paths: &[PathBuf], optional: &[PathBuf]) -> Result<Vec<Source>, Failure> {
    let files = sources::read(paths, optional).map_err(Failure::input)?;
    for warning in &files.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(files.sources)
}

/// Reads the named policy files and folders; where none is named, what is configured.
pub(super) fn named_or_configured(
    named: &[PathBuf],
    config: &Config,
) -> Result<Vec<Source>, Failure> {
    if named.is_empty() {
        policies(&config.policies, &Config::default().policies)
    } else {
        policies(named, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_must_be_there_and_right() {
        let missing = config(Some(Path::new("/nonexistent/config.yaml"))).expect_err("missing");
        assert_eq!(missing.status, 2);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, "sokcet: /run/x\n").expect("written");
        let wrong = config(Some(&file)).expect_err("wrong");
        assert!(wrong.status == 2 && wrong.text.contains("sokcet"), "{}", wrong.text);
        std::fs::write(&file, "socket: /run/x.sock\n").expect("written");
        assert_eq!(config(Some(&file)).expect("right").socket, Path::new("/run/x.sock"));
        assert_eq!(config(Some(folder.path())).expect_err("a folder").status, 2);
    }
}
