//! Cgroups and interfaces that come and go while the agent runs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server, newborn};
use ztseg_tests::world::{World, patient, times};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("living::a_new_cgroup_has_its_ancestors_segments_at_once", a_new_cgroup),
    ("living::a_cgroup_that_a_pattern_names_comes_and_goes", a_cgroup_comes_and_goes),
    ("living::an_interface_comes_and_goes", an_interface_comes_and_goes),
    ("living::ten_thousand_cgroups", ten_thousand_cgroups),
];

const ALLOWED: u16 = 2000;
const DENIED: u16 = 2001;
/// How long the agent may take to notice something.
const NOTICED: Duration = Duration::from_secs(5);

const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: living }
spec:
  segments:
    app: { match: [ { cgroup: /app } ] }
    jobs: { match: [ { cgroup: /jobs/* } ] }
    late: { match: [ { interface: zt-late } ] }
  allow:
    - { name: open, from: [app, jobs, late], to: any, ports: [udp/2000] }
";

fn server(world: &World) -> Result<Server> {
    let to = world.uplink.far(false);
    let listen = [ALLOWED, DENIED].map(|port| Listen::Udp(SocketAddr::from((to, port))));
    Server::start(&world.peer.place(), &listen)
}

fn outcome(world: &World, from: &Place, port: u16) -> Result<Outcome> {
    let to = SocketAddr::from((world.uplink.far(false), port));
    Ok(Probe::new(Ask::Udp, to).patience(Duration::from_millis(200)).run(from)?.outcome)
}

/// Waits until what the policy denies is denied (or passes), and checks that the rest passes.
fn wait_until(world: &World, from: &Place, denied: bool) -> Result<()> {
    let start = Instant::now();
    while (outcome(world, from, DENIED)? != Outcome::Ok) != denied {
        ensure!(
            start.elapsed() < patient(NOTICED),
            "after {NOTICED:?} not yet so: denied = {denied}"
        );
    }
    let allowed = outcome(world, from, ALLOWED)?;
    ensure!(allowed == Outcome::Ok, "what is allowed is {allowed:?}");
    Ok(())
}

/// There is no window: no packet of the denied flow passes, none of the allowed one is lost.
fn a_new_cgroup(_: &Environment) -> Result<()> {
    let count = times(500);
    let world = World::new()?;
    let app = world.workload("/app")?;
    let mut agent = Agent::start(&world, POLICY)?;
    let server = server(&world)?;
    let to = world.uplink.far(false);
    let taken = newborn(&app, count, (to, ALLOWED).into(), (to, DENIED).into())?;
    ensure!(
        (taken.first_taken, taken.second_taken) == (u64::from(count), 0),
        "of {count} first packets each: {taken:?}"
    );
    let arrived = server.finish()?;
    let denied = arrived.iter().find(|(port, _)| port.ends_with(&format!(":{DENIED}")));
    ensure!(denied.context("no such server")?.1 == &0, "denied packets arrived: {arrived:?}");
    agent.stop()
}

fn a_cgroup_comes_and_goes(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = Agent::start(&world, POLICY)?;
    let _server = server(&world)?;
    world.cgroup("/jobs")?;
    let jobs = |status: &serde_json::Value| status["workloadsBySegment"]["jobs"].as_u64();
    for _ in 0..3 {
        let job = world.workload("/jobs/one")?;
        wait_until(&world, &job, true)?;
        agent.wait_for_status(|status| jobs(status) == Some(1))?;
        world.remove_cgroup("/jobs/one")?;
        agent.wait_for_status(|status| jobs(status).unwrap_or(0) == 0)?;
    }
    agent.stop()
}

fn an_interface_comes_and_goes(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = Agent::start(&world, POLICY)?;
    let _server = server(&world)?;
    let late = |status: &serde_json::Value| status["workloadsBySegment"]["late"].as_u64();
    for _ in 0..3 {
        let (namespace, link) = world.add_host("late", 9, "zt-late")?;
        wait_until(&world, &namespace.place(), true)?;
        agent.wait_for_status(|status| late(status) == Some(1))?;
        world.host.batch(&format!("link del {}\n", link.interface))?;
        let status = agent.wait_for_status(|status| late(status).unwrap_or(0) == 0)?;
        ensure!(!status["hooks"].to_string().contains("zt-late"), "still attached: {status:#}");
    }
    agent.stop()
}

/// As many workloads, made while the agent runs, and there when it starts.
fn ten_thousand_cgroups(_: &Environment) -> Result<()> {
    let count = times(10_000);
    let world = World::new()?;
    let mut agent = Agent::start(&world, POLICY)?;
    let _server = server(&world)?;
    let start = Instant::now();
    for n in 0..count {
        world.cgroup(&format!("/jobs/n{n}"))?;
    }
    println!("{count} cgroups made in {} ms", start.elapsed().as_millis());
    let all = |status: &serde_json::Value| status["workloadsBySegment"]["jobs"] == count;
    agent.wait_for_status_within(patient(Duration::from_secs(30)), all)?;
    println!("known to the agent after {} ms", start.elapsed().as_millis());
    let last = world.workload(&format!("/jobs/n{}", count - 1))?;
    wait_until(&world, &last, true)?;
    let start = Instant::now();
    agent.apply(POLICY)?;
    println!("a policy applied to them in {} ms", start.elapsed().as_millis());
    wait_until(&world, &last, true)?;
    agent.stop()?;
    let start = Instant::now();
    agent.run(&[])?;
    println!("a new agent ready in {} ms", start.elapsed().as_millis());
    agent.wait_for_status(all)?;
    wait_until(&world, &last, true)?;
    agent.stop()
}
