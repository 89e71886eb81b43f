//! Flows between a service in a cgroup and a workload behind an interface, where both ends are
//! known and both consent.

use anyhow::{Result, ensure};
use serde_json::json;
use ztseg_tests::agent::Agent;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("behind::a_service_knows_who_is_behind_an_interface", who_is_behind),
    ("behind::an_address_does_not_make_anybody_who_is_behind_an_interface", an_address_is_nobody),
];

/// No rule names an address: what is allowed is allowed by who the ends are.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: behind }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    vm: { match: [ { interface: zt-tap* } ] }
  allow:
    - { name: in, from: vm, to: web, ports: [tcp/2000, udp/2000] }
    - { name: out, from: web, to: vm, ports: [tcp/2001, udp/2001] }
";

fn listen() -> Result<Vec<Listen>> {
    let mut all = Vec::new();
    for port in [2000, 2001] {
        for any in ["0.0.0.0", "::"] {
            let address = (any.parse::<std::net::IpAddr>()?, port).into();
            all.extend([Listen::Tcp(address), Listen::Udp(address)]);
        }
    }
    Ok(all)
}

fn who_is_behind(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let (web, vm) = (world.workload("/web")?, world.guest.place());
    let mut agent = Agent::start(&world, POLICY)?;
    let _servers = [Server::start(&web, &listen()?)?, Server::start(&vm, &listen()?)?];
    for v6 in [false, true] {
        for ask in [Ask::Tcp, Ask::Udp, Ask::UdpConnected] {
            for (from, to, open) in
                [(&vm, world.tap.near(v6), 2000), (&web, world.tap.far(v6), 2001)]
            {
                for port in [2000, 2001] {
                    let outcome = Probe::new(ask, (to, port).into()).run(from)?.outcome;
                    let is_right = match outcome {
                        Outcome::Ok => port == open,
                        Outcome::Timeout | Outcome::Eperm => port != open,
                        _ => false,
                    };
                    ensure!(is_right, "{ask:?} to {to} port {port}: {outcome:?}");
                }
            }
        }
    }
    agent.stop()
}

/// The other host says that it is the machine behind the interface.
fn an_address_is_nobody(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let web = world.workload("/web")?;
    let mut agent = Agent::start(&world, POLICY)?;
    let _server = Server::start(&web, &listen()?)?;
    let (liar, forged) = (world.peer.place(), world.tap.far(true));
    world.peer.add_address(&world.uplink.far_interface, forged, 128)?;
    let probe = Probe::new(Ask::Udp, (world.uplink.near(true), 2000).into()).from((forged, 0));
    let outcome = probe.run(&liar)?.outcome;
    ensure!(outcome == Outcome::Timeout, "{outcome:?}");
    let event = agent.wait_for_event(|event| event["local"]["port"] == 2000)?;
    for (field, expected) in [
        ("verdict", json!("DROPPED")),
        ("direction", json!("ingress")),
        ("reason", json!("isolation")),
        ("workload", json!("/web")),
    ] {
        ensure!(event[field] == expected, "{field} is not {expected} in {event:#}");
    }
    ensure!(event["peer"]["ip"] == json!(forged), "{event:#}");
    ensure!(event["peer"]["workload"].is_null(), "{event:#}");
    agent.stop()
}
