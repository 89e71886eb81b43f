//! The traffic: every way there is through a host, allowed and denied.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ztseg_tests::policies::{ALLOWED, DENIED_IN, DENIED_OUT};
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{
    Counts, Flood, Flooded, Flooding, Late, Listen, Lost, PATIENCE, Server, Stream, StreamKind,
};
use ztseg_tests::world::World;

use crate::iperf::{Iperf, Throughput};

/// Denied flows on each way.
const DENIED: u32 = 10;
/// Between messages of the streams.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long an answer is waited for: a machine that stands still for a second loses nothing.
const ANSWER: Duration = Duration::from_secs(5);
/// How long around a late datagram the machine is known to have been slow, in milliseconds.
const SLOW: u64 = 3000;
/// After which TCP asks for a connection again, in milliseconds (`TCP_TIMEOUT_INIT`).
const ASKED_AGAIN: u64 = 1000;
/// How long what has come through may wait to be counted.
const SETTLED: Duration = Duration::from_millis(500);

/// A way from a client to a server.
struct Way {
    name: &'static str,
    client: Place,
    server: Place,
    at: IpAddr,
    /// The port that is denied on it.
    denied: u16,
    /// Parts of the flows, of eight.
    parts: u32,
}

fn ways(world: &World) -> Result<[Way; 5]> {
    let (app, open) = (world.workload("/app")?, world.workload("/open")?);
    let (peer, guest) = (world.peer.place(), world.guest.place());
    let way = |name, client: &Place, server: &Place, at, denied, parts| Way {
        name,
        client: client.clone(),
        server: server.clone(),
        at,
        denied,
        parts,
    };
    Ok([
        way("loopback", &app, &open, "127.0.0.1".parse()?, DENIED_OUT, 2),
        way("cgroup, out", &app, &peer, world.uplink.far(true), DENIED_OUT, 2),
        way("cgroup, in", &peer, &app, world.uplink.near(true), DENIED_IN, 2),
        way("interface, out", &guest, &peer, world.uplink.far(false), DENIED_OUT, 1),
        way("interface, in", &peer, &guest, world.tap.far(false), DENIED_IN, 1),
    ])
}

struct Running {
    name: &'static str,
    server: Server,
    allowed: Flooding,
    denied: Flooding,
    streams: Vec<(String, Stream)>,
    connects: Stream,
}

/// All traffic; it ends when this is dropped.
pub(crate) struct Load {
    running: Vec<Running>,
    iperf: Vec<(&'static str, Iperf)>,
    drops: BTreeMap<String, u64>,
    tcp: BTreeMap<&'static str, u64>,
}

/// What became of one way's traffic.
pub(crate) struct Seen {
    pub(crate) name: &'static str,
    pub(crate) begun: Instant,
    pub(crate) allowed: Flooded,
    pub(crate) denied: Flooded,
    /// Messages on TCP connections, and connections.
    pub(crate) streams: Vec<(String, Counts)>,
    pub(crate) connects: Counts,
    /// What arrived at denied ports.
    pub(crate) arrived: u64,
}

/// What became of all traffic.
pub(crate) struct Outcome {
    pub(crate) ways: Vec<Seen>,
    pub(crate) iperf: Vec<(&'static str, Throughput)>,
    /// Messages that were lost, by way.
    pub(crate) lost: Vec<(&'static str, Vec<Lost>)>,
    /// What full queues of this machine dropped meanwhile, by the kernel's own count.
    pub(crate) drops: BTreeMap<String, u64>,
    /// What the stacks of all namespaces say of TCP.
    pub(crate) tcp: BTreeMap<&'static str, u64>,
}

impl Load {
    /// Starts everything.
    pub(crate) fn start(world: &World, flows: u32, rate: u32) -> Result<Self> {
        let (drops, tcp) = (drops(world)?, tcp(world)?);
        let ways = ways(world)?;
        let mut running = Vec::new();
        for way in &ways {
            running.push(way.start(flows, rate).with_context(|| way.name)?);
        }
        let (app, open) = (&ways[0].client, &ways[0].server);
        // Addresses of its own: the servers have the port at the others.
        let loopback = "127.0.0.2".parse()?;
        let [beyond, _] = world.uplink.addresses(3);
        let iperf = vec![
            ("loopback", Iperf::start(open, loopback, app)?),
            ("uplink", Iperf::start(&world.peer.place(), beyond, app)?),
        ];
        Ok(Self { running, iperf, drops, tcp })
    }

    /// Ends everything; the last answers are waited for.
    pub(crate) fn finish(self, world: &World) -> Result<Outcome> {
        let mut iperf = Vec::new();
        for (name, running) in self.iperf {
            iperf.push((name, running.finish().with_context(|| format!("iperf3, {name}"))?));
        }
        let ways = self.running.into_iter().map(Running::finish).collect::<Result<Vec<_>>>()?;
        let lost = ways
            .iter()
            .filter(|seen| !seen.allowed.lost.is_empty())
            .map(|seen| (seen.name, seen.allowed.lost.clone()))
            .collect();
        let mut drops = drops(world)?;
        for (name, n) in &mut drops {
            *n = n.saturating_sub(self.drops.get(name).copied().unwrap_or(0));
        }
        let mut tcp = tcp(world)?;
        for (name, n) in &mut tcp {
            *n = n.saturating_sub(self.tcp.get(name).copied().unwrap_or(0));
        }
        Ok(Outcome { ways, iperf, lost, drops, tcp })
    }
}

impl Way {
    fn start(&self, flows: u32, rate: u32) -> Result<Running> {
        let to = |port| SocketAddr::from((self.at, port));
        let listen =
            [ALLOWED, self.denied].map(|port| [Listen::Udp(to(port)), Listen::Tcp(to(port))]);
        let server = Server::start(&self.server, &listen.concat())?;
        let flood = |port, flows| Flood { to: to(port), flows, rate }.start(&self.client);
        let stream = |kind, port, patience| {
            Stream::start_patient(&self.client, kind, to(port), INTERVAL, patience)
        };
        let kinds = [StreamKind::Tcp, StreamKind::TcpConnects, StreamKind::UdpEach];
        let streams = kinds
            .iter()
            .map(|kind| Ok((format!("{kind:?}"), stream(*kind, ALLOWED, ANSWER)?)))
            .collect::<Result<_>>()?;
        Ok(Running {
            name: self.name,
            server,
            allowed: flood(ALLOWED, flows * self.parts / 8)?,
            denied: flood(self.denied, DENIED)?,
            streams,
            connects: stream(StreamKind::TcpConnects, self.denied, PATIENCE)?,
        })
    }
}

impl Running {
    fn finish(self) -> Result<Seen> {
        let (name, begun) = (self.name, self.allowed.begun);
        let what = |what: &str| format!("{name}: {what}");
        let allowed = self.allowed.finish().with_context(|| what("allowed flows"))?;
        let denied = self.denied.finish().with_context(|| what("denied flows"))?;
        let mut streams = Vec::new();
        for (kind, stream) in self.streams {
            let counts = stream.finish().with_context(|| what(&kind))?;
            streams.push((kind, counts));
        }
        let connects = self.connects.finish().with_context(|| what("denied connections"))?;
        // What passes late would pass now.
        std::thread::sleep(SETTLED);
        let counts = self.server.finish()?;
        let denied_port = |(port, _): &(&String, &u64)| !port.ends_with(&format!(":{ALLOWED}"));
        let arrived = counts.iter().filter(denied_port).map(|(_, n)| n).sum();
        Ok(Seen { name, begun, allowed, denied, streams, connects, arrived })
    }
}

impl Seen {
    /// Messages of allowed flows without an answer.
    pub(crate) fn lost(&self) -> u64 {
        let of_streams: u64 =
            self.streams.iter().map(|(_, c)| c.sent - c.received.min(c.sent)).sum();
        self.allowed.sent - self.allowed.received.min(self.allowed.sent)
            + of_streams
            + self.asked_again()
    }

    /// Connections that TCP had to ask for twice, while datagrams were answered in time: the first packet
    /// was lost.
    fn asked_again(&self) -> u64 {
        let of = |kind: &str| self.streams.iter().find(|(name, _)| name == kind);
        let (Some((_, connects)), Some((_, datagrams))) = (of("TcpConnects"), of("UdpEach")) else {
            return 0;
        };
        let slow = |late: &&Late| {
            !datagrams.late.iter().any(|d| d.answered && d.at.abs_diff(late.at) < SLOW)
        };
        let again = |late: &&Late| late.answered && late.millis >= ASKED_AGAIN;
        connects.late.iter().filter(again).filter(slow).count() as u64
    }

    /// Messages with a socket each whose answer was late.
    pub(crate) fn late(&self) -> usize {
        let late = |counts: &Counts| counts.late.iter().filter(|late| late.answered).count();
        self.streams.iter().map(|(_, counts)| late(counts)).sum()
    }

    /// Messages of denied flows that arrived.
    pub(crate) fn passed(&self) -> u64 {
        self.arrived.max(self.denied.received + self.connects.received)
    }
}

impl Outcome {
    /// Messages of allowed flows without an answer.
    pub(crate) fn lost(&self) -> u64 {
        self.ways.iter().map(Seen::lost).sum()
    }

    /// Messages of denied flows that arrived.
    pub(crate) fn passed(&self) -> u64 {
        self.ways.iter().map(Seen::passed).sum()
    }

    /// Packets that full queues of this machine dropped: at most so many losses are not ztseg's.
    pub(crate) fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }

    /// Whether nothing was lost and nothing passed, and there was something to lose on each way.
    pub(crate) fn is_clean(&self) -> bool {
        let sent = |seen: &Seen| {
            let streams = seen.streams.iter().all(|(_, counts)| counts.sent > 0);
            seen.allowed.sent > 0 && seen.denied.sent > 0 && seen.connects.sent > 0 && streams
        };
        self.lost() == 0 && self.passed() == 0 && self.ways.iter().all(sent)
    }
}

/// What the kernel counts as dropped because a queue was full: datagrams in each namespace, which are
/// this run's alone (`/proc/net/snmp`, `udp_queue_rcv_one_skb`; a program that drops a packet is not
/// counted there), and packets of everybody on this machine (second column of
/// `/proc/net/softnet_stat`).
fn drops(world: &World) -> Result<BTreeMap<String, u64>> {
    let mut drops = BTreeMap::new();
    for namespace in [&world.host, &world.peer, &world.guest] {
        let place = namespace.place();
        let read = |file: &str| place.tool(&["read", file])?.output(Duration::from_secs(10));
        let snmp = read("/proc/self/net/snmp")?;
        let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (udp.next().unwrap_or(""), udp.next().unwrap_or(""));
        let mut count = |name: &str, value: &str| {
            let name = format!("{name} {}", namespace.name());
            drops.insert(name, value.parse().unwrap_or_default());
        };
        for (name, value) in names.split(' ').zip(values.split(' ')) {
            if matches!(name, "RcvbufErrors" | "SndbufErrors" | "MemErrors") {
                count(name, value);
            }
        }
        for line in read("/proc/self/net/snmp6")?.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name @ ("Udp6RcvbufErrors" | "Udp6SndbufErrors")), Some(value)) =
                (words.next(), words.next())
            {
                count(name, value);
            }
        }
    }
    let softnet = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    drops.insert("packets, all queues".to_owned(), softnet.lines().filter_map(dropped).sum());
    Ok(drops)
}

/// Segments that were sent again, and why: a sender that is held up sends again what was not lost, and the
/// receiver says so (`TCPDSACKRecv`, RFC 2883).
const TCP: [&str; 12] = [
    "TCPBacklogDrop",
    "TCPRcvQDrop",
    "TCPZeroWindowDrop",
    "TCPOFODrop",
    "TCPSpuriousRTOs",
    "RetransSegs",
    "TCPDSACKRecv",
    "TCPDSACKOfoRecv",
    "TCPLossProbes",
    "TCPTimeouts",
    "TCPFastRetrans",
    "TCPSackRecovery",
];

fn tcp(world: &World) -> Result<BTreeMap<&'static str, u64>> {
    let mut sums = BTreeMap::new();
    for namespace in [&world.host, &world.peer, &world.guest] {
        let place = namespace.place();
        for file in ["/proc/self/net/snmp", "/proc/self/net/netstat"] {
            let text = place.tool(&["read", file])?.output(Duration::from_secs(10))?;
            let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
            for pair in lines.chunks(2).filter(|pair| pair.len() == 2) {
                for (name, value) in pair[0].iter().zip(&pair[1]) {
                    if let Some(name) = TCP.into_iter().find(|known| known == name) {
                        *sums.entry(name).or_insert(0) += value.parse::<u64>().unwrap_or(0);
                    }
                }
            }
        }
    }
    Ok(sums)
}
