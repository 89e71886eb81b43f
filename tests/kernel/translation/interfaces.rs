//! Workloads behind an interface, where the host translates behind their hook.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::traffic::{Listen, Outcome, Server};

use super::Translator;
use super::rules::{Service, kube_proxy};
use super::services::{ASKS, CLOSED, OPEN, Scene, ask, backend_port, virtual_address};
use crate::Body;
use crate::environment::Environment;

pub(super) const TESTS: &[(&str, Body)] =
    &[("translation::behind_an_interface_what_is_asked_for_is_judged_and_who_asks", behind)];

/// What a machine sends is judged by the address that it asks, before the host translates; and where
/// it arrives, by who sent it.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: behind }
spec:
  segments:
    vm: { match: [ { interface: zt-tap* } ] }
    second: { match: [ { interface: zt-second } ] }
    db: { match: [ { cgroup: /db } ] }
  addressGroups:
    services: { cidrs: [203.0.113.0/24, '2001:db8:53::/64'] }
  allow:
    - { name: asks, from: vm, to: services, ports: [tcp/80, udp/80, tcp/82, udp/82] }
    - { name: second-answers, from: vm, to: second, ports: [tcp/2000, udp/2000] }
    - { name: db-answers, from: vm, to: db, ports: [tcp/2000, udp/2000] }
";

/// Asked for with consent, and denied where it arrives.
const REFUSED: u16 = 82;

fn behind(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let world = &scene.world;
    let (second, link) = world.add_host("second", 3, "zt-second")?;
    let mut listen = Vec::new();
    for v6 in [false, true] {
        for port in [OPEN, CLOSED, REFUSED] {
            let at = SocketAddr::from((link.far(v6), backend_port(port)));
            listen.extend([Listen::Tcp(at), Listen::Udp(at)]);
        }
    }
    let _second = Server::start(&second.place(), &listen)?;
    let vm = world.guest.place();
    let mut agent = Agent::start(world, POLICY)?;
    let _servers = scene.serve()?;
    for masquerade in [false, true] {
        for v6 in [false, true] {
            let mut services = scene.services(v6, masquerade);
            for port in [OPEN, CLOSED, REFUSED] {
                services.push(Service {
                    address: (virtual_address(4, v6), port).into(),
                    backends: vec![(link.far(v6), backend_port(port)).into()],
                    masquerade,
                });
            }
            let rules = kube_proxy(Translator::Nft, &services);
            Translator::Nft.load(world, &world.host, v6, &rules)?;
            for how in ASKS {
                // A workload of the host, the other host, another machine behind an interface.
                for n in [1, 3, 4] {
                    let what = format!("{how:?}, service {n}, v6 {v6}, masquerade {masquerade}");
                    let to = |port| SocketAddr::from((virtual_address(n, v6), port));
                    for _ in 0..2 {
                        let open = ask(how, &vm, to(OPEN))?;
                        ensure!(open == Outcome::Ok, "{what}, allowed: {open:?}");
                    }
                    let closed = ask(how, &vm, to(CLOSED))?;
                    ensure!(closed == Outcome::Timeout, "{what}, denied: {closed:?}");
                }
                let refused = ask(how, &vm, (virtual_address(4, v6), REFUSED).into())?;
                ensure!(refused == Outcome::Timeout, "{how:?}, denied at its end: {refused:?}");
            }
        }
    }
    agent.apply(&POLICY.replace("/80", "").replace("/82", "").replace("/2000", ""))?;
    for v6 in [false, true] {
        for how in ASKS {
            for (n, port) in [(4, CLOSED), (4, REFUSED), (3, CLOSED)] {
                let outcome = ask(how, &vm, (virtual_address(n, v6), port).into())?;
                ensure!(outcome == Outcome::Ok, "{how:?}, {port}, v6 {v6}, open: {outcome:?}");
            }
        }
    }
    agent.stop()
}
