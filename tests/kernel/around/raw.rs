//! Raw sockets, and frames behind an interface: packets that the workload writes itself.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::actor::forge::{self, mark};
use ztseg_tests::actor::{Actor, Kind, Set};

use super::{ALLOWED, CLOSED, DENIED, Scene, policy};
use crate::Body;
use crate::environment::{Environment, has_bpf_lsm, no_bpf_lsm};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("around::raw_packets_with_their_own_header", own_header),
    ("around::raw_packets_of_another_protocol", another_protocol),
    ("around::raw_packets_of_another_ip_version", another_version),
    ("around::raw_connection_requests", connection_requests),
    ("around::raw_fragments", fragments),
    ("around::raw_icmp_errors_to_a_third_party", icmp_errors),
    ("around::raw_neighbour_discovery_as_a_carrier", neighbour_discovery),
    ("around::raw_frames_behind_an_interface", frames),
    ("around::raw_frames_are_a_limit_that_the_status_lists", limits),
];

/// Protocol numbers (IANA).
const ICMPV6: u8 = 58;
const GRE: u8 = 47;
const RAW: u8 = 255;
const TCP: u8 = 6;
const UDP: u8 = 17;
const EXPERIMENT: u8 = 253;

fn marked(n: u8) -> String {
    format!("mark/a{n}")
}

fn bytes(n: u8) -> Vec<u8> {
    mark(&format!("a{n}"))
}

/// Sends a packet as it is, header included, from a raw socket of `web`.
fn send(scene: &Scene, packet: &[u8]) -> Result<()> {
    let actor = &mut scene.actor()?;
    let socket = actor.socket(Kind::Raw4(RAW))?;
    actor.set(socket, Set::HeaderIncluded)?;
    actor.send_to(socket, scene.peer(false, 0), packet).map(drop)
}

fn own_header(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    // From an address of its own, and from one that is not.
    for from in [scene.here(false), IpAddr::from([203, 0, 113, 9])] {
        for port in [53, ALLOWED, 40_000] {
            scene.only_when_allowed(marked, |scene, n| {
                let from = SocketAddr::from((from, port));
                send(scene, &forge::datagram(from, scene.peer(false, DENIED), &bytes(n)))
            })?;
        }
    }
    scene.only_when_allowed(marked, |scene, n| {
        let actor = &mut scene.actor()?;
        let (from, to) = (SocketAddr::from((scene.here(true), 53)), scene.peer(true, DENIED));
        let socket = actor.socket(Kind::Raw6(UDP))?;
        actor.send_to(socket, scene.peer(true, 0), &forge::udp(from, to, &bytes(n))).map(drop)
    })?;
    scene.done()
}

/// What no rule names needs a rule for everything.
fn another_protocol(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for protocol in [1, 4, GRE, 50, EXPERIMENT] {
        for v6 in [false, true] {
            scene.only_when_allowed(marked, |scene, n| {
                let actor = &mut scene.actor()?;
                let kind = if v6 { Kind::Raw6(protocol) } else { Kind::Raw4(protocol) };
                let socket = actor.socket(kind)?;
                actor.send_to(socket, scene.peer(v6, 0), &bytes(n)).map(drop)
            })?;
        }
    }
    scene.done()
}

/// An IPv4 packet whose header says IPv6 is read by nobody on the way, but by a friend at the end.
fn another_version(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let to = scene.peer(true, ALLOWED);
    let from = SocketAddr::from((scene.here(true), ALLOWED));
    scene.close()?;
    let dropped = scene.dropped()?;
    let payload = [&[0; 8][..], &bytes(1)].concat();
    let mut packet = forge::ip(from.ip(), to.ip(), UDP, &forge::udp(from, to, &payload));
    // The kernel wants a header length that fits; version 6, 20 bytes.
    packet[0] = 0x65;
    send(&scene, &packet)?;
    let heard = scene.ear.count_after_silence("mark/a1")?;
    ensure!(heard == 0, "a packet with two versions arrived");
    ensure!(scene.dropped()? > dropped, "nothing was counted as denied");
    scene.done()
}

fn connection_requests(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let requests = format!("{TCP}/{DENIED}");
    scene.only_when_allowed(
        |_| requests.clone(),
        |scene, n| {
            let from = SocketAddr::from((scene.here(false), 40_000 + u16::from(n)));
            let to = scene.peer(false, DENIED);
            send(scene, &forge::ip(from.ip(), to.ip(), TCP, &forge::syn(from, to)))
        },
    )?;
    scene.done()
}

/// First fragments too short for a port, and later ones without a first.
fn fragments(_: &Environment) -> Result<()> {
    const MORE: u16 = 0x2000;
    let mut scene = Scene::new()?;
    let (from, to) = (SocketAddr::from((scene.here(false), 53)), scene.peer(false, ALLOWED));
    scene.close()?;
    let dropped = scene.dropped()?;
    let later = forge::fragment(from.ip(), to.ip(), UDP, &bytes(1), 1);
    let middle = forge::fragment(from.ip(), to.ip(), UDP, &bytes(1), MORE | 3);
    let tiny = forge::fragment(from.ip(), to.ip(), UDP, &forge::udp(from, to, b"")[..2], MORE);
    for packet in [later, middle, tiny] {
        send(&scene, &packet)?;
    }
    ensure!(scene.ear.count_after_silence("mark/a1")? == 0, "a fragment arrived");
    let tiny = scene.ear.heard()?.get(&format!("{UDP}/0")).copied();
    ensure!(tiny.is_none(), "a fragment without ports arrived");
    ensure!(scene.dropped()? >= dropped + 3, "not all was counted as denied");
    // Where no rule is, nothing is denied, whatever the packet is.
    let rules = policy(CLOSED);
    let (segments, _) = rules.split_once("  allow:").context("no rules")?;
    scene.agent.apply(segments)?;
    let other = &mut Actor::start(&scene.world.workload("/other")?)?;
    let raw = other.socket(Kind::Raw4(RAW))?;
    other.set(raw, Set::HeaderIncluded)?;
    let later = forge::fragment(from.ip(), to.ip(), UDP, &bytes(2), 1);
    other.send_to(raw, to, &later)?.done()?;
    ensure!(scene.ear.count("mark/a2")? > 0, "a fragment of a workload without a policy was lost");
    scene.done()
}

/// An ICMP error that quotes an allowed flow passes, to who sent the quoted packet and nobody else.
fn icmp_errors(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.close()?;
    let (third, link) = scene.world.add_host("third", 9, "zt-third")?;
    let third_address = link.far(false);
    let mut ear = ztseg_tests::actor::ear::Ear::start(&third.place())?;
    let web = &mut scene.actor()?;
    let socket = web.socket(Kind::Udp4)?;
    web.send_to(socket, scene.peer(false, ALLOWED), b"allowed")?.done()?;
    let port = web.port(socket)?;
    let quoted = forge::datagram(
        scene.peer(false, ALLOWED),
        SocketAddr::from((scene.here(false), port)),
        &bytes(1),
    );
    // The control: to who sent it.
    send(&scene, &forge::icmp_error(scene.here(false), scene.peer(false, 0).ip(), &quoted))?;
    ensure!(scene.ear.count("mark/a1")? > 0, "the error did not arrive");
    let actor = &mut scene.actor()?;
    let raw = actor.socket(Kind::Raw4(RAW))?;
    actor.set(raw, Set::HeaderIncluded)?;
    let error = forge::icmp_error(scene.here(false), third_address, &quoted);
    actor.send_to(raw, (third_address, 0).into(), &error)?;
    ensure!(ear.count_after_silence("mark/a1")? == 0, "the error reached a third party");
    scene.agent.stop()
}

/// Neighbour discovery passes without a rule, but not to what is not a neighbour.
fn neighbour_discovery(_: &Environment) -> Result<()> {
    const SOLICITATION: u8 = 135;
    let mut scene = Scene::new()?;
    scene.only_when_allowed(marked, |scene, n| {
        let actor = &mut scene.actor()?;
        let socket = actor.socket(Kind::Raw6(ICMPV6))?;
        actor.set(socket, Set::HopLimit(255))?;
        // The kernel writes the checksum (RFC 3542 section 3.1).
        let message = forge::icmp(SOLICITATION, 0, &[&[0; 20][..], &bytes(n)].concat());
        actor.send_to(socket, scene.peer(true, 0), &message).map(drop)
    })?;
    scene.done()
}

/// A packet socket passes no hook of its cgroup. Behind an interface nobody refuses it, for there it may
/// be another machine; the interface sees its frames.
fn frames(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let link = &scene.world.tap;
    let address = scene.world.host.link_address(&link.interface)?;
    let vm = &mut Actor::start(&scene.world.guest.place())?;
    let socket = vm.socket(Kind::Packet)?;
    let from = SocketAddr::from((link.far(false), 53));
    let interface = link.far_interface.clone();
    scene.close()?;
    for (port, heard) in [(ALLOWED, true), (DENIED, false)] {
        let what = format!("f{port}");
        let packet = forge::datagram(from, scene.peer(false, port), &mark(&what));
        vm.send_frame(socket, &interface, address, &packet)?.done()?;
        let what = format!("mark/{what}");
        let count =
            if heard { scene.ear.count(&what)? } else { scene.ear.count_after_silence(&what)? };
        ensure!((count > 0) == heard, "port {port}: {count} frames arrived");
    }
    scene.agent.wait_for_event(|e| e["workload"] == "interface:zt-tap0")?;
    scene.done()
}

/// What no hook in use sees is said, with what to do about it.
fn limits(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let status = scene.agent.status()?;
    let limits = status["limits"].as_array().context("no limits in the status")?;
    for id in ["packet-sockets", "own-network", "source-address", "shared-port", "moved-socket"] {
        ensure!(limits.iter().any(|limit| limit["id"] == id), "{id} is not in {limits:#?}");
    }
    let packets = limits.iter().find(|limit| limit["id"] == "packet-sockets");
    let what = packets.and_then(|limit| limit["what"].as_str()).unwrap_or_default();
    let refused = what.contains("refused new ones");
    ensure!(refused == has_bpf_lsm(), "{what}; without BPF LSM: {:?}", no_bpf_lsm());
    scene.done()
}
