//! The last events, and the readers that follow them.
//!
//! A reader that is too slow loses the oldest events of its queue; they are counted and it is
//! told. It never holds up the agent or another reader.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::api::types::EventLine;

/// How many events are kept for `events --last`.
pub const KEPT: usize = 1000;
/// How many events a reader may lag behind before it loses the oldest.
pub const QUEUE: usize = 4096;

#[derive(Debug)]
struct Inner {
    last: VecDeque<Arc<EventLine>>,
    readers: broadcast::Sender<Arc<EventLine>>,
}

/// The log; cheap to share.
#[derive(Debug)]
pub struct EventLog {
    inner: Mutex<Inner>,
    lost: Arc<AtomicU64>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self::with_queue(QUEUE)
    }
}

impl EventLog {
    /// A log whose readers have queues of this many events, at least one.
    pub fn with_queue(queue: usize) -> Self {
        let readers = broadcast::Sender::new(queue.max(1));
        let inner = Inner { last: VecDeque::new(), readers };
        Self { inner: Mutex::new(inner), lost: Arc::default() }
    }

    /// Adds an event.
    pub fn publish(&self, event: impl Into<EventLine>) {
        let event = Arc::new(event.into());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.last.len() == KEPT {
            inner.last.pop_front();
        }
        inner.last.push_back(event.clone());
        // An error only says that nobody follows.
        let _ = inner.readers.send(event);
    }

    /// The last events, at most `last`, and what follows them without a gap.
    pub fn read(&self, last: usize) -> (Vec<Arc<EventLine>>, Follower) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = inner.last.len().saturating_sub(last);
        let events = inner.last.iter().skip(skip).cloned().collect();
        (events, Follower { lost: self.lost.clone(), queue: inner.readers.subscribe() })
    }

    /// How many events slow readers lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// How many readers follow.
    pub fn followers(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).readers.receiver_count()
    }
}

/// One reader.
#[derive(Debug)]
pub struct Follower {
    lost: Arc<AtomicU64>,
    queue: broadcast::Receiver<Arc<EventLine>>,
}

impl Follower {
    /// The next event, or how many were lost before it; nothing when the agent ends.
    pub async fn next(&mut self) -> Option<EventLine> {
        match self.queue.recv().await {
            Ok(event) => Some(Arc::unwrap_or_clone(event)),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                self.lost.fetch_add(lost, Ordering::Relaxed);
                Some(EventLine::Lost { lost })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
