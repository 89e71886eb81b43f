//! Taking another workload's identity on loopback, where an address says nothing about who sends.
//! `db` may be asked by `web` only; `other` pretends to be `web`, or takes a port after somebody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use ztseg_tests::actor::forge;
use ztseg_tests::actor::{Actor, Handle, Kind, Set};
use ztseg_tests::agent::Agent;
use ztseg_tests::world::World;

use super::{CLOSED, dropped, policy};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("around::identity_by_another_source_address", source_address),
    ("around::identity_by_a_raw_packet", raw),
    ("around::identity_by_a_shared_port", shared_port),
    ("around::identity_by_the_port_of_a_dead_client", dead_client),
    ("around::identity_by_the_port_of_a_dead_server", dead_server),
    ("around::identity_by_a_frame_on_loopback", frame),
];

/// `web`'s own port.
const WEBS: u16 = 5000;
/// `db`'s, where only `web` may ask, and may ask only `db`.
const ALLOWED: u16 = 3000;
/// Nobody's.
const ELSEWHERE: u16 = 9;
const RAW: u8 = 255;

/// Three workloads on one loopback device.
struct Stage {
    // In the order in which they end.
    web: Actor,
    db: Actor,
    other: Actor,
    agent: Agent,
    world: World,
}

impl Stage {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let places = ["/web", "/db", "/other"].map(|cgroup| world.workload(cgroup));
        let agent = Agent::start(&world, &policy(CLOSED))?;
        let [web, db, other] = places;
        let start = |place: Result<_>| Actor::start(&place?);
        Ok(Self { web: start(web)?, db: start(db)?, other: start(other)?, agent, world })
    }

    /// The server, on every address.
    fn server(&mut self, v6: bool) -> Result<Handle> {
        let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { [0; 4].into() };
        self.db.bound(udp(v6), (any, ALLOWED).into())
    }

    /// That `web` is heard.
    fn control(&mut self, server: Handle, from: Handle, v6: bool) -> Result<()> {
        self.web.send_to(from, to(v6, ALLOWED), b"web")?.done()?;
        let said = self.db.receive(server)?;
        ensure!(said.is_done(), "what is allowed did not arrive: {said:?}");
        Ok(())
    }

    /// That nothing more is heard, and that this was counted.
    fn silence(&mut self, server: Handle, before: u64, what: &str) -> Result<()> {
        let said = self.db.receive(server)?;
        ensure!(!said.is_done(), "{what}: it arrived");
        let now = dropped(&self.agent.status()?)?;
        ensure!(now > before, "{what}: nothing was counted as denied");
        Ok(())
    }

    fn dropped(&self) -> Result<u64> {
        dropped(&self.agent.status()?)
    }
}

fn udp(v6: bool) -> Kind {
    if v6 { Kind::Udp6 } else { Kind::Udp4 }
}

fn loopback(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

fn to(v6: bool, port: u16) -> SocketAddr {
    (loopback(v6), port).into()
}

/// A socket on another address of this host, which the kernel lets send from any (`IP_PKTINFO`).
fn source_address(_: &Environment) -> Result<()> {
    for v6 in [false, true] {
        let mut stage = Stage::new()?;
        let server = stage.server(v6)?;
        let webs = stage.web.bound(udp(v6), to(v6, WEBS))?;
        let elsewhere: IpAddr =
            if v6 { "2001:db8:1::1".parse()? } else { Ipv4Addr::new(127, 0, 0, 3).into() };
        let socket = stage.other.bound(udp(v6), (elsewhere, WEBS).into())?;
        for (connected, web_has_sent) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            if web_has_sent {
                stage.control(server, webs, v6)?;
            }
            let before = stage.dropped()?;
            if connected {
                stage.other.connect(socket, to(v6, ALLOWED))?;
            }
            stage.other.send_from(socket, loopback(v6), to(v6, ALLOWED), b"other")?;
            stage.silence(server, before, &format!("v6: {v6}, connected: {connected}"))?;
        }
        let borrowed = |e: &serde_json::Value| e["reason"] == "borrowed-source";
        stage.agent.wait_for_event(borrowed)?;
        stage.agent.stop()?;
    }
    Ok(())
}

fn raw(_: &Environment) -> Result<()> {
    let mut stage = Stage::new()?;
    let server = stage.server(false)?;
    let packet = forge::datagram(to(false, WEBS), to(false, ALLOWED), b"other");
    let raw = stage.other.socket(Kind::Raw4(RAW))?;
    stage.other.set(raw, Set::HeaderIncluded)?;
    // Before there is somebody to be taken for, and so that the flow is known.
    let before = stage.dropped()?;
    stage.other.send_to(raw, to(false, 0), &packet)?.done()?;
    stage.silence(server, before, "nobody's port")?;
    let webs = stage.web.bound(Kind::Udp4, to(false, WEBS))?;
    for _ in 0..2 {
        let before = stage.dropped()?;
        stage.other.send_to(raw, to(false, 0), &packet)?;
        stage.silence(server, before, "web's port")?;
        stage.control(server, webs, false)?;
    }
    stage.agent.stop()
}

/// Who shares a port with another workload is taken for neither.
fn shared_port(_: &Environment) -> Result<()> {
    for v6 in [false, true] {
        for share in [Set::ReuseAddress, Set::ReusePort] {
            for web_first in [true, false] {
                let mut stage = Stage::new()?;
                let server = stage.server(v6)?;
                let bind = |actor: &mut Actor| {
                    let socket = actor.socket(udp(v6))?;
                    actor.set(socket, share.clone())?;
                    actor.bind(socket, to(v6, WEBS))?;
                    anyhow::Ok(socket)
                };
                let others = if web_first {
                    bind(&mut stage.web)?;
                    bind(&mut stage.other)?
                } else {
                    let others = bind(&mut stage.other)?;
                    bind(&mut stage.web)?;
                    others
                };
                let before = stage.dropped()?;
                stage.other.send_to(others, to(v6, ALLOWED), b"other")?;
                stage.silence(server, before, &format!("{share:?}, web first: {web_first}"))?;
                stage.agent.stop()?;
            }
        }
    }
    Ok(())
}

/// Right after `web`, `other` has its port; and has had it before.
fn dead_client(_: &Environment) -> Result<()> {
    for v6 in [false, true] {
        for connected in [false, true] {
            let mut stage = Stage::new()?;
            let server = stage.server(v6)?;
            for _ in 0..2 {
                let before = stage.dropped()?;
                let others = stage.other.bound(udp(v6), to(v6, WEBS))?;
                if connected {
                    stage.other.connect(others, to(v6, ALLOWED))?;
                }
                stage.other.send_to(others, to(v6, ALLOWED), b"other")?;
                stage.silence(server, before, &format!("v6: {v6}, connected: {connected}"))?;
                stage.other.close(others)?;
                let webs = stage.web.bound(udp(v6), to(v6, WEBS))?;
                stage.control(server, webs, v6)?;
                stage.web.close(webs)?;
            }
            stage.agent.stop()?;
        }
    }
    Ok(())
}

/// Right after `db`, `other` has its port: it is not told what `web` has for `db`, nor does it
/// answer.
fn dead_server(_: &Environment) -> Result<()> {
    let cases = [false, true].map(|v6| [(v6, false, false), (v6, true, false), (v6, false, true)]);
    // `elsewhere`: from a socket that nobody finds, since it is connected to somebody else.
    for (v6, connected, elsewhere) in cases.concat() {
        let mut stage = Stage::new()?;
        let server = stage.server(v6)?;
        let webs = stage.web.bound(udp(v6), to(v6, WEBS))?;
        if connected {
            stage.web.connect(webs, to(v6, ALLOWED))?.done()?;
        }
        stage.control(server, webs, v6)?;
        stage.db.send_to(server, to(v6, WEBS), b"answer")?.done()?;
        ensure!(stage.web.receive(webs)?.is_done(), "the answer did not arrive");
        stage.db.close(server)?;
        let others = stage.other.bound(udp(v6), to(v6, ALLOWED))?;
        if elsewhere {
            stage.other.connect(others, to(v6, ELSEWHERE))?.done()?;
        }
        let before = stage.dropped()?;
        stage.web.send_to(webs, to(v6, ALLOWED), b"secret")?;
        ensure!(!stage.other.receive(others)?.is_done(), "another was told");
        stage.other.send_to(others, to(v6, WEBS), b"wrong answer")?;
        let what = format!("v6: {v6}, connected: {connected}, elsewhere: {elsewhere}");
        ensure!(!stage.web.receive(webs)?.is_done(), "another answered, {what}");
        ensure!(stage.dropped()? > before, "nothing was counted as denied, {what}");
        stage.agent.stop()?;
    }
    Ok(())
}

/// A packet socket on the loopback device, past every hook of the sender. It was made in no cgroup that
/// is looked at, where nobody refuses it. What has an IPv4 source of this host the kernel itself refuses
/// there.
fn frame(_: &Environment) -> Result<()> {
    for v6 in [false, true] {
        let mut stage = Stage::new()?;
        let server = stage.server(v6)?;
        let webs = stage.web.bound(udp(v6), to(v6, WEBS))?;
        let accomplice = &mut Actor::start(&stage.world.host.place())?;
        let socket = accomplice.socket(Kind::Packet)?;
        let path = stage.world.folder().join("passed");
        let socket = accomplice.hand(socket, &mut stage.other, &path)?;
        let before = stage.dropped()?;
        let packet = forge::datagram(to(v6, WEBS), to(v6, ALLOWED), b"other");
        stage.other.send_frame(socket, "lo", [0; 6], &packet)?.done()?;
        ensure!(!stage.db.receive(server)?.is_done(), "v6: {v6}: it arrived");
        ensure!(!v6 || stage.dropped()? > before, "nothing was counted as denied");
        stage.control(server, webs, v6)?;
        stage.agent.stop()?;
    }
    Ok(())
}
