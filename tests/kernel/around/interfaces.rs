//! Workloads behind an interface that lie about their address, and packets to many.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use ztseg_tests::actor::forge::{self, mark};
use ztseg_tests::actor::{Actor, Kind, Set};
use ztseg_tests::agent::Agent;
use ztseg_tests::world::World;

use super::{ALLOWED, DENIED, Scene, dropped};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("around::interfaces_a_forged_source", forged_source),
    ("around::interfaces_a_source_without_a_route", source_without_a_route),
    ("around::interfaces_broadcast_and_multicast", to_many),
    ("around::interfaces_multicast_to_this_host", to_many_here),
];

const RAW: u8 = 255;
const UNROUTED: u16 = 2002;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

/// `db` may be asked by the other host's network, and by the machine behind another interface.
const ADDRESSES: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: addresses }
spec:
  segments:
    db: { match: [ { cgroup: /db } ] }
    vm: { match: [ { interface: zt-tap0 } ] }
    third: { match: [ { interface: zt-third } ] }
    far: { match: [ { addresses: [192.0.2.2/32, '2001:db8:1::2/128'] } ] }
  allow:
    - { name: vm-out, from: vm, to: any }
    - { name: anybody-to-db, from: any, to: db, ports: [udp/2002] }
    - { name: far-to-db, from: far, to: db, ports: [udp/2000] }
    - { name: third-to-db, from: [third, 198.51.100.112/28, '2001:db8:9::/64'], to: db, ports: [udp/2000] }
";

/// What is behind an interface is that, whatever address it claims. For the addresses of who is
/// behind no workload's interface it takes the kernel's own filter: they may be behind a bridge.
fn forged_source(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let db = world.workload("/db")?;
    let (third, link) = world.add_host("third", 9, "zt-third")?;
    add_default_route(&world, false)?;
    let mut agent = Agent::start(&world, ADDRESSES)?;
    let db = &mut Actor::start(&db)?;
    let honest = &mut Actor::start(&third.place())?;
    let vm = &mut Actor::start(&world.guest.place())?;
    for v6 in [false, true] {
        let any: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
        let (udp, raw) =
            if v6 { (Kind::Udp6, Kind::Raw6(RAW)) } else { (Kind::Udp4, Kind::Raw4(RAW)) };
        let server = db.bound(udp, (any, ALLOWED).into())?;
        // The control: who has the address is heard.
        let socket = honest.socket(udp)?;
        honest.send_to(socket, (link.near(v6), ALLOWED).into(), b"third")?.done()?;
        if !db.receive(server)?.is_done() {
            anyhow::bail!("what is allowed did not arrive, v6: {v6}: {:#?}", agent.events()?);
        }
        let raw = vm.socket(raw)?;
        if !v6 {
            vm.set(raw, Set::HeaderIncluded)?;
        }
        let to = SocketAddr::from((world.tap.near(v6), ALLOWED));
        for (source, filtered) in
            [(link.far(v6), false), (world.uplink.near(v6), false), (world.uplink.far(v6), true)]
        {
            if filtered && v6 {
                // There is no such filter for IPv6; nftables has one (`fib saddr . iif oif`).
                continue;
            }
            if filtered {
                world.host.set(&[("ipv4/conf/zt-tap0/rp_filter", "1")])?;
            }
            let before = dropped(&agent.status()?)?;
            let packet = forge::datagram((source, 53).into(), to, b"vm");
            vm.send_to(raw, (to.ip(), 0).into(), &packet)?.done()?;
            ensure!(!db.receive(server)?.is_done(), "from {source}: it arrived");
            let counted = dropped(&agent.status()?)? > before;
            ensure!(counted || filtered, "from {source}: not counted");
        }
        db.close(server)?;
    }
    agent
        .wait_for_event(|e| e["reason"] == "borrowed-source" && e["hook"] == "tc-from-workload")?;
    agent.stop()
}

fn add_default_route(world: &World, v6: bool) -> Result<()> {
    let (to, via) = (if v6 { "::/0" } else { "0.0.0.0/0" }, world.uplink.far(v6));
    world.host.batch(&format!("route add {to} via {via} dev {}\n", world.uplink.interface))
}

/// A machine behind a bridge has an address that this host knows no route to, where it has no default
/// route. It is nobody else's, and the packet that says so passes; with one, this host's are known.
fn source_without_a_route(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let db = world.workload("/db")?;
    let mut agent = Agent::start(&world, ADDRESSES)?;
    let db = &mut Actor::start(&db)?;
    let vm = &mut Actor::start(&world.guest.place())?;
    for v6 in [false, true] {
        let (any, source, udp, raw): (IpAddr, IpAddr, _, _) = if v6 {
            ([0; 16].into(), "2001:db8:77::7".parse()?, Kind::Udp6, Kind::Raw6(RAW))
        } else {
            ([0; 4].into(), [203, 0, 113, 7].into(), Kind::Udp4, Kind::Raw4(RAW))
        };
        let server = db.bound(udp, (any, UNROUTED).into())?;
        let raw = vm.socket(raw)?;
        if !v6 {
            vm.set(raw, Set::HeaderIncluded)?;
        }
        let to = SocketAddr::from((world.tap.near(v6), UNROUTED));
        for default_route in [false, true] {
            if default_route {
                add_default_route(&world, v6)?;
            }
            let packet = forge::datagram((source, 53).into(), to, b"bridged");
            vm.send_to(raw, (to.ip(), 0).into(), &packet)?.done()?;
            ensure!(
                db.receive(server)?.is_done(),
                "from {source}, which is nobody's, default route {default_route}: it is lost: {:#?}",
                agent.events()?
            );
            // Another flow each time: one that is known is not asked again.
            let port = if default_route { 54 } else { 53 };
            let own = world.uplink.near(v6);
            let before = dropped(&agent.status()?)?;
            let packet = forge::datagram((own, port).into(), to, b"as the host");
            vm.send_to(raw, (to.ip(), 0).into(), &packet)?.done()?;
            ensure!(!db.receive(server)?.is_done(), "from {own}: it arrived");
            let counted = dropped(&agent.status()?)? > before;
            ensure!(counted || !v6 && !default_route, "from {own}: not counted");
        }
    }
    agent.stop()
}

fn to_many(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let bytes = |n| mark(&format!("a{n}"));
    let here = Ipv4Addr::new(192, 0, 2, 1);
    for group in [Ipv4Addr::new(192, 0, 2, 15), Ipv4Addr::BROADCAST, GROUP] {
        scene.only_when_allowed(
            |n| format!("17/{DENIED}/a{n}"),
            |scene, n| {
                let actor = &mut scene.actor()?;
                let socket = actor.bound(Kind::Udp4, (here, 0).into())?;
                actor.set(socket, Set::Broadcast)?;
                actor.set(socket, Set::Device(scene.world.uplink.interface.clone()))?;
                actor.set(socket, Set::MulticastFrom(here))?;
                actor.send_to(socket, (group, DENIED).into(), &bytes(n)).map(drop)
            },
        )?;
    }
    scene.done()
}

/// The copy for receivers on this host is the sender's packet, too.
fn to_many_here(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let here = Ipv4Addr::new(192, 0, 2, 1);
    let other = &mut Actor::start(&scene.world.workload("/other")?)?;
    let receiver = other.bound(Kind::Udp4, (GROUP, DENIED).into())?;
    other.set(receiver, Set::Join(GROUP, here))?;
    for open in [true, false] {
        if open {
            scene.open()?;
        } else {
            scene.close()?;
        }
        let before = scene.dropped()?;
        let actor = &mut scene.actor()?;
        let socket = actor.socket(Kind::Udp4)?;
        actor.set(socket, Set::MulticastFrom(here))?;
        actor.send_to(socket, (GROUP, DENIED).into(), b"all")?;
        ensure!(other.receive(receiver)?.is_done() == open, "allowed: {open}");
        ensure!(open || scene.dropped()? > before, "nothing was counted as denied");
    }
    scene.done()
}
