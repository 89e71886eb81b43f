//! Traffic that goes on until it is told to stop, and counts what it lost.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::tool::{say, wait_for_the_end};
use super::{Ask, Outcome, Probe, client, last_line};
use crate::process::{Place, Process};
use crate::world::patient;

/// How long the last answers may take.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// How many late messages are named.
const LATE: usize = 100;

/// What kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StreamKind {
    /// Messages on one connection.
    Tcp,
    /// Datagrams from one connected socket.
    Udp,
    /// Datagrams, each to an address that is given with it, from one socket.
    UdpUnconnected,
    /// A new connection for each message.
    TcpConnects,
    /// A new socket for each datagram.
    UdpEach,
}

/// A message of its own socket that has no answer, or one that came late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// When it was sent, in milliseconds since 1970.
    pub at: u64,
    /// How long its answer took, or was waited for.
    pub millis: u64,
    /// Whether it came.
    pub answered: bool,
}

/// How long the answer to a message with a socket of its own may take. A SYN that was lost is sent again
/// after a second (RFC 6298 section 2) and shows; a busy machine does not.
const PATIENCE: Duration = Duration::from_millis(900);

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages that the client tried to send.
    pub sent: u64,
    /// Messages that came back.
    pub received: u64,
    /// Messages whose sending failed.
    pub errors: u64,
    /// Of messages with a socket each, the first that had no answer or a late one, after
    /// [`PATIENCE`].
    pub late: Vec<Late>,
}

/// A running client; it ends when this is dropped.
#[derive(Debug)]
pub struct Stream {
    process: Process,
}

impl Stream {
    /// Starts a client that sends a message every `interval` (and waits for each answer, where it
    /// makes a connection for each), and waits until it has begun.
    pub fn start(
        place: &Place,
        kind: StreamKind,
        to: SocketAddr,
        interval: Duration,
    ) -> Result<Self> {
        Self::start_patient(place, kind, to, interval, PATIENCE)
    }

    /// As [`Stream::start`]; where there is a socket for each message, the answer is waited for so long.
    pub fn start_patient(
        place: &Place,
        kind: StreamKind,
        to: SocketAddr,
        interval: Duration,
        patience: Duration,
    ) -> Result<Self> {
        let kind = serde_json::to_string(&kind)?;
        let [interval, patience] = [interval, patience].map(|time| time.as_micros().to_string());
        let mut process = place.tool(&["stream", &kind, &to.to_string(), &interval, &patience])?;
        process.wait_for_output("sending", Duration::from_secs(20))?;
        Ok(Self { process })
    }

    /// Ends it; the last answers are waited for.
    pub fn finish(mut self) -> Result<Counts> {
        self.process.end_input();
        last_line(self.process)
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    errors: AtomicU64,
    late: Mutex<Vec<Late>>,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn sent(&self, ok: bool) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if !ok {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The child's side.
pub(super) fn run(
    kind: StreamKind,
    to: SocketAddr,
    interval_us: u64,
    patience_us: u64,
) -> Result<()> {
    let patience = Duration::from_micros(patience_us);
    let interval = Duration::from_micros(interval_us);
    let shared = Arc::new(Shared::default());
    let stopped = Arc::clone(&shared);
    thread::spawn(move || {
        wait_for_the_end();
        stopped.stop.store(true, Ordering::Relaxed);
    });
    match kind {
        StreamKind::Tcp => tcp(&shared, to, interval),
        StreamKind::Udp => udp(&shared, to, interval, true),
        StreamKind::UdpUnconnected => udp(&shared, to, interval, false),
        StreamKind::TcpConnects => each(&shared, Ask::Tcp, to, interval, patience),
        StreamKind::UdpEach => each(&shared, Ask::Udp, to, interval, patience),
    }?;
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    say(&Counts {
        sent: count(&shared.sent),
        received: count(&shared.received),
        errors: count(&shared.errors),
        late: shared.late.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    })
}

fn tcp(shared: &Shared, to: SocketAddr, interval: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
        .with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    // A connection that stands still fills the buffers.
    stream.set_write_timeout(Some(patient(Duration::from_secs(1))))?;
    let mut reader = stream.try_clone()?;
    // The pauses between TCP's attempts double while nothing passes.
    reader.set_read_timeout(Some(patient(Duration::from_secs(5))))?;
    say(&"sending")?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut message = [0; 8];
            while reader.read_exact(&mut message).is_ok() {
                // In order and whole: TCP gives nothing else, so a gap is a broken connection.
                if shared.received.fetch_add(1, Ordering::Relaxed) != u64::from_be_bytes(message) {
                    break;
                }
            }
        });
        let mut number = 0u64;
        while shared.goes_on() {
            let ok = stream.write_all(&number.to_be_bytes()).is_ok();
            shared.sent(ok);
            if !ok {
                break;
            }
            number += 1;
            thread::sleep(interval);
        }
        let _ = stream.shutdown(Shutdown::Write);
    });
    Ok(())
}

fn udp(shared: &Shared, to: SocketAddr, interval: Duration, connected: bool) -> Result<()> {
    let local: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(local)?;
    // A refused connection is tried again with each message.
    let mut connected_to = connected.then(|| socket.connect(to).is_ok());
    socket.set_read_timeout(Some(STRAGGLERS))?;
    say(&"sending")?;
    let sending = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut message = [0; 64];
            // Ends with the first second of silence after the last message.
            loop {
                match socket.recv(&mut message) {
                    Ok(8) => drop(shared.received.fetch_add(1, Ordering::Relaxed)),
                    _ if sending.load(Ordering::Relaxed) => {}
                    _ => break,
                }
            }
        });
        let mut number = 0u64;
        while shared.goes_on() {
            let message = number.to_be_bytes();
            let sent = match &mut connected_to {
                None => socket.send_to(&message, to).is_ok(),
                Some(connected) => {
                    *connected = *connected || socket.connect(to).is_ok();
                    *connected && socket.send(&message).is_ok()
                }
            };
            shared.sent(sent);
            number += 1;
            thread::sleep(interval);
        }
        sending.store(false, Ordering::Relaxed);
    });
    Ok(())
}

fn each(
    shared: &Shared,
    ask: Ask,
    to: SocketAddr,
    interval: Duration,
    patience: Duration,
) -> Result<()> {
    let probe = Probe::new(ask, to).bytes(8).patience(patience);
    say(&"sending")?;
    while shared.goes_on() {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let report = client::probe(&probe);
        let answered = report.outcome == Outcome::Ok;
        if !answered || Duration::from_millis(report.millis) > PATIENCE {
            let mut late = shared.late.lock().unwrap_or_else(PoisonError::into_inner);
            if late.len() < LATE {
                let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
                late.push(Late { at, millis: report.millis, answered });
            }
        }
        shared.sent(!matches!(report.outcome, Outcome::Eperm));
        if answered {
            shared.received.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(interval);
    }
    Ok(())
}
