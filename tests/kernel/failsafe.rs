//! Failsafe: what stays open for the host and some units, whatever the policy says, and for nobody
//! else.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("failsafe::host_and_units_stay_reachable_and_nobody_else", host_and_units),
    ("failsafe::an_empty_list_closes_it", an_empty_list_closes_it),
    ("failsafe::holds_at_the_hosts_side_of_an_interface", at_the_hosts_side_of_an_interface),
];

/// Everything on this host is isolated, and nothing is allowed. A rule for everybody denies what
/// failsafe opens.
const LOCKED: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: locked }
spec:
  segments:
    everything: { match: [ { host: true }, { unit: \"*\" }, { interface: zt-nic } ] }
  deny:
    - { name: nothing, from: any, to: everything }
";

const SSH: &str = "/system.slice/ssh.service";
const WEB: &str = "/system.slice/web.service";
/// A user's unit with the name of the system's.
const LOOK_ALIKE: &str = "/user.slice/user-1.slice/user@1.service/app.slice/ssh.service";

const HOST_PORT: u16 = 22;
const SSH_PORT: u16 = 2022;
const WEB_PORT: u16 = 2023;
const LOOK_ALIKE_PORT: u16 = 2024;
const FOR_ONE_PEER: u16 = 2025;
/// Not open for anybody.
const CLOSED: u16 = 2026;
const DNS: u16 = 53;

const OPEN: &str = "failsafe: { inbound: [tcp:22, tcp:2022, tcp:2023, tcp:2024, \
                    \"tcp:192.0.2.2:2025\", \"tcp:[2001:db8:1::2]:2025\"] }\n";

struct Scene {
    world: World,
    host: Place,
    ssh: Place,
    web: Place,
    look_alike: Place,
    _servers: Vec<Server>,
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let host = world.workload("/")?;
        let [ssh, web, look_alike] = [SSH, WEB, LOOK_ALIKE].map(|path| world.workload(path));
        let (ssh, web, look_alike) = (ssh?, web?, look_alike?);
        let tcp = |port: u16| -> Result<[Listen; 2]> {
            let [v4, v6]: [IpAddr; 2] = ["0.0.0.0".parse()?, "::".parse()?];
            Ok([Listen::Tcp((v4, port).into()), Listen::Tcp((v6, port).into())])
        };
        let far = [false, true].map(|v6| world.uplink.far(v6));
        let udp = far
            .iter()
            .flat_map(|to| [DNS, CLOSED].map(|port| Listen::Udp(SocketAddr::from((*to, port)))));
        let servers = vec![
            Server::start(&host, &[tcp(HOST_PORT)?, tcp(FOR_ONE_PEER)?, tcp(CLOSED)?].concat())?,
            Server::start(&ssh, &[tcp(SSH_PORT)?, tcp(CLOSED + 1)?].concat())?,
            Server::start(&web, &tcp(WEB_PORT)?)?,
            Server::start(&look_alike, &tcp(LOOK_ALIKE_PORT)?)?,
            Server::start(&world.peer.place(), &udp.collect::<Vec<_>>())?,
        ];
        Ok(Self { world, host, ssh, web, look_alike, _servers: servers })
    }
}

fn check(
    agent: &Agent,
    (from, kind, to, port): (&Place, Ask, IpAddr, u16),
    open: bool,
) -> Result<()> {
    let outcome = Probe::new(kind, (to, port).into()).run(from)?.outcome;
    let is_right = match outcome {
        Outcome::Ok => open,
        Outcome::Timeout | Outcome::Eperm => !open,
        _ => false,
    };
    let events = agent.events()?;
    ensure!(is_right, "{kind:?} to {to} port {port}: {outcome:?}, open: {open}; {events:#?}");
    Ok(())
}

fn host_and_units(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = Agent::start_with(&scene.world, LOCKED, OPEN, &[])?;
    let (peer, guest) = (scene.world.peer.place(), scene.world.guest.place());
    for v6 in [false, true] {
        let near = scene.world.uplink.near(v6);
        for (port, open) in [
            (HOST_PORT, true),
            (SSH_PORT, true),
            (WEB_PORT, false),
            (LOOK_ALIKE_PORT, false),
            (FOR_ONE_PEER, true),
            (CLOSED, false),
            (CLOSED + 1, false),
        ] {
            check(&agent, (&peer, Ask::Tcp, near, port), open)?;
        }
        check(&agent, (&guest, Ask::Tcp, near, FOR_ONE_PEER), false)?;
        check(&agent, (&guest, Ask::Tcp, near, HOST_PORT), true)?;
        // Another workload's own end still denies.
        let loopback: IpAddr = if v6 { "::1".parse()? } else { "127.0.0.1".parse()? };
        check(&agent, (&scene.web, Ask::Tcp, loopback, HOST_PORT), false)?;

        let far = scene.world.uplink.far(v6);
        for (from, open) in [
            (&scene.host, true),
            (&scene.ssh, true),
            (&scene.web, false),
            (&scene.look_alike, false),
        ] {
            for kind in [Ask::Udp, Ask::UdpConnected] {
                check(&agent, (from, kind, far, DNS), open)?;
                check(&agent, (from, kind, far, CLOSED), false)?;
            }
        }
    }
    let failsafe = agent.status()?["failsafe"].clone();
    ensure!(failsafe["outbound"] == json!(["udp:53", "udp:67"]), "{failsafe:#}");
    ensure!(failsafe["inbound"][4] == "tcp:192.0.2.2/32:2025", "{failsafe:#}");
    ensure!(failsafe["workloads"] == json!([SSH, "host"]), "{failsafe:#}");
    let denied = |e: &Value| e["workload"] == "host" && e["local"]["port"] == CLOSED;
    let event = agent.wait_for_event(denied)?;
    ensure!(
        event["segments"] == json!(["everything"]) && event["rule"] == "locked/nothing",
        "{event:#}"
    );
    agent.stop()
}

fn an_empty_list_closes_it(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let peer = scene.world.peer.place();
    let (near, far) = (scene.world.uplink.near(false), scene.world.uplink.far(false));
    for (settings, inbound, outbound) in [
        ("", true, true),
        ("failsafe: { inbound: [] }\n", false, true),
        ("failsafe: { inbound: [], outbound: [] }\n", false, false),
    ] {
        let mut agent = Agent::start_with(&scene.world, LOCKED, settings, &[])?;
        check(&agent, (&peer, Ask::Tcp, near, HOST_PORT), inbound)?;
        check(&agent, (&scene.host, Ask::Udp, far, DNS), outbound)?;
        let (_, status, _) = agent.command(&["status"])?;
        let says = |text: &str| status.contains(text);
        ensure!(says("failsafe:       off: no port stays open") != outbound, "{status}");
        ensure!(says("inbound off") == (outbound && !inbound), "{status}");
        agent.stop()?;
    }
    Ok(())
}

/// A network card's workload is the host's side: what TC judges there is the host's, where no
/// cgroup hook sees the socket.
fn at_the_hosts_side_of_an_interface(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    let world = &scene.world;
    // A bridge is the host's side, as a network card is, and every kernel has it.
    world.host.batch(&format!(
        "link add zt-nic type bridge\nlink set {} master zt-nic\n\
         addr add 203.0.113.1/24 dev zt-nic\nlink set zt-nic up\n",
        world.uplink.interface
    ))?;
    world.peer.add_address(&world.uplink.far_interface, "203.0.113.2".parse()?, 24)?;
    let (near, far): (IpAddr, IpAddr) = ("203.0.113.1".parse()?, "203.0.113.2".parse()?);
    // In no cgroup of the agent's.
    let (outside, peer) = (world.host.place(), world.peer.place());
    let listen = [SSH_PORT + 10, CLOSED + 10].map(|port| Listen::Tcp((near, port).into()));
    let _server = Server::start(&outside, &listen)?;
    let udp = [DNS, CLOSED].map(|port| Listen::Udp((far, port).into()));
    let _far_server = Server::start(&peer, &udp)?;
    let settings = "failsafe: { inbound: [tcp:2032] }\n";
    let mut agent = Agent::start_with(world, LOCKED, settings, &[])?;
    for (from, kind, to, port, open) in [
        (&peer, Ask::Tcp, near, SSH_PORT + 10, true),
        (&peer, Ask::Tcp, near, CLOSED + 10, false),
        (&outside, Ask::Udp, far, DNS, true),
        (&outside, Ask::Udp, far, CLOSED, false),
    ] {
        check(&agent, (from, kind, to, port), open)?;
    }
    let status = agent.status()?;
    let workloads = &status["failsafe"]["workloads"];
    ensure!(workloads == &json!([SSH, "host", "interface:zt-nic"]), "{workloads:#}");
    agent.stop()
}
