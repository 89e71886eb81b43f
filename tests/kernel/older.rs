//! Sockets that are older than the agent: who asks them, or is asked by them, knows them at once.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use ztseg::datapath::sys;
use ztseg_common::ABI_VERSION;
use ztseg_tests::actor::{Actor, Handle, Kind};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Hoard, Listen, Outcome, Probe, Server};
use ztseg_tests::world::{World, patient, times};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("older::services_are_known_with_the_first_packet", services),
    ("older::a_passed_socket_is_its_makers", passed),
    ("older::clients_know_who_is_behind_an_interface", clients),
    ("older::services_are_known_after_an_upgrade", upgraded),
    ("older::services_are_known_that_were_made_unseen", unseen),
    ("older::a_hundred_thousand_sockets", many),
];

/// No rule names an address. `other` is open on its side, so that what denies is that the machine
/// behind the interface knows whom it asks.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: older }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    other: { isolation: [], match: [ { cgroup: /other } ] }
    vm: { match: [ { interface: zt-tap* } ] }
  allow:
    - { name: in, from: vm, to: web, ports: [tcp/2000, udp/2000] }
    - { name: out, from: web, to: vm, ports: [tcp/2001, udp/2001] }
";
const IN: u16 = 2000;
const OUT: u16 = 2001;
/// Where `/other` is asked.
const OTHER: u16 = 2002;

fn listen(ports: &[u16]) -> Vec<Listen> {
    let any = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    let ends = any.into_iter().flat_map(|any| ports.iter().map(move |port| (any, *port).into()));
    ends.flat_map(|end: SocketAddr| [Listen::Tcp(end), Listen::Udp(end)]).collect()
}

fn ask(from: &Place, ask: Ask, to: SocketAddr) -> Result<Outcome> {
    Ok(Probe::new(ask, to).run(from)?.outcome)
}

/// A world with services that are there before there is an agent; each port is asked by everything.
struct Scene {
    world: World,
    vm: Place,
    _servers: [Server; 3],
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let vm = world.guest.place();
        let deep = world.workload("/web/deep/down")?;
        let servers = [
            Server::start(&world.workload("/web")?, &listen(&[OUT]))?,
            // Its cgroup is no workload: it belongs to the one above.
            Server::start(&deep, &listen(&[IN]))?,
            Server::start(&world.workload("/other")?, &listen(&[OTHER]))?,
        ];
        Ok(Self { world, vm, _servers: servers })
    }

    fn check(&self, open: impl Fn(u16) -> bool) -> Result<()> {
        for v6 in [false, true] {
            for how in [Ask::Udp, Ask::Tcp, Ask::UdpConnected] {
                for port in [IN, OUT, OTHER] {
                    let to = (self.world.tap.near(v6), port).into();
                    let outcome = ask(&self.vm, how, to)?;
                    let expected = if open(port) { Outcome::Ok } else { Outcome::Timeout };
                    ensure!(outcome == expected, "{how:?} to {to}: {outcome:?}");
                }
            }
        }
        Ok(())
    }
}

fn services(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    scene.check(|_| true).context("without an agent")?;
    let mut agent = Agent::start(&scene.world, POLICY)?;
    scene.check(|port| port == IN)?;
    let denied = |to: u16| {
        move |event: &serde_json::Value| {
            event["workload"] == "interface:zt-tap0" && event["peer"]["port"] == to
        }
    };
    let event = agent.wait_for_event(denied(OTHER))?;
    ensure!(event["peer"]["workload"] == "/other", "{event:#}");
    let event = agent.wait_for_event(denied(OUT))?;
    ensure!(event["peer"]["segments"] == serde_json::json!(["web"]), "{event:#}");
    agent.stop()
}

/// Its maker's, although another workload's process holds it, and alone.
fn passed(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let (web, other) = (world.workload("/web")?, world.workload("/other")?);
    let (mut maker, mut holder) = (Actor::start(&web)?, Actor::start(&other)?);
    let to: SocketAddr = (world.tap.near(false), IN).into();
    let socket = maker.bound(Kind::Udp4, to)?;
    let theirs = maker.hand(socket, &mut holder, &world.folder().join("passed"))?;
    maker.close(socket)?;
    let own = SocketAddr::from((world.tap.near(false), IN + 100));
    let own_socket = holder.bound(Kind::Udp4, own)?;
    let mut agent = Agent::start(&world, &POLICY.replace("udp/2000", "udp/2000-2100"))?;
    let vm = &mut Actor::start(&world.guest.place())?;
    let client = vm.socket(Kind::Udp4)?;
    for (to, socket, arrives) in [(to, theirs, true), (own, own_socket, false)] {
        vm.send_to(client, to, b"vm")?.done()?;
        ensure!(holder.receive(socket)?.is_done() == arrives, "to {to}");
    }
    agent.stop()
}

/// What a client of `/web` made before there was an agent.
fn clients(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let guest = world.guest.place();
    let _server = Server::start(&guest, &listen(&[OUT, IN]))?;
    let (web, other) = (world.workload("/web")?, world.workload("/other")?);
    let (mut web, mut other) = (Actor::start(&web)?, Actor::start(&other)?);
    let near = |port| SocketAddr::from((world.tap.near(false), port));
    let make = |actor: &mut Actor, port| -> Result<[(Kind, Handle); 4]> {
        Ok([
            (Kind::Udp4, actor.bound(Kind::Udp4, near(port))?),
            (Kind::Udp4, actor.socket(Kind::Udp4)?),
            (Kind::Tcp4, actor.bound(Kind::Tcp4, near(port))?),
            (Kind::Tcp4, actor.socket(Kind::Tcp4)?),
        ])
    };
    // Those of every second set are connected before they send.
    let sets = [
        (make(&mut web, 3000)?, false, OUT),
        (make(&mut web, 3001)?, true, OUT),
        (make(&mut web, 3002)?, false, IN),
        (make(&mut web, 3003)?, true, IN),
    ];
    let others = [(make(&mut other, 3004)?, false, OUT), (make(&mut other, 3005)?, true, OUT)];
    let mut agent = Agent::start(&world, POLICY)?;
    let far = |port| SocketAddr::from((world.tap.far(false), port));
    for (actor, sets, is_open) in [(&mut web, &sets[..], true), (&mut other, &others[..], false)] {
        for (sockets, connects, port) in sets {
            for socket in sockets {
                let answered = exchange(actor, *socket, far(*port), *connects)?;
                let expected = is_open && *port == OUT;
                ensure!(answered == expected, "{socket:?} to {port}, connected: {connects}");
            }
        }
    }
    agent.stop()
}

/// Whether an answer comes to the first packet that a socket sends.
fn exchange(
    actor: &mut Actor,
    (kind, socket): (Kind, Handle),
    to: SocketAddr,
    connects: bool,
) -> Result<bool> {
    let is_tcp = kind == Kind::Tcp4;
    if (is_tcp || connects) && !actor.connect(socket, to)?.is_done() {
        return Ok(false);
    }
    let sent = if is_tcp || connects {
        actor.send(socket, b"older")?
    } else {
        actor.send_to(socket, to, b"older")?
    };
    Ok(sent.is_done() && actor.receive(socket)?.is_done())
}

/// The maps of an agent of another version are not this one's.
fn upgraded(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = Agent::start(&world, POLICY)?;
    let vm = world.guest.place();
    let _servers = [
        Server::start(&world.workload("/web/deep")?, &listen(&[IN, OUT]))?,
        Server::start(&world.workload("/other")?, &listen(&[OTHER]))?,
    ];
    agent.stop()?;
    Agent::become_another_version(&world)?;
    agent.run(&[])?;
    for how in [Ask::Udp, Ask::Tcp] {
        for port in [IN, OUT, OTHER] {
            let to = (world.tap.near(false), port).into();
            let outcome = ask(&vm, how, to)?;
            let expected = if port == IN { Outcome::Ok } else { Outcome::Timeout };
            ensure!(outcome == expected, "{how:?} to {to}: {outcome:?}");
        }
    }
    agent.stop()
}

/// While somebody had detached the program that sees sockets being made.
fn unseen(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let web = world.workload("/web")?;
    let mut agent = Agent::start(&world, POLICY)?;
    let pin = world.pins().join(format!("v{ABI_VERSION}/links/ztseg_create"));
    agent.signal(Signal::SIGSTOP)?;
    sys::link_detach(sys::open_pinned(&pin)?.as_fd())?;
    let _server = Server::start(&web, &listen(&[IN, OUT]))?;
    agent.signal(Signal::SIGCONT)?;
    agent.wait_for_event(|event| event["what"] == "link-detached")?;
    agent.wait_for_status(|status| status["socketsAdopted"].as_u64() >= Some(8))?;
    for port in [IN, OUT] {
        let outcome = ask(&world.guest.place(), Ask::Udp, (world.tap.near(false), port).into())?;
        let expected = if port == IN { Outcome::Ok } else { Outcome::Timeout };
        ensure!(outcome == expected, "port {port}: {outcome:?}");
    }
    agent.stop()
}

/// The agent does not stand still for them, and knows all.
fn many(_: &Environment) -> Result<()> {
    let count = times(100_000);
    let world = World::new()?;
    let _hoard = Hoard::start(&world.workload("/web/much")?, count)?;
    let _server = Server::start(&world.workload("/web")?, &listen(&[IN]))?;
    let start = Instant::now();
    let mut agent = Agent::start(&world, POLICY)?;
    println!("an agent ready beside {count} older sockets in {} ms", start.elapsed().as_millis());
    agent.wait_for_status_within(patient(Duration::from_secs(60)), |status| {
        status["socketsAdopted"] == u64::from(count) + 4 && status["socketsUnknown"] == 0
    })?;
    let outcome = ask(&world.guest.place(), Ask::Udp, (world.tap.near(false), IN).into())?;
    ensure!(outcome == Outcome::Ok, "{outcome:?}");
    agent.stop()?;
    let start = Instant::now();
    agent.run(&[])?;
    println!("the next agent ready beside them in {} ms", start.elapsed().as_millis());
    let status = agent.status()?;
    ensure!(status["socketsAdopted"] == 0, "known ones were written anew: {status:#}");
    agent.stop()
}
