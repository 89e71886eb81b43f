//! Whether a world is what the other tests take it for, without a policy and with one.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("worlds::everything_is_reached_without_an_agent", everything_is_reached_without_an_agent),
    ("worlds::a_closed_port_refuses", a_closed_port_refuses),
    (
        "matrix::the_status_lists_what_no_hook_sees",
        crate::matrix::the_status_lists_what_no_hook_sees,
    ),
    ("worlds::leave_nothing_behind", leave_nothing_behind),
    ("worlds::the_agent_denies_and_says_so", the_agent_denies_and_says_so),
];

fn ask(place: &Place, ask: Ask, to: impl Into<SocketAddr>, expected: Outcome) -> Result<()> {
    let to = to.into();
    let report = Probe::new(ask, to).run(place)?;
    ensure!(report.outcome == expected, "{ask:?} to {to}: {report:?}, expected {expected:?}");
    Ok(())
}

/// A dead listener or a missing route must not be read as a denial.
fn everything_is_reached_without_an_agent(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let (near, far, guest) = (world.workload("/near")?, world.peer.place(), world.guest.place());
    let listen = [
        Listen::Tcp("0.0.0.0:2000".parse()?),
        Listen::Tcp("[::]:2000".parse()?),
        Listen::Udp("0.0.0.0:2000".parse()?),
        Listen::Udp("[::]:2000".parse()?),
    ];
    let _servers = [
        Server::start(&near, &listen)?,
        Server::start(&far, &listen)?,
        Server::start(&guest, &listen)?,
    ];
    for v6 in [false, true] {
        let loopback = if v6 { "::1".parse()? } else { "127.0.0.1".parse()? };
        let ways = [
            (&near, loopback),
            (&near, world.uplink.far(v6)),
            (&near, world.tap.far(v6)),
            (&far, world.uplink.near(v6)),
            (&far, world.tap.far(v6)),
            (&guest, world.uplink.far(v6)),
            (&guest, world.tap.near(v6)),
        ];
        for (from, to) in ways {
            for kind in [Ask::Tcp, Ask::Udp, Ask::UdpConnected, Ask::Ping] {
                ask(from, kind, (to, 2000), Outcome::Ok)?;
            }
        }
    }
    Ok(())
}

fn a_closed_port_refuses(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let near = world.workload("/near")?;
    for v6 in [false, true] {
        ask(&near, Ask::Tcp, (world.uplink.far(v6), 2000), Outcome::Refused)?;
        ask(&near, Ask::UdpConnected, (world.uplink.far(v6), 2000), Outcome::Refused)?;
        ask(&near, Ask::Udp, (world.uplink.far(v6), 2000), Outcome::Timeout)?;
    }
    Ok(())
}

/// Cgroups, namespaces, folders, pins: also those of a world whose agent is killed.
fn leave_nothing_behind(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = Agent::start(&world, POLICY)?;
    let near = world.workload("/near/deep")?;
    let sleeper = near.tool(&["sleep"])?;
    agent.kill9();
    let mut gone = vec![
        world.cgroup_root().to_owned(),
        world.folder().to_owned(),
        world.pins().to_owned(),
        Path::new("/proc").join(sleeper.pid().to_string()).join("exe"),
    ];
    gone.extend([&world.host, &world.peer, &world.guest].map(ztseg_tests::world::Namespace::path));
    for path in &gone {
        ensure!(fs::symlink_metadata(path).is_ok(), "{} was never there", path.display());
    }
    // As after a panic: the world goes while something runs in it.
    drop(world);
    drop(sleeper);
    for path in &gone {
        ensure!(fs::symlink_metadata(path).is_err(), "{} is still there", path.display());
    }
    Ok(())
}

const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: worlds }
spec:
  segments:
    near: { isolation: [egress], match: [ { cgroup: /near } ] }
  allow:
    - { name: open, from: near, to: any, ports: [tcp/2000] }
";

fn the_agent_denies_and_says_so(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let near = world.workload("/near")?;
    let mut agent = Agent::start(&world, POLICY)?;
    let to = world.uplink.far(false);
    let listen = [2000, 2001].map(|port| Listen::Tcp((to, port).into()));
    let _server = Server::start(&world.peer.place(), &listen)?;
    ask(&near, Ask::Tcp, (to, 2000), Outcome::Ok)?;
    let report = Probe::new(Ask::Tcp, (to, 2001).into()).run(&near)?;
    ensure!(matches!(report.outcome, Outcome::Eperm | Outcome::Timeout), "{report:?}");
    let event = agent.wait_for_event(|event| event["peer"]["port"] == 2001)?;
    for (field, expected) in [
        ("verdict", json!("DROPPED")),
        ("direction", json!("egress")),
        ("reason", json!("isolation")),
        ("workload", json!("/near")),
        ("segments", json!(["near"])),
        ("proto", json!("tcp")),
    ] {
        ensure!(event[field] == expected, "{field} is not {expected} in {event:#}");
    }
    agent.stop()
}
