//! `reject: true`: who is denied is told so, at once.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use ztseg_tests::actor::ear::Ear;
use ztseg_tests::actor::forge::{self, mark};
use ztseg_tests::actor::{Actor, Kind, Said};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Report, Server};
use ztseg_tests::world::{World, patient};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("reject::a_denied_connection_is_refused", connections),
    ("reject::a_denied_datagram_is_answered", datagrams),
    ("reject::answers_have_right_checksums", checksums),
    ("reject::a_revoked_connection_is_reset", revoked),
    ("reject::nothing_is_answered_that_may_be_an_answer", no_answers),
    ("reject::an_answer_is_no_way_in", no_way_in),
];

const ALLOWED: u16 = 2000;
const REJECTED: u16 = 2001;
const SILENT: u16 = 2002;

/// The guest's end of every flow is asked, at TC, and no other: CIDRs make nobody a subject.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: reject }
spec:
  segments:
    vm: { match: [ { interface: zt-tap* } ] }
  deny:
    - { name: told, from: vm, to: any, ports: [tcp/2001, udp/2001], reject: true }
    - { name: told-in, from: [0.0.0.0/0, '::/0'], to: vm, ports: [tcp/2001, udp/2001], reject: true }
    - { name: silent, from: vm, to: any, ports: [tcp/2002, udp/2002] }
    - { name: silent-in, from: [0.0.0.0/0, '::/0'], to: vm, ports: [tcp/2002, udp/2002] }
  allow:
    - { name: out, from: vm, to: any }
    - { name: in, from: any, to: vm }
";

struct Scene {
    agent: Agent,
    _servers: [Server; 3],
    web: Place,
    vm: Place,
    far: Place,
    world: World,
}

impl Scene {
    fn new(policy: &str) -> Result<Self> {
        let world = World::new()?;
        let (web, vm, far) = (world.workload("/web")?, world.guest.place(), world.peer.place());
        let agent = Agent::start(&world, policy)?;
        let mut listen = Vec::new();
        for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            for port in [ALLOWED, REJECTED, SILENT] {
                let address = SocketAddr::from((any, port));
                listen.extend([Listen::Tcp(address), Listen::Udp(address)]);
            }
        }
        let servers = [
            Server::start(&web, &listen)?,
            Server::start(&vm, &listen)?,
            Server::start(&far, &listen)?,
        ];
        Ok(Self { agent, _servers: servers, web, vm, far, world })
    }

    /// From behind the interface and to it; from this host, and from another one.
    fn ways(&self, v6: bool) -> [(&Place, IpAddr); 4] {
        let world = &self.world;
        [
            (&self.vm, world.uplink.far(v6)),
            (&self.vm, world.tap.near(v6)),
            (&self.far, world.tap.far(v6)),
            (&self.web, world.tap.far(v6)),
        ]
    }
}

const PATIENCE: Duration = Duration::from_millis(900);

/// What a client sees that is told: at once, and not the silence of a timeout.
fn expect_told(ask: Ask, v6: bool, from: &Place, to: IpAddr) -> Result<()> {
    let probe = Probe::new(ask, (to, REJECTED).into()).patience(patient(PATIENCE));
    let report = probe.run(from)?;
    ensure!(is_told(ask, v6, &report), "{ask:?} to {to}: {report:?}");
    ensure!(
        u128::from(report.millis) < patient(PATIENCE).as_millis() / 2,
        "{ask:?} to {to}: it took {} ms",
        report.millis
    );
    Ok(())
}

/// As an error of the right kind.
fn is_told(ask: Ask, v6: bool, report: &Report) -> bool {
    let detail = report.detail.as_deref().unwrap_or_default();
    match ask {
        Ask::Tcp => report.outcome == Outcome::Refused,
        // EACCES and EHOSTUNREACH: `tab_unreach` in net/ipv6/icmp.c and `icmp_err_convert` in
        // net/ipv4/icmp.c for "administratively prohibited".
        _ if v6 => detail.contains("os error 13"),
        _ => detail.contains("os error 113"),
    }
}

fn connections(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(POLICY)?;
    for v6 in [false, true] {
        for (from, to) in scene.ways(v6) {
            let ask = |port| Probe::new(Ask::Tcp, (to, port).into()).run(from);
            let report = ask(ALLOWED)?;
            ensure!(report.outcome == Outcome::Ok, "to {to}, allowed: {report:?}");
            expect_told(Ask::Tcp, v6, from, to)?;
            let report = ask(SILENT)?;
            ensure!(report.outcome == Outcome::Timeout, "to {to}, silent: {report:?}");
        }
    }
    let event = scene.agent.wait_for_event(|event| event["rule"] == "reject/told")?;
    ensure!(event["verdict"] == "DROPPED", "{event:#}");
    scene.agent.stop()
}

fn datagrams(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(POLICY)?;
    for v6 in [false, true] {
        for (from, to) in scene.ways(v6) {
            for bytes in [0, 1, 64, 1400] {
                let probe = Probe::new(Ask::UdpConnected, (to, REJECTED).into()).bytes(bytes);
                let report = probe.run(from)?;
                let told = is_told(Ask::UdpConnected, v6, &report);
                ensure!(told, "{bytes} bytes to {to}: {report:?}");
            }
            let silent = Probe::new(Ask::UdpConnected, (to, SILENT).into()).run(from)?;
            ensure!(silent.outcome == Outcome::Timeout, "to {to}, silent: {silent:?}");
        }
    }
    scene.agent.stop()
}

/// Who receives an answer checks its checksum, unless it never left a machine: so it is written by
/// the kernel at either end of the interface.
fn checksums(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(POLICY)?;
    let world = &scene.world;
    // One after the other, so that each combination is met; first those where the sender leaves the
    // checksum to a device and the answer leaves by one that does not write it.
    let ends = [
        (&world.host, &world.tap.interface),
        (&world.host, &world.uplink.interface),
        (&world.guest, &world.tap.far_interface),
        (&world.peer, &world.uplink.far_interface),
    ];
    for (namespace, interface) in ends {
        namespace.without_checksums(interface)?;
        for v6 in [false, true] {
            for (from, to) in scene.ways(v6) {
                for ask in [Ask::Tcp, Ask::UdpConnected] {
                    expect_told(ask, v6, from, to)?;
                }
            }
        }
    }
    scene.agent.stop()
}

fn revoked(_: &Environment) -> Result<()> {
    let open = POLICY.replace("    - { name: told", "    # - { name: told");
    let mut scene = Scene::new(&open)?;
    let mut connections = Vec::new();
    for v6 in [false, true] {
        let kind = if v6 { Kind::Tcp6 } else { Kind::Tcp4 };
        for (from, to) in scene.ways(v6) {
            let mut actor = Actor::start(from)?;
            let socket = actor.socket(kind)?;
            actor.connect(socket, (to, REJECTED).into())?.done()?;
            actor.send(socket, b"before")?.done()?;
            ensure!(actor.receive(socket)? == Said::Done(6), "no answer from {to}");
            connections.push((actor, socket, to));
        }
    }
    scene.agent.apply(POLICY)?;
    for (mut actor, socket, to) in connections {
        // Large enough to be cut up on the way (GSO).
        actor.send(socket, &vec![b'x'; 20_000])?.done()?;
        let said = actor.receive(socket)?;
        ensure!(said == Said::Error(nix::errno::Errno::ECONNRESET), "{to}: {said:?}");
    }
    scene.agent.stop()
}

/// Else two that reject would answer each other for ever.
fn no_answers(_: &Environment) -> Result<()> {
    let policy = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: reject }
spec:
  segments:
    vm: { match: [ { interface: zt-tap* } ] }
  deny:
    - { name: all, from: vm, to: any, reject: true }
    - { name: all-in, from: [0.0.0.0/0, '::/0'], to: vm, reject: true }
";
    let mut scene = Scene::new(policy)?;
    let mut ear = Ear::start(&scene.vm)?;
    for v6 in [false, true] {
        for ask in [Ask::Tcp, Ask::UdpConnected] {
            expect_told(ask, v6, &scene.vm, scene.world.tap.near(v6))?;
            expect_told(ask, v6, &scene.far, scene.world.tap.far(v6))?;
        }
    }
    // Only what the guest sent, and an answer to each: what goes to it is answered before it.
    let heard = ear.heard()?;
    let packets: u64 =
        heard.iter().filter(|(what, _)| !what.contains(char::is_alphabetic)).map(|(_, n)| n).sum();
    println!("{packets} packets seen by the guest: {heard:?}");
    ensure!(packets < 100, "they answer each other: {heard:?}");
    scene.agent.stop()
}

/// What looks like an answer of ours is judged as anything else.
fn no_way_in(_: &Environment) -> Result<()> {
    let closed = POLICY.replace("    - { name: in, from: any, to: vm }\n", "");
    let mut scene = Scene::new(&closed)?;
    let mut ear = Ear::start(&scene.vm)?;
    let mut actor = Actor::start(&scene.far)?;
    let socket = actor.socket(Kind::Raw4(1))?;
    let (from, to) = (scene.world.uplink.far(false), scene.world.tap.far(false));
    // An error about a datagram that the guest did not send.
    let quoted = forge::datagram((to, 40_000).into(), (from, 80).into(), &mark("no"));
    let error = forge::icmp(3, 13, &[&[0; 4][..], &quoted].concat());
    actor.send_to(socket, (to, 0).into(), &error)?.done()?;
    ensure!(ear.count_after_silence("mark/no")? == 0, "an error got in");
    // And one about a datagram that it did send arrives: the control.
    let mut guest = Actor::start(&scene.vm)?;
    let sender = guest.socket(Kind::Udp4)?;
    guest.send_to(sender, (from, ALLOWED).into(), b"sent")?.done()?;
    let port = guest.port(sender)?;
    let quoted = forge::datagram((to, port).into(), (from, ALLOWED).into(), &mark("yes"));
    let error = forge::icmp(3, 13, &[&[0; 4][..], &quoted].concat());
    actor.send_to(socket, (to, 0).into(), &error)?.done()?;
    ensure!(ear.count("mark/yes")? > 0, "an error about an allowed flow is lost");
    scene.agent.stop()
}
