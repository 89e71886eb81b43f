//! Services as kube-proxy makes them, asked for by a workload of the host.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::World;

use super::rules::{Service, kube_proxy};
use super::{ByTool, Translator};

pub(super) const TESTS: &[(&str, ByTool)] =
    &[("translation::a_service_is_judged_by_who_answers", judged)];

/// Who asks, and how.
pub(super) const ASKS: [Ask; 3] = [Ask::Tcp, Ask::Udp, Ask::UdpConnected];

/// The port of every service whose answer is allowed, and of the others.
pub(super) const OPEN: u16 = 80;
pub(super) const CLOSED: u16 = 81;

/// What a service's port leads to at its backend.
pub(super) fn backend_port(port: u16) -> u16 {
    port - OPEN + 2000
}

/// By who the ends are, where they are known, and the backends' addresses elsewhere. No rule names a
/// service's address, and each port stands alone at one end.
pub(super) const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: services }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
    vm: { match: [ { interface: zt-tap* } ] }
  addressGroups:
    far: { cidrs: [192.0.2.2/32, 192.0.2.3/32, '2001:db8:1::2/128', '2001:db8:1::3/128'] }
  allow:
    - { name: to-db, from: web, to: db, ports: [tcp/2000, udp/2000] }
    - { name: to-vm, from: web, to: vm, ports: [tcp/2000, udp/2000] }
    - { name: out, from: web, to: far, ports: [tcp/2000, udp/2000] }
";

/// The same with every port open: what it lets through in addition was held up by the policy.
pub(super) fn all_open() -> String {
    POLICY.replace(", ports: [tcp/2000, udp/2000]", "")
}

/// An address that only the rules know; it is routed to the other host, where nobody has it.
pub(super) fn virtual_address(n: u8, v6: bool) -> IpAddr {
    if v6 { format!("2001:db8:53::{n}") } else { format!("203.0.113.{n}") }
        .parse()
        .expect("an address")
}

/// A world in which services' addresses are routed to the other host.
pub(super) struct Scene {
    pub(super) web: Place,
    pub(super) world: World,
}

/// The kinds of backends, in the order of the services' addresses.
pub(super) const BACKENDS: [&str; 3] = ["db", "vm", "far"];

impl Scene {
    pub(super) fn new() -> Result<Self> {
        let world = World::new()?;
        let via = |v6| world.uplink.far(v6);
        world.host.batch(&format!(
            "route add 203.0.113.0/24 via {}\nroute add 2001:db8:53::/64 via {}\n",
            via(false),
            via(true)
        ))?;
        for (v6, length) in [(false, 28), (true, 64)] {
            let second = world.uplink.addresses(3)[usize::from(v6)];
            world.peer.add_address(&world.uplink.far_interface, second, length)?;
        }
        let web = world.workload("/web")?;
        Ok(Self { web, world })
    }

    /// Servers that answer on both backend ports: a workload of the host, the machine behind the tap,
    /// and the other host under two addresses.
    pub(super) fn serve(&self) -> Result<Vec<Server>> {
        let world = &self.world;
        let mut servers = Vec::new();
        let db = world.workload("/db")?;
        let places = [(&db, "near"), (&world.guest.place(), "tap"), (&world.peer.place(), "far")];
        for (place, role) in places {
            let mut listen = Vec::new();
            for v6 in [false, true] {
                let addrs = match role {
                    "near" => vec![world.uplink.near(v6)],
                    "tap" => vec![world.tap.far(v6)],
                    _ => vec![world.uplink.far(v6), world.uplink.addresses(3)[usize::from(v6)]],
                };
                for addr in addrs {
                    for port in [OPEN, CLOSED] {
                        let at = SocketAddr::from((addr, backend_port(port)));
                        listen.extend([Listen::Tcp(at), Listen::Udp(at)]);
                    }
                }
            }
            servers.push(Server::start(place, &listen)?);
        }
        Ok(servers)
    }

    /// The backends' addresses: on this host, behind the tap, on the other host.
    pub(super) fn backends(&self, kind: &str, v6: bool) -> Vec<IpAddr> {
        let up = &self.world.uplink;
        match kind {
            "db" => vec![up.near(v6)],
            "vm" => vec![self.world.tap.far(v6)],
            _ => vec![up.far(v6), up.addresses(3)[usize::from(v6)]],
        }
    }

    /// A service for each kind of backend, on both ports.
    pub(super) fn services(&self, v6: bool, masquerade: bool) -> Vec<Service> {
        let mut services = Vec::new();
        for (n, kind) in (1..).zip(BACKENDS) {
            for port in [OPEN, CLOSED] {
                let backends = self.backends(kind, v6).into_iter();
                services.push(Service {
                    address: (virtual_address(n, v6), port).into(),
                    backends: backends.map(|b| (b, backend_port(port)).into()).collect(),
                    masquerade,
                });
            }
        }
        services
    }

    pub(super) fn load(&self, translator: Translator, masquerade: bool) -> Result<()> {
        for v6 in [false, true] {
            let rules = kube_proxy(translator, &self.services(v6, masquerade));
            translator.load(&self.world, &self.world.host, v6, &rules)?;
        }
        Ok(())
    }
}

pub(super) fn ask(ask: Ask, from: &Place, to: SocketAddr) -> Result<Outcome> {
    Ok(Probe::new(ask, to).run(from)?.outcome)
}

fn judged(translator: Translator) -> Result<()> {
    let scene = Scene::new()?;
    scene.load(translator, false)?;
    let mut agent = Agent::start(&scene.world, POLICY)?;
    let _servers = scene.serve()?;
    for masquerade in [false, true] {
        scene.load(translator, masquerade)?;
        for v6 in [false, true] {
            for (n, kind) in (1..).zip(BACKENDS) {
                for how in ASKS {
                    let what = format!("{how:?} to {kind}, v6 {v6}, masquerade {masquerade}");
                    let to = |port| SocketAddr::from((virtual_address(n, v6), port));
                    // More than once, so that each backend has its turn.
                    for _ in 0..3 {
                        let open = ask(how, &scene.web, to(OPEN))?;
                        ensure!(open == Outcome::Ok, "{what}, allowed: {open:?}");
                    }
                    let closed = ask(how, &scene.web, to(CLOSED))?;
                    let is_denied = matches!(closed, Outcome::Timeout | Outcome::Eperm);
                    ensure!(is_denied, "{what}, denied: {closed:?}");
                }
            }
        }
    }
    let far: Vec<_> = [false, true].iter().flat_map(|v6| scene.backends("far", *v6)).collect();
    let is_of = |event: &Value, addr: &IpAddr| event["peer"]["ip"] == addr.to_string();
    agent
        .wait_for_event(|event| far.iter().any(|addr| is_of(event, addr)))
        .context("a denial names the backend")?;
    for event in agent.events()? {
        ensure!(event["peer"]["port"] != CLOSED, "a denial names a service: {event:#}");
    }
    agent.apply(&all_open())?;
    for v6 in [false, true] {
        for (n, kind) in (1..).zip(BACKENDS) {
            for how in ASKS {
                let to = (virtual_address(n, v6), CLOSED).into();
                let outcome = ask(how, &scene.web, to)?;
                ensure!(outcome == Outcome::Ok, "{how:?} to {kind}, v6 {v6}, open: {outcome:?}");
            }
        }
    }
    agent.stop()
}
