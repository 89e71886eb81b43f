//! Rules as they are written: all ports of a long list, wide and narrow addresses side by side,
//! nothing cut off, and audit that outlives the agent.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Environment;
use crate::sequences::{Line, frame, on_a_line};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("rules::thousands_of_ports_for_one_address_all_hold", many_ports),
    ("rules::wide_and_narrow_addresses_hold_side_by_side", wide_and_narrow),
    ("rules::what_does_not_fit_is_refused_whole", too_much),
    ("rules::audit_outlives_the_agent", audit),
];

impl Line {
    /// Whether a datagram of `app` to this port of the peer passes. The sender's port is the same,
    /// so that each is a flow of its own.
    fn asks(&self, port: u16) -> Result<bool> {
        let [high, low] = port.to_be_bytes();
        self.passes(true, &frame(self.v6, true, 17, &[high, low, high, low, 0, 8, 0, 0]))
    }
}

/// 2,000 single ports that are no range, and the ports between them.
fn many_ports(_: &Environment) -> Result<()> {
    on_a_line("many-ports", |line| {
        let mut ports = String::new();
        for port in (10_000..14_000).step_by(2) {
            write!(ports, "udp/{port}, ")?;
        }
        line.policy(&format!(
            "\n  allow: [ {{ name: many, from: app, to: [203.0.113.5/32, '2001:db8::2/128'], \
             ports: [{ports}udp/9] }} ]"
        ))?;
        for port in 9_999..14_001 {
            let allowed = port % 2 == 0 && port < 14_000;
            ensure!(line.asks(port)? == allowed, "udp/{port}: passes is {}", !allowed);
        }
        Ok(())
    })
}

/// The peer is inside of all these: each rule holds for it, and each exception for its own rule only.
const NESTED: &str = "
  addressGroups:
    all-but-peer: { cidrs: [0.0.0.0/0, '::/0'], except: [203.0.113.0/24, '2001:db8::/64'] }
    net-but-other: { cidrs: [203.0.113.0/24, '2001:db8::/32'], except: [203.0.113.6/32, '2001:db8::6/128'] }
  allow:
    - { name: wide, from: app, to: [203.0.0.0/8, '2001::/16'], ports: [udp/1] }
    - { name: middle, from: app, to: [203.0.113.0/24, '2001:db8::/32'], ports: [udp/2] }
    - { name: narrow, from: app, to: [203.0.113.5/32, '2001:db8::2/128'], ports: [udp/3] }
    - { name: neighbour, from: app, to: [203.0.113.4/32, '2001:db8::3/128'], ports: [udp/4] }
    - { name: excepted, from: app, to: all-but-peer, ports: [udp/5] }
    - { name: not-excepted, from: app, to: net-but-other, ports: [udp/6] }
    - { name: everybody, from: app, to: any, ports: [udp/7, udp/8] }
  deny:
    - { name: wide-denial, from: app, to: [203.0.0.0/8, '2001::/16'], ports: [udp/8] }";

fn wide_and_narrow(_: &Environment) -> Result<()> {
    on_a_line("nested", |line| {
        line.policy(NESTED)?;
        for (port, allowed) in [
            (1, true),
            (2, true),
            (3, true),
            (4, false),
            (5, false),
            (6, true),
            (7, true),
            (8, false),
            (9, false),
        ] {
            ensure!(line.asks(port)? == allowed, "udp/{port}: passes is {}", !allowed);
        }
        Ok(())
    })
}

/// `/app` may ask for this port.
fn policy(mode: &str, port: u16, further: &str) -> String {
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: rules }}
spec:
  mode: {mode}
  segments:
    app: {{ match: [ {{ cgroup: /app }} ] }}
  allow:
    - {{ name: open, from: app, to: any, ports: [udp/{port}] }}
{further}"
    )
}

const ALLOWED: u16 = 2000;
const DENIED: u16 = 2001;

fn serve(world: &World) -> Result<Server> {
    let listen = [ALLOWED, DENIED]
        .map(|port| Listen::Udp(SocketAddr::from((world.uplink.far(false), port))));
    Server::start(&world.peer.place(), &listen)
}

/// Which of the two ports answer.
fn answers(world: &World, app: &Place) -> Result<[bool; 2]> {
    let mut answers = [false; 2];
    for (answer, port) in answers.iter_mut().zip([ALLOWED, DENIED]) {
        let probe = Probe::new(Ask::Udp, (world.uplink.far(false), port).into());
        *answer = probe.run(app)?.outcome == Outcome::Ok;
    }
    Ok(answers)
}

/// The least that `capacity` takes for peers, and a policy for which it is not enough: the one that is
/// there still holds, and nothing of the new one does.
fn too_much(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let app = world.workload("/app")?;
    let settings = "capacity: { peers: 1024 }\n";
    let mut agent = Agent::start_with(&world, &policy("enforce", ALLOWED, ""), settings, &[])?;
    let _server = serve(&world)?;
    ensure!(answers(&world, &app)? == [true, false], "before");
    let generation = agent.status()?["generation"].clone();
    let mut addresses = String::new();
    for n in 0..1200 {
        write!(addresses, "198.51.{}.{}/32, ", n / 250, n % 250)?;
    }
    let rule = format!(
        "    - {{ name: many, from: app, to: [{addresses}198.51.100.1/32], ports: [udp/9] }}\n"
    );
    let file = world.folder().join("too-much.yaml");
    std::fs::write(&file, policy("enforce", DENIED, &rule))?;
    let (status, _, error) = agent.command(&["apply", &file.to_string_lossy()])?;
    ensure!(status == Some(2), "exit status {status:?}, not 2: {error}");
    for said in ["capacity.peers", "is 1024", "raise", "at least"] {
        ensure!(error.contains(said), "{said:?} is not in: {error}");
    }
    ensure!(agent.status()?["generation"] == generation, "another generation");
    ensure!(answers(&world, &app)? == [true, false], "after");
    // The control: with room for it, the same policy is taken.
    agent.stop()?;
    let world = World::new()?;
    let app = world.workload("/app")?;
    let mut agent = Agent::start(&world, &policy("enforce", ALLOWED, ""))?;
    let _server = serve(&world)?;
    agent.apply(&policy("enforce", DENIED, &rule))?;
    ensure!(answers(&world, &app)? == [false, true], "with room");
    agent.stop()
}

/// A policy that is only tried drops nothing, whatever becomes of the agent, and goes on saying
/// what it would drop.
fn audit(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let app = world.workload("/app")?;
    let mut agent = Agent::start(&world, &policy("audit", ALLOWED, ""))?;
    let _server = serve(&world)?;
    for kill in [None, Some(true), Some(false)] {
        match kill {
            None => {}
            Some(true) => agent.kill9(),
            Some(false) => agent.stop()?,
        }
        ensure!(answers(&world, &app)? == [true, true], "killed: {kill:?}, no agent");
        if kill.is_some() {
            agent.run(&[])?;
            // What is the same within a second is folded into what the last agent was told.
            thread::sleep(Duration::from_millis(1100));
            ensure!(answers(&world, &app)? == [true, true], "killed: {kill:?}, a new agent");
        }
        let event = agent.wait_for_event(|event| event["peer"]["port"] == DENIED);
        let event = event.with_context(|| format!("killed: {kill:?}"))?;
        ensure!(event["verdict"] == "AUDIT", "{event:#}");
    }
    // The control: enforced, it is dropped.
    agent.apply(&policy("enforce", ALLOWED, ""))?;
    ensure!(answers(&world, &app)? == [true, false], "enforced");
    agent.stop()
}
