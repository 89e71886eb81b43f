//! Ports that Docker publishes, asked for from elsewhere, from this host, and from the container.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Listen, Outcome, Server};
use ztseg_tests::world::World;

use super::rules::{Published, docker};
use super::services::{ASKS, ask};
use super::{ByTool, Translator};

pub(super) const TESTS: &[(&str, ByTool)] = &[
    ("translation::a_published_port_of_a_cgroup_is_the_containers", |translator| {
        published(translator, "cgroup: /shop")
    }),
    ("translation::a_published_port_of_an_interface_is_the_containers", |translator| {
        published(translator, "interface: zt-tap*")
    }),
];

/// The published ports, and where they lead to: the container's.
const OPEN: u16 = 8080;
const CLOSED: u16 = 8081;
const OFFSET: u16 = 6080;

/// The container is asked at its own port; `web` and the container itself ask at the ends that their
/// hooks see.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: published }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    shop: { match: [ { SHOP } ] }
  addressGroups:
    container: { cidrs: [198.51.100.2/32, '2001:db8:2::2/128'] }
    here: { cidrs: [192.0.2.1/32, '2001:db8:1::1/128'] }
  allow:
    - { name: in, from: any, to: shop, ports: [tcp/2000, udp/2000] }
    - { name: out, from: web, to: [shop, container], ports: [tcp/2000, udp/2000] }
    - { name: itself, from: shop, to: here, ports: [tcp/8080, udp/8080] }
";

/// What the hooks of the container see of a published port: all alike.
fn all_open(policy: &str) -> String {
    policy.replace("/2000", "").replace("/8080", "")
}

fn published(translator: Translator, shop: &str) -> Result<()> {
    let world = World::new()?;
    world.host.set(&[
        ("ipv4/conf/all/route_localnet", "1"),
        // A packet that comes back out by where it came in.
        ("ipv4/conf/zt-tap0/send_redirects", "0"),
    ])?;
    let container =
        Place { cgroup: Some(world.cgroup("/shop")?), namespace: Some(world.guest.path()) };
    let web = world.workload("/web")?;
    let mut listen = Vec::new();
    for (v6, from) in [(false, "198.51.100.0/28"), (true, "2001:db8:2::/64")] {
        let ports = [OPEN, CLOSED]
            .map(|port| Published { port, container: (world.tap.far(v6), port - OFFSET).into() });
        for published in ports {
            listen.extend([Listen::Tcp(published.container), Listen::Udp(published.container)]);
        }
        let rules = docker(translator, from, &world.tap.interface, &ports);
        translator.load(&world, &world.host, v6, &rules)?;
    }
    let policy = POLICY.replace("SHOP", shop);
    let mut agent = Agent::start(&world, &policy)?;
    let _server = Server::start(&container, &listen)?;
    let elsewhere = world.peer.place();
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    let mut ways = vec![("by 127.0.0.1", &web, localhost)];
    for v6 in [false, true] {
        let here = world.uplink.near(v6);
        ways.extend([
            ("from elsewhere", &elsewhere, here),
            ("from this host", &web, here),
            ("from itself", &container, here),
        ]);
    }
    for (name, from, to) in &ways {
        for how in ASKS {
            for _ in 0..2 {
                let open = ask(how, from, (*to, OPEN).into())?;
                ensure!(open == Outcome::Ok, "{how:?} {name} to {to}, allowed: {open:?}");
            }
            let closed = ask(how, from, (*to, CLOSED).into())?;
            let is_denied = matches!(closed, Outcome::Timeout | Outcome::Eperm);
            ensure!(is_denied, "{how:?} {name} to {to}, denied: {closed:?}");
        }
    }
    agent.apply(&all_open(&policy))?;
    for (name, from, to) in &ways {
        for how in ASKS {
            let outcome = ask(how, from, SocketAddr::from((*to, CLOSED)))?;
            ensure!(outcome == Outcome::Ok, "{how:?} {name} to {to}, open: {outcome:?}");
        }
    }
    agent.stop()
}
