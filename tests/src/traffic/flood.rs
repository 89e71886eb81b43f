//! Many UDP flows at once, each message with a number, so that one that is lost is known by name.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

use super::last_line;
use super::tool::{say, wait_for_the_end};
use crate::process::{Place, Process};

/// How long the last answers may take.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// How often messages are sent, a few at a time.
const TICK: Duration = Duration::from_millis(2);
/// How many ticks' messages are sent at once by a sender that was held up: a queue that a burst of it
/// fills says nothing about the network.
const BURST: u64 = 16;
/// How many lost messages are named.
const NAMED: usize = 50;

/// What to send.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flood {
    /// Where to.
    pub to: SocketAddr,
    /// How many flows; every other one has a connected socket, the others name the receiver with
    /// each message.
    pub flows: u32,
    /// Messages a second of each flow.
    pub rate: u32,
}

/// A message without an answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Lost {
    /// The flow's number.
    pub flow: u32,
    /// The message's number in its flow.
    pub number: u64,
    /// When it was sent, in milliseconds since the flood began.
    pub millis: u64,
}

/// What became of a flood.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flooded {
    /// Messages that were to be sent.
    pub sent: u64,
    /// Those that the sender's own kernel refused: by a policy, or for a port that nobody has.
    pub refused: u64,
    /// How often a full queue of the sender made it wait; nothing was sent then.
    pub waited: u64,
    /// Those that came back, each counted once.
    pub received: u64,
    /// Some of the others.
    pub lost: Vec<Lost>,
}

/// A running flood; it ends when this is dropped.
#[derive(Debug)]
pub struct Flooding {
    process: Process,
    /// When it began.
    pub begun: Instant,
}

impl Flood {
    /// Starts it, and waits until it has begun.
    pub fn start(&self, place: &Place) -> Result<Flooding> {
        let mut process = place.tool(&["flood", &serde_json::to_string(self)?])?;
        process.wait_for_output("sending", Duration::from_secs(20))?;
        Ok(Flooding { process, begun: Instant::now() })
    }
}

impl Flooding {
    /// Ends it; the last answers are waited for.
    pub fn finish(mut self) -> Result<Flooded> {
        self.process.end_input();
        last_line(self.process)
    }
}

/// A flow as its receiver sees it: which numbers came back.
#[derive(Default)]
struct Seen(Vec<u64>);

impl Seen {
    /// Whether it is new.
    fn add(&mut self, number: u64) -> bool {
        let (word, bit) = (usize::try_from(number / 64).unwrap_or(usize::MAX), number % 64);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & 1 << bit == 0;
        self.0[word] |= 1 << bit;
        new
    }

    fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        self.0.get(word).is_some_and(|word| word & 1 << (number % 64) != 0)
    }
}

/// The child's side.
pub(super) fn run(flood: &Flood) -> Result<()> {
    let (ended, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let sockets = (0..flood.flows).map(|_| socket(flood.to)).collect::<Result<Vec<_>>>()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (number, socket) in sockets.iter().enumerate() {
        epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
    }
    say(&"sending")?;
    let done = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&sockets, &epoll, &stop));
        let sender = scope.spawn(|| send(flood, &sockets, &ended));
        wait_for_the_end();
        ended.store(true, Ordering::Relaxed);
        let sent = sender.join();
        thread::sleep(STRAGGLERS);
        stop.store(true, Ordering::Relaxed);
        sent.ok().zip(receiver.join().ok())
    });
    let ((rounds, [refused, waited]), (seen, received)) = done.context("a thread panicked")?;
    let mut lost = Vec::new();
    for number in 0..rounds {
        let millis = number * 1000 / u64::from(flood.rate.max(1));
        let missing = seen.iter().zip(0u32..).filter(|(seen, _)| !seen.has(number));
        lost.extend(missing.map(|(_, flow)| Lost { flow, number, millis }));
        if lost.len() >= NAMED {
            lost.truncate(NAMED);
            break;
        }
    }
    say(&Flooded { sent: rounds * u64::from(flood.flows), refused, waited, received, lost })
}

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let local: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(local)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends one message of each flow in a round, spread over the round's time. Gives the number of whole
/// rounds, how many messages were refused, and how often it had to wait.
fn send(flood: &Flood, sockets: &[UdpSocket], ended: &AtomicBool) -> (u64, [u64; 2]) {
    let (flows, rate) = (u64::from(flood.flows), u64::from(flood.rate));
    let mut connected: Vec<bool> = vec![false; sockets.len()];
    let (begun, mut next, [mut refused, mut waited]) = (Instant::now(), 0u64, [0; 2]);
    let a_tick = (flows * rate * u64::try_from(TICK.as_millis()).unwrap_or(1) / 1000).max(1);
    loop {
        let due = u64::try_from(begun.elapsed().as_millis()).unwrap_or(0) * flows * rate / 1000;
        let due = due.min(next + a_tick * BURST);
        while next < due {
            let (number, flow) = (next / flows, usize::try_from(next % flows).unwrap_or(0));
            if flow == 0 && ended.load(Ordering::Relaxed) {
                return (number, [refused, waited]);
            }
            let socket = &sockets[flow];
            // A connection that is refused is tried again with each message.
            if flow % 2 == 0 && !connected[flow] {
                connected[flow] = socket.connect(flood.to).is_ok();
            }
            let message = number.to_be_bytes();
            let sent = match (flow % 2 == 0, connected[flow]) {
                (true, true) => socket.send(&message),
                (true, false) => Err(io::ErrorKind::PermissionDenied.into()),
                (false, _) => socket.send_to(&message, flood.to),
            };
            if sent.as_ref().is_err_and(is_full) {
                waited += 1;
                break;
            }
            refused += u64::from(sent.is_err());
            next += 1;
        }
        thread::sleep(TICK);
    }
}

/// Whether a message was not sent because the sender's own queue was full.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn receive(sockets: &[UdpSocket], epoll: &Epoll, stop: &AtomicBool) -> (Vec<Seen>, u64) {
    let mut seen: Vec<Seen> = sockets.iter().map(|_| Seen::default()).collect();
    let (mut received, mut events) = (0, [EpollEvent::empty(); 64]);
    while !stop.load(Ordering::Relaxed) {
        let ready = epoll.wait(&mut events, EpollTimeout::from(100u8)).unwrap_or(0);
        for event in &events[..ready] {
            let flow = usize::try_from(event.data()).unwrap_or(0);
            let mut message = [0; 8];
            // What is not eight bytes is an ICMP error, or nothing any more.
            while let Ok(8) = sockets[flow].recv(&mut message) {
                received += u64::from(seen[flow].add(u64::from_be_bytes(message)));
            }
        }
    }
    (seen, received)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_once() {
        let mut seen = Seen::default();
        assert!(seen.add(70) && !seen.add(70) && seen.add(0));
        assert!(seen.has(0) && seen.has(70));
        assert!(!seen.has(1) && !seen.has(69) && !seen.has(1000));
    }
}
