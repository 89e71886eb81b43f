//! A child whose sockets a test leads step by step: what an attacker with code in a workload can do.
//!
//! The child knows nothing of the test. It does one step at a time, and says what the kernel
//! said; whether something arrived is for the receiver to say, an [`ear::Ear`] or a server.

mod act;
pub mod ear;
pub mod forge;
mod step;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;

pub(crate) use self::act::run;
use self::step::{Answer, Step};
pub use self::step::{Kind, Set};
use crate::process::{Place, Process};

/// How long a step may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection or an answer is waited for.
const ANSWER: Duration = Duration::from_millis(600);

/// A socket of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(u32);

/// What the kernel said to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Done: a number of bytes where the step has one.
    Done(u64),
    /// An error.
    Error(Errno),
}

impl Said {
    /// The number of a step that must work; an error otherwise.
    pub fn done(self) -> Result<u64> {
        match self {
            Self::Done(n) => Ok(n),
            Self::Error(errno) => bail!("{errno}"),
        }
    }

    /// Whether it was done.
    pub fn is_done(self) -> bool {
        matches!(self, Self::Done(_))
    }
}

/// A running actor; it ends when this is dropped.
#[derive(Debug)]
pub struct Actor {
    process: Process,
    sockets: u32,
}

impl Actor {
    /// Starts one, and waits until it listens to its test.
    pub fn start(place: &Place) -> Result<Self> {
        let mut process = place.tool(&["actor"])?;
        process.wait_for_output("ready", PATIENCE)?;
        Ok(Self { process, sockets: 0 })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Does one step. An error here is one of the actor, not the kernel's.
    fn act(&mut self, step: &Step) -> Result<Said> {
        self.process.say(&serde_json::to_string(step)?)?;
        let line = self.process.wait_for_output("{", PATIENCE)?;
        let answer: Answer =
            serde_json::from_str(&line).with_context(|| format!("the actor said: {line}"))?;
        Ok(match answer {
            Answer::Done { number } => Said::Done(number),
            Answer::Errno { errno } => Said::Error(Errno::from_raw(errno)),
            Answer::Failed { message } => bail!("{step:?}: {message}"),
        })
    }

    /// Does one step that must work.
    fn done(&mut self, step: &Step) -> Result<u64> {
        self.act(step)?.done().with_context(|| format!("{step:?}"))
    }

    fn next(&mut self) -> Handle {
        self.sockets += 1;
        Handle(self.sockets)
    }

    /// Makes a socket.
    pub fn socket(&mut self, kind: Kind) -> Result<Handle> {
        let socket = self.next();
        self.done(&Step::Socket { socket: socket.0, kind })?;
        Ok(socket)
    }

    /// Tries to make a socket.
    pub fn try_socket(&mut self, kind: Kind) -> Result<(Handle, Said)> {
        let socket = self.next();
        Ok((socket, self.act(&Step::Socket { socket: socket.0, kind })?))
    }

    /// Tries to make a socket through an `io_uring`, by its own thread or one of the kernel's.
    pub fn try_socket_by_ring(&mut self, kind: Kind, elsewhere: bool) -> Result<Said> {
        let socket = self.next().0;
        self.act(&Step::SocketByRing { socket, kind, elsewhere })
    }

    /// Sets an option, which must work.
    pub fn set(&mut self, socket: Handle, set: Set) -> Result<()> {
        self.done(&Step::Set { socket: socket.0, set }).map(drop)
    }

    /// Binds a socket, which must work.
    pub fn bind(&mut self, socket: Handle, to: SocketAddr) -> Result<()> {
        self.done(&Step::Bind { socket: socket.0, to }).map(drop)
    }

    /// A socket, bound.
    pub fn bound(&mut self, kind: Kind, to: SocketAddr) -> Result<Handle> {
        let socket = self.socket(kind)?;
        self.set(socket, Set::ReuseAddress)?;
        self.bind(socket, to)?;
        Ok(socket)
    }

    /// Connects; waits so long for a connection that is not denied at once.
    pub fn connect(&mut self, socket: Handle, to: SocketAddr) -> Result<Said> {
        self.act(&Step::Connect { socket: socket.0, to, millis: millis(ANSWER) })
    }

    /// Dissolves a connection (`AF_UNSPEC`).
    pub fn disconnect(&mut self, socket: Handle) -> Result<()> {
        self.done(&Step::Disconnect { socket: socket.0 }).map(drop)
    }

    /// Closes a socket.
    pub fn close(&mut self, socket: Handle) -> Result<()> {
        self.done(&Step::Close { socket: socket.0 }).map(drop)
    }

    /// Listens, which must work.
    pub fn listen(&mut self, socket: Handle) -> Result<()> {
        self.done(&Step::Listen { socket: socket.0 }).map(drop)
    }

    /// Takes a connection, which must come.
    pub fn accept(&mut self, socket: Handle) -> Result<Handle> {
        let child = self.next();
        self.done(&Step::Accept { socket: socket.0, child: child.0 })?;
        Ok(child)
    }

    /// Sends on a connected socket.
    pub fn send(&mut self, socket: Handle, bytes: &[u8]) -> Result<Said> {
        self.act(&Step::Send { socket: socket.0, to: None, bytes: bytes.to_vec(), flags: 0 })
    }

    /// Sends to an address.
    pub fn send_to(&mut self, socket: Handle, to: SocketAddr, bytes: &[u8]) -> Result<Said> {
        self.send_with(socket, to, bytes, 0)
    }

    /// Sends to an address with flags of `send(2)`.
    pub fn send_with(
        &mut self,
        socket: Handle,
        to: SocketAddr,
        bytes: &[u8],
        flags: i32,
    ) -> Result<Said> {
        self.act(&Step::Send { socket: socket.0, to: Some(to), bytes: bytes.to_vec(), flags })
    }

    /// Sends a datagram from another address of this host (`IP_PKTINFO`).
    pub fn send_from(
        &mut self,
        socket: Handle,
        from: std::net::IpAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) -> Result<Said> {
        self.act(&Step::SendFrom { socket: socket.0, from, to, bytes: bytes.to_vec() })
    }

    /// Sends through an `io_uring`.
    pub fn send_by_ring(&mut self, socket: Handle, bytes: &[u8]) -> Result<Said> {
        self.act(&Step::SendByRing { socket: socket.0, bytes: bytes.to_vec() })
    }

    /// Sends the content of a file or a pipe (`sendfile`, `splice`).
    pub fn send_file(&mut self, socket: Handle, bytes: &[u8], splice: bool) -> Result<Said> {
        self.act(&Step::SendFile { socket: socket.0, bytes: bytes.to_vec(), splice })
    }

    /// Sends an IP packet on an interface, from a packet socket.
    pub fn send_frame(
        &mut self,
        socket: Handle,
        interface: &str,
        to_mac: [u8; 6],
        bytes: &[u8],
    ) -> Result<Said> {
        let v6 = bytes.first().is_some_and(|first| first >> 4 == 6);
        let ethertype = if v6 { forge::ETH_P_IPV6 } else { forge::ETH_P_IP };
        self.send_frame_of(socket, interface, to_mac, ethertype, bytes)
    }

    /// Sends a frame on an interface, from a packet socket: what follows its Ethernet header.
    pub fn send_frame_of(
        &mut self,
        socket: Handle,
        interface: &str,
        to_mac: [u8; 6],
        ethertype: u16,
        bytes: &[u8],
    ) -> Result<Said> {
        let (interface, bytes) = (interface.to_owned(), bytes.to_vec());
        self.act(&Step::SendFrame { socket: socket.0, interface, to_mac, ethertype, bytes })
    }

    /// Waits for bytes; how many came.
    pub fn receive(&mut self, socket: Handle) -> Result<Said> {
        self.act(&Step::Receive { socket: socket.0, millis: millis(ANSWER) })
    }

    /// The port that a socket is bound to.
    pub fn port(&mut self, socket: Handle) -> Result<u16> {
        Ok(u16::try_from(self.done(&Step::Port { socket: socket.0 })?)?)
    }

    /// Gives a socket to another actor over a Unix socket at `path` (`SCM_RIGHTS`).
    pub fn hand(&mut self, socket: Handle, to: &mut Self, path: &Path) -> Result<Handle> {
        let (path, theirs) = (path.to_owned(), to.next());
        to.done(&Step::Await { path: path.clone() })?;
        self.done(&Step::Hand { socket: socket.0, path })?;
        to.done(&Step::Take { socket: theirs.0 })?;
        Ok(theirs)
    }

    /// Makes namespaces for itself.
    pub fn unshare(&mut self, user: bool, network: bool) -> Result<Said> {
        self.act(&Step::Unshare { user, network })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
