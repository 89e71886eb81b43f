//! Namespaces that a workload makes for itself: another network, and being root there.

use anyhow::{Result, ensure};
use ztseg_tests::actor::forge::{self, mark};
use ztseg_tests::actor::{Actor, Kind, Set};
use ztseg_tests::process::Place;
use ztseg_tests::world::patient;

use super::{DENIED, Scene};
use crate::Body;
use crate::environment::{Environment, Lacking};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("around::namespaces_of_a_network_of_its_own", network),
    ("around::namespaces_where_it_is_root", root),
];

const RAW: u8 = 255;

fn marked(n: u8) -> String {
    format!("mark/a{n}")
}

fn bytes(n: u8) -> Vec<u8> {
    mark(&format!("a{n}"))
}

/// An actor of `web` in a network namespace that it has made, with a way out.
fn inside(scene: &Scene, n: u8, user: bool) -> Result<Actor> {
    let mut actor = scene.actor()?;
    let said = actor.unshare(user, true)?;
    ensure!(said.is_done(), Lacking(format!("a workload cannot make namespaces here: {said:?}")));
    let pid = actor.pid();
    // What a runtime of containers does, or a friend outside.
    let near = format!("zt-in{n}");
    scene.world.host.batch(&format!(
        "link add {near} type veth peer name eth0 netns {pid}\n\
         addr add 203.0.113.{first}/30 dev {near}\nlink set {near} up\n",
        first = 4 * n + 1,
    ))?;
    let namespace = format!("/proc/{pid}/ns/net").into();
    let place = Place { cgroup: None, namespace: Some(namespace) };
    for command in [
        format!("addr add 203.0.113.{}/30 dev eth0", 4 * n + 2),
        "link set eth0 up".to_owned(),
        "link set lo up".to_owned(),
        format!("route add default via 203.0.113.{}", 4 * n + 1),
    ] {
        let arguments: Vec<&str> = command.split(' ').collect();
        place.spawn("ip", &arguments)?.output(patient(std::time::Duration::from_secs(10)))?;
    }
    Ok(actor)
}

fn network(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.only_when_allowed(marked, |scene, n| {
        let actor = &mut inside(scene, n, false)?;
        let socket = actor.socket(Kind::Udp4)?;
        actor.send_to(socket, scene.peer(false, DENIED), &bytes(n)).map(drop)
    })?;
    scene.done()
}

/// With a user namespace: every uid and capability of its own, and raw sockets.
fn root(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.only_when_allowed(marked, |scene, n| {
        let actor = &mut inside(scene, n, true)?;
        let to = scene.peer(false, DENIED);
        let socket = actor.socket(Kind::Udp4)?;
        actor.send_to(socket, to, &bytes(n))?;
        let raw = actor.socket(Kind::Raw4(RAW))?;
        actor.set(raw, Set::HeaderIncluded)?;
        let from = ([203, 0, 113, 4 * n + 2], 53).into();
        actor.send_to(raw, to, &forge::datagram(from, to, &bytes(n))).map(drop)
    })?;
    scene.done()
}
