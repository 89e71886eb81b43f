//! `boot: closed`: what is enforced where the configured policy is broken when the agent starts.

use anyhow::{Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::patient;

use crate::Body;
use crate::environment::Environment;
use crate::life::{DENIED, POLICY, Scene};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("boot::closed_enforces_the_last_good_policy", the_last_good_policy),
    ("boot::closed_without_one_closes_all_but_failsafe_and_loopback", without_one),
    ("boot::open_refuses_a_broken_policy", open_refuses),
];

const BROKEN: &str = "kind: SegmentPolicy\n";
const CLOSED: &str = "boot: closed\n";

/// As after a boot: no pins of an earlier agent.
fn stop_and_detach(agent: &mut Agent) -> Result<()> {
    agent.stop()?;
    let config = agent.config().to_string_lossy().into_owned();
    let (status, _, error) = agent.command(&["detach", "--config", &config])?;
    ensure!(status == Some(0), "{error}");
    Ok(())
}

fn the_last_good_policy(_: &Environment) -> Result<()> {
    let mut scene = Scene::with(POLICY, CLOSED, &[])?;
    stop_and_detach(&mut scene.agent)?;
    scene.check(false)?;
    scene.agent.write_policy(BROKEN)?;
    scene.agent.run(&[])?;
    scene.check(true)?;
    let status = scene.agent.status()?;
    ensure!(status["origin"] == "last-good", "{status:#}");
    let error = status["lastError"]["message"].to_string();
    ensure!(error.contains("policy.yaml") && error.contains("last good one"), "{error}");
    let (_, text, _) = scene.agent.command(&["status"])?;
    ensure!(text.contains("THE LAST GOOD ONE"), "{text}");
    // Put right, it is applied, though it is the text that was read last before.
    scene.agent.write_policy(&POLICY.replace("name: open", "name: other"))?;
    scene.agent.wait_for_status(|s| s["origin"] == "configured" && s["lastError"].is_null())?;
    scene.check(true)?;
    scene.agent.stop()
}

fn without_one(_: &Environment) -> Result<()> {
    let mut scene = Scene::with(POLICY, CLOSED, &[])?;
    stop_and_detach(&mut scene.agent)?;
    std::fs::remove_file(scene.world.folder().join("state/last-good.json"))?;
    scene.agent.write_policy(BROKEN)?;
    let host = scene.world.workload("/")?;
    let near = scene.world.uplink.near(false);
    let any = "0.0.0.0".parse::<std::net::IpAddr>()?;
    let listen = [22, DENIED].map(|port| Listen::Tcp((any, port).into()));
    let _server = Server::start(&host, &listen)?;
    scene.agent.run(&[])?;
    let status = scene.agent.status()?;
    ensure!(status["origin"] == "closed", "{status:#}");
    let loopback: std::net::IpAddr = "127.0.0.1".parse()?;
    for (from, to, port, open) in [
        (scene.world.peer.place(), near, 22, true),
        (scene.world.peer.place(), near, DENIED, false),
        (scene.app.clone(), loopback, DENIED, true),
        (scene.app.clone(), scene.world.uplink.far(false), DENIED, false),
    ] {
        let outcome = Probe::new(Ask::Tcp, (to, port).into()).run(&from)?.outcome;
        ensure!((outcome == Outcome::Ok) == open, "{to} port {port}: {outcome:?}, open: {open}");
    }
    scene.agent.write_policy(POLICY)?;
    scene.agent.wait_for_status(|s| s["origin"] == "configured")?;
    scene.check(true)?;
    scene.agent.stop()
}

fn open_refuses(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    stop_and_detach(&mut scene.agent)?;
    scene.agent.write_policy(BROKEN)?;
    let limit = patient(std::time::Duration::from_secs(20));
    let (status, _, error) = scene.agent.spawn(&[])?.wait(limit)?;
    ensure!(status.code() == Some(2) && error.contains("policy.yaml"), "{status}: {error}");
    scene.check(false)
}
