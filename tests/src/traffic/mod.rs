//! Clients and servers. What is said here runs in a child, in its own cgroup and namespace.

mod client;
mod flood;
mod hoard;
mod icmp;
mod newborn;
mod sctp;
mod server;
mod stream;
pub(crate) mod tool;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub use self::flood::{Flood, Flooded, Flooding, Lost};
pub use self::hoard::Hoard;
pub use self::newborn::{Newborn, newborn};
pub use self::server::{Listen, Server};
pub use self::stream::{Counts, Late, Stream, StreamKind};
use crate::process::{Place, Process};

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_millis(600);
/// How long a child may take on a busy machine, beyond what it waits for.
const SLACK: Duration = Duration::from_secs(30);

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// An answer.
    Ok,
    /// Nobody listens (a reset, or an ICMP error).
    Refused,
    /// No answer in time.
    Timeout,
    /// The system call was not permitted.
    Eperm,
    /// The connection was reset after it stood.
    Reset,
    /// Something else; the detail says what.
    Other,
}

/// A client's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What it saw.
    pub outcome: Outcome,
    /// The error in words.
    pub detail: Option<String>,
    /// Milliseconds until then.
    pub millis: u64,
    /// The client's process id.
    pub pid: u32,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// Connects, sends some bytes and waits for them to come back.
    Tcp,
    /// Sends a datagram and waits for it to come back.
    Udp,
    /// The same with a connected socket.
    UdpConnected,
    /// Asks for an SCTP association, and leaves it at the first answer.
    Sctp,
    /// An ICMP or `ICMPv6` echo request.
    Ping,
}

/// A client that asks once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    ask: Ask,
    to: SocketAddr,
    from: Option<SocketAddr>,
    bytes: usize,
    patience_ms: u64,
}

impl Probe {
    /// Asks `to`; the port means nothing to a ping.
    pub fn new(ask: Ask, to: SocketAddr) -> Self {
        let patience_ms = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
        Self { ask, to, from: None, bytes: 64, patience_ms }
    }

    /// An echo request.
    pub fn ping(to: IpAddr) -> Self {
        Self::new(Ask::Ping, (to, 0).into())
    }

    /// From this address, and this port if it is not zero.
    #[must_use]
    pub fn from(mut self, from: impl Into<SocketAddr>) -> Self {
        self.from = Some(from.into());
        self
    }

    /// To another port.
    #[must_use]
    pub fn to_port(mut self, port: u16) -> Self {
        self.to.set_port(port);
        self
    }

    /// Sends so many bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// Waits so long.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Asks from `place`.
    pub fn run(&self, place: &Place) -> Result<Report> {
        let arguments = serde_json::to_string(self)?;
        let process = place.tool(&["probe", &arguments])?;
        let out = process.output(Duration::from_millis(self.patience_ms) + SLACK)?;
        serde_json::from_str(&out).with_context(|| format!("the client said: {out}"))
    }
}

/// Waits for the JSON line that ends a child.
fn last_line<T: for<'a> Deserialize<'a>>(process: Process) -> Result<T> {
    let out = process.output(SLACK)?;
    let line = out.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("the child said: {out}"))
}
