//! `PostgreSQL`, asked by pgbench.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::time::Duration;

use anyhow::Result;
use ztseg_tests::application::{Application, NOBODY};
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::patient;

use super::program;
use super::scene::{End, Scene};
use super::served::{Ask, Said, Server, only_where_allowed};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] =
    &[("applications::postgresql_serves_pgbench_only_where_it_may", only_where_it_may)];

/// How long it may take to make a database.
const READY: Duration = Duration::from_secs(60);

fn only_where_it_may(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let mut servers = [(End::Service, PostgreSql::start(&scene, &scene.place(End::Service)?)?)];
    let ask = Ask {
        name: "pgbench",
        client: pgbench()?,
        args: |to| arguments(to, &["-c", "2", "-t", "50"]),
        is_served: |said| is_served(said, 100),
        ports: &["tcp/5432"],
    };
    only_where_allowed(&mut scene, &mut servers, &[ask])?;
    drop(servers);
    scene.end()
}

/// A server with the tables of pgbench; it listens on its usual port.
pub(super) struct PostgreSql {
    process: Process,
}

impl PostgreSql {
    pub(super) fn start(scene: &Scene, place: &Place) -> Result<Self> {
        let folder = scene.world.folder().join("postgresql");
        fs::create_dir_all(&folder)?;
        chown(&folder, Some(NOBODY), Some(NOBODY))?;
        let data = folder.join("data");
        let [at, sockets] = [&data, &folder].map(|path| path.to_string_lossy().into_owned());
        program("initdb", "postgresql")?
            .spawn_as_nobody(
                place,
                &["-D", &at, "-U", "postgres", "-A", "trust", "--no-sync", "--no-locale"],
            )?
            .output(patient(READY))?;
        let access = "local all all trust\nhost all all all trust\n";
        fs::write(data.join("pg_hba.conf"), access)?;
        let settings = [
            "listen_addresses=*",
            &format!("unix_socket_directories={sockets}"),
            "fsync=off",
            "log_connections=on",
            "dynamic_shared_memory_type=mmap",
        ];
        let mut args = vec!["-D", &at];
        args.extend(settings.iter().flat_map(|setting| ["-c", *setting]));
        let mut process = program("postgres", "postgresql")?.spawn_as_nobody(place, &args)?;
        process.wait_for_error("ready to accept connections", patient(READY))?;
        pgbench()?
            .spawn(place, &["-i", "-q", "-h", &sockets, "-U", "postgres", "postgres"])?
            .output(patient(READY))?;
        Ok(Self { process })
    }
}

impl Server for PostgreSql {
    fn asked(&mut self) -> Result<u64> {
        let log = self.process.errors();
        let is_by_network =
            |line: &&str| line.contains("connection received: host=") && !line.contains("[local]");
        Ok(log.lines().filter(is_by_network).count() as u64)
    }
}

/// Gives up when a connection does not come about.
pub(super) fn pgbench() -> Result<Application> {
    Ok(program("pgbench", "postgresql")?.with("PGCONNECT_TIMEOUT", "3"))
}

/// Arguments of pgbench for the server at an address.
pub(super) fn arguments(to: IpAddr, more: &[&str]) -> Vec<String> {
    let to = to.to_string();
    let mut all = vec!["-n", "-h", &to, "-U", "postgres"];
    all.extend(more);
    all.push("postgres");
    all.into_iter().map(str::to_owned).collect()
}

/// Whether so many transactions were processed, and none failed.
fn is_served(said: &Said, transactions: u64) -> Result<()> {
    let all = format!("number of transactions actually processed: {transactions}/{transactions}");
    said.ensure(said.status.success() && said.out.contains(&all) && has_no_failure(said))
}

/// Whether pgbench counted no failed transaction.
pub(super) fn has_no_failure(said: &Said) -> bool {
    said.out.contains("number of failed transactions: 0 (0.000%)")
}
