//! The cgroup tree: scanned once, then watched with inotify.
//!
//! inotify only says where to look. What is there is read from the tree itself, and a folder gets
//! its watch before it is read, so nothing that is made in between is missed. Where notifications
//! are lost (queue overflow) or cannot be had (out of watches), whole scans take their place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::sync::mpsc::Sender;

use super::Discovered;
use super::mounts::CgroupRoot;
use super::stop::{Stop, Thread, Woken};
use crate::inventory::CgroupFacts;

/// How long to wait between two whole scans where watches are missing. A scan that takes long
/// makes the wait longer, so that scanning never takes more than a tenth of one CPU.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// A change in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupEvent {
    /// It is there now. Parents come before their children.
    Appeared(CgroupFacts),
    /// It is gone. Children go before their parents.
    Vanished {
        /// The id that it had.
        id: u64,
        /// The path that it had.
        path: String,
    },
}

/// How changes are noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// By inotify: within about a millisecond.
    Notified,
    /// By whole scans every second or so, because of what is said here.
    Scanned(String),
}

/// The watcher; it ends when dropped.
#[derive(Debug)]
pub struct CgroupWatcher {
    _thread: Thread,
}

impl CgroupWatcher {
    /// Scans the tree, and starts to watch it: what is in the returned list is not reported again.
    ///
    /// # Errors
    /// When the root cannot be read, or no thread can be had.
    pub fn start(
        root: &CgroupRoot,
        reports: Sender<Discovered>,
    ) -> io::Result<(Self, Vec<CgroupFacts>, WatchMode)> {
        fs::read_dir(&root.path)?;
        let mut tree = Tree::new(root);
        let mut found = Vec::new();
        tree.scan(&mut found);
        let found = found.into_iter().filter_map(|event| match event {
            CgroupEvent::Appeared(facts) => Some(facts),
            CgroupEvent::Vanished { .. } => None,
        });
        let (found, mode) = (found.collect(), tree.mode());
        let stop = Stop::new()?;
        let thread_stop = stop.clone();
        let thread = Thread::spawn("cgroups", stop, move || tree.run(&thread_stop, &reports))?;
        Ok((Self { _thread: thread }, found, mode))
    }
}

struct Node {
    id: u64,
    watch: Option<WatchDescriptor>,
}

/// The tree as it was last seen. A cgroup's id is the inode of its folder (`cgroup_ino`,
/// include/linux/cgroup.h).
struct Tree {
    root: PathBuf,
    level: u32,
    /// By path below the root; the root's is empty. Paths sort by component, so a subtree is one
    /// range.
    nodes: BTreeMap<PathBuf, Node>,
    watches: HashMap<WatchDescriptor, PathBuf>,
    inotify: Result<Inotify, Errno>,
    /// Why some folder has no watch.
    unwatched: Option<Errno>,
}

impl Tree {
    fn new(root: &CgroupRoot) -> Self {
        Self {
            root: root.path.clone(),
            level: root.level,
            nodes: BTreeMap::new(),
            watches: HashMap::new(),
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK),
            unwatched: None,
        }
    }

    fn mode(&self) -> WatchMode {
        let why = match (&self.inotify, self.unwatched) {
            (Ok(_), None) => return WatchMode::Notified,
            (Ok(_), Some(Errno::ENOSPC)) => {
                "out of inotify watches; raise fs.inotify.max_user_watches".to_owned()
            }
            (Ok(_), Some(e)) => format!("a cgroup cannot be watched: {}", e.desc()),
            (Err(Errno::EMFILE), _) => {
                "out of inotify instances; raise fs.inotify.max_user_instances".to_owned()
            }
            (Err(e), _) => format!("no inotify: {}", e.desc()),
        };
        WatchMode::Scanned(why)
    }

    /// The thread's loop: ends with the flag, or when nobody listens any more.
    fn run(mut self, stop: &Stop, reports: &Sender<Discovered>) {
        let mut reported = self.mode();
        let mut pause = SCAN_INTERVAL;
        loop {
            let timeout = match self.mode() {
                WatchMode::Notified => PollTimeout::NONE,
                WatchMode::Scanned(_) => PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX),
            };
            let fd = self.inotify.as_ref().ok().map(AsFd::as_fd);
            let mut found = Vec::new();
            match stop.wait(fd, timeout) {
                Ok(Woken::Stop) => return,
                Ok(Woken::Readable) => self.read_notifications(&mut found),
                Ok(Woken::Timeout) => {
                    let begin = Instant::now();
                    self.scan(&mut found);
                    pause = SCAN_INTERVAL.max(begin.elapsed() * 10);
                }
                Err(e) => {
                    tracing::error!("waiting for cgroup changes failed: {e}; scanning instead");
                    std::thread::sleep(SCAN_INTERVAL);
                    self.scan(&mut found);
                }
            }
            for event in found {
                if reports.blocking_send(Discovered::Cgroup(event)).is_err() {
                    return;
                }
            }
            if self.mode() != reported {
                reported = self.mode();
                if reports.blocking_send(Discovered::CgroupWatch(reported.clone())).is_err() {
                    return;
                }
            }
        }
    }

    fn read_notifications(&mut self, out: &mut Vec<CgroupEvent>) {
        // One read gives a few dozen; the rest keeps the descriptor readable.
        let Ok(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) else { return };
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                self.scan(out);
            } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.watches.remove(&event.wd);
            } else if event.mask.contains(AddWatchFlags::IN_ISDIR)
                && let (Some(parent), Some(name)) = (self.watches.get(&event.wd), event.name)
            {
                let path = parent.join(name);
                self.reconcile(path, out);
            }
        }
    }

    fn scan(&mut self, out: &mut Vec<CgroupEvent>) {
        self.unwatched = None;
        self.reconcile(PathBuf::new(), out);
    }

    /// Makes what is known of the subtree at `path` what is really there.
    fn reconcile(&mut self, path: PathBuf, out: &mut Vec<CgroupEvent>) {
        let mut work = vec![path];
        while let Some(path) = work.pop() {
            let full =
                if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(&path) };
            let watch = self.watch(&full, &path);
            let id = fs::symlink_metadata(&full).ok().filter(fs::Metadata::is_dir).map(|m| m.ino());
            let known = self.nodes.get(&path).map(|n| n.id);
            if known.is_some() && known != id {
                self.vanish(&path, out);
            }
            let Some(id) = id else { continue };
            if known != Some(id) {
                out.push(CgroupEvent::Appeared(self.facts(id, &path)));
            }
            self.nodes.insert(path.clone(), Node { id, watch });
            let children = subfolders(&full);
            for gone in self.children_except(&path, &children) {
                self.vanish(&gone, out);
            }
            work.extend(children.into_iter().map(|name| path.join(name)));
        }
    }

    fn watch(&mut self, full: &Path, path: &Path) -> Option<WatchDescriptor> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        // Watching a folder that is watched already gives its descriptor again.
        match self.inotify.as_ref().ok()?.add_watch(full, flags) {
            Ok(watch) => {
                self.watches.insert(watch, path.to_owned());
                Some(watch)
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV) => None,
            Err(e) => {
                self.unwatched = Some(e);
                None
            }
        }
    }

    fn facts(&self, id: u64, path: &Path) -> CgroupFacts {
        let depth = u32::try_from(path.components().count()).unwrap_or(u32::MAX);
        CgroupFacts { id, path: shown(path), level: self.level.saturating_add(depth) }
    }

    /// The known children of `path` that are not in `present`.
    fn children_except(&self, path: &Path, present: &HashSet<OsString>) -> Vec<PathBuf> {
        let below = self.subtree(path).skip(1);
        let depth = path.components().count() + 1;
        let children = below.filter(|child| child.components().count() == depth);
        let gone = children.filter(|c| c.file_name().is_some_and(|name| !present.contains(name)));
        gone.cloned().collect()
    }

    fn subtree(&self, path: &Path) -> impl Iterator<Item = &PathBuf> {
        let from = self.nodes.range(path.to_owned()..).map(|(p, _)| p);
        from.take_while(move |p| p.starts_with(path))
    }

    fn vanish(&mut self, path: &Path, out: &mut Vec<CgroupEvent>) {
        let subtree: Vec<PathBuf> = self.subtree(path).cloned().collect();
        for path in subtree.into_iter().rev() {
            let Some(node) = self.nodes.remove(&path) else { continue };
            // The same folder may have its descriptor under another path by now (a rename).
            if let Some(watch) = node.watch
                && self.watches.get(&watch) == Some(&path)
                && !fs::exists(self.root.join(&path)).unwrap_or(true)
            {
                self.watches.remove(&watch);
            }
            out.push(CgroupEvent::Vanished { id: node.id, path: shown(&path) });
        }
    }
}

/// A path as the inventory knows it. Bytes that are not UTF-8 are replaced, so that such a name
/// matches wildcards only.
fn shown(path: &Path) -> String {
    format!("/{}", path.to_string_lossy())
}

/// The names of the folders in a folder; none when it is gone.
fn subfolders(path: &Path) -> HashSet<OsString> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.map(|e| e.file_name()).collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;

    struct World {
        folder: tempfile::TempDir,
        _watcher: CgroupWatcher,
        reports: Receiver<Discovered>,
    }

    /// A plain folder stands for the tree: the watcher asks nothing else of it.
    fn world(before: &[&str]) -> (World, Vec<CgroupFacts>) {
        let folder = tempfile::tempdir().expect("a folder");
        for path in before {
            fs::create_dir_all(folder.path().join(path)).expect("made");
        }
        let (tx, reports) = channel(super::super::QUEUE);
        let root = CgroupRoot { path: folder.path().to_owned(), level: 3 };
        let (watcher, found, mode) = CgroupWatcher::start(&root, tx).expect("started");
        assert_eq!(mode, WatchMode::Notified);
        (World { folder, _watcher: watcher, reports }, found)
    }

    impl World {
        fn make(&self, path: &str) -> u64 {
            let path = self.folder.path().join(path);
            fs::create_dir(&path).expect("made");
            fs::metadata(path).expect("there").ino()
        }

        fn remove(&self, path: &str) {
            fs::remove_dir(self.folder.path().join(path)).expect("removed");
        }

        fn next(&mut self) -> CgroupEvent {
            let begin = Instant::now();
            loop {
                match self.reports.try_recv() {
                    Ok(Discovered::Cgroup(event)) => return event,
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => assert!(begin.elapsed() < Duration::from_secs(5), "no report"),
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }

        fn appeared(&mut self) -> CgroupFacts {
            match self.next() {
                CgroupEvent::Appeared(facts) => facts,
                gone @ CgroupEvent::Vanished { .. } => panic!("{gone:?}"),
            }
        }
    }

    #[test]
    fn the_first_scan_finds_everything_parents_first() {
        let (_world, found) = world(&["shop/web", "db"]);
        let paths: Vec<_> = found.iter().map(|f| (f.path.as_str(), f.level)).collect();
        assert_eq!(paths[0], ("/", 3));
        for expected in [("/shop", 4), ("/shop/web", 5), ("/db", 4)] {
            assert!(paths.contains(&expected), "{expected:?} in {paths:?}");
        }
        let at = |p| paths.iter().position(|(path, _)| *path == p);
        assert!(at("/shop") < at("/shop/web"));
    }

    #[test]
    fn what_comes_and_goes_is_reported() {
        let (mut world, _) = world(&[]);
        let id = world.make("web");
        assert_eq!(world.appeared(), CgroupFacts { id, path: "/web".into(), level: 4 });
        world.make("web/worker");
        assert_eq!(world.appeared().path, "/web/worker");
        world.remove("web/worker");
        world.remove("web");
        assert!(
            matches!(world.next(), CgroupEvent::Vanished { path, .. } if path == "/web/worker")
        );
        let last = world.next();
        assert_eq!(last, CgroupEvent::Vanished { id, path: "/web".into() });
    }

    #[test]
    fn a_tree_made_at_once_is_found_whole() {
        let (mut world, _) = world(&[]);
        fs::create_dir_all(world.folder.path().join("a/b/c/d")).expect("made");
        let paths: Vec<_> = (0..4).map(|_| world.appeared().path).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c", "/a/b/c/d"]);
    }

    #[test]
    fn a_name_that_is_used_again_is_another_cgroup() {
        let (mut world, _) = world(&[]);
        world.make("x");
        let first = world.appeared().id;
        // Another folder in between, so that the file system does not give the inode out again.
        fs::rename(world.folder.path().join("x"), world.folder.path().join("y")).expect("moved");
        let second = world.make("x");
        assert_ne!(first, second);
        let mut alive = BTreeMap::from([(first, "/x".to_owned())]);
        while alive.get(&first).map(String::as_str) != Some("/y") || !alive.contains_key(&second) {
            match world.next() {
                CgroupEvent::Appeared(f) => drop(alive.insert(f.id, f.path)),
                CgroupEvent::Vanished { id, path } => {
                    if alive.get(&id) == Some(&path) {
                        alive.remove(&id);
                    }
                }
            }
        }
        assert_eq!(alive[&second], "/x");
    }

    #[test]
    fn a_lost_notification_is_made_good_by_a_scan() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = CgroupRoot { path: folder.path().to_owned(), level: 0 };
        let mut tree = Tree::new(&root);
        tree.scan(&mut Vec::new());
        for name in ["stays", "goes"] {
            fs::create_dir(folder.path().join(name)).expect("made");
        }
        let mut found = Vec::new();
        tree.scan(&mut found);
        assert_eq!(found.len(), 2);
        fs::remove_dir(folder.path().join("goes")).expect("removed");
        found.clear();
        tree.scan(&mut found);
        let [CgroupEvent::Vanished { path, .. }] = &found[..] else { panic!("{found:?}") };
        assert_eq!(path, "/goes");
    }

    #[test]
    fn without_inotify_scans_take_its_place_and_the_reason_is_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = CgroupRoot { path: folder.path().to_owned(), level: 0 };
        let mut tree = Tree::new(&root);
        tree.inotify = Err(Errno::EMFILE);
        tree.scan(&mut Vec::new());
        let WatchMode::Scanned(why) = tree.mode() else { panic!("watched") };
        assert!(why.contains("max_user_instances"), "{why}");
        let (tx, mut reports) = channel(1);
        let stop = Stop::new().expect("a flag");
        let flag = stop.clone();
        let _thread = Thread::spawn("t", stop, move || tree.run(&flag, &tx)).expect("a thread");
        fs::create_dir(folder.path().join("late")).expect("made");
        let Some(Discovered::Cgroup(CgroupEvent::Appeared(facts))) = reports.blocking_recv() else {
            panic!("no report")
        };
        assert_eq!(facts.path, "/late");
    }

    #[test]
    fn ten_thousand_cgroups_come_and_go() {
        let (mut world, _) = world(&[]);
        for i in 0..100 {
            for j in 0..100 {
                fs::create_dir_all(world.folder.path().join(format!("{i}/{j}"))).expect("made");
            }
        }
        let mut alive = HashSet::new();
        while alive.len() < 10_100 {
            alive.insert(world.appeared().path);
        }
        for i in 0..100 {
            fs::remove_dir_all(world.folder.path().join(i.to_string())).expect("removed");
        }
        while !alive.is_empty() {
            let CgroupEvent::Vanished { path, .. } = world.next() else { panic!("appeared") };
            assert!(alive.remove(&path), "{path} vanished twice");
        }
    }
}
