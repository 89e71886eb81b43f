//! The command line's side of the API.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::{Applied, ApplyRequest, ErrorBody};

/// Why a request has no answer. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no ztseg agent listens at {path} ({source}): start one with `systemctl start ztseg` or \
         `ztseg run`, or name its socket with --socket or $ZTSEG_SOCKET"
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not let this user connect.
    #[error(
        "no permission to talk to the ztseg agent at {0}: run this as root, or for reading \
             join the group `ztseg`"
    )]
    NoPermission(PathBuf),
    /// The agent does not let this user do that.
    #[error("{0}")]
    Forbidden(String),
    /// The agent refused the request; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The connection broke, or the answer makes no sense.
    #[error(
        "the agent at {path} broke the connection off ({reason}): it may be stopping; see \
         `systemctl status ztseg`"
    )]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What was seen.
        reason: String,
    },
}

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the agent at a socket; connects with each request.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Fetches something.
    ///
    /// # Errors
    /// When there is no agent, no permission, or no sensible answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = Request::get(path).header("host", "ztseg").body(Full::default());
        self.whole(self.send(request).await?).await
    }

    /// Asks something that takes more than a path.
    ///
    /// # Errors
    /// As [`Self::get`]; [`ClientError::Refused`] when the question makes no sense.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(question).map_err(|e| self.broken(&e))?;
        let request = Request::post(path)
            .header("host", "ztseg")
            .header("content-type", "application/json")
            .body(body.into());
        self.whole(self.send(request).await?).await
    }

    /// Puts a policy in force: `files`, or what is configured, read again.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the rendered diagnostics when the policy is not accepted.
    pub async fn apply(&self, files: Option<&ApplyRequest>) -> Result<Applied, ClientError> {
        let body = files.map(serde_json::to_vec).transpose().map_err(|e| self.broken(&e))?;
        let request = Request::post("/v1/apply").header("host", "ztseg");
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.into()),
            None => request.body(Full::default()),
        };
        self.whole(self.send(request).await?).await
    }

    /// Reads JSON lines until the agent or `each` ends it.
    ///
    /// # Errors
    /// As [`Self::get`]; a connection that breaks is an error, the agent's end of it is not.
    pub async fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let request = Request::get(path).header("host", "ztseg").body(Full::default());
        let mut body = self.accepted(self.send(request).await?).await?.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| self.broken(&e))?.into_data() else { continue };
            pending.extend_from_slice(&data);
            let mut rest = &pending[..];
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                if each(&rest[..end]).is_break() {
                    return Ok(());
                }
                rest = &rest[end + 1..];
            }
            pending = rest.to_vec();
        }
        Ok(())
    }

    async fn send(
        &self,
        request: hyper::http::Result<Request<Full<Bytes>>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = request.map_err(|e| self.broken(&e))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let path = self.socket.clone();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NoPermission(path),
                _ => ClientError::NoAgent { path, source },
            }
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(&e))?;
        // Its error comes out at the request, too.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|e| self.broken(&e))
    }

    /// The response, when it is a success.
    async fn accepted(
        &self,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(|e| self.broken(&e))?.to_bytes();
        let message = serde_json::from_slice::<ErrorBody>(&body).map_or_else(
            |_| format!("{status}: {}", String::from_utf8_lossy(&body)),
            |body| body.error,
        );
        Err(match status {
            StatusCode::FORBIDDEN => ClientError::Forbidden(message),
            _ => ClientError::Refused(message),
        })
    }

    async fn whole<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let body = self.accepted(response).await?.into_body();
        let body = body.collect().await.map_err(|e| self.broken(&e))?.to_bytes();
        serde_json::from_slice(&body).map_err(|e| self.broken(&e))
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Broken { path: self.socket.clone(), reason: reason.to_string() }
    }
}
