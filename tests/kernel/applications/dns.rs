//! NSD, asked by dig: by UDP, and by TCP where the answer is too long for a datagram.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::patient;

use super::program;
use super::scene::{End, Scene, one_way, wait_for_text};
use super::served::{Ask, Said, Server, only_where_allowed};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("applications::nsd_answers_dig_only_where_it_may", only_where_it_may),
    ("applications::dig_does_without_what_is_too_long_for_udp", only_by_udp),
];

/// Not 53, which failsafe keeps open for the host.
const UDP: &str = "udp/5300";
const TCP: &str = "tcp/5300";
/// How long it may take to start.
const READY: Duration = Duration::from_secs(10);

fn only_where_it_may(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let mut servers = Vec::new();
    for end in [End::Service, End::Far, End::Vm] {
        servers.push((end, Nsd::start(&scene, end.segment(), &scene.place(end)?)?));
    }
    only_where_allowed(&mut scene, &mut servers, &asks()?)?;
    drop(servers);
    scene.end()
}

/// The server says by UDP that there is more, and TCP is denied.
fn only_by_udp(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let _server = Nsd::start(&scene, "service", &scene.place(End::Service)?)?;
    let [short, long] = asks()?;
    for from in [End::Client, End::Far, End::Vm] {
        scene.enforce(&one_way(from, End::Service, &[UDP]))?;
        let (place, to) = (scene.place(from)?, scene.address(from, End::Service, false));
        short.run(&place, to)?;
        let said = Said::wait(long.start(&place, to)?)?;
        said.ensure(said.out.contains("Truncated, retrying in TCP mode"))?;
        ensure!((long.is_served)(&said).is_err(), "served by TCP: {}", said.out);
        scene.wait_for_isolation(scene.generation()?, (from, End::Service, to), TCP)?;
        scene.enforce(&one_way(from, End::Service, &[UDP, TCP]))?;
        long.run(&place, to).with_context(|| format!("{from:?}; {}", scene.denials()))?;
    }
    scene.end()
}

fn asks() -> Result<[Ask; 2]> {
    fn arguments(to: IpAddr, name: &str) -> Vec<String> {
        let server = format!("@{to}");
        let all = ["-p", "5300", &server, name, "TXT", "+tries=1", "+time=2"];
        all.map(str::to_owned).to_vec()
    }
    let client = program("dig", "bind9-dnsutils")?;
    let ask =
        |name, ports, args, is_served| Ask { name, client: client.clone(), args, is_served, ports };
    Ok([
        ask("a short answer", &[UDP], |to| arguments(to, "short.test"), |said| is_by(said, "UDP")),
        ask(
            "a long answer",
            &[UDP, TCP],
            |to| arguments(to, "long.test"),
            |said| is_by(said, "TCP"),
        ),
    ])
}

fn is_by(said: &Said, protocol: &str) -> Result<()> {
    let way = said.out.lines().find(|line| line.starts_with(";; SERVER: "));
    let is_so = way.is_some_and(|line| line.ends_with(&format!("({protocol})")));
    said.ensure(
        said.status.success()
            && is_so
            && said.out.contains("status: NOERROR")
            && said.out.contains("ANSWER: 1"),
    )
}

/// A server of one zone.
struct Nsd {
    _process: Process,
    place: Place,
    configuration: PathBuf,
}

impl Nsd {
    fn start(scene: &Scene, name: &str, place: &Place) -> Result<Self> {
        let folder = scene.world.folder().join(format!("nsd-{name}"));
        fs::create_dir_all(&folder)?;
        let long = format!("\"{}\" ", "z".repeat(200)).repeat(20);
        let zone = format!(
            "$ORIGIN test.\n$TTL 60\n@ IN SOA ns root 1 60 60 60 60\n@ IN NS ns\n\
             ns IN A 192.0.2.2\nshort IN TXT z\nlong IN TXT {long}\n"
        );
        fs::write(folder.join("test.zone"), zone)?;
        let at = folder.display();
        let text = format!(
            "server:\n  port: 5300\n  ip-address: 0.0.0.0\n  ip-address: ::0\n  username: \"\"\n  \
             chroot: \"\"\n  zonesdir: {at}\n  pidfile: {at}/pid\n  logfile: {at}/log\n  \
             database: \"\"\n  zonelistfile: {at}/zone.list\n  xfrdfile: {at}/xfrd.state\n  \
             xfrdir: {at}\n  server-count: 1\nremote-control:\n  control-enable: yes\n  \
             control-interface: {at}/control\nzone:\n  name: test\n  zonefile: test.zone\n"
        );
        let configuration = folder.join("nsd.conf");
        fs::write(&configuration, text)?;
        let process =
            program("nsd", "nsd")?.spawn(place, &["-d", "-c", &configuration.to_string_lossy()])?;
        wait_for_text(&folder.join("log"), "nsd started", patient(READY))?;
        Ok(Self { _process: process, place: place.clone(), configuration })
    }
}

impl Server for Nsd {
    fn asked(&mut self) -> Result<u64> {
        let configuration = self.configuration.to_string_lossy();
        let control = program("nsd-control", "nsd")?;
        let control = control.spawn(&self.place, &["-c", &configuration, "stats_noreset"])?;
        let said = control.output(patient(READY))?;
        let number = said.lines().find_map(|line| line.strip_prefix("num.queries="));
        number.and_then(|number| number.parse().ok()).with_context(|| format!("it said: {said}"))
    }
}
