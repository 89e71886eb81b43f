//! What the parser refuses, as frames on a real link: each passes where no policy is, and where one
//! is it is denied with its named reason.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use ztseg_tests::actor::ear::Ear;
use ztseg_tests::actor::forge::{self, ETH_P_IP, ETH_P_IPV6, mark};
use ztseg_tests::actor::{Actor, Handle, Kind, Said};
use ztseg_tests::agent::Agent;
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("malformed::every_reason_is_denied_and_named", every_reason),
    ("malformed::tagged_frames_are_judged_by_what_is_in_them", tagged),
];

/// Nothing is said of the machine behind the interface.
const NO_POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: malformed }
spec:
  segments:
    other: { match: [ { cgroup: /other } ] }
";

/// Only udp/2000 is open.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: malformed }
spec:
  segments:
    vm: { match: [ { interface: zt-tap0 } ] }
  allow:
    - { name: in, from: any, to: vm, ports: [udp/2000] }
";

const OPEN: u16 = 2000;
const CLOSED: u16 = 2001;

/// Ethernet types (IEEE 802.1Q, 802.1ad, 802 local experimental).
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const EXPERIMENT: u16 = 0x88b5;

/// Protocol numbers (IANA).
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const UNASSIGNED: u8 = 200;

/// An IPv4 fragment that others follow (RFC 791).
const MORE: u16 = 0x2000;

/// Somebody who sends frames to the machine behind the interface, and an ear there.
struct Scene {
    // In the order in which they end.
    agent: Agent,
    ear: Ear,
    sender: Actor,
    socket: Handle,
    mac: [u8; 6],
    world: World,
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let agent = Agent::start(&world, NO_POLICY)?;
        let ear = Ear::start(&world.guest.place())?;
        let mac = world.guest.link_address(&world.tap.far_interface)?;
        let mut sender = Actor::start(&world.host.place())?;
        let socket = sender.socket(Kind::Packet)?;
        Ok(Self { agent, ear, sender, socket, mac, world })
    }

    /// Sends a frame. The sender is told when its own interface drops it, and here that is the one
    /// under test.
    fn send(&mut self, ethertype: u16, bytes: &[u8]) -> Result<()> {
        let interface = &self.world.tap.interface;
        let said = self.sender.send_frame_of(self.socket, interface, self.mac, ethertype, bytes)?;
        ensure!(said.is_done() || said == Said::Error(Errno::ENOBUFS), "sending: {said:?}");
        Ok(())
    }

    /// Where a packet goes from and to.
    fn ends(&self, v6: bool, port: u16) -> (SocketAddr, SocketAddr) {
        ((self.world.uplink.far(v6), 53).into(), (self.world.tap.far(v6), port).into())
    }
}

/// What is sent, as whom it is heard, and why it is denied.
struct Case {
    reason: &'static str,
    heard: String,
    ethertype: u16,
    frame: Vec<u8>,
}

fn every_reason(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let cases = |round: &str| cases(scene.ends(false, OPEN), scene.ends(true, OPEN), round);
    let (free, denied) = (cases("a"), cases("b"));
    for case in &free {
        scene.send(case.ethertype, &case.frame)?;
        ensure!(scene.ear.count(&case.heard)? > 0, "{}: not sent at all", case.reason);
    }
    scene.agent.apply(POLICY)?;
    let before = scene.ear.heard()?;
    for case in &denied {
        scene.send(case.ethertype, &case.frame)?;
        let event = scene.agent.wait_for_event(|event| event["reason"] == case.reason);
        let event = event.with_context(|| format!("no event for {}", case.reason))?;
        ensure!(event["verdict"] == "DROPPED" && event["hook"] == "tc-to-workload", "{event:#}");
        ensure!(event["workload"] == "interface:zt-tap0", "{event:#}");
    }
    // The last frame is one that may pass, so that all the others would have come before it.
    let (from, to) = scene.ends(false, OPEN);
    scene.send(ETH_P_IP, &forge::datagram(from, to, &mark("last")))?;
    ensure!(scene.ear.count("mark/last")? > 0, "an allowed datagram did not arrive");
    let after = scene.ear.heard()?;
    for case in &denied {
        let [before, after] = [&before, &after].map(|heard| heard.get(&case.heard));
        ensure!(before == after, "{}: it arrived", case.reason);
    }
    scene.agent.stop()
}

/// A frame for each reason, to the open port where it has one.
fn cases(
    (from4, to4): (SocketAddr, SocketAddr),
    (from6, to6): (SocketAddr, SocketAddr),
    round: &str,
) -> Vec<Case> {
    let v4 = |protocol, payload: &[u8]| forge::ip(from4.ip(), to4.ip(), protocol, payload);
    let v6 = |next, payload: &[u8]| forge::ip(from6.ip(), to6.ip(), next, payload);
    let fragment = |protocol, payload: &[u8], field| {
        forge::fragment(from4.ip(), to4.ip(), protocol, payload, field)
    };
    let marked = |n: usize| mark(&format!("{round}{n}"));
    // A fragment that another follows is a multiple of eight bytes.
    let padded = |n: usize| {
        let mut bytes = marked(n);
        bytes.resize(16, 0);
        bytes
    };
    let udp4 = |n: usize| forge::udp(from4, to4, &marked(n));
    let udp6 = |n: usize| forge::udp(from6, to6, &marked(n));
    // Without a mark, by its protocol and port; in another round by another one.
    let (port, tiny) = if round == "a" { (3000, 3010) } else { (3001, 3011) };
    let short =
        |port: u16, length: usize| forge::syn(from4, (to4.ip(), port).into())[..length].to_vec();

    let mut bad_version = v4(UDP, &udp4(1));
    bad_version[0] = 0x44;
    let mut too_long = udp4(2);
    too_long[4] = 0xff;
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let mut chain: Vec<u8> = (0..8).flat_map(|_| options(DESTINATION)).collect();
    chain.extend(options(UDP));
    chain.extend(udp6(3));
    // Type 0, one segment left (RFC 2460 section 4.4, RFC 5095).
    let mut waypoint = vec![UDP, 2, 0, 1, 0, 0, 0, 0];
    waypoint.extend(octets(to6.ip()));
    waypoint.extend(udp6(4));
    let mut jumbo = vec![UDP, 0, 0xc2, 4, 0, 1, 0, 0];
    jumbo.extend(udp6(5));
    let mut jumbo = v6(HOP_BY_HOP, &jumbo);
    jumbo[4..6].copy_from_slice(&[0, 0]);

    let of = |reason, heard: String, ethertype, frame| Case { reason, heard, ethertype, frame };
    let by_mark = |reason, n: usize, ethertype, frame| {
        of(reason, format!("mark/{round}{n}"), ethertype, frame)
    };
    vec![
        of("truncated", format!("{TCP}/{port}"), ETH_P_IP, v4(TCP, &short(port, 12))),
        by_mark("malformed", 1, ETH_P_IP, bad_version),
        by_mark("length-beyond-packet", 2, ETH_P_IP, v4(UDP, &too_long)),
        by_mark("too-many-headers", 3, ETH_P_IPV6, v6(DESTINATION, &chain)),
        by_mark("source-route", 4, ETH_P_IPV6, v6(ROUTING, &waypoint)),
        by_mark("jumbogram", 5, ETH_P_IPV6, jumbo),
        of(
            "tiny-fragment",
            format!("{TCP}/{tiny}"),
            ETH_P_IP,
            fragment(TCP, &short(tiny, 8), MORE),
        ),
        by_mark("overlapping-fragment", 6, ETH_P_IP, fragment(TCP, &padded(6), MORE | 1)),
        by_mark("bad-fragment", 7, ETH_P_IP, fragment(UDP, &marked(7), MORE | 4)),
        by_mark("fragment-without-first", 8, ETH_P_IP, fragment(UDP, &padded(8), MORE | 9)),
        by_mark("unknown-protocol", 9, ETH_P_IP, v4(UNASSIGNED, &marked(9))),
        by_mark("unknown-ethertype", 10, EXPERIMENT, marked(10)),
    ]
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn tagged(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.agent.apply(POLICY)?;
    for (name, tags) in [("none", &[][..]), ("one", &[VLAN]), ("two", &[SERVICE_VLAN, VLAN])] {
        for v6 in [false, true] {
            for (port, open) in [(CLOSED, false), (OPEN, true)] {
                let (from, to) = scene.ends(v6, port);
                let what = format!("{name}{}{port}", if v6 { "v6x" } else { "v4x" });
                let datagram = forge::udp(from, to, &mark(&what));
                let (ethertype, frame) =
                    tag(tags, v6, &forge::ip(from.ip(), to.ip(), UDP, &datagram));
                scene.send(ethertype, &frame)?;
                let what = format!("mark/{what}");
                let count = if open {
                    scene.ear.count(&what)?
                } else {
                    scene.ear.count_after_silence(&what)?
                };
                ensure!((count > 0) == open, "{what}: {count} frames arrived");
            }
        }
    }
    let denied = scene.agent.events()?;
    let denied = denied.iter().filter(|event| event["reason"] == "isolation").count();
    ensure!(denied >= 2, "only {denied} events of closed ports");
    scene.agent.stop()
}

/// The Ethernet type and what follows it, of a packet with these tags, all of VLAN 7.
fn tag(tags: &[u16], v6: bool, packet: &[u8]) -> (u16, Vec<u8>) {
    let inner = if v6 { ETH_P_IPV6 } else { ETH_P_IP };
    let types: Vec<u16> = tags.iter().copied().chain([inner]).collect();
    let mut frame = Vec::new();
    for next in &types[1..] {
        frame.extend([0, 7]);
        frame.extend(next.to_be_bytes());
    }
    frame.extend(packet);
    (types[0], frame)
}
