//! Datagrams that pretend to be answers of a service, and requests that pretend to be somebody's
//! that is translated.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use ztseg_tests::actor::forge;
use ztseg_tests::actor::{Actor, Kind, Said, Set};
use ztseg_tests::agent::Agent;
use ztseg_tests::traffic::Listen;

use super::Translator;
use super::services::{CLOSED, OPEN, POLICY, Scene, backend_port, virtual_address};
use crate::Body;
use crate::environment::Environment;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("translation::a_forged_answer_of_a_service_is_none", from_elsewhere),
    ("translation::a_forged_answer_over_loopback_is_none", over_loopback),
    ("translation::the_ends_of_a_dead_client_make_nobody_its_workload", dead_client),
    ("translation::the_address_of_a_service_makes_nobody_its_backend", dead_answer),
];

/// The other host has the service's address, and answers for it; `web` asks what it may not.
fn from_elsewhere(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let world = &scene.world;
    scene.load(Translator::Nft, false)?;
    let mut agent = Agent::start(world, POLICY)?;
    let _servers = scene.serve()?;
    for v6 in [false, true] {
        let kind = if v6 { Kind::Udp6 } else { Kind::Udp4 };
        let service = virtual_address(3, v6);
        world.peer.add_address("lo", service, if v6 { 128 } else { 32 })?;
        let mut web = Actor::start(&scene.web)?;
        let socket = web.bound(kind, (world.uplink.near(v6), 5000).into())?;
        let to = SocketAddr::from((world.uplink.near(v6), 5000));
        let mut liar = Actor::start(&world.peer.place())?;
        for port in [CLOSED, OPEN] {
            let forged = liar.bound(kind, (service, port).into())?;
            liar.send_to(forged, to, b"unasked")?.done()?;
            ensure!(!web.receive(socket)?.is_done(), "v6 {v6}: an unasked answer arrived");
            if port == CLOSED {
                web.send_to(socket, (service, port).into(), b"denied")?;
                liar.send_to(forged, to, b"to what was denied")?.done()?;
                ensure!(!web.receive(socket)?.is_done(), "v6 {v6}: an answer to nothing arrived");
            }
            liar.close(forged)?;
        }
        // What it may ask is answered, from the same address. From another port: of this one the kernel
        // has a connection in mind that begins at the other end.
        let socket = web.bound(kind, (world.uplink.near(v6), 5002).into())?;
        web.send_to(socket, (service, OPEN).into(), b"asked")?.done()?;
        ensure!(web.receive(socket)? == Said::Done(5), "v6 {v6}: what is allowed is not answered");
    }
    agent.apply(
        &POLICY.replace("  allow:\n", "  allow:\n    - { name: all, from: any, to: web }\n"),
    )?;
    let mut web = Actor::start(&scene.web)?;
    let socket = web.bound(Kind::Udp4, (world.uplink.near(false), 5001).into())?;
    let mut liar = Actor::start(&world.peer.place())?;
    let forged = liar.bound(Kind::Udp4, (virtual_address(3, false), CLOSED).into())?;
    liar.send_to(forged, (world.uplink.near(false), 5001).into(), b"open")?.done()?;
    ensure!(web.receive(socket)? == Said::Done(4), "where all is open it arrives");
    agent.stop()
}

/// Another workload of this host, which may send everything, with raw packets.
fn over_loopback(_: &Environment) -> Result<()> {
    const RAW: u8 = 255;
    let scene = Scene::new()?;
    let world = &scene.world;
    // What only its own end holds up.
    scene.load(Translator::Nft, true)?;
    let near = world.uplink.near(false);
    let mut agent = Agent::start(world, POLICY)?;
    let _servers = scene.serve()?;
    let mut web = Actor::start(&scene.web)?;
    let mut other = Actor::start(&world.workload("/other")?)?;
    let socket = web.bound(Kind::Udp4, (near, 5000).into())?;
    let service = SocketAddr::from((virtual_address(1, false), OPEN));
    let raw = other.socket(Kind::Raw4(RAW))?;
    other.set(raw, Set::HeaderIncluded)?;
    for round in 0..3 {
        web.send_to(socket, service, b"asked")?.done()?;
        ensure!(web.receive(socket)? == Said::Done(5), "what is allowed is not answered");
        let to = SocketAddr::from((near, 5000));
        other.send_to(raw, (near, 0).into(), &forge::datagram(service, to, b"forged"))?;
        ensure!(!web.receive(socket)?.is_done(), "round {round}: a forged answer arrived");
    }
    let open = POLICY.replace("  allow:\n", "  allow:\n    - { name: all, from: any, to: web }\n");
    agent.apply(&open)?;
    let to = SocketAddr::from((near, 5000));
    let from = SocketAddr::from((virtual_address(1, false), CLOSED));
    other.send_to(raw, (near, 0).into(), &forge::datagram(from, to, b"open"))?.done()?;
    ensure!(web.receive(socket)? == Said::Done(4), "where all is open it arrives");
    agent.stop()
}

/// After which the kernel has forgotten how it has translated datagrams, where it was told to be quick.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// Tells it.
fn forget_soon(scene: &Scene) -> Result<()> {
    let seconds = FORGOTTEN.as_secs().to_string();
    scene.world.host.set(&[
        ("netfilter/nf_conntrack_udp_timeout", &seconds),
        ("netfilter/nf_conntrack_udp_timeout_stream", &seconds),
    ])
}

/// Waits until it has: it takes no entry for one whose time is over (`nf_ct_is_expired`).
fn forget() {
    std::thread::sleep(FORGOTTEN * 2);
}

/// Another workload takes the ends that a translated client has had at `db`, from a socket that no
/// lookup finds, since it is connected elsewhere.
fn dead_client(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let world = &scene.world;
    scene.load(Translator::Nft, false)?;
    let mut agent = Agent::start(world, POLICY)?;
    let mut servers = scene.serve()?;
    forget_soon(&scene)?;
    for v6 in [false, true] {
        let kind = if v6 { Kind::Udp6 } else { Kind::Udp4 };
        let client = SocketAddr::from((world.uplink.near(v6), 5000));
        let db = SocketAddr::from((world.uplink.near(v6), backend_port(OPEN)));
        let heard = Listen::Udp(db).to_string();
        let mut web = Actor::start(&scene.web)?;
        let mut ask = || {
            let socket = web.bound(kind, client)?;
            web.connect(socket, (virtual_address(1, v6), OPEN).into())?.done()?;
            web.send(socket, b"asked")?.done()?;
            ensure!(
                web.receive(socket)? == Said::Done(5),
                "v6 {v6}: what is allowed is not answered"
            );
            web.close(socket)
        };
        ask()?;
        forget();
        let before = servers[0].counts()?[&heard];
        let mut other = Actor::start(&world.workload("/other")?)?;
        let socket = other.bound(kind, client)?;
        other.connect(socket, (world.uplink.far(v6), 9).into())?.done()?;
        other.send_to(socket, db, b"forged")?;
        other.close(socket)?;
        forget();
        // What comes after it has arrived, so it would have.
        ask()?;
        let after = servers[0].counts()?[&heard];
        ensure!(after == before + 1, "v6 {v6}: another was taken for web");
    }
    agent.stop()
}

/// The service's address is one of this host, and another workload sends from it to who has asked;
/// from a socket that no lookup finds.
fn dead_answer(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let world = &scene.world;
    scene.load(Translator::Nft, false)?;
    let mut agent = Agent::start(world, POLICY)?;
    let _servers = scene.serve()?;
    forget_soon(&scene)?;
    let forge = |v6, port| -> Result<bool> {
        let kind = if v6 { Kind::Udp6 } else { Kind::Udp4 };
        let client = SocketAddr::from((world.uplink.near(v6), port));
        let service = SocketAddr::from((virtual_address(1, v6), OPEN));
        let mut web = Actor::start(&scene.web)?;
        let socket = web.bound(kind, client)?;
        web.send_to(socket, service, b"asked")?.done()?;
        ensure!(web.receive(socket)? == Said::Done(5), "v6 {v6}: what is allowed is not answered");
        forget();
        let mut other = Actor::start(&world.workload("/other")?)?;
        let forged = other.bound(kind, service)?;
        other.connect(forged, (world.uplink.far(v6), 9).into())?.done()?;
        other.send_to(forged, client, b"forged")?;
        other.close(forged)?;
        Ok(web.receive(socket)?.is_done())
    };
    for v6 in [false, true] {
        world.host.add_address("lo", virtual_address(1, v6), if v6 { 128 } else { 32 })?;
        ensure!(!forge(v6, 5000)?, "v6 {v6}: a forged answer arrived");
    }
    let event = agent.wait_for_event(|event| event["reason"] == "borrowed-source")?;
    ensure!(event["workload"] == "/other" || event["peer"]["port"] == 5000, "{event:#}");
    agent.stop()
}
