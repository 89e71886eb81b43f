//! Sockets and processes that change their cgroup, and cgroups that look like others.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::actor::forge::mark;
use ztseg_tests::actor::{Actor, Kind};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::world::World;

use super::{ALLOWED, DENIED, Scene};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("around::cgroups_a_passed_socket_is_its_makers", passed),
    ("around::cgroups_a_passed_listener_is_its_makers", passed_listener),
    ("around::cgroups_a_moved_process", moved),
    ("around::cgroups_that_look_like_others", look_alikes),
];

fn marked(n: u8) -> String {
    format!("mark/a{n}")
}

fn bytes(n: u8) -> Vec<u8> {
    mark(&format!("a{n}"))
}

/// `web` makes a socket, and somebody who is in no segment uses it.
fn passed(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let path = scene.world.folder().join("passed");
    let accomplice = |scene: &Scene| Actor::start(&scene.world.workload("/other")?);
    for connected in [false, true] {
        scene.only_when_allowed(marked, |scene, n| {
            let (web, other) = (&mut scene.actor()?, &mut accomplice(scene)?);
            let socket = web.socket(Kind::Udp4)?;
            let theirs = web.hand(socket, other, &path)?;
            if connected {
                other.connect(theirs, scene.peer(false, DENIED))?;
            }
            other.send_to(theirs, scene.peer(false, DENIED), &bytes(n)).map(drop)
        })?;
    }
    scene.only_when_allowed(
        |_| format!("syn/{DENIED}"),
        |scene, _| {
            let (web, other) = (&mut scene.actor()?, &mut accomplice(scene)?);
            let socket = web.socket(Kind::Tcp4)?;
            let theirs = web.hand(socket, other, &path)?;
            other.connect(theirs, scene.peer(false, DENIED)).map(drop)
        },
    )?;
    scene.done()
}

/// As with socket activation: what is accepted is the listener's maker's, whoever accepts.
fn passed_listener(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    scene.close()?;
    let path = scene.world.folder().join("passed");
    let (web, other) = (&mut scene.actor()?, &mut Actor::start(&scene.world.workload("/other")?)?);
    let caller = &mut Actor::start(&scene.world.peer.place())?;
    for port in [ALLOWED, DENIED] {
        let to = (scene.here(false), port).into();
        let listener = web.bound(Kind::Tcp4, to)?;
        web.listen(listener)?;
        web.hand(listener, other, &path)?;
        web.close(listener)?;
        let socket = caller.socket(Kind::Tcp4)?;
        let said = caller.connect(socket, to)?;
        ensure!(said.is_done() == (port == ALLOWED), "port {port}: {said:?}");
    }
    scene.agent.wait_for_event(|e| e["workload"] == "/web" && e["local"]["port"] == DENIED)?;
    scene.done()
}

fn move_to(actor: &Actor, place: &Place) -> Result<()> {
    let folder = place.cgroup.as_deref().context("a place without a cgroup")?;
    fs::write(folder.join("cgroup.procs"), actor.pid().to_string()).context("cannot move it")
}

/// A process that is moved takes its sockets with it, and they stay what they were.
fn moved(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let other = scene.world.workload("/other")?;
    for connected in [false, true] {
        scene.only_when_allowed(marked, |scene, n| {
            let web = &mut scene.actor()?;
            let socket = web.socket(Kind::Udp4)?;
            if connected {
                web.connect(socket, scene.peer(false, ALLOWED))?.done()?;
                web.send(socket, b"allowed")?.done()?;
            }
            move_to(web, &other)?;
            web.send_to(socket, scene.peer(false, DENIED), &bytes(n)).map(drop)
        })?;
    }
    // What is made afterwards is the new workload's.
    scene.only_when_allowed(marked, |scene, n| {
        let actor = &mut Actor::start(&other)?;
        move_to(actor, &scene.web)?;
        let socket = actor.socket(Kind::Udp4)?;
        actor.send_to(socket, scene.peer(false, DENIED), &bytes(n)).map(drop)
    })?;
    scene.done()
}

const UNITS: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: units }
spec:
  segments:
    shop: { match: [ { unit: shop.service }, { cgroup: /shop } ] }
    db: { match: [ { cgroup: /db } ] }
  allow:
    - { name: shop-to-db, from: shop, to: db, ports: [udp/2000] }
    - { name: shop-out, from: shop, to: any }
";

/// Cgroups that a user, a container or a delegated unit can make.
fn look_alikes(_: &Environment) -> Result<()> {
    const GENUINE: [&str; 3] = ["/system.slice/shop.service", "/a.slice/shop.service/x", "/shop/x"];
    const FALSE: [&str; 7] = [
        "/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service",
        "/user.slice/user-1000.slice/session-1.scope/shop.service",
        "/system.slice/docker-1.scope/system.slice/shop.service",
        "/system.slice/ci.service/shop.service",
        "/other/shop",
        "/other/shop.service",
        "/system.slice/shop.service.slice",
    ];
    let world = World::new()?;
    let db = world.workload("/db")?;
    let places = |paths: &[&str]| -> Result<Vec<Place>> {
        paths.iter().map(|path| world.workload(path)).collect()
    };
    let (genuine, look_alikes) = (places(&GENUINE)?, places(&FALSE)?);
    let mut agent = Agent::start(&world, UNITS)?;
    let db = &mut Actor::start(&db)?;
    let to = ([127, 0, 0, 1], ALLOWED).into();
    let server = db.bound(Kind::Udp4, to)?;
    for (places, heard) in [(genuine, true), (look_alikes, false)] {
        for place in places {
            let actor = &mut Actor::start(&place)?;
            let socket = actor.socket(Kind::Udp4)?;
            actor.send_to(socket, to, b"shop")?;
            ensure!(db.receive(server)?.is_done() == heard, "{:?}", place.cgroup);
        }
    }
    agent.stop()
}
