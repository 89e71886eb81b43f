//! The sockets of this host, as the kernel's tables have them: [`adopt`] writes down whose those are
//! that are older than the kernel programs; the rest tells local applications at once that they are
//! denied.
//!
//! A cgroup hook can only drop: a `connect` waits for its timeout, and a connection that stands
//! hangs. Where the policy asks for an answer (`reject`), the sockets of such flows are destroyed,
//! so that whoever waits on one gets ECONNABORTED. That is done by a thread of its own, in every
//! network namespace that workloads live in: a host may have a hundred thousand sockets, and the task
//! that owns the agent's state must not wait for them.
//!
//! One look is for everybody, so that nobody waits longer because somebody else is denied often; and
//! the thread rests for nine times as long as a look took, so that it never takes more than a tenth
//! of a processor.

pub mod adopt;
mod diag;
mod holders;
mod judge;
mod namespaces;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::sync::{mpsc, oneshot};

pub use self::judge::{View, tells};
use crate::datapath::Verdicts;

/// How long equal denials are folded into one event (a "second" of the kernel programs is 2^30 ns):
/// after an event it is looked again and again for so long.
const FOLDED: Duration = Duration::from_millis(1100);
/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// A look takes at most one part in so many of the time.
const SHARE: u32 = 10;
/// How often a namespace is looked at again at once because the policy changed meanwhile.
const TRIES: usize = 3;

/// Why the sockets are to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The policy or a workload changed.
    Changed,
    /// Somebody is denied; others may be, whose events are folded.
    Denied,
}

/// What the agent answers with a [`View`]; nothing where no denial is to be told.
pub type ViewRequest = oneshot::Sender<Option<View>>;

/// What came of it so far, for `status`.
#[derive(Debug, Default)]
pub struct Facts {
    destroyed: AtomicU64,
    unsupported: AtomicBool,
    closed: AtomicU64,
}

impl Facts {
    /// How many sockets were destroyed.
    pub fn destroyed(&self) -> u64 {
        self.destroyed.load(Ordering::Relaxed)
    }

    /// This kernel destroys no sockets (`CONFIG_INET_DIAG_DESTROY`), or this process may not.
    pub fn is_unsupported(&self) -> bool {
        self.unsupported.load(Ordering::Relaxed)
    }

    /// Processes and namespaces of workloads that could not be looked into at the last look.
    pub fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }
}

/// The thread's handle; it ends when this is dropped.
#[derive(Debug)]
pub struct Teller {
    wanted: SyncSender<Why>,
    /// What came of it so far.
    pub facts: Arc<Facts>,
}

impl Teller {
    /// Starts the thread. `verdicts` is where the kernel programs keep theirs; workloads are below
    /// `cgroup_root`.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(
        verdicts: Verdicts,
        cgroup_root: PathBuf,
        views: mpsc::Sender<ViewRequest>,
    ) -> io::Result<Self> {
        let facts = Arc::new(Facts::default());
        let supported = diag::open().is_ok_and(|diag| diag::can_destroy(&diag));
        facts.unsupported.store(!supported, Ordering::Relaxed);
        let (wanted, wishes) = sync_channel(1);
        let looks = Looks { verdicts, cgroup_root, views, facts: facts.clone() };
        let thread = std::thread::Builder::new().name("sockets".into());
        thread.spawn(move || {
            if let Err(e) = looks.run(&wishes) {
                tracing::error!("denied sockets are no longer told: {e}");
            }
        })?;
        Ok(Self { wanted, facts })
    }

    /// Asks for a look at the sockets.
    pub fn want(&self, why: Why) {
        // One wish that waits is enough for all; a denial goes on, and says so again.
        let _ = self.wanted.try_send(why);
    }
}

/// The thread's side.
struct Looks {
    verdicts: Verdicts,
    cgroup_root: PathBuf,
    views: mpsc::Sender<ViewRequest>,
    facts: Arc<Facts>,
}

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Done,
    /// The policy changed meanwhile, too often.
    Again,
    /// No denial is to be told, or the agent is stopping.
    Over,
}

impl Looks {
    fn run(&self, wishes: &Receiver<Why>) -> io::Result<()> {
        let home = namespaces::own()?;
        while let Ok(why) = wishes.recv() {
            let mut end = until(why);
            loop {
                let begin = Instant::now();
                let look = self.look();
                namespaces::enter(&home)?;
                std::thread::sleep((begin.elapsed() * (SHARE - 1)).max(PAUSE));
                let later = wishes.try_iter().map(until).max();
                end = end.max(later.unwrap_or(end));
                let done = match look {
                    Look::Over => true,
                    Look::Done => Instant::now() > end,
                    Look::Again => false,
                };
                if done && later.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Looks at all sockets of all namespaces once.
    fn look(&self) -> Look {
        let namespaces::Found { namespaces, closed } = namespaces::below(&self.cgroup_root);
        let (mut closed, mut again) = (closed as u64, false);
        for namespace in &namespaces {
            match self.look_into(namespace) {
                Ok(Look::Over) => return Look::Over,
                Ok(Look::Again) => again = true,
                Ok(Look::Done) => {}
                Err(e) => {
                    tracing::debug!("the sockets of a network namespace cannot be looked at: {e}");
                    closed += 1;
                }
            }
        }
        self.facts.closed.store(closed, Ordering::Relaxed);
        if again { Look::Again } else { Look::Done }
    }

    fn look_into(&self, namespace: &File) -> io::Result<Look> {
        namespaces::enter(namespace)?;
        let diag = diag::open()?;
        for _ in 0..TRIES {
            let Some(view) = self.view() else { return Ok(Look::Over) };
            let sockets = diag::tcp_sockets(&diag, self.verdicts.sockets.as_fd())?;
            let doomed = judge::rejected(&view, &sockets);
            if self.destroy(&diag, &view, doomed.into_iter().map(|index| &sockets[index]))? {
                return Ok(Look::Done);
            }
        }
        Ok(Look::Again)
    }

    /// False: another policy is in force by now, under which they may be allowed.
    fn destroy<'a>(
        &self,
        diag: &OwnedFd,
        view: &View,
        doomed: impl Iterator<Item = &'a diag::TcpSocket>,
    ) -> io::Result<bool> {
        for socket in doomed {
            if self.verdicts.stamp()? != view.stamp {
                return Ok(false);
            }
            match diag::destroy(diag, socket) {
                Ok(true) => drop(self.facts.destroyed.fetch_add(1, Ordering::Relaxed)),
                Ok(false) => {}
                Err(e) => {
                    let errno = e.raw_os_error().map(Errno::from_raw);
                    if matches!(errno, Some(Errno::EOPNOTSUPP | Errno::EPERM)) {
                        self.facts.unsupported.store(true, Ordering::Relaxed);
                    }
                    return Err(e);
                }
            }
        }
        Ok(true)
    }

    fn view(&self) -> Option<View> {
        let (reply, answer) = oneshot::channel();
        self.views.blocking_send(reply).ok()?;
        answer.blocking_recv().ok()?
    }
}

/// Until when it is looked again.
fn until(why: Why) -> Instant {
    Instant::now() + if why == Why::Denied { FOLDED } else { Duration::ZERO }
}
