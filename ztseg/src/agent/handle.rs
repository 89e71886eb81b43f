//! What the rest of the process sees of the agent: a channel of commands, and the event log.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::api::types::{Applied, ApplyRequest, Status, WorkloadInfo};
use crate::events::log::EventLog;
use crate::explain::{Asked, Question};
use crate::image::Image;
use crate::policy::resolved::Resolved;
use crate::policy::source::Source;

/// Something to do for the task that owns the state.
#[derive(Debug)]
pub enum Command {
    /// Put a policy in force.
    Apply {
        /// The files; without them, what is configured is read again.
        files: Option<Vec<Source>>,
        /// What came of it; errors are text for people.
        reply: oneshot::Sender<Result<Applied, String>>,
    },
    /// Tell the state.
    Status(oneshot::Sender<Box<Status>>),
    /// Understand a question about a flow.
    Understand {
        /// The question.
        question: Question,
        /// It, and the policy in force; errors are text for people.
        reply: oneshot::Sender<Result<Understood, String>>,
    },
    /// Tell the files of the policy in force.
    Policy(oneshot::Sender<ApplyRequest>),
    /// Tell the workloads.
    Workloads(oneshot::Sender<Vec<WorkloadInfo>>),
}

/// What a question about a flow is answered with.
#[derive(Clone, Debug)]
pub struct Understood {
    /// The question.
    pub asked: Asked,
    /// The policy in force.
    pub resolved: Arc<Resolved>,
    /// It, compiled.
    pub image: Arc<Image>,
}

/// How many commands may wait.
const QUEUE: usize = 64;

/// A way to talk to the agent; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    /// The last events, and those to come.
    pub events: Arc<EventLog>,
}

impl Handle {
    /// A handle, and the end of it that the agent reads.
    pub fn new(events: Arc<EventLog>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(QUEUE);
        (Self { commands, events }, receiver)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Puts a policy in force; `None` when the agent is stopping.
    pub async fn apply(&self, files: Option<Vec<Source>>) -> Option<Result<Applied, String>> {
        self.ask(|reply| Command::Apply { files, reply }).await
    }

    /// The state; `None` when the agent is stopping.
    pub async fn status(&self) -> Option<Box<Status>> {
        self.ask(Command::Status).await
    }

    /// A question about a flow, understood, and the policy in force; `None` when the agent is
    /// stopping.
    pub async fn understand(&self, question: Question) -> Option<Result<Understood, String>> {
        self.ask(|reply| Command::Understand { question, reply }).await
    }

    /// The files of the policy in force; `None` when the agent is stopping.
    pub async fn policy(&self) -> Option<ApplyRequest> {
        self.ask(Command::Policy).await
    }

    /// The workloads; `None` when the agent is stopping.
    pub async fn workloads(&self) -> Option<Vec<WorkloadInfo>> {
        self.ask(Command::Workloads).await
    }
}
