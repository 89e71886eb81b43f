//! Redis.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ztseg_tests::application::Application;
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::patient;

use super::program;
use super::scene::{End, Scene};
use super::served::{Ask, Server, only_where_allowed};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] =
    &[("applications::redis_serves_only_where_it_may", only_where_it_may)];

/// How long it may take to start, or to answer.
const READY: Duration = Duration::from_secs(10);

fn only_where_it_may(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let mut servers = Vec::new();
    for end in [End::Service, End::Vm] {
        servers.push((end, Redis::start(&scene, end.segment(), &scene.place(end)?)?));
    }
    let asks = [Ask {
        name: "redis-cli",
        client: cli()?,
        args: |to| arguments(to, &["INCR", COUNTER]),
        is_served: |said| said.ensure(said.out.trim().parse::<u64>().is_ok()),
        ports: PORTS,
    }];
    only_where_allowed(&mut scene, &mut servers, &asks)?;
    drop(servers);
    scene.end()
}

/// What clients count up.
pub(super) const COUNTER: &str = "hits";
/// Where it listens.
const PORTS: &[&str] = &["tcp/6379"];

/// A server that keeps nothing.
pub(super) struct Redis {
    _process: Process,
    socket: PathBuf,
    cli: Application,
    place: Place,
}

impl Redis {
    pub(super) fn start(scene: &Scene, name: &str, place: &Place) -> Result<Self> {
        let folder = scene.world.folder().join(format!("redis-{name}"));
        fs::create_dir_all(&folder)?;
        let socket = folder.join("socket");
        let args = ["--bind", "* -::*", "--protected-mode", "no", "--save", "", "--dir"];
        let args = args.into_iter().map(str::to_owned).chain([
            folder.display().to_string(),
            "--unixsocket".to_owned(),
            socket.display().to_string(),
        ]);
        let args: Vec<String> = args.collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut process = program("redis-server", "redis-server")?.spawn(place, &args)?;
        process.wait_for_output("now ready to accept connections", patient(READY))?;
        Ok(Self { _process: process, socket, cli: cli()?, place: place.clone() })
    }
}

impl Server for Redis {
    /// Over its Unix socket.
    fn asked(&mut self) -> Result<u64> {
        let socket = self.socket.to_string_lossy();
        let said = self.cli.spawn(&self.place, &["-s", &socket, "GET", COUNTER])?;
        let said = said.output(patient(READY))?;
        let count = said.trim();
        if count.is_empty() {
            return Ok(0);
        }
        count.parse().with_context(|| format!("redis counts `{count}`"))
    }
}

/// Its own client.
pub(super) fn cli() -> Result<Application> {
    program("redis-cli", "redis-tools")
}

/// Arguments of a client for the server at an address.
pub(super) fn arguments(to: IpAddr, more: &[&str]) -> Vec<String> {
    let to = to.to_string();
    ["-h", &to].iter().chain(more).map(|argument| (*argument).to_owned()).collect()
}
