//! Datagram sockets that were judged for one thing and are used for another.

use anyhow::Result;
use ztseg_tests::actor::forge::mark;
use ztseg_tests::actor::{Actor, Handle, Kind, Set};

use super::{ALLOWED, DENIED, Scene};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("around::datagrams_connected_elsewhere", connected_elsewhere),
    ("around::datagrams_of_a_disconnected_socket", disconnected),
    ("around::datagrams_to_a_mapped_address", mapped),
    ("around::datagrams_corked", corked),
    ("around::datagrams_through_a_device", through_a_device),
    ("around::datagrams_through_a_ring", through_a_ring),
    ("around::datagrams_of_a_file", of_a_file),
];

const MSG_MORE: i32 = 0x8000;

fn marked(n: u8) -> String {
    format!("mark/a{n}")
}

fn bytes(n: u8) -> Vec<u8> {
    mark(&format!("a{n}"))
}

/// A socket that is connected to what is allowed, and has sent there.
fn judged(scene: &Scene, actor: &mut Actor, v6: bool) -> Result<Handle> {
    let socket = actor.socket(if v6 { Kind::Udp6 } else { Kind::Udp4 })?;
    actor.connect(socket, scene.peer(v6, ALLOWED))?.done()?;
    actor.send(socket, b"allowed")?.done()?;
    Ok(socket)
}

/// `sendto` and `sendmsg` on a connected socket take another destination.
fn connected_elsewhere(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for v6 in [false, true] {
        scene.only_when_allowed(marked, |scene, n| {
            let actor = &mut scene.actor()?;
            let socket = judged(scene, actor, v6)?;
            actor.send_to(socket, scene.peer(v6, DENIED), &bytes(n))?;
            actor.send_from(socket, scene.here(v6), scene.peer(v6, DENIED), &bytes(n)).map(drop)
        })?;
    }
    scene.done()
}

fn disconnected(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for v6 in [false, true] {
        scene.only_when_allowed(marked, |scene, n| {
            let actor = &mut scene.actor()?;
            let socket = judged(scene, actor, v6)?;
            actor.disconnect(socket)?;
            actor.connect(socket, scene.peer(v6, DENIED))?;
            actor.send(socket, &bytes(n))?;
            actor.send_to(socket, scene.peer(v6, DENIED), &bytes(n)).map(drop)
        })?;
    }
    scene.done()
}

/// An IPv6 socket that carries IPv4.
fn mapped(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for connect in [false, true] {
        scene.only_when_allowed(marked, |scene, n| {
            let actor = &mut scene.actor()?;
            let socket = actor.socket(Kind::Udp6)?;
            let to = super::mapped(scene.peer(false, DENIED));
            if connect {
                actor.connect(socket, super::mapped(scene.peer(false, ALLOWED)))?.done()?;
                actor.send(socket, b"allowed")?.done()?;
                actor.connect(socket, to)?;
                actor.send(socket, &bytes(n))?;
            }
            actor.send_to(socket, to, &bytes(n)).map(drop)
        })?;
    }
    scene.done()
}

/// What is corked goes where its first part was to go.
fn corked(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    // What is said to the allowed port may arrive there.
    let there = |n| format!("17/{DENIED}/a{n}");
    scene.only_when_allowed(there, |scene, n| {
        let actor = &mut scene.actor()?;
        let socket = judged(scene, actor, false)?;
        let (denied, allowed) = (scene.peer(false, DENIED), scene.peer(false, ALLOWED));
        actor.send_with(socket, denied, b"more, ", MSG_MORE)?;
        actor.send_to(socket, allowed, &bytes(n))?;
        actor.set(socket, Set::Cork(true))?;
        actor.send_to(socket, denied, &bytes(n))?;
        actor.send_to(socket, allowed, b"and more")?;
        actor.set(socket, Set::Cork(false))
    })?;
    scene.done()
}

fn through_a_device(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for v6 in [false, true] {
        scene.only_when_allowed(marked, |scene, n| {
            let actor = &mut scene.actor()?;
            let socket = actor.socket(if v6 { Kind::Udp6 } else { Kind::Udp4 })?;
            actor.set(socket, Set::Device(scene.world.uplink.interface.clone()))?;
            actor.send_to(socket, scene.peer(v6, DENIED), &bytes(n)).map(drop)
        })?;
    }
    scene.done()
}

fn through_a_ring(_: &Environment) -> Result<()> {
    super::need_io_uring()?;
    let mut scene = Scene::new()?;
    scene.only_when_allowed(marked, |scene, n| {
        let actor = &mut scene.actor()?;
        let socket = judged(scene, actor, false)?;
        actor.connect(socket, scene.peer(false, DENIED))?;
        actor.send_by_ring(socket, &bytes(n)).map(drop)
    })?;
    scene.done()
}

fn of_a_file(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for splice in [false, true] {
        scene.only_when_allowed(marked, |scene, n| {
            let actor = &mut scene.actor()?;
            let socket = judged(scene, actor, false)?;
            actor.connect(socket, scene.peer(false, DENIED))?;
            actor.send_file(socket, &bytes(n), splice).map(drop)
        })?;
    }
    scene.done()
}
