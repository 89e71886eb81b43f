//! The children's side: a server, and a client that measures what it is told to.
//!
//! Each measurement but one is a median over many small pieces of work, in wall time, so that being
//! preempted now and then does not show. Bulk is no sequence of equal pieces: there it is the CPU
//! time of client and server for each MiB.

use std::io::{BufRead as _, Read, Write, stdin, stdout};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// The first argument that makes this program a generator.
pub(crate) const ARGUMENT: &str = "--generator";

/// Where the server answers each request.
const ECHO: u16 = 7001;
/// Where it reads all there is.
const SINK: u16 = 7002;
/// Where nobody reads datagrams.
const DATAGRAMS: u16 = 7003;
/// Where it closes each connection; a port a round, so that a flow is new to the flow table.
const CLOSE: u16 = 7010;
const CLOSE_PORTS: u16 = 16;
/// What no rule allows.
pub(crate) const DENIED: u16 = 60_001;
/// Datagrams to ports from here on are allowed, and each is a new flow.
const NEW: u16 = 10_000;
const NEW_PORTS: u16 = 40_000;

const CHUNK: usize = 1 << 20;
/// Of a bulk connection, each way.
const BUFFER: usize = 1 << 20;
/// Of its reader; less than it takes to fill the buffer.
const PAUSE: Duration = Duration::from_micros(100);
const DATAGRAM: usize = 64;
/// Datagrams between two looks at the clock.
const BATCH: u64 = 32;

/// What a client measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Work {
    /// One byte there and back over one TCP connection.
    Request,
    /// TCP connect, then close at both ends.
    Connect,
    /// A MiB over one TCP connection.
    Bulk,
    /// A datagram of 64 bytes from one socket to one port.
    Datagram,
    /// A datagram of 64 bytes, each to another port.
    NewDatagram,
    /// A datagram of 64 bytes to a port that no rule allows.
    DeniedDatagram,
}

/// A request to the client, one line of JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) work: Work,
    pub(crate) server: Ipv4Addr,
    /// The server's process id.
    pub(crate) server_pid: u32,
    pub(crate) milliseconds: u64,
    pub(crate) round: u16,
}

/// The client's answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Median nanoseconds of one piece.
    pub(crate) nanoseconds: f64,
    /// Pieces.
    pub(crate) count: u64,
}

/// Runs the generator that the arguments ask for: `server CPU` or `client CPU`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [role, cpu] = args[..] else { bail!("no such generator: {args:?}") };
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot stay on one CPU")?;
    match role {
        "server" => serve(),
        "client" => obey(),
        _ => bail!("no such generator: {role}"),
    }
}

fn say(what: &impl Serialize) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

fn serve() -> Result<()> {
    let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listen = |port, each: fn(TcpStream)| -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if port == SINK {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        socket.bind(&everywhere(port).into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from(socket);
        thread::spawn(move || listener.incoming().flatten().for_each(each));
        Ok(())
    };
    listen(ECHO, |stream| drop(thread::spawn(move || echo(stream))))?;
    listen(SINK, |stream| drop(thread::spawn(move || read_all(stream))))?;
    for port in CLOSE..CLOSE + CLOSE_PORTS {
        listen(port, drop)?;
    }
    // What does not fit into its buffer is dropped there, the same way in every configuration.
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind(&everywhere(DATAGRAMS).into())?;
    say(&"ready")?;
    let _ = std::io::copy(&mut stdin().lock(), &mut std::io::sink());
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut byte = [0; 64];
    while let Ok(n) = stream.read(&mut byte) {
        if n == 0 || stream.write_all(&byte[..n]).is_err() {
            break;
        }
    }
}

fn read_all(mut stream: TcpStream) {
    let mut buffer = vec![0; 2 * BUFFER];
    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {
        // Else it depends on the scheduler how many segments are read at once, from one to many.
        thread::sleep(PAUSE);
    }
}

fn obey() -> Result<()> {
    say(&"ready")?;
    for line in stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        say(&measure(order)?)?;
    }
    Ok(())
}

fn measure(order: Order) -> Result<Done> {
    let limit = Duration::from_millis(order.milliseconds);
    let at = |port| SocketAddr::from((IpAddr::from(order.server), port));
    match order.work {
        Work::Request => {
            let mut stream = TcpStream::connect(at(ECHO))?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            median_of(limit, 1, || {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)
            })
        }
        Work::Connect => median_of(limit, 1, || {
            let mut stream = TcpStream::connect(at(CLOSE + order.round % CLOSE_PORTS))?;
            // The server closes first, and keeps what waits for stray packets.
            stream.read(&mut [0]).map(drop)
        }),
        Work::Bulk => bulk(at(SINK), limit, order.server_pid),
        Work::Datagram => datagrams(limit, || at(DATAGRAMS)),
        Work::DeniedDatagram => datagrams(limit, || at(DENIED)),
        Work::NewDatagram => {
            let mut next = 0;
            datagrams(limit, || {
                next = (next + 1) % NEW_PORTS;
                at(NEW + next)
            })
        }
    }
}

fn bulk(to: SocketAddr, limit: Duration, server: u32) -> Result<Done> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Fixed, here and at the listener: buffers that grow make rounds differ.
    socket.set_send_buffer_size(BUFFER)?;
    socket.connect(&to.into())?;
    let mut stream = TcpStream::from(socket);
    let chunk = vec![0; CHUNK];
    // Past slow start.
    for _ in 0..8 {
        stream.write_all(&chunk)?;
    }
    let server = clock_getcpuclockid(Pid::from_raw(i32::try_from(server)?))?;
    let cpu_time = || -> Result<Duration> {
        let used = |clock: ClockId| clock_gettime(clock).map(Duration::from);
        Ok(used(ClockId::CLOCK_PROCESS_CPUTIME_ID)? + used(server)?)
    };
    let (start, before) = (Instant::now(), cpu_time()?);
    let mut count: u32 = 0;
    while start.elapsed() < limit {
        stream.write_all(&chunk)?;
        count += 1;
    }
    let used = cpu_time()?.saturating_sub(before);
    Ok(Done { nanoseconds: used.as_secs_f64() * 1e9 / f64::from(count), count: count.into() })
}

fn datagrams(limit: Duration, mut to: impl FnMut() -> SocketAddr) -> Result<Done> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    median_of(limit, BATCH, || {
        for _ in 0..BATCH {
            // A denial is an error here, and what is measured.
            let _ = socket.send_to(&[0; DATAGRAM], to());
        }
        Ok(())
    })
}

/// Does a piece of work again and again; each does `units` of what is counted.
fn median_of(
    limit: Duration,
    units: u64,
    mut piece: impl FnMut() -> std::io::Result<()>,
) -> Result<Done> {
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    let mut before = start;
    loop {
        piece()?;
        let now = Instant::now();
        times.push(u64::try_from((now - before).as_nanos())?);
        before = now;
        if now - start > limit {
            break;
        }
    }
    let count = units * times.len() as u64;
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one piece")]
    Ok(Done { nanoseconds: *median as f64 / units as f64, count })
}
