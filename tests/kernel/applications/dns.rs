//! dnsmasq, asked by dig: over UDP, in fragments, truncated and asked again over TCP, and over TCP.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::application::Application;
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::patient;

use super::program;
use super::scene::{End, Scene, one_way};
use super::served::{Ask, Said, Server, only_where_allowed};
use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("applications::dnsmasq_answers_dig_only_where_it_may", only_where_it_may),
    ("applications::dig_lacks_the_long_answer_where_only_udp_is_allowed", only_udp),
];

/// How long it may take to start.
const READY: Duration = Duration::from_secs(10);
/// Something short.
const SHORT: &str = "short.ztseg.test";
const SHORT_ANSWER: &str = "192.0.2.53";
/// Something longer than a packet.
const LONG: &str = "long.ztseg.test";
const LONG_ANSWER: usize = 3_000;

fn only_where_it_may(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let mut servers = start(&scene)?;
    only_where_allowed(&mut scene, &mut servers, &asks()?)?;
    drop(servers);
    scene.end()
}

fn only_udp(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let _servers = start(&scene)?;
    let [short, _, again, _] = asks()?;
    for server in [End::Service, End::Far, End::Vm] {
        for client in server.clients() {
            scene.enforce(&one_way(*client, server, &["udp/53"]))?;
            let generation = scene.generation()?;
            for v6 in [false, true] {
                let (place, to) = (scene.place(*client)?, scene.address(*client, server, v6));
                short.run(&place, to).with_context(|| scene.denials())?;
                ensure!(again.run(&place, to).is_err(), "{to} answered over TCP");
                scene.wait_for_isolation(generation, (*client, server, to), "tcp/53")?;
            }
        }
    }
    scene.end()
}

fn start(scene: &Scene) -> Result<Vec<(End, Dnsmasq)>> {
    [End::Service, End::Far, End::Vm]
        .into_iter()
        .map(|end| Ok((end, Dnsmasq::start(&scene.place(end)?)?)))
        .collect()
}

fn asks() -> Result<[Ask; 4]> {
    let client = program("dig", "bind9-dnsutils")?;
    let ask = |name, ports, args, is_served| Ask {
        name,
        client: Application::clone(&client),
        args,
        is_served,
        ports,
    };
    Ok([
        ask(
            "short",
            &["udp/53"],
            |to| dig(to, &["+notcp", SHORT, "A"]),
            |said| said.ensure(is_answer(said) && said.out.contains(SHORT_ANSWER)),
        ),
        ask(
            "in fragments",
            &["udp/53"],
            |to| dig(to, &["+notcp", "+ignore", "+bufsize=4096", LONG, "TXT"]),
            |said| said.ensure(is_long_answer(said) && !said.out.contains("retrying in TCP")),
        ),
        ask(
            "again over TCP",
            &["udp/53", "tcp/53"],
            |to| dig(to, &["+notcp", "+bufsize=1232", LONG, "TXT"]),
            |said| said.ensure(is_long_answer(said) && said.out.contains("retrying in TCP")),
        ),
        ask(
            "over TCP",
            &["tcp/53"],
            |to| dig(to, &["+tcp", LONG, "TXT"]),
            |said| said.ensure(is_long_answer(said)),
        ),
    ])
}

fn dig(to: IpAddr, more: &[&str]) -> Vec<String> {
    let server = format!("@{to}");
    let all = ["-r", "+tries=1", "+timeout=2", &server];
    all.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
}

fn is_answer(said: &Said) -> bool {
    said.status.success() && said.out.contains("status: NOERROR")
}

fn is_long_answer(said: &Said) -> bool {
    let size = said.out.lines().find_map(|line| line.split_once("MSG SIZE  rcvd: "));
    let size = size.and_then(|(_, size)| size.trim().parse::<usize>().ok());
    is_answer(said) && size.is_some_and(|size| size >= LONG_ANSWER)
}

/// A server of these two names only.
struct Dnsmasq {
    process: Process,
}

impl Dnsmasq {
    fn start(place: &Place) -> Result<Self> {
        let mut args: Vec<String> = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
            "--no-resolv",
            "--no-hosts",
            "--log-queries",
            "--log-facility=-",
            "--edns-packet-max=4096",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--host-record={SHORT},{SHORT_ANSWER}"));
        for number in 0..15 {
            // Of at most 255 bytes each (RFC 1035).
            args.push(format!("--txt-record={LONG},{number:0>220}"));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut process = program("dnsmasq", "dnsmasq-base")?.spawn(place, &args)?;
        process.wait_for_error("started, version", patient(READY))?;
        Ok(Self { process })
    }
}

impl Server for Dnsmasq {
    fn asked(&mut self) -> Result<u64> {
        let log = self.process.errors();
        Ok(log.lines().filter(|line| line.contains("query[")).count() as u64)
    }
}
