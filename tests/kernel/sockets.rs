//! `reject` at the cgroup hooks: local applications are told at once, by their sockets.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use ztseg_tests::actor::{Actor, Handle, Kind, Said, Set};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Report, Server};
use ztseg_tests::world::{World, patient};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("sockets::a_denied_connect_is_told_at_once", connects),
    ("sockets::equal_denials_are_all_told", folded),
    ("sockets::a_listeners_denial_is_told_to_a_local_client", listeners),
    ("sockets::a_revoked_connection_ends_at_both_ends", revoked),
    ("sockets::a_cgroup_that_becomes_a_workload_is_told", moved),
    ("sockets::isolation_is_told_where_the_policy_says_so", isolation),
];

const ALLOWED: u16 = 2000;
const REJECTED: u16 = 2001;
const SILENT: u16 = 2002;
/// Denied at the end that is asked alone.
const REJECTED_IN: u16 = 2003;
/// In which a denied application is told: so much the agent promises.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Every port is open, as long as no rule denies it.
const OPEN: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: sockets }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
    vm: { isolation: [], match: [ { interface: zt-tap* } ] }
  allow:
    - { name: out, from: [web, db], to: any }
    - { name: in, from: any, to: [web, db] }
";
const DENIED: &str = "
  deny:
    - { name: told, from: web, to: any, ports: [tcp/2001], reject: true }
    - { name: silent, from: web, to: any, ports: [tcp/2002] }
    - { name: told-in, from: [0.0.0.0/0, '::/0'], to: db, ports: [tcp/2003], reject: true }
";

fn denying() -> String {
    format!("{OPEN}{DENIED}")
}

struct Scene {
    agent: Agent,
    _servers: Vec<Server>,
    web: Place,
    db: Place,
    world: World,
}

impl Scene {
    fn new(policy: &str) -> Result<Self> {
        let world = World::new()?;
        let (web, db) = (world.workload("/web")?, world.workload("/db")?);
        let agent = Agent::start(&world, policy)?;
        let mut listen = Vec::new();
        for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            for port in [ALLOWED, REJECTED, SILENT, REJECTED_IN] {
                listen.push(Listen::Tcp(SocketAddr::from((any, port))));
            }
        }
        let places = [db.clone(), world.guest.place(), world.peer.place()];
        let servers = places.iter().map(|place| Server::start(place, &listen));
        let servers = servers.collect::<Result<_>>()?;
        Ok(Self { agent, _servers: servers, web, db, world })
    }

    /// A process of a workload in another network namespace than the agent's.
    fn elsewhere(&self, workload: &Place) -> Place {
        Place { namespace: Some(self.world.peer.path()), ..workload.clone() }
    }

    /// Where no early answer is given: beyond an interface workload, and in another network
    /// namespace, on loopback and to where somebody listens and nobody.
    fn ways(&self, v6: bool) -> Vec<(Place, IpAddr)> {
        let (world, there) = (&self.world, self.elsewhere(&self.web));
        vec![
            (self.web.clone(), world.tap.far(v6)),
            (self.web.clone(), world.uplink.far(v6)),
            (there.clone(), world.uplink.near(v6)),
            (there.clone(), world.tap.far(v6)),
            (there, loopback(v6)),
        ]
    }
}

fn loopback(v6: bool) -> IpAddr {
    if v6 { std::net::Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() }
}

fn connect(from: &Place, to: SocketAddr) -> Result<Report> {
    // Longer than the promise, so that a late answer is one and no timeout.
    Probe::new(Ask::Tcp, to).patience(patient(AT_ONCE * 3)).run(from)
}

fn ensure_told(report: &Report, to: SocketAddr) -> Result<()> {
    let aborted = format!("os error {}", Errno::ECONNABORTED as i32);
    let detail = report.detail.as_deref().unwrap_or_default();
    ensure!(report.outcome == Outcome::Other && detail.contains(&aborted), "to {to}: {report:?}");
    let limit = patient(AT_ONCE).as_millis();
    ensure!(u128::from(report.millis) < limit, "to {to}: told after {} ms", report.millis);
    println!("told after {} ms", report.millis);
    Ok(())
}

fn connects(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(&denying())?;
    for v6 in [false, true] {
        for (from, to) in scene.ways(v6) {
            let report = connect(&from, (to, ALLOWED).into())?;
            ensure!(report.outcome == Outcome::Ok, "to {to}, allowed: {report:?}");
            let to = SocketAddr::from((to, REJECTED));
            ensure_told(&connect(&from, to)?, to)?;
        }
        // Nobody listens there.
        let to = SocketAddr::from((loopback(v6), REJECTED));
        let alone = Place { namespace: Some(scene.world.guest.path()), ..scene.web.clone() };
        ensure_told(&connect(&alone, to)?, to)?;
        let (from, to) = (&scene.web, scene.world.tap.far(v6));
        let report = Probe::new(Ask::Tcp, (to, SILENT).into()).run(from)?;
        ensure!(report.outcome == Outcome::Timeout, "to {to}, silent: {report:?}");
    }
    let event = scene.agent.wait_for_event(|event| event["rule"] == "sockets/told")?;
    ensure!(event["hook"] == "cgroup-egress", "an early answer: {event:#}");
    let destroyed = scene.agent.status()?["socketsDestroyed"].as_u64();
    ensure!(destroyed >= Some(12), "{destroyed:?} sockets destroyed");
    scene.agent.stop()
}

/// One event stands for all that are alike within a second; the sockets are told each.
fn folded(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(&denying())?;
    let to = SocketAddr::from((scene.world.tap.far(false), REJECTED));
    for _ in 0..5 {
        ensure_told(&connect(&scene.web, to)?, to)?;
        std::thread::sleep(Duration::from_millis(70));
    }
    scene.agent.stop()
}

/// The client's own packets leave: only the listener's end denies, and can only drop.
fn listeners(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(&denying())?;
    for v6 in [false, true] {
        for to in [loopback(v6), scene.world.uplink.near(v6)] {
            let report = connect(&scene.web, (to, ALLOWED).into())?;
            ensure!(report.outcome == Outcome::Ok, "to {to}, allowed: {report:?}");
            let to = SocketAddr::from((to, REJECTED_IN));
            ensure_told(&connect(&scene.web, to)?, to)?;
        }
        // The same port of another host is not the listener's.
        let report = connect(&scene.web, (scene.world.uplink.far(v6), REJECTED_IN).into())?;
        ensure!(report.outcome == Outcome::Ok, "the same port elsewhere: {report:?}");
    }
    scene.agent.stop()
}

/// A connection between two actors; `silent`: nothing is sent on it.
struct Connection {
    client: (Actor, Handle),
    server: Option<(Actor, Handle)>,
    port: u16,
}

impl Connection {
    fn local(from: &Place, to: &Place, address: SocketAddr, silent: bool) -> Result<Self> {
        let kind = if address.is_ipv6() { Kind::Tcp6 } else { Kind::Tcp4 };
        let (mut client, mut server) = (Actor::start(from)?, Actor::start(to)?);
        let listener = server.socket(kind)?;
        server.set(listener, Set::ReuseAddress)?;
        server.set(listener, Set::ReusePort)?;
        server.bind(listener, address)?;
        server.listen(listener)?;
        let socket = client.socket(kind)?;
        client.connect(socket, address)?.done()?;
        let accepted = server.accept(listener)?;
        if !silent {
            client.send(socket, b"hello")?.done()?;
            ensure!(server.receive(accepted)? == Said::Done(5), "nothing came");
            server.send(accepted, b"hello")?.done()?;
            ensure!(client.receive(socket)? == Said::Done(5), "nothing came back");
        }
        let server = Some((server, accepted));
        Ok(Self { client: (client, socket), server, port: address.port() })
    }

    /// To a server that echoes.
    fn far(from: &Place, address: SocketAddr) -> Result<Self> {
        let kind = if address.is_ipv6() { Kind::Tcp6 } else { Kind::Tcp4 };
        let mut client = Actor::start(from)?;
        let socket = client.socket(kind)?;
        client.connect(socket, address)?.done()?;
        client.send(socket, b"hello")?.done()?;
        ensure!(client.receive(socket)? == Said::Done(5), "nothing came back");
        Ok(Self { client: (client, socket), server: None, port: address.port() })
    }

    /// That each end here is told, and nothing need be sent for that.
    fn ensure_told(&mut self, since: Instant) -> Result<()> {
        for (actor, socket) in std::iter::once(&mut self.client).chain(&mut self.server) {
            let said = loop {
                match actor.receive(*socket)? {
                    Said::Error(Errno::EAGAIN) if since.elapsed() < patient(AT_ONCE) => {}
                    said => break said,
                }
            };
            ensure!(said == Said::Error(Errno::ECONNABORTED), "port {}: {said:?}", self.port);
        }
        println!("port {}: told {} ms after the apply", self.port, since.elapsed().as_millis());
        Ok(())
    }

    fn is_echoed(&mut self) -> Result<bool> {
        let (client, socket) = &mut self.client;
        client.send(*socket, b"again")?.done()?;
        if let Some((server, accepted)) = &mut self.server {
            return Ok(server.receive(*accepted)? == Said::Done(5));
        }
        Ok(client.receive(*socket)? == Said::Done(5))
    }
}

fn revoked(_: &Environment) -> Result<()> {
    /// Not the servers' of the scene.
    const OFFSET: u16 = 100;
    let shifted = |policy: &str| {
        let port = |policy: String, port: u16| {
            policy
                .replace(&format!("[tcp/{port}]"), &format!("[tcp/{port}, tcp/{}]", port + OFFSET))
        };
        [REJECTED, SILENT, REJECTED_IN].into_iter().fold(policy.to_owned(), port)
    };
    let mut scene = Scene::new(OPEN)?;
    let (mut told, mut silent, mut spared) = (Vec::new(), Vec::new(), Vec::new());
    for v6 in [false, true] {
        let (world, web, db) = (&scene.world, &scene.web, &scene.db);
        for (from, to, address) in [
            (web.clone(), db.clone(), loopback(v6)),
            (web.clone(), db.clone(), world.uplink.near(v6)),
            (scene.elsewhere(web), scene.elsewhere(db), loopback(v6)),
        ] {
            let pair = |port, silent| {
                Connection::local(&from, &to, (address, port + OFFSET).into(), silent)
            };
            told.extend([pair(REJECTED, false)?, pair(REJECTED_IN, false)?]);
            silent.push(pair(SILENT, false)?);
            spared.push(pair(ALLOWED, false)?);
        }
        // Nothing was ever sent, and the server is another process of the same workload.
        let address = SocketAddr::from((loopback(v6), REJECTED_IN + OFFSET + 1000));
        spared.push(Connection::local(web, web, address, false)?);
        let far = |port| Connection::far(web, (world.uplink.far(v6), port).into());
        silent.push(far(SILENT)?);
        spared.push(far(ALLOWED)?);
        // From elsewhere, where it is certain who the peer is without a packet.
        let from = scene.elsewhere(web);
        told.push(Connection::far(&from, (world.uplink.near(v6), REJECTED).into())?);
        spared.push(Connection::far(&from, (world.uplink.near(v6), ALLOWED).into())?);
    }
    let never_spoken = SocketAddr::from((loopback(false), REJECTED_IN + OFFSET));
    let alone =
        |workload: &Place| Place { namespace: Some(scene.world.guest.path()), ..workload.clone() };
    let silent_pair = Connection::local(&alone(&scene.web), &alone(&scene.db), never_spoken, true)?;
    told.push(silent_pair);
    scene.agent.apply(&shifted(&denying()))?;
    let since = Instant::now();
    for connection in &mut told {
        connection.ensure_told(since)?;
    }
    for connection in &mut silent {
        ensure!(!connection.is_echoed()?, "port {} goes on", connection.port);
    }
    for connection in &mut spared {
        ensure!(connection.is_echoed()?, "port {} was allowed and is lost", connection.port);
    }
    scene.agent.stop()
}

/// When the socket was judged, its workload was the host.
fn moved(_: &Environment) -> Result<()> {
    let policy = denying().replace("{ cgroup: /web }", "{ cgroup: \"/*/sealed\" }");
    let mut scene = Scene::new(&policy)?;
    let from = scene.elsewhere(&scene.web);
    let to = SocketAddr::from((scene.world.uplink.near(false), REJECTED));
    let mut connection = Connection::far(&from, to)?;
    scene.agent.apply(&denying())?;
    connection.ensure_told(Instant::now())?;
    scene.agent.stop()
}

fn isolation(_: &Environment) -> Result<()> {
    let closed = OPEN
        .replace("spec:\n", "spec:\n  reject: true\n")
        .replace("isolation: [], ", "")
        .replace("to: any }", "to: any, ports: [tcp/2000] }")
        .replace("from: any, to: [web, db] }", "from: any, to: [web, db], ports: [tcp/2000] }");
    let mut scene = Scene::new(OPEN)?;
    let (near, far) = (scene.world.uplink.near(false), scene.world.uplink.far(false));
    let from = scene.elsewhere(&scene.web);
    let mut told = Connection::far(&from, (near, REJECTED).into())?;
    let mut spared = Connection::far(&from, (near, ALLOWED).into())?;
    scene.agent.apply(&closed)?;
    told.ensure_told(Instant::now())?;
    ensure!(spared.is_echoed()?, "what is allowed is lost");
    let to = SocketAddr::from((far, REJECTED));
    ensure_told(&connect(&scene.web, to)?, to)?;
    // At TC by a reset: what a guest sends, and what is sent to it.
    for v6 in [false, true] {
        let (vm, tap) = (scene.world.guest.place(), &scene.world.tap);
        let ways = [(&vm, scene.world.uplink.far(v6)), (&scene.world.peer.place(), tap.far(v6))];
        for (from, to) in ways {
            let report = Probe::new(Ask::Tcp, (to, REJECTED).into()).run(from)?;
            ensure!(report.outcome == Outcome::Refused, "to {to}: {report:?}");
        }
    }
    let event = scene.agent.wait_for_event(|event| event["isolatedBy"][0] == "vm")?;
    ensure!(event["reason"] == "isolation", "{event:#}");
    // And in silence where it does not.
    let silent = closed.replace("  reject: true\n", "");
    scene.agent.apply(&silent).context("silent")?;
    let to = (scene.world.tap.far(false), REJECTED).into();
    let report = Probe::new(Ask::Tcp, to).run(&scene.world.peer.place())?;
    ensure!(report.outcome == Outcome::Timeout, "silent: {report:?}");
    scene.agent.stop()
}
