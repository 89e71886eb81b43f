//! Datagrams that pretend to be answers of a service, and requests that pretend to be somebody's
//! that is translated.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use ztseg_tests::actor::forge;
use ztseg_tests::actor::{Actor, Kind, Said, Set};
use ztseg_tests::agent::Agent;

use super::Translator;
use super::services::{CLOSED, OPEN, POLICY, Scene, virtual_address};
use crate::Body;
use crate::environment::Environment;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("translation::a_forged_answer_of_a_service_is_none", from_elsewhere),
    ("translation::a_forged_answer_over_loopback_is_none", over_loopback),
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
    agent.apply(&POLICY.replace("  allow:\n", "  allow:\n    - { name: all, from: any, to: web }\n"))?;
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
