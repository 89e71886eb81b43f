//! A client that asks once.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Ask, Outcome, Probe, Report, icmp, sctp};

pub(super) fn probe(probe: &Probe) -> Report {
    let start = Instant::now();
    let patience = Duration::from_millis(probe.patience_ms);
    let result = match probe.ask {
        Ask::Tcp => tcp(probe, patience),
        Ask::Udp => udp(probe, patience, false),
        Ask::UdpConnected => udp(probe, patience, true),
        Ask::Sctp => sctp::ask(probe.to, probe.from, patience),
        Ask::Ping => icmp::ping(probe.to.ip(), probe.from.map(|from| from.ip()), patience),
    };
    let (outcome, detail) = match result {
        Ok(()) => (Outcome::Ok, None),
        Err(e) => (outcome(&e), Some(e.to_string())),
    };
    let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Report { outcome, detail, millis, pid: std::process::id() }
}

/// What an error comes to.
fn outcome(error: &io::Error) -> Outcome {
    if error.raw_os_error() == Some(Errno::EPERM as i32) {
        return Outcome::Eperm;
    }
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Timeout,
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
            Outcome::Reset
        }
        _ => Outcome::Other,
    }
}

fn socket(to: SocketAddr, kind: Type, protocol: Protocol, probe: &Probe) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    if let Some(from) = probe.from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    Ok(socket)
}

fn tcp(probe: &Probe, patience: Duration) -> io::Result<()> {
    let mut socket = socket(probe.to, Type::STREAM, Protocol::TCP, probe)?;
    socket.connect_timeout(&probe.to.into(), patience)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    let sent = payload(probe.bytes);
    let mut received = vec![0; sent.len()];
    // Both at once: more than the buffers hold would stand still.
    let mut writer = socket.try_clone()?;
    std::thread::scope(|scope| {
        let write = scope.spawn(|| writer.write_all(&sent));
        let read = socket.read_exact(&mut received);
        let written = write.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")));
        written.and(read)
    })?;
    same(&sent, &received)
}

fn udp(probe: &Probe, patience: Duration, connected: bool) -> io::Result<()> {
    let mut socket = socket(probe.to, Type::DGRAM, Protocol::UDP, probe)?;
    socket.set_read_timeout(Some(patience))?;
    let sent = payload(probe.bytes);
    if connected {
        socket.connect(&SockAddr::from(probe.to))?;
        socket.send(&sent)?;
    } else {
        socket.send_to(&sent, &SockAddr::from(probe.to))?;
    }
    let mut received = vec![0; sent.len() + 1];
    let n = socket.read(&mut received)?;
    same(&sent, &received[..n])
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(bytes).collect()
}

fn same(sent: &[u8], received: &[u8]) -> io::Result<()> {
    if sent == received { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}
