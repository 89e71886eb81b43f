//! What arrives on the interfaces of a namespace, whoever it is for.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _, stdin};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::forge::MARK;
use crate::process::{Place, Process};
use crate::traffic::tool::say;
use crate::world::patient;

/// Protocol number (IANA).
const TCP: u8 = 6;
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a packet may take that is on its way.
const ARRIVAL: Duration = Duration::from_secs(3);
/// After which a packet that has not come will not come.
const SILENCE: Duration = Duration::from_millis(150);
/// `ETH_P_ALL` (`include/uapi/linux/if_ether.h`)
const ETH_P_ALL: u16 = 3;

/// How many packets came, by `PROTOCOL/PORT` (`6/2000`); those that open a TCP
/// connection also by `syn/PORT`; those with a marked payload also by
/// `mark/TEXT` and `PROTOCOL/PORT/TEXT`.
pub type Heard = BTreeMap<String, u64>;

/// A packet socket that counts; it ends when this is dropped.
#[derive(Debug)]
pub struct Ear {
    process: Process,
}

impl Ear {
    /// Listens on all interfaces of a namespace.
    pub fn start(place: &Place) -> Result<Self> {
        let mut process = place.tool(&["ear"])?;
        process.wait_for_output("listening", PATIENCE)?;
        Ok(Self { process })
    }

    /// What came so far.
    pub fn heard(&mut self) -> Result<Heard> {
        self.process.say("heard")?;
        let line = self.process.wait_for_output("{", PATIENCE)?;
        serde_json::from_str(&line).with_context(|| format!("the ear said: {line}"))
    }

    /// How often `what` has come, after a wait for it.
    pub fn count(&mut self, what: &str) -> Result<u64> {
        let deadline = Instant::now() + patient(ARRIVAL);
        loop {
            let count = self.heard()?.get(what).copied().unwrap_or_default();
            if count != 0 || Instant::now() > deadline {
                return Ok(count);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How often `what` has come, after a time in which it would have come.
    pub fn count_after_silence(&mut self, what: &str) -> Result<u64> {
        thread::sleep(patient(SILENCE));
        Ok(self.heard()?.get(what).copied().unwrap_or_default())
    }
}

/// The child's side.
pub(crate) fn run() -> Result<()> {
    let all = i32::from(ETH_P_ALL.to_be());
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(all)))?;
    let heard = Arc::new(Mutex::new(Heard::new()));
    let counts = Arc::clone(&heard);
    thread::spawn(move || {
        let mut packet = vec![0; 65536];
        while let Ok(n) = socket.read(&mut packet) {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            for what in names(&packet[..n]) {
                *counts.entry(what).or_default() += 1;
            }
        }
    });
    say(&"listening")?;
    for _ in stdin().lock().lines() {
        say(&*heard.lock().unwrap_or_else(PoisonError::into_inner))?;
    }
    Ok(())
}

/// What a packet is counted as.
fn names(packet: &[u8]) -> Vec<String> {
    let header = match packet.first().map_or(0, |first| first >> 4) {
        4 => Some((usize::from(packet[0] & 0x0f) * 4, packet.get(9))),
        6 => Some((40, packet.get(6))),
        _ => None,
    };
    let mut names = Vec::new();
    let mut of_port = String::new();
    if let Some((length, Some(protocol))) = header {
        let port =
            packet.get(length + 2..length + 4).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]));
        of_port = format!("{protocol}/{port}");
        names.push(of_port.clone());
        let opens = *protocol == TCP && packet.get(length + 13).is_some_and(|f| f & 0x12 == 0x02);
        if opens {
            names.push(format!("syn/{port}"));
        }
    }
    let mark = packet.windows(MARK.len()).position(|bytes| bytes == MARK);
    if let Some(at) = mark {
        let text = packet[at + MARK.len()..].iter().take_while(|b| b.is_ascii_alphanumeric());
        let text: String = text.map(|b| char::from(*b)).collect();
        names.extend([format!("mark/{text}"), format!("{of_port}/{text}")]);
    }
    names
}
