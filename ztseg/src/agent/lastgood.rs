//! The last good policy, kept in the state folder: what `boot: closed` enforces where the
//! configured files are broken.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::types::PolicyFile;
use crate::policy::source::Source;

const NAME: &str = "last-good.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    saved_at: Timestamp,
    files: Vec<PolicyFile>,
}

/// The file.
#[derive(Debug)]
pub struct LastGood {
    path: PathBuf,
    /// What it has for certain.
    saved: Option<Vec<Source>>,
}

impl LastGood {
    /// In a state folder, which must be there to save.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NAME), saved: None }
    }

    /// Reads it; nothing where there is none.
    ///
    /// # Errors
    /// Why it cannot be read, as text for people.
    pub fn load(&self) -> Result<Option<Vec<Source>>, String> {
        let failed = |e: &dyn std::fmt::Display| {
            format!("the last good one ({}) cannot be read: {e}", self.path.display())
        };
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&e)),
        };
        let content: Content = serde_json::from_slice(&text).map_err(|e| failed(&e))?;
        let source = |f: PolicyFile| Source { name: f.name.into(), text: f.text.into() };
        Ok(Some(content.files.into_iter().map(source).collect()))
    }

    /// Saves a policy, whole or not at all; nothing is written where it is there already.
    ///
    /// # Errors
    /// When the folder or the disk does not let it.
    pub fn save(&mut self, sources: &[Source], now: Timestamp) -> io::Result<()> {
        if self.saved.as_deref() == Some(sources) {
            return Ok(());
        }
        self.saved = None;
        let file = |s: &Source| PolicyFile { name: s.name.to_string(), text: s.text.to_string() };
        let content = Content { saved_at: now, files: sources.iter().map(file).collect() };
        let new = self.path.with_extension("new");
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        out.write_all(&serde_json::to_vec(&content)?)?;
        // A file that a crash leaves empty would be worse than an old one.
        out.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        self.saved = Some(sources.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_a_broken_file_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = LastGood::new(folder.path());
        assert_eq!(file.load(), Ok(None));
        let sources =
            vec![Source { name: "/etc/ä.yaml".into(), text: "kind: x\n---\n\"\u{1}\"".into() }];
        file.save(&sources, Timestamp::UNIX_EPOCH).expect("saved");
        assert_eq!(LastGood::new(folder.path()).load(), Ok(Some(sources.clone())));
        // Not written again.
        let path = folder.path().join(NAME);
        fs::write(&path, "{").expect("written");
        file.save(&sources, Timestamp::UNIX_EPOCH).expect("saved");
        assert!(file.load().expect_err("broken").contains("last-good.json"));
        file.save(&[], Timestamp::UNIX_EPOCH).expect("saved");
        assert_eq!(file.load(), Ok(Some(vec![])));
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
