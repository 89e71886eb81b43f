//! nginx, asked by wrk.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::patient;

use super::program;
use super::scene::{End, Scene, wait_for_text};
use super::served::{Ask, Said, Server, only_where_allowed};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] =
    &[("applications::nginx_serves_wrk_only_where_it_may", only_where_it_may)];

/// Where it listens.
const PORT: u16 = 8080;
/// How long it may take to start.
const READY: Duration = Duration::from_secs(10);

fn only_where_it_may(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let mut servers = Vec::new();
    for end in [End::Service, End::Far, End::Vm] {
        servers.push((end, Nginx::start(&scene, end.segment(), &scene.place(end)?)?));
    }
    only_where_allowed(&mut scene, &mut servers, &[wrk()?])?;
    drop(servers);
    scene.end()
}

/// A server of one file of 64 KiB.
pub(super) struct Nginx {
    _process: Process,
    log: PathBuf,
}

impl Nginx {
    pub(super) fn start(scene: &Scene, name: &str, place: &Place) -> Result<Self> {
        let folder = scene.world.folder().join(format!("nginx-{name}"));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("index.html"), vec![b'z'; 64 << 10])?;
        let log = folder.join("access.log");
        let at = folder.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {at}/{what};\n"))
            .concat();
        let configuration = folder.join("nginx.conf");
        // One process, which takes no other with it.
        let text = format!(
            "daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log {at}/error.log notice;\n\
             events {{}}\n\
             http {{\nsendfile on;\nkeepalive_requests 1000000;\naccess_log {at}/access.log;\n\
             {temporary}server {{ listen {PORT}; listen [::]:{PORT}; root {at}; }}\n}}\n"
        );
        fs::write(&configuration, text)?;
        let error_log = folder.join("error.log");
        let process = program("nginx", "nginx")?.spawn(
            place,
            &["-c", &configuration.to_string_lossy(), "-e", &error_log.to_string_lossy()],
        )?;
        wait_for_text(&error_log, "using the \"epoll\" event method", patient(READY))?;
        Ok(Self { _process: process, log })
    }
}

impl Server for Nginx {
    fn asked(&mut self) -> Result<u64> {
        let log = fs::read_to_string(&self.log).context("nginx keeps no log")?;
        Ok(log.lines().count() as u64)
    }
}

/// Four connections for a second.
pub(super) fn wrk() -> Result<Ask> {
    fn args(to: IpAddr) -> Vec<String> {
        let url = format!("http://{}/", SocketAddr::from((to, PORT)));
        ["-t1", "-c4", "-d1s", "--timeout", "2s", &url].map(str::to_owned).to_vec()
    }
    let client = program("wrk", "wrk")?;
    Ok(Ask { name: "wrk", client, args, is_served, ports: &["tcp/8080"] })
}

/// Whether wrk had answers, and no errors.
pub(super) fn is_served(said: &Said) -> Result<()> {
    let requests = said.out.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests = requests.and_then(|(number, _)| number.parse::<u64>().ok()).unwrap_or_default();
    let is_undisturbed =
        ["Socket errors", "Non-2xx"].iter().all(|complaint| !said.out.contains(complaint));
    said.ensure(said.status.success() && requests > 0 && is_undisturbed)
}
