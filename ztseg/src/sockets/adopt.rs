//! Sockets that are older than the kernel programs.
//!
//! `sock_create` writes down whose a socket is when it is made. For one that was made before, that is
//! written down here: the kernel's socket tables say which cgroup it was made in, whoever holds it by
//! now, and a storage is written to by a descriptor, which is borrowed from a process that has one.
//! What the programs wrote is never touched.
//!
//! A host may have a hundred thousand sockets, so a thread of its own does that. It looks once before
//! the programs are attached, so that their first packet finds everybody known, and once after, for
//! those that were made in between.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ztseg_common::key::WorkloadKey;
use ztseg_common::state::{SOCKET_TCP, SocketState};

use super::diag::{self, Stranger};
use super::{holders, namespaces};
use crate::datapath::{Verdicts, sys};

/// How often it is looked again while some socket is not known.
const AGAIN: Duration = Duration::from_secs(60);

/// Whose a cgroup's sockets are.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// The stamp under which that is so.
    pub stamp: u64,
    /// The workload that each cgroup belongs to.
    pub owners: Arc<HashMap<u64, WorkloadKey>>,
}

/// What came of it so far, for `status`.
#[derive(Debug, Default)]
pub struct Facts {
    adopted: AtomicU64,
    unknown: AtomicU64,
    closed: AtomicU64,
}

impl Facts {
    /// How many sockets were written down.
    pub fn adopted(&self) -> u64 {
        self.adopted.load(Ordering::Relaxed)
    }

    /// How many that some process holds were not, at the last look: it may not be looked into, or
    /// is in no cgroup of the tree.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// Processes and namespaces of workloads that could not be looked into at the last look.
    pub fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }
}

/// The thread's handle; it ends when this is dropped.
#[derive(Debug)]
pub struct Adopter {
    wanted: SyncSender<Wish>,
    /// What came of it so far.
    pub facts: Arc<Facts>,
}

struct Wish {
    owners: Owners,
    done: SyncSender<()>,
}

impl Adopter {
    /// Starts the thread, which does nothing yet. `verdicts` is where the kernel programs keep what they
    /// know of sockets; workloads are below `cgroup_root`.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(verdicts: Verdicts, cgroup_root: PathBuf) -> io::Result<Self> {
        let facts = Arc::new(Facts::default());
        let (wanted, wishes) = sync_channel(1);
        let looks = Looks { verdicts, cgroup_root, facts: facts.clone() };
        let thread = std::thread::Builder::new().name("older-sockets".into());
        thread.spawn(move || looks.run(&wishes))?;
        Ok(Self { wanted, facts })
    }

    /// Asks for a look, and waits for its end, but not longer than `patience`. False: it goes on.
    pub fn adopt(&self, owners: Owners, patience: Duration) -> bool {
        let (tell, done) = sync_channel(1);
        // One wish that waits already is for the same sockets.
        if self.wanted.try_send(Wish { owners, done: tell }).is_err() {
            return false;
        }
        done.recv_timeout(patience) != Err(RecvTimeoutError::Timeout)
    }
}

/// The thread's side.
struct Looks {
    verdicts: Verdicts,
    cgroup_root: PathBuf,
    facts: Arc<Facts>,
}

impl Looks {
    fn run(&self, wishes: &Receiver<Wish>) {
        let mut owners = Owners::default();
        loop {
            let wish = if self.facts.unknown() == 0 {
                wishes.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                wishes.recv_timeout(AGAIN)
            };
            let wish = match wish {
                Ok(wish) => Some(wish),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Some(wish) = &wish {
                owners = wish.owners.clone();
            }
            self.look(&owners);
            if let Some(Wish { done, .. }) = wish {
                // Who waited may have gone on.
                let _ = done.try_send(());
            }
        }
    }

    /// Looks at the sockets of all namespaces once.
    fn look(&self, owners: &Owners) {
        let begin = Instant::now();
        let mut unknown = HashMap::new();
        let namespaces::Found { namespaces, mut closed } = namespaces::below(&self.cgroup_root);
        for namespace in &namespaces {
            match self.strangers(namespace) {
                Ok((netns, sockets)) => {
                    // What no process holds is the kernel's own, or not accepted yet.
                    let sockets = sockets
                        .into_iter()
                        .filter(|s| s.inode != 0 && owners.owners.contains_key(&s.cgroup));
                    unknown.extend(sockets.map(|socket| (socket.cookie, (netns, socket))));
                }
                Err(e) => {
                    tracing::debug!("the sockets of a network namespace cannot be listed: {e}");
                    closed += 1;
                }
            }
        }
        let (adopted, unreadable) = self.adopt_all(owners, &mut unknown);
        closed += unreadable;
        self.facts.closed.store(closed as u64, Ordering::Relaxed);
        self.facts.adopted.fetch_add(adopted, Ordering::Relaxed);
        self.facts.unknown.store(unknown.len() as u64, Ordering::Relaxed);
        tracing::debug!(
            "{adopted} sockets that are older than the programs were taken over in {} ms, {} were \
             not; {closed} processes and namespaces could not be looked into",
            begin.elapsed().as_millis(),
            unknown.len()
        );
    }

    /// The sockets of a namespace that the programs know nothing of, with the namespace's cookie.
    fn strangers(&self, namespace: &File) -> io::Result<(u64, Vec<Stranger>)> {
        namespaces::enter(namespace)?;
        let sockets = diag::strangers(&diag::open()?, self.verdicts.sockets.as_fd())?;
        Ok((sys::netns_cookie()?, sockets))
    }

    /// Writes down whose the sockets are and takes them out of `unknown`. Gives how many were written,
    /// and how many processes could not be looked into.
    fn adopt_all(
        &self,
        owners: &Owners,
        unknown: &mut HashMap<u64, (u64, Stranger)>,
    ) -> (u64, usize) {
        let inodes: HashSet<u64> = unknown.values().map(|(_, socket)| socket.inode).collect();
        if inodes.is_empty() {
            return (0, 0);
        }
        let mut adopted = 0;
        let closed = holders::each_socket(
            &self.cgroup_root,
            |inode| inodes.contains(&inode),
            |descriptor| {
                let cookie = sys::socket_cookie(descriptor).unwrap_or(0);
                if let Some((netns, socket)) = unknown.get(&cookie) {
                    match self.write(descriptor, &state(*netns, socket, owners)) {
                        Ok(is_new) => {
                            adopted += u64::from(is_new);
                            unknown.remove(&cookie);
                        }
                        Err(e) => tracing::debug!("a socket's state cannot be written: {e}"),
                    }
                }
                if unknown.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        (adopted, closed)
    }

    fn write(&self, socket: BorrowedFd<'_>, state: &SocketState) -> io::Result<bool> {
        sys::socket_storage_insert(self.verdicts.sockets.as_fd(), socket, state)
    }
}

/// What `sock_create` would have written, but that it saw the socket.
fn state(netns: u64, socket: &Stranger, owners: &Owners) -> SocketState {
    let workload = owners.owners.get(&socket.cgroup).copied();
    SocketState {
        cgroup: socket.cgroup,
        netns,
        uid: socket.uid,
        workload: workload.unwrap_or(0),
        workload_stamp: if workload.is_some() { owners.stamp } else { 0 },
        flags: if socket.is_tcp { SOCKET_TCP } else { 0 },
        ..SocketState::default()
    }
}
