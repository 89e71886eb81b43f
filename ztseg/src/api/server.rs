//! The agent's side of the API.
//!
//! | request | answer | who |
//! |---|---|---|
//! | `GET /healthz` | `ok` | everyone who can connect |
//! | `GET /v1/status` | [`super::types::Status`] | readers |
//! | `GET /v1/workloads` | a list of [`super::types::WorkloadInfo`] | readers |
//! | `GET /v1/policy` | the files in force, [`ApplyRequest`] | readers |
//! | `GET /v1/metrics` | OpenMetrics text | readers |
//! | `GET /v1/events?last=N&follow=1` | [`super::types::EventLine`]s | readers |
//! | `POST /v1/explain`, [`crate::explain::Question`] | [`crate::explain::Explanation`] | readers |
//! | `POST /v1/apply` | [`super::types::Applied`] | root |

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Group;
use serde::Deserialize;
use tokio::net::UnixListener;

use super::access::{self, Access, Caller};
use super::types::{ApplyRequest, ErrorBody};
use crate::agent::handle::{Handle, Understood};
use crate::events::log::Follower;
use crate::explain::{self, Question};
use crate::policy::compile::for_questions;
use crate::policy::source::Source;
use crate::present::metrics;

/// The largest body of an apply, in bytes.
const BODY_LIMIT: usize = 64 << 20;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent has it.
    #[error(
        "another ztseg agent already listens at {0}: stop it first (`systemctl stop ztseg`), or \
         give this one its own --socket, --bpffs, --state-dir and --cgroup-root"
    )]
    SecondAgent(PathBuf),
    /// Something else is there.
    #[error("{0} is there and is no socket: remove it, or name another path with --socket")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error(
        "the socket {path} cannot be made: {source}; it needs a folder that this user may \
             write to and a path of at most 107 bytes (--socket)"
    )]
    Io {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A socket that belongs to this process until it is dropped.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    /// None once it is served.
    listener: Option<StdUnixListener>,
    _lock: Flock<fs::File>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Whoever comes next replaces it, too.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes the socket; one that a dead agent left behind is replaced. Whoever connects from
/// now on waits until it is served.
///
/// # Errors
/// When another agent listens there, or the kernel refuses.
pub fn bind(path: &Path) -> Result<Bound, BindError> {
    let io_error = |source| BindError::Io { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty() && !f.exists()) {
        fs::create_dir_all(folder).map_err(io_error)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(io_error)?;
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    // The lock decides between two agents that start at once; it ends with its process, however
    // that ends.
    let file = fs::File::create(&lock_path).map_err(io_error)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => BindError::SecondAgent(path.to_owned()),
        e => io_error(e.into()),
    })?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) if StdUnixStream::connect(path).is_ok() => {
            return Err(BindError::SecondAgent(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(io_error)?,
        Err(_) => {}
    }
    let listener = StdUnixListener::bind(path).map_err(io_error)?;
    listener.set_nonblocking(true).map_err(io_error)?;
    // Who may do what is decided by credentials; the mode only keeps the others out earlier.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(io_error)?;
    if let Ok(Some(group)) = Group::from_name(access::GROUP) {
        chown(path, None, Some(group.gid.as_raw())).map_err(io_error)?;
    }
    Ok(Bound { path: path.to_owned(), listener: Some(listener), _lock: lock })
}

/// Serves the API until dropped.
///
/// # Errors
/// When the socket fails.
pub async fn serve(mut bound: Bound, agent: Handle) -> io::Result<()> {
    let Some(listener) = bound.listener.take() else { return Ok(()) };
    let listener = UnixListener::from_std(listener)?;
    let service = router(agent).into_make_service_with_connect_info::<Credentials>();
    axum::serve(listener, service).await
}

/// The routes.
pub fn router(agent: Handle) -> Router {
    let read = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/workloads", get(workloads))
        .route("/v1/policy", get(policy))
        .route("/v1/metrics", get(measures))
        .route("/v1/events", get(events))
        .route("/v1/explain", post(explain))
        .layer(middleware::from_fn(|c, r, n| guard(Access::Read, c, r, n)));
    let change = Router::new()
        .route("/v1/apply", post(apply))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(|c, r, n| guard(Access::Change, c, r, n)));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .merge(read)
        .merge(change)
        .fallback(|| async { error(StatusCode::NOT_FOUND, "there is no such path in this API") })
        .with_state(agent)
}

/// The caller as the kernel reports it; none when it could not be asked.
#[derive(Clone, Copy, Debug)]
pub struct Credentials(pub Option<Caller>);

impl Connected<IncomingStream<'_, UnixListener>> for Credentials {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let caller = stream.io().peer_cred().ok();
        Self(caller.map(|c| Caller { uid: c.uid(), gid: c.gid() }))
    }
}

async fn guard(
    access: Access,
    ConnectInfo(Credentials(caller)): ConnectInfo<Credentials>,
    request: Request,
    next: Next,
) -> Response {
    let Some(caller) = caller else {
        return error(StatusCode::FORBIDDEN, "the kernel does not say who calls");
    };
    // The group database may live on the network, so it is not asked on this thread.
    let member = caller.uid != 0
        && access == Access::Read
        && tokio::task::spawn_blocking(move || access::is_member(caller)).await.unwrap_or(false);
    match access::decide(caller, access, || member) {
        Ok(()) => next.run(request).await,
        Err(text) => error(StatusCode::FORBIDDEN, text),
    }
}

fn error(status: StatusCode, text: impl Into<String>) -> Response {
    (status, Json(ErrorBody { error: text.into() })).into_response()
}

fn stopping() -> Response {
    error(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping")
}

async fn status(State(agent): State<Handle>) -> Response {
    agent.status().await.map_or_else(stopping, |s| Json(s).into_response())
}

async fn measures(State(agent): State<Handle>) -> Response {
    agent.status().await.map_or_else(stopping, |status| {
        let content_type = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
        (content_type, metrics::text(&status)).into_response()
    })
}

async fn workloads(State(agent): State<Handle>) -> Response {
    agent.workloads().await.map_or_else(stopping, |w| Json(w).into_response())
}

async fn policy(State(agent): State<Handle>) -> Response {
    agent.policy().await.map_or_else(stopping, |p| Json(p).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    #[serde(default)]
    follow: u8,
    last: Option<usize>,
}

async fn events(
    State(agent): State<Handle>,
    query: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(e) => return error(StatusCode::BAD_REQUEST, e.body_text()),
    };
    let follow = query.follow != 0;
    // Who follows wants what comes; who does not, what was.
    let last = query.last.unwrap_or(if follow { 0 } else { usize::MAX });
    let (past, follower) = agent.events.read(last);
    let mut first = Vec::new();
    for event in past {
        line(&mut first, &*event);
    }
    let body = if follow { Body::from_stream(stream(first, follower)) } else { Body::from(first) };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Appends one JSON line.
fn line(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    let before = out.len();
    // Nothing in these types can fail to serialise; a half line would break the stream.
    match serde_json::to_writer(&mut *out, value) {
        Ok(()) => out.push(b'\n'),
        Err(_) => out.truncate(before),
    }
}

/// The first lines at once, then each event as it comes; whatever is waiting goes out together.
fn stream(
    first: Vec<u8>,
    follower: Follower,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold((Some(first), follower), |(first, mut follower)| async move {
        let mut out = first.unwrap_or_default();
        if out.is_empty() {
            line(&mut out, &follower.next().await?);
        }
        Some((Ok(Bytes::from(out)), (None, follower)))
    })
}

async fn explain(State(agent): State<Handle>, body: Bytes) -> Response {
    let question = match serde_json::from_slice::<Question>(&body) {
        Ok(question) => question,
        Err(e) => return not_as_expected(&e),
    };
    let understood = match agent.understand(question).await {
        Some(Ok(understood)) => understood,
        Some(Err(text)) => return error(StatusCode::UNPROCESSABLE_ENTITY, text),
        None => return stopping(),
    };
    let answer = tokio::task::spawn_blocking(move || {
        let Understood { asked, resolved, image } = understood;
        let now = Timestamp::now();
        if let Some(explanation) = explain::explain(&resolved, &image, now, &asked) {
            return Ok(explanation);
        }
        // Of a workload that this host does not have.
        let image = for_questions(&resolved, asked.sets()).map_err(|e| e.to_string())?;
        explain::explain(&resolved, &image, now, &asked)
            .ok_or_else(|| "the policy has no classes for these workloads".to_owned())
    });
    match answer.await {
        Ok(Ok(explanation)) => Json(explanation).into_response(),
        Ok(Err(text)) => error(StatusCode::UNPROCESSABLE_ENTITY, text),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("no answer: {e}")),
    }
}

fn not_as_expected(e: &serde_json::Error) -> Response {
    error(StatusCode::BAD_REQUEST, format!("the body is not as expected: {e}"))
}

async fn apply(State(agent): State<Handle>, body: Bytes) -> Response {
    let files = if body.is_empty() {
        None
    } else {
        match serde_json::from_slice::<ApplyRequest>(&body) {
            Ok(request) => Some(request.files),
            Err(e) => return not_as_expected(&e),
        }
    };
    let sources = files.map(|files| {
        files.into_iter().map(|f| Source { name: f.name.into(), text: f.text.into() }).collect()
    });
    match agent.apply(sources).await {
        Some(Ok(applied)) => Json(applied).into_response(),
        Some(Err(text)) => error(StatusCode::UNPROCESSABLE_ENTITY, text),
        None => stopping(),
    }
}
