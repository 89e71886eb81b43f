//! A client with one connection, which says something when it is told to.
//!
//! Each line on standard input is a number of milliseconds: send one message, and wait so long for
//! the answers to all messages so far. Each line on standard output is `ANSWERS/MESSAGES`.

use std::io::{ErrorKind, Read as _, Write as _, stdin, stdout};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ztseg_tests::process::{Place, Process};

/// What a message is; the server sends it back.
const MESSAGE: [u8; 8] = *b"message\n";
/// How long a child may take on a busy machine, beyond what it waits for.
const SLACK: Duration = Duration::from_secs(10);

/// A client with an open connection; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Talk {
    process: Process,
}

impl Talk {
    /// Connects from `place`.
    pub(crate) fn start(place: &Place, to: SocketAddr) -> Result<Self> {
        let own = std::env::current_exe().context("this program's file is unknown")?;
        let mut process = place.spawn(own, &[super::TALK, &to.to_string()])?;
        process.wait_for_output("connected", SLACK)?;
        Ok(Self { process })
    }

    /// Sends a message; gives how many of those so far are answered after at most `patience`.
    pub(crate) fn say(&mut self, patience: Duration) -> Result<String> {
        self.process.say(&patience.as_millis().to_string()).context("the client is gone")?;
        self.process.wait_for_output("/", patience + SLACK)
    }
}

/// The child's side.
pub(crate) fn run(to: &str) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    tell("connected")?;
    let (mut sent, mut received) = (0, 0);
    for line in stdin().lines() {
        let patience = Duration::from_millis(line?.parse()?);
        stream.write_all(&MESSAGE)?;
        sent += MESSAGE.len();
        received += receive(&mut stream, sent - received, patience)?;
        tell(&format!("{}/{}", received / MESSAGE.len(), sent / MESSAGE.len()))?;
    }
    Ok(())
}

/// Reads `wanted` bytes, or fewer when time is up.
fn receive(stream: &mut TcpStream, wanted: usize, patience: Duration) -> Result<usize> {
    let deadline = Instant::now() + patience;
    let mut buffer = vec![0; wanted];
    let mut received = 0;
    while received < wanted {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer[received..]) {
            Ok(0) => anyhow::bail!("the server closed the connection"),
            Ok(n) => received += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(received)
}

fn tell(what: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}
