//! iperf3: streams and datagrams, in both directions.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::patient;

use super::program;
use super::scene::{End, Scene};
use super::served::{Ask, Said, Server, only_where_allowed};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] =
    &[("applications::iperf3_measures_only_where_it_may", only_where_it_may)];

/// How long it may take to start.
const READY: Duration = Duration::from_secs(10);
/// Of the control connection, and of the data.
pub(super) const PORTS: &[&str] = &["tcp/5201", "udp/5201"];

fn only_where_it_may(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let mut servers = Vec::new();
    for end in [End::Service, End::Far, End::Vm] {
        servers.push((end, Iperf::start(&scene.place(end)?)?));
    }
    only_where_allowed(&mut scene, &mut servers, &asks()?)?;
    drop(servers);
    scene.end()
}

fn asks() -> Result<[Ask; 5]> {
    let client = program("iperf3", "iperf3")?;
    let ask =
        |name, ports, args, is_served| Ask { name, client: client.clone(), args, is_served, ports };
    Ok([
        ask("TCP", &PORTS[..1], |to| arguments(to, &["-n", "4M"]), has_stream),
        ask(
            "TCP from the server",
            &PORTS[..1],
            |to| arguments(to, &["-n", "4M", "-R"]),
            has_stream,
        ),
        ask("UDP", PORTS, |to| datagrams(to, "1200", &[]), has_all_datagrams),
        ask("UDP from the server", PORTS, |to| datagrams(to, "1200", &["-R"]), has_all_datagrams),
        ask("UDP in fragments", PORTS, |to| datagrams(to, "4000", &[]), has_all_datagrams),
    ])
}

/// Arguments of a client for the server at an address.
pub(super) fn arguments(to: IpAddr, more: &[&str]) -> Vec<String> {
    let to = to.to_string();
    let all = ["-c", &to, "-J", "--connect-timeout", "2000"];
    all.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
}

/// Slow enough that nobody but an enforcer would drop one.
fn datagrams(to: IpAddr, bytes: &str, more: &[&str]) -> Vec<String> {
    let mut args = arguments(to, &["-u", "-b", "4M", "-n", "100K", "-l", bytes]);
    args.extend(more.iter().map(|argument| (*argument).to_owned()));
    args
}

/// A server, for one client at a time.
pub(super) struct Iperf {
    process: Process,
}

impl Iperf {
    pub(super) fn start(place: &Place) -> Result<Self> {
        let mut process = program("iperf3", "iperf3")?.spawn(place, &["-s", "--forceflush"])?;
        process.wait_for_output("Server listening", patient(READY))?;
        Ok(Self { process })
    }
}

impl Server for Iperf {
    fn asked(&mut self) -> Result<u64> {
        let said = self.process.written();
        Ok(said.lines().filter(|line| line.contains("Accepted connection")).count() as u64)
    }
}

fn report(said: &Said) -> Result<Value> {
    said.ensure(said.status.success())?;
    serde_json::from_str(&said.out).with_context(|| format!("no JSON: {}", said.out))
}

/// Whether what was sent was received.
pub(super) fn has_stream(said: &Said) -> Result<()> {
    let report = report(said)?;
    let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default();
    said.ensure(received > 0 && report["error"].is_null())
}

fn has_all_datagrams(said: &Said) -> Result<()> {
    let report = report(said)?;
    let sum = &report["end"]["sum"];
    said.ensure(
        sum["lost_packets"] == 0
            && sum["packets"].as_u64().is_some_and(|packets| packets > 0)
            && report["error"].is_null(),
    )
}
