//! ping, traceroute and iperf3 over a router and a path that is narrower behind it: what the router
//! says belongs to an allowed flow, and comes back.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use ztseg_tests::process::Place;
use ztseg_tests::world::{Link, Namespace, World, patient};

use super::iperf::{self, Iperf};
use super::program;
use super::scene::{End, Scene, one_way, policy};
use super::served::{Ask, Said};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("applications::ping_learns_the_path_mtu_only_where_it_may", pings),
    ("applications::iperf3_learns_the_path_mtu_only_where_it_may", streams),
    ("applications::traceroute_sees_the_path_only_where_it_may", traces),
];

/// Of the path behind the router; the least that IPv6 allows.
const MTU: &str = "1280";
/// How long a command of ip(8) may take.
const LIMIT: Duration = Duration::from_secs(10);
const PING: &[&str] = &["icmp/echo-request", "icmpv6/128"];

/// `client` and `vm` on this side of a router, and `far` on the other.
struct Path {
    scene: Scene,
    beyond: Namespace,
    link: Link,
}

impl Path {
    fn new() -> Result<Self> {
        let scene = Scene::new()?;
        let world = &scene.world;
        let (beyond, link) = world.add_host_beyond("beyond", 10)?;
        for v6 in [false, true] {
            let length = if v6 { 128 } else { 32 };
            let to = link.far(v6);
            world
                .peer
                .batch(&format!("route add {to}/{length} dev {} mtu {MTU}\n", link.interface))?;
        }
        for namespace in [&world.host, &world.peer, &beyond, &world.guest] {
            // Every probe gets its answer.
            namespace.set(&[("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0")])?;
        }
        Ok(Self { scene, beyond, link })
    }

    fn place(&self, end: End) -> Result<Place> {
        if end == End::Far { Ok(self.beyond.place()) } else { self.scene.place(end) }
    }

    fn address(&self, from: End, to: End, v6: bool) -> IpAddr {
        if to == End::Far { self.link.far(v6) } else { self.scene.address(from, to, v6) }
    }

    /// Each sender learns the MTU anew.
    fn forget(&self) -> Result<()> {
        let World { host, guest, .. } = &self.scene.world;
        for namespace in [host, guest] {
            for family in ["-4", "-6"] {
                let ip = namespace.place().spawn("ip", &[family, "route", "flush", "cache"])?;
                ip.output(patient(LIMIT))?;
            }
        }
        Ok(())
    }

    /// Each works without an agent, where a rule allows it, and nowhere else.
    fn only_where_allowed(&mut self, ways: &[(End, End)], asks: &[Ask]) -> Result<()> {
        for way in ways {
            for ask in asks {
                self.served(*way, ask).context("without an agent")?;
            }
        }
        self.scene.enforce(&policy(""))?;
        for way in ways {
            self.denied(*way, asks)?;
        }
        for way in ways {
            for ask in asks {
                self.scene.enforce(&one_way(way.0, way.1, ask.ports))?;
                self.served(*way, ask)
                    .with_context(|| format!("allowed; {}", self.scene.denials()))?;
            }
            for other in ways.iter().filter(|other| *other != way) {
                self.denied(*other, asks)?;
            }
        }
        Ok(())
    }

    fn served(&self, (from, to): (End, End), ask: &Ask) -> Result<()> {
        for v6 in [false, true] {
            self.forget()?;
            ask.run(&self.place(from)?, self.address(from, to, v6))
                .with_context(|| format!("{from:?} to {to:?}"))?;
        }
        Ok(())
    }

    /// All at once. What is denied is told by the end that is a workload of this host, the sender's
    /// first.
    fn denied(&self, (from, to): (End, End), asks: &[Ask]) -> Result<()> {
        let generation = json!(self.scene.generation()?);
        let (place, mut clients) = (self.place(from)?, Vec::new());
        for ask in asks {
            for v6 in [false, true] {
                let address = self.address(from, to, v6);
                clients.push((ask, v6, address, ask.start(&place, address)?));
            }
        }
        for (ask, v6, address, client) in clients {
            let what = || format!("{} of {from:?} to {address}, which is denied", ask.name);
            let said = Said::wait(client).with_context(what)?;
            ensure!((ask.is_served)(&said).is_err(), "{}, is served: {}", what(), said.out);
            let ports = ask.ports[usize::from(v6) % ask.ports.len()];
            let protocol = ports.split_once('/').map_or(ports, |(protocol, _)| protocol);
            let (end, side) = if from == End::Far { (to, "local") } else { (from, "peer") };
            let event = self.scene.agent()?.wait_for_event(|event| {
                event["generation"] == generation
                    && event["verdict"] == "DROPPED"
                    && event["proto"] == protocol
                    && event[side]["ip"] == json!(address)
                    && event["segments"] == json!([end.segment()])
            });
            let event = event.with_context(what)?;
            ensure!(event["reason"] == "isolation", "not for its isolation: {event:#}");
        }
        Ok(())
    }
}

fn pings(_: &Environment) -> Result<()> {
    let mut path = Path::new()?;
    let client = program("ping", "iputils-ping")?;
    let ask =
        |name, args, is_served| Ask { name, client: client.clone(), args, is_served, ports: PING };
    let both = ask("fragments", |to| ping(to, "4000", "dont"), has_answers);
    let learns = ask("a path that is too narrow", |to| ping(to, "1400", "do"), is_told_the_mtu);
    let adapts = ask(
        "learning the path",
        |to| ping(to, "1400", "want"),
        |said| is_told_the_mtu(said).and_then(|()| has_answers(said)),
    );
    let out = [(End::Client, End::Far), (End::Vm, End::Far)];
    path.only_where_allowed(&out, &[both, learns, adapts])?;
    path.scene.end()?;
    // Here it is the machine behind the interface whose answers are too long.
    let mut path = Path::new()?;
    let answers = ask("answers", |to| ping(to, "1400", "dont"), has_answers);
    path.only_where_allowed(&[(End::Far, End::Vm)], &[answers])?;
    path.scene.end()
}

fn ping(to: IpAddr, bytes: &str, discovery: &str) -> Vec<String> {
    let to = to.to_string();
    let all = ["-n", "-c", "4", "-i", "0.2", "-W", "1", "-s", bytes, "-M", discovery, &to];
    all.map(str::to_owned).to_vec()
}

/// Whether all were answered but the first, which may have told that the path is narrower.
fn has_answers(said: &Said) -> Result<()> {
    let received =
        said.out.split_once(" received").and_then(|(before, _)| before.rsplit(' ').next());
    let received: u32 = received.and_then(|number| number.parse().ok()).unwrap_or_default();
    said.ensure(received >= 3)
}

/// Whether the router said how much the path takes.
fn is_told_the_mtu(said: &Said) -> Result<()> {
    let told = ["From 192.0.2.2 icmp_seq=", "From 2001:db8:1::2 icmp_seq="];
    let is_it = |line: &str| told.iter().any(|told| line.starts_with(told)) && line.contains(MTU);
    said.ensure(said.out.lines().any(is_it))
}

/// Segments that are too long for the path do not vanish: both ends announce more than it takes.
fn streams(_: &Environment) -> Result<()> {
    let mut path = Path::new()?;
    let _server = Iperf::start(&path.beyond.place())?;
    let client = program("iperf3", "iperf3")?;
    let ask = |name, args, is_served| Ask {
        name,
        client: client.clone(),
        args,
        is_served,
        ports: &iperf::PORTS[..1],
    };
    let out = ask("a stream", |to| iperf::arguments(to, &["-n", "4M"]), iperf::has_stream);
    let ways = [(End::Client, End::Far), (End::Vm, End::Far)];
    // That the path is what it should be.
    for (from, to) in ways {
        path.served((from, to), &out)?;
        let address = path.address(from, to, true).to_string();
        let place = Place { cgroup: None, ..path.place(from)? };
        let route = place.spawn("ip", &["route", "get", &address])?.output(patient(LIMIT))?;
        ensure!(route.contains(&format!("mtu {MTU}")), "the sender did not learn it: {route}");
    }
    path.only_where_allowed(&ways, &[out])?;
    path.scene.end()
}

fn traces(_: &Environment) -> Result<()> {
    fn args(to: IpAddr, how: &[&str]) -> Vec<String> {
        let to = to.to_string();
        let all = ["-n", "-q", "1", "-N", "1", "-w", "1", "-m", "4"].iter().chain(how);
        all.chain([&&*to]).map(|argument| (*argument).to_owned()).collect()
    }
    let mut path = Path::new()?;
    let client = program("traceroute.db", "traceroute")?;
    let ask =
        |name, ports, args| Ask { name, client: client.clone(), args, is_served: sees_all, ports };
    let asks = [
        ask("UDP", &["udp/33434-33534"], |to| args(to, &[])),
        ask("ICMP", PING, |to| args(to, &["-I"])),
        ask("TCP", &["tcp/80"], |to| args(to, &["-T", "-p", "80"])),
    ];
    let ways = [(End::Client, End::Far), (End::Vm, End::Far), (End::Far, End::Vm)];
    path.only_where_allowed(&ways, &asks)?;
    path.scene.end()
}

/// Whether every hop answered, and the last one is who was asked.
fn sees_all(said: &Said) -> Result<()> {
    let mut lines = said.out.lines();
    let to = lines.next().and_then(|line| line.split_whitespace().nth(2));
    let hops: Vec<&str> = lines.collect();
    let last = hops.last().and_then(|line| line.split_whitespace().nth(1));
    let is_so = to.is_some() && last == to && hops.iter().all(|hop| !hop.contains('*'));
    said.ensure(said.status.success() && hops.len() > 1 && is_so)
}
