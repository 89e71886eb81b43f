//! TCP sockets that were judged for one thing and are used for another, and other ways to open a
//! connection.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use ztseg_tests::actor::forge::mark;
use ztseg_tests::actor::{Actor, Kind};

use super::{ALLOWED, DENIED, Scene, policy};
use crate::Body;
use crate::environment::{Environment, Lacking};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("around::streams_of_a_disconnected_socket", disconnected),
    ("around::streams_back_to_who_connected", back),
    ("around::streams_of_a_former_client", former_client),
    ("around::streams_to_a_mapped_address", mapped),
    ("around::streams_with_data_in_the_first_segment", fast_open),
    ("around::streams_over_several_paths", multipath),
    ("around::streams_that_join_a_connection", join),
    ("around::streams_without_send", without_send),
];

const MSG_FASTOPEN: i32 = 0x2000_0000;
/// Allowed, and nobody listens there but who is told to.
const SPARE: u16 = 2010;
/// Where the kernel of the other end wants to be joined.
const JOINED: u16 = 2020;

fn opens(port: u16) -> impl Fn(u8) -> String {
    move |_| format!("syn/{port}")
}

fn disconnected(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for v6 in [false, true] {
        scene.only_when_allowed(opens(DENIED), |scene, _| {
            let actor = &mut scene.actor()?;
            let socket = actor.socket(if v6 { Kind::Tcp6 } else { Kind::Tcp4 })?;
            actor.connect(socket, scene.peer(v6, ALLOWED))?.done()?;
            actor.send(socket, b"allowed")?.done()?;
            actor.disconnect(socket)?;
            actor.connect(socket, scene.peer(v6, DENIED)).map(drop)
        })?;
    }
    scene.done()
}

/// The peer of an accepted connection may ask, and may not be asked.
fn back(_: &Environment) -> Result<()> {
    const BACK: u16 = 2222;
    let mut scene = Scene::new()?;
    for v6 in [false, true] {
        scene.only_when_allowed(opens(BACK), |scene, _| {
            let kind = if v6 { Kind::Tcp6 } else { Kind::Tcp4 };
            let (web, peer) = (&mut scene.actor()?, &mut Actor::start(&scene.world.peer.place())?);
            let listener = web.bound(kind, (scene.here(v6), ALLOWED).into())?;
            web.listen(listener)?;
            let caller = peer.bound(kind, scene.peer(v6, BACK))?;
            peer.connect(caller, (scene.here(v6), ALLOWED).into())?.done()?;
            let child = web.accept(listener)?;
            web.send(child, b"hello")?.done()?;
            web.disconnect(child)?;
            peer.close(caller)?;
            let caller = peer.bound(kind, scene.peer(v6, BACK))?;
            peer.listen(caller)?;
            web.connect(child, scene.peer(v6, BACK)).map(drop)
        })?;
    }
    scene.done()
}

/// A client's socket becomes a listener: who connects from where it was connected to is asking.
fn former_client(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    scene.close()?;
    let (web, peer) = (&mut scene.actor()?, &mut Actor::start(&scene.world.peer.place())?);
    let socket = web.bound(Kind::Tcp4, (scene.here(false), DENIED).into())?;
    let server = peer.bound(Kind::Tcp4, scene.peer(false, SPARE))?;
    peer.listen(server)?;
    web.connect(socket, scene.peer(false, SPARE))?.done()?;
    let accepted = peer.accept(server)?;
    peer.close(accepted)?;
    peer.close(server)?;
    web.disconnect(socket)?;
    web.listen(socket)?;
    let before = scene.dropped()?;
    let caller = peer.bound(Kind::Tcp4, scene.peer(false, SPARE))?;
    let said = peer.connect(caller, (scene.here(false), DENIED).into())?;
    ensure!(!said.is_done(), "the connection was accepted");
    ensure!(scene.dropped()? > before, "nothing was counted as denied");
    let mut agent = scene.agent;
    agent.stop()
}

fn mapped(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.only_when_allowed(opens(DENIED), |scene, _| {
        let actor = &mut scene.actor()?;
        let socket = actor.socket(Kind::Tcp6)?;
        actor.connect(socket, super::mapped(scene.peer(false, DENIED))).map(drop)
    })?;
    scene.done()
}

fn fast_open(_: &Environment) -> Result<()> {
    /// Both ends, without a cookie, all listeners (ip-sysctl, `tcp_fastopen`).
    const ALL: &str = "1543";
    let mut scene = Scene::new()?;
    for namespace in [&scene.world.host, &scene.world.peer] {
        namespace.set(&[("ipv4/tcp_fastopen", ALL)])?;
    }
    let there = |n| format!("6/{DENIED}/a{n}");
    scene.only_when_allowed(there, |scene, n| {
        let actor = &mut scene.actor()?;
        let socket = actor.socket(Kind::Tcp4)?;
        let bytes = mark(&format!("a{n}"));
        actor.send_with(socket, scene.peer(false, DENIED), &bytes, MSG_FASTOPEN).map(drop)
    })?;
    scene.agent.stop()
}

/// A test that cannot be without MPTCP.
fn need_multipath(actor: &mut Actor) -> Result<()> {
    let (_, said) = actor.try_socket(Kind::Mptcp4)?;
    ensure!(said.is_done(), Lacking(format!("this kernel has no MPTCP: {said:?}")));
    Ok(())
}

fn multipath(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    need_multipath(&mut scene.actor()?)?;
    scene.only_when_allowed(opens(DENIED), |scene, _| {
        let actor = &mut scene.actor()?;
        let socket = actor.socket(Kind::Mptcp4)?;
        actor.connect(socket, scene.peer(false, DENIED)).map(drop)
    })?;
    scene.done()
}

/// The other end names an address and a port, and the kernel connects there by itself.
fn join(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    need_multipath(&mut scene.actor()?)?;
    let second = scene.world.uplink.addresses(3)[0];
    let (host, peer) = (&scene.world.host, &scene.world.peer);
    peer.add_address(&scene.world.uplink.far_interface, second, 28)?;
    let commands = "mptcp limits set subflows 4 add_addr_accepted 4\n";
    host.batch(commands)?;
    peer.batch(&format!("{commands}mptcp endpoint add {second} port {JOINED} signal\n"))?;
    scene.only_when_allowed(opens(JOINED), |scene, _| {
        let (web, peer) = (&mut scene.actor()?, &mut Actor::start(&scene.world.peer.place())?);
        let to = SocketAddr::from((scene.world.uplink.far(false), SPARE));
        let listener = peer.bound(Kind::Mptcp4, to)?;
        peer.listen(listener)?;
        let socket = web.socket(Kind::Mptcp4)?;
        web.connect(socket, to)?.done()?;
        let child = peer.accept(listener)?;
        for _ in 0..4 {
            web.send(socket, b"hello")?.done()?;
            peer.receive(child)?.done()?;
            peer.send(child, b"hello")?.done()?;
            web.receive(socket)?.done()?;
        }
        // The kernel's worker connects in its own time.
        scene.ear.count_after_silence("").map(drop)
    })?;
    scene.agent.wait_for_event(|e| e["workload"] == "/web" && e["peer"]["port"] == JOINED)?;
    scene.done()
}

/// A revoked connection, fed by what is not `send`.
fn without_send(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let has_ring = super::need_io_uring().is_ok();
    let there = |what: &str| format!("6/{DENIED}/{what}");
    let web = &mut scene.actor()?;
    let mut sockets = Vec::new();
    for way in ["file", "pipe", "ring"] {
        if way == "ring" && !has_ring {
            continue;
        }
        let socket = web.socket(Kind::Tcp4)?;
        web.connect(socket, scene.peer(false, DENIED))?.done()?;
        sockets.push((way, socket));
    }
    for revoked in [false, true] {
        for (way, socket) in &sockets {
            let name = format!("{way}{}", u8::from(revoked));
            match *way {
                "ring" => web.send_by_ring(*socket, &mark(&name))?.done()?,
                way => web.send_file(*socket, &mark(&name), way == "pipe")?.done()?,
            };
            let heard = if revoked {
                scene.ear.count_after_silence(&there(&name))?
            } else {
                scene.ear.count(&there(&name))?
            };
            ensure!((heard > 0) != revoked, "{name}: {heard} packets arrived");
        }
        scene.agent.apply(&policy(""))?;
    }
    scene.agent.wait_for_event(|e| e["workload"] == "/web" && e["peer"]["port"] == DENIED)?;
    scene.done()
}
