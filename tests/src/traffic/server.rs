//! Servers that send back what they get, and count it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _, Write as _, stdin};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};

use super::tool::say;
use super::{last_line, sctp};
use crate::process::{Place, Process};

/// What a server listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// UDP.
    Udp(SocketAddr),
    /// UDP; each answer comes from another socket on the same port.
    UdpApart(SocketAddr),
    /// As `UdpApart`; the other socket is connected to the client.
    UdpApartConnected(SocketAddr),
    /// Requests for SCTP associations, each of which is answered and goes no further.
    Sctp(SocketAddr),
}

impl Listen {
    fn parse(text: &str) -> Result<Self> {
        match text.split_once('/') {
            Some(("tcp", address)) => Ok(Self::Tcp(address.parse()?)),
            Some(("udp", address)) => Ok(Self::Udp(address.parse()?)),
            Some(("udp-apart", address)) => Ok(Self::UdpApart(address.parse()?)),
            Some(("udp-apart-connected", address)) => Ok(Self::UdpApartConnected(address.parse()?)),
            Some(("sctp", address)) => Ok(Self::Sctp(address.parse()?)),
            _ => bail!("`{text}` is neither tcp/… nor udp/… nor sctp/…"),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp/{address}"),
            Self::Udp(address) => write!(f, "udp/{address}"),
            Self::UdpApart(address) => write!(f, "udp-apart/{address}"),
            Self::UdpApartConnected(address) => write!(f, "udp-apart-connected/{address}"),
            Self::Sctp(address) => write!(f, "sctp/{address}"),
        }
    }
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

impl Server {
    /// Starts a server and waits until it listens.
    pub fn start(place: &Place, listen: &[Listen]) -> Result<Self> {
        let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
        let args: Vec<&str> =
            ["serve"].into_iter().chain(listen.iter().map(String::as_str)).collect();
        let mut process = place.tool(&args)?;
        process.wait_for_output("listening", Duration::from_secs(20))?;
        Ok(Self { process })
    }

    /// How much came in so far, by what it listens on: datagrams, requests for associations, or connections and
    /// bytes of TCP.
    pub fn counts(&mut self) -> Result<BTreeMap<String, u64>> {
        self.process.say("counts")?;
        let line = self.process.wait_for_output("{", Duration::from_secs(20))?;
        serde_json::from_str(&line).with_context(|| format!("the server said: {line}"))
    }

    /// Ends it; how much came in.
    pub fn finish(mut self) -> Result<BTreeMap<String, u64>> {
        self.process.end_input();
        last_line(self.process)
    }
}

/// The child's side.
pub(super) fn run(listen: &[&str]) -> Result<()> {
    let mut counts = BTreeMap::new();
    for text in listen {
        let count = Arc::new(AtomicU64::new(0));
        counts.insert((*text).to_owned(), Arc::clone(&count));
        let what = || format!("cannot listen on {text}");
        match Listen::parse(text)? {
            Listen::Tcp(address) => {
                let listener = TcpListener::from(bind(address, Type::STREAM).with_context(what)?);
                thread::spawn(move || accept(&listener, &count));
            }
            Listen::Udp(address) => {
                let socket = UdpSocket::from(bind(address, Type::DGRAM).with_context(what)?);
                thread::spawn(move || {
                    echo_datagrams(&socket, &count, |n, from| socket.send_to(n, from));
                });
            }
            Listen::UdpApart(address) => {
                let socket = UdpSocket::from(bind(address, Type::DGRAM).with_context(what)?);
                thread::spawn(move || {
                    echo_datagrams(&socket, &count, |n, from| {
                        UdpSocket::from(bind(address, Type::DGRAM)?).send_to(n, from)
                    });
                });
            }
            Listen::UdpApartConnected(address) => {
                let socket = UdpSocket::from(bind(address, Type::DGRAM).with_context(what)?);
                thread::spawn(move || {
                    echo_datagrams(&socket, &count, |n, from| {
                        let apart = UdpSocket::from(bind(address, Type::DGRAM)?);
                        apart.connect(from)?;
                        apart.send(n)
                    });
                });
            }
            Listen::Sctp(address) => {
                let socket = sctp::bind(address.ip()).with_context(what)?;
                thread::spawn(move || sctp::answer(&socket, address, &count));
            }
        }
    }
    say(&"listening")?;
    let now = || -> BTreeMap<&String, u64> {
        counts.iter().map(|(text, count)| (text, count.load(Ordering::Relaxed))).collect()
    };
    for _ in stdin().lock().lines() {
        say(&now())?;
    }
    say(&now())
}

fn bind(address: SocketAddr, kind: Type) -> std::io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    if kind == Type::DGRAM {
        // A burst that waits for a busy machine is not lost. Root may have more than the machine's
        // maximum.
        const BYTES: usize = 32 << 20;
        if setsockopt(&socket, RcvBufForce, &BYTES).is_err() {
            socket.set_recv_buffer_size(BYTES)?;
        }
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(128)?;
    }
    Ok(socket)
}

fn accept(listener: &TcpListener, count: &Arc<AtomicU64>) {
    for mut stream in listener.incoming().flatten() {
        count.fetch_add(1, Ordering::Relaxed);
        let count = Arc::clone(count);
        thread::spawn(move || {
            let mut buffer = vec![0; 16384];
            while let Ok(n) = stream.read(&mut buffer) {
                count.fetch_add(n as u64, Ordering::Relaxed);
                if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
        });
    }
}

fn echo_datagrams(
    socket: &UdpSocket,
    count: &AtomicU64,
    answer: impl Fn(&[u8], SocketAddr) -> std::io::Result<usize>,
) {
    let mut buffer = vec![0; 65536];
    loop {
        // An error is an ICMP error for an earlier answer.
        let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
        count.fetch_add(1, Ordering::Relaxed);
        let _ = answer(&buffer[..n], from);
    }
}
