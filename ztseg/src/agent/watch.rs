//! Policy files and folders, watched. A notification only says that it is time to read them again.

use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Watches policy paths; ends when dropped.
#[derive(Debug)]
pub struct FileWatch {
    watcher: RecommendedWatcher,
    watched: Vec<PathBuf>,
    changed: mpsc::Receiver<()>,
}

impl FileWatch {
    /// Starts to watch `paths`, those that are not there yet as well.
    ///
    /// # Errors
    /// When notifications cannot be had.
    pub fn start(paths: &[PathBuf]) -> notify::Result<Self> {
        let (tx, changed) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().is_ok_and(is_change) {
                // A full channel says it already.
                let _ = tx.try_send(());
            }
        })?;
        let mut watch = Self { watcher, watched: Vec::new(), changed };
        watch.refresh(paths);
        Ok(watch)
    }

    /// Watches what has come since, and a folder anew that was made again.
    pub fn refresh(&mut self, paths: &[PathBuf]) {
        for folder in self.watched.drain(..) {
            // It fails for a folder that is gone, and then there is nothing to end.
            let _ = self.watcher.unwatch(&folder);
        }
        for folder in folders(paths) {
            if self.watcher.watch(&folder, RecursiveMode::NonRecursive).is_ok() {
                self.watched.push(folder);
            }
        }
    }

    /// Waits until something changed.
    pub async fn changed(&mut self) {
        if self.changed.recv().await.is_none() {
            // The watcher is gone; nothing will ever change.
            std::future::pending::<()>().await;
        }
    }
}

/// Reading a file is no change of it, or every reload would cause the next.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The folders in which a change may concern `paths`: the paths that are folders, and the parents
/// of all, since files are replaced by renames and folders come and go. For symbolic links, those
/// of what they point to as well.
fn folders(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for path in paths {
        let real = path.canonicalize().ok();
        for path in std::iter::once(path.as_path()).chain(real.as_deref()) {
            out.extend(path.is_dir().then(|| path.to_owned()));
            let parent = path.parent().map(|p| if p == Path::new("") { Path::new(".") } else { p });
            out.extend(parent.map(Path::to_owned));
        }
    }
    out.sort();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    async fn is_told(watch: &mut FileWatch) -> bool {
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.is_ok()
    }

    async fn quiet(watch: &mut FileWatch) {
        while tokio::time::timeout(Duration::from_millis(100), watch.changed()).await.is_ok() {}
    }

    #[tokio::test]
    async fn writes_replacements_and_new_folders_are_told_and_reads_are_not() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("policies");
        let paths = [folder.clone()];
        let mut watch = FileWatch::start(&paths).expect("started");
        fs::create_dir(&folder).expect("made");
        assert!(is_told(&mut watch).await, "a folder that was not there");
        watch.refresh(&paths);
        quiet(&mut watch).await;
        fs::write(folder.join("a.yaml"), "1").expect("written");
        assert!(is_told(&mut watch).await, "a new file");
        quiet(&mut watch).await;
        fs::write(root.path().join("new"), "2").expect("written");
        quiet(&mut watch).await;
        fs::rename(root.path().join("new"), folder.join("a.yaml")).expect("moved");
        assert!(is_told(&mut watch).await, "a replaced file");
        quiet(&mut watch).await;
        fs::read(folder.join("a.yaml")).expect("read");
        let told = tokio::time::timeout(Duration::from_millis(200), watch.changed()).await;
        assert!(told.is_err(), "a read is no change");
    }
}
