//! Flows that live while policies, agents and rules change.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::actor::{Actor, Handle, Kind, Said};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::Outcome;

use super::Translator;
use super::rules::kube_proxy;
use super::services::{
    ASKS, BACKENDS, OPEN, POLICY, Scene, all_open, ask, backend_port, virtual_address,
};
use crate::Body;
use crate::environment::Environment;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("translation::a_revoked_flow_ends_and_comes_back", revoked),
    ("translation::flows_outlive_their_agent_and_their_rules", outlive),
    ("translation::one_socket_asks_several_services", several),
    ("translation::flows_that_share_few_ports_find_their_answers", few_ports),
];

/// A socket that asks a service again and again.
struct Flow {
    name: String,
    actor: Actor,
    socket: Handle,
    /// Where each message goes, unless it is connected.
    to: Option<SocketAddr>,
}

impl Flow {
    fn all(scene: &Scene) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for v6 in [false, true] {
            for (n, backend) in (1..).zip(BACKENDS) {
                let to = (virtual_address(n, v6), OPEN).into();
                for how in ["tcp", "udp", "connected udp"] {
                    let flow = Self::new(&scene.web, how, to);
                    all.push(flow.with_context(|| format!("{how} to {backend} at {to}"))?);
                }
            }
        }
        Ok(all)
    }

    fn new(from: &Place, how: &str, to: SocketAddr) -> Result<Self> {
        let mut actor = Actor::start(from)?;
        let kind = match (how, to.is_ipv6()) {
            ("tcp", false) => Kind::Tcp4,
            ("tcp", true) => Kind::Tcp6,
            (_, false) => Kind::Udp4,
            (_, true) => Kind::Udp6,
        };
        let socket = actor.socket(kind)?;
        if how != "udp" {
            actor.connect(socket, to)?.done()?;
        }
        let name = format!("{how} to {to}");
        Ok(Self { name, actor, socket, to: (how == "udp").then_some(to) })
    }

    fn is_answered(&mut self) -> Result<bool> {
        let Self { actor, socket, to, .. } = self;
        match to {
            Some(to) => actor.send_to(*socket, *to, b"again")?,
            None => actor.send(*socket, b"again")?,
        };
        Ok(matches!(actor.receive(*socket)?, Said::Done(5..)))
    }

    fn ensure(&mut self, answered: bool, when: &str) -> Result<()> {
        for _ in 0..2 {
            ensure!(self.is_answered()? == answered, "{}, {when}: not so", self.name);
        }
        Ok(())
    }
}

fn ensure_all(flows: &mut [Flow], answered: bool, when: &str) -> Result<()> {
    flows.iter_mut().try_for_each(|flow| flow.ensure(answered, when))
}

fn revoked(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    // Servers that are older than the agent.
    let _servers = scene.serve()?;
    scene.load(Translator::Nft, false)?;
    let mut agent = Agent::start(&scene.world, POLICY)?;
    let mut flows = Flow::all(&scene)?;
    ensure_all(&mut flows, true, "allowed")?;
    // Another generation in which it is still allowed: nothing is lost.
    agent.apply(&all_open())?;
    ensure_all(&mut flows, true, "all open")?;
    agent.apply(&POLICY.replace("/2000", "/2009"))?;
    ensure_all(&mut flows, false, "revoked")?;
    agent.apply(POLICY)?;
    let mut datagrams: Vec<_> = flows.into_iter().filter(|f| !f.name.starts_with("tcp")).collect();
    ensure_all(&mut datagrams, true, "allowed again")?;
    agent.stop()
}

fn outlive(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    scene.load(Translator::Nft, true)?;
    let mut agent = Agent::start(&scene.world, POLICY)?;
    let _servers = scene.serve()?;
    let mut flows = Flow::all(&scene)?;
    ensure_all(&mut flows, true, "allowed")?;
    agent.kill9();
    ensure_all(&mut flows, true, "without an agent")?;
    agent.run(&[])?;
    ensure_all(&mut flows, true, "with the next agent")?;
    // The kernel goes on to translate what it has translated, and nothing new.
    for v6 in [false, true] {
        let rules = kube_proxy(Translator::Nft, &scene.services(v6, false)[..1]);
        Translator::Nft.load(&scene.world, &scene.world.host, v6, &rules)?;
    }
    ensure_all(&mut flows, true, "with other rules")?;
    for how in ASKS {
        let outcome = ask(how, &scene.web, (virtual_address(3, false), OPEN).into())?;
        ensure!(outcome != Outcome::Ok, "{how:?} is still translated");
        let outcome = ask(how, &scene.web, (virtual_address(1, false), OPEN).into())?;
        ensure!(outcome == Outcome::Ok, "{how:?} by the other rules: {outcome:?}");
    }
    agent.apply(&all_open())?;
    ensure_all(&mut flows, true, "all open")?;
    agent.stop()
}

/// The answers come to one socket, from the addresses that it asked.
fn several(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    scene.load(Translator::Nft, false)?;
    let mut agent = Agent::start(&scene.world, POLICY)?;
    let _servers = scene.serve()?;
    for v6 in [false, true] {
        let mut actor = Actor::start(&scene.web)?;
        let socket = actor.socket(if v6 { Kind::Udp6 } else { Kind::Udp4 })?;
        let mut targets: Vec<SocketAddr> =
            [1, 2, 3].map(|n| (virtual_address(n, v6), OPEN).into()).to_vec();
        // Without translation, both backends of the last one: whichever of them answers, the kernel
        // has to give one flow another source.
        let far = scene.backends("far", v6).into_iter();
        targets.extend(far.map(|backend| SocketAddr::from((backend, backend_port(OPEN)))));
        for round in 0..2 {
            for to in &targets {
                actor.send_to(socket, *to, b"one")?.done()?;
            }
            for answer in 0..targets.len() {
                let said = actor.receive(socket)?;
                ensure!(said == Said::Done(3), "round {round}, answer {answer}: {said:?}");
            }
        }
        // One that is denied in between changes nothing for the others.
        actor.send_to(socket, (virtual_address(1, v6), OPEN + 1).into(), b"denied")?;
        for to in &targets {
            actor.send_to(socket, *to, b"one")?.done()?;
            ensure!(actor.receive(socket)? == Said::Done(3), "{to} after a denial");
        }
    }
    agent.stop()
}

/// All that leaves for the other host or for a local workload takes its source from three ports, one
/// of which another workload's socket has.
fn few_ports(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let world = &scene.world;
    scene.load(Translator::Nft, false)?;
    let mut innocent = Actor::start(&world.workload("/other")?)?;
    for (v6, ip, kind) in [(false, "ip", Kind::Udp4), (true, "ip6", Kind::Udp6)] {
        let near = world.uplink.near(v6);
        innocent.bound(kind, (near, 40001).into())?;
        let snat = if v6 { format!("[{near}]") } else { near.to_string() };
        let rules = format!(
            "table {ip} few {{\n chain out {{\n type nat hook postrouting priority 90; policy \
             accept;\n meta l4proto {{ tcp, udp }} th dport 2000 snat to {snat}:40000-40002\n }}\n}}\n"
        );
        Translator::Nft.load(world, &world.host, v6, &rules)?;
    }
    let mut agent = Agent::start(world, POLICY)?;
    let _servers = scene.serve()?;
    let mut flows = Vec::new();
    for v6 in [false, true] {
        for n in [1, 3] {
            let to = (virtual_address(n, v6), OPEN).into();
            for how in ["tcp", "udp", "connected udp"] {
                flows.push(Flow::new(&scene.web, how, to).with_context(|| format!("{how}, {to}"))?);
            }
        }
    }
    for _ in 0..3 {
        ensure_all(&mut flows, true, "allowed")?;
    }
    agent.apply(&all_open())?;
    ensure_all(&mut flows, true, "all open")?;
    agent.apply(&POLICY.replace("/2000", "/2009"))?;
    ensure_all(&mut flows, false, "revoked")?;
    agent.stop()
}
