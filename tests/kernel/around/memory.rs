//! Sockets for which no state can be had.

use anyhow::{Result, ensure};
use ztseg_tests::actor::forge::mark;
use ztseg_tests::actor::{Actor, Kind};

use super::{ALLOWED, DENIED, Scene};
use crate::Body;
use crate::environment::{Environment, Lacking};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[("around::memory_for_options_used_up", used_up)];

/// A workload can use up the option memory of its sockets (`net.core.optmem_max`), where the state
/// of a socket is kept. Here nobody has any: each packet is judged.
fn used_up(environment: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let set = scene.world.host.set(&[("core/optmem_max", "1")]);
    // Before Linux 6.8 it is the whole machine's, and not to be seen from another namespace.
    ensure!(
        set.is_ok(),
        Lacking("net.core.optmem_max is the whole machine's on this kernel".to_owned())
    );
    let _ = environment;
    let without = |scene: &Scene| -> Result<u64> {
        let status = scene.agent.status()?;
        Ok(status["counters"]["sockets_without_state"].as_u64().unwrap_or_default())
    };
    let before = without(&scene)?;
    let port = |n: u8| format!("17/{DENIED}/a{n}");
    for connected in [false, true] {
        scene.only_when_allowed(port, |scene, n| {
            let actor = &mut scene.actor()?;
            let socket = actor.socket(Kind::Udp4)?;
            if connected {
                actor.connect(socket, scene.peer(false, DENIED))?;
            }
            actor.send_to(socket, scene.peer(false, DENIED), &mark(&format!("a{n}"))).map(drop)
        })?;
    }
    scene.only_when_allowed(
        |_| format!("syn/{DENIED}"),
        |scene, _| {
            let actor = &mut scene.actor()?;
            let socket = actor.socket(Kind::Tcp4)?;
            actor.connect(socket, scene.peer(false, DENIED)).map(drop)
        },
    )?;
    ensure!(without(&scene)? > before, "every socket had its state");
    // What is allowed goes on, and a revoked connection does not.
    scene.open()?;
    let actor = &mut scene.actor()?;
    let socket = actor.socket(Kind::Tcp4)?;
    actor.connect(socket, scene.peer(false, DENIED))?.done()?;
    for (open, name) in [(true, "t1"), (false, "t2")] {
        if !open {
            scene.close()?;
        }
        actor.send(socket, &mark(name))?.done()?;
        let what = format!("6/{DENIED}/{name}");
        let heard =
            if open { scene.ear.count(&what)? } else { scene.ear.count_after_silence(&what)? };
        ensure!((heard > 0) == open, "{name}: {heard} packets arrived");
    }
    // Asked for what is allowed and for what is not.
    let (web, caller) = (&mut scene.actor()?, &mut Actor::start(&scene.world.peer.place())?);
    for port in [ALLOWED, DENIED] {
        let to = (scene.here(false), port).into();
        let listener = web.bound(Kind::Tcp4, to)?;
        web.listen(listener)?;
        let socket = caller.socket(Kind::Tcp4)?;
        let said = caller.connect(socket, to)?;
        ensure!(said.is_done() == (port == ALLOWED), "port {port}: {said:?}");
    }
    scene.agent.stop()
}
