//! Flows that are not as simple as those of the matrix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Report, Server};
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("flows::a_denied_connect_fails_at_once_and_names_the_process", a_denied_connect_fails_at_once),
    ("flows::a_service_may_answer_from_another_socket", a_service_may_answer_from_another_socket),
    ("flows::a_service_that_is_down_refuses", a_service_that_is_down_refuses),
    ("flows::a_workload_reaches_itself", a_workload_reaches_itself),
    ("flows::one_loopback_address_has_many_identities", one_address_has_many_identities),
    ("flows::a_well_known_source_port_opens_nothing", a_source_port_opens_nothing),
    ("flows::workloads_of_one_host_meet_over_an_interface", workloads_meet_over_an_interface),
];

const ALLOWED: u16 = 2000;
const DENIED: u16 = 2001;

/// Both segments isolate both directions; `web` may ask `db`, and everybody may ask `db` over UDP.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: flows }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
    guest: { match: [ { interface: zt-tap0 } ] }
  allow:
    - { name: web-to-db, from: [web, guest], to: db, ports: [tcp/2000] }
    - { name: web-to-guest, from: web, to: guest, ports: [tcp/2000] }
    - { name: all-to-db, from: any, to: db, ports: [udp/2000] }
";

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The agent, with all workloads there before it: it takes a moment to notice a new cgroup that a
/// segment names, which is its ancestor's until then.
fn start(world: &World, policy: &str) -> Result<Agent> {
    for cgroup in ["/web/deep/down", "/db", "/other"] {
        world.cgroup(cgroup)?;
    }
    Agent::start(world, policy)
}

fn ask(place: &Place, ask: Ask, to: IpAddr, port: u16) -> Result<Report> {
    Probe::new(ask, (to, port).into()).run(place)
}

fn expect(
    agent: &Agent,
    place: &Place,
    kind: Ask,
    to: IpAddr,
    port: u16,
    expected: Outcome,
) -> Result<()> {
    let report = ask(place, kind, to, port)?;
    if report.outcome != expected {
        thread::sleep(Duration::from_secs(1));
        let events: Vec<_> = agent.events()?.iter().map(ToString::to_string).collect();
        bail!(
            "{kind:?} to {to} port {port} from {place:?}: {report:?}, expected {expected:?}; \
             events:\n{}",
            events.join("\n")
        );
    }
    Ok(())
}

/// On every address.
fn serve(place: &Place, listen: fn(SocketAddr) -> Listen, port: u16) -> Result<Server> {
    let unspecified: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    Server::start(place, &unspecified.map(|address| listen((address, port).into())))
}

fn a_denied_connect_fails_at_once(_: &Environment) -> Result<()> {
    let world = World::new()?;
    // Beyond the interface of a workload, only the packet shows who is asked.
    let policy = POLICY.replace("interface: zt-tap0", "interface: none");
    let mut agent = start(&world, &policy)?;
    let (web, db) = (world.workload("/web")?, world.workload("/db")?);
    // A local service on every address changes nothing: it is not allowed either.
    let _server = serve(&db, Listen::Tcp, DENIED)?;
    for (v6, hook) in [(false, "connect4"), (true, "connect6")] {
        for (kind, proto) in [(Ask::Tcp, "tcp"), (Ask::UdpConnected, "udp")] {
            let report = ask(&web, kind, world.uplink.far(v6), DENIED)?;
            ensure!(report.outcome == Outcome::Eperm, "{kind:?}, v6: {v6}: {report:?}");
            ensure!(report.millis < 300, "it took {} ms", report.millis);
            let event = agent.wait_for_event(|e| e["pid"] == report.pid && e["proto"] == proto)?;
            ensure!(event["comm"] == "zt-probe" && event["hook"] == hook, "{event:#}");
            ensure!(event["workload"] == "/web" && event["peer"]["port"] == DENIED, "{event:#}");
        }
    }
    agent.stop()
}

/// A flow is known by its addresses and ports, whichever socket sends.
fn a_service_may_answer_from_another_socket(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = start(&world, POLICY)?;
    let db = world.workload("/db")?;
    for listen in [Listen::UdpApart, Listen::UdpApartConnected] {
        let _server = serve(&db, listen, ALLOWED)?;
        for v6 in [false, true] {
            let peer = world.peer.place();
            expect(&agent, &peer, Ask::Udp, world.uplink.near(v6), ALLOWED, Outcome::Ok)?;
        }
    }
    agent.stop()
}

/// Not with silence, as a denied one would.
fn a_service_that_is_down_refuses(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = start(&world, POLICY)?;
    let web = world.workload("/web")?;
    for address in LOOPBACK {
        expect(&agent, &web, Ask::Tcp, address, ALLOWED, Outcome::Refused)?;
        let denied = ask(&web, Ask::Tcp, address, DENIED)?;
        ensure!(matches!(denied.outcome, Outcome::Eperm | Outcome::Timeout), "{denied:?}");
    }
    agent.stop()
}

fn a_workload_reaches_itself(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = start(&world, POLICY)?;
    let web = world.workload("/web")?;
    let deep = world.workload("/web/deep/down")?;
    let _servers = [serve(&web, Listen::Tcp, DENIED)?, serve(&web, Listen::Udp, DENIED)?];
    for from in [&web, &deep] {
        for kind in [Ask::Tcp, Ask::Udp, Ask::UdpConnected] {
            for address in LOOPBACK.into_iter().chain(world.uplink.addresses(1)) {
                expect(&agent, from, kind, address, DENIED, Outcome::Ok)?;
            }
        }
    }
    agent.stop()
}

/// Who asks on loopback is told by the socket, not by the address.
fn one_address_has_many_identities(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = start(&world, POLICY)?;
    let _server = serve(&world.workload("/db")?, Listen::Tcp, ALLOWED)?;
    let (web, other) = (world.workload("/web")?, world.workload("/other")?);
    for address in LOOPBACK {
        expect(&agent, &web, Ask::Tcp, address, ALLOWED, Outcome::Ok)?;
        expect(&agent, &other, Ask::Tcp, address, ALLOWED, Outcome::Timeout)?;
        let ip = json!(address.to_string());
        let of_db = |e: &serde_json::Value| e["workload"] == "/db" && e["peer"]["ip"] == ip;
        let event = agent.wait_for_event(of_db)?;
        ensure!(event["verdict"] == "DROPPED" && event["direction"] == "ingress", "{event:#}");
        // No segment knows it, so it is its ancestor's: what is in no other workload.
        ensure!(event["peer"]["segments"] == json!([]), "{event:#}");
    }
    agent.stop()
}

/// A datagram from port 53 is no reply to a question that nobody asked.
fn a_source_port_opens_nothing(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = start(&world, POLICY)?;
    let _server = serve(&world.workload("/web")?, Listen::Udp, DENIED)?;
    for v6 in [false, true] {
        for port in [53, 67, 123, 443] {
            let to = SocketAddr::from((world.uplink.near(v6), DENIED));
            let probe = Probe::new(Ask::Udp, to).from((world.uplink.far(v6), port));
            let report = probe.run(&world.peer.place())?;
            ensure!(report.outcome == Outcome::Timeout, "from port {port}: {report:?}");
        }
    }
    agent.stop()
}

/// Each end is known by what it is at its own hook, and asked for its consent.
fn workloads_meet_over_an_interface(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = start(&world, POLICY)?;
    let (web, db) = (world.workload("/web")?, world.workload("/db")?);
    let _servers = [serve(&db, Listen::Tcp, ALLOWED)?, serve(&web, Listen::Tcp, DENIED)?];
    let guest = world.guest.place();
    let _guests = [serve(&guest, Listen::Tcp, ALLOWED)?, serve(&guest, Listen::Tcp, DENIED)?];
    for v6 in [false, true] {
        expect(&agent, &web, Ask::Tcp, world.tap.far(v6), ALLOWED, Outcome::Ok)?;
        expect(&agent, &web, Ask::Tcp, world.tap.far(v6), DENIED, Outcome::Timeout)?;
        expect(&agent, &guest, Ask::Tcp, world.tap.near(v6), ALLOWED, Outcome::Ok)?;
        expect(&agent, &guest, Ask::Tcp, world.tap.near(v6), DENIED, Outcome::Timeout)?;
    }
    for (workload, peer) in [("/web", "interface:zt-tap0"), ("interface:zt-tap0", "/web")] {
        agent.wait_for_event(|e| e["workload"] == workload && e["peer"]["workload"] == peer)?;
    }
    agent.stop()
}
