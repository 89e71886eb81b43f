//! What every client and server is put through.

use std::net::IpAddr;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ztseg_tests::application::Application;
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::patient;

use super::scene::{End, Scene, one_way, policy};

/// How long a client may take, with and without an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// What a client that has ended leaves.
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) out: String,
    pub(super) err: String,
}

impl Said {
    pub(super) fn wait(process: Process) -> Result<Self> {
        let (status, out, err) = process.wait(patient(LIMIT))?;
        Ok(Self { status, out, err })
    }

    /// An error with all that it said, unless `is_so`.
    pub(super) fn ensure(&self, is_so: bool) -> Result<()> {
        ensure!(is_so, "it ended with {} and said:\n{}\n{}", self.status, self.out, self.err);
        Ok(())
    }
}

/// A way to use a server.
pub(super) struct Ask {
    pub(super) name: &'static str,
    pub(super) client: Application,
    pub(super) args: fn(IpAddr) -> Vec<String>,
    /// That everything went as on an undisturbed network.
    pub(super) is_served: fn(&Said) -> Result<()>,
    /// What a rule must allow, in the order in which the client uses it.
    pub(super) ports: &'static [&'static str],
}

impl Ask {
    pub(super) fn start(&self, place: &Place, to: IpAddr) -> Result<Process> {
        let args = (self.args)(to);
        self.client.spawn(place, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(super) fn run(&self, place: &Place, to: IpAddr) -> Result<()> {
        let said = Said::wait(self.start(place, to)?)?;
        (self.is_served)(&said).with_context(|| format!("{} to {to}", self.name))
    }
}

/// A running server.
pub(super) trait Server {
    /// How often it was asked for something, by its own word.
    fn asked(&mut self) -> Result<u64>;
}

/// A way from a client to a server.
type Way<'a> = (End, End, IpAddr, &'a Ask);

/// Each way works without an agent; none does where nothing is allowed, and the server hears nothing
/// of it; each one does again where a rule allows its client, and nobody else.
pub(super) fn only_where_allowed<S: Server>(
    scene: &mut Scene,
    servers: &mut [(End, S)],
    asks: &[Ask],
) -> Result<()> {
    let ways = ways(scene, &servers.iter().map(|(end, _)| *end).collect::<Vec<_>>(), asks);
    for (from, to, address, ask) in &ways {
        let place = scene.place(*from)?;
        ask.run(&place, *address)
            .with_context(|| format!("without an agent, {from:?} to {to:?}"))?;
    }
    scene.enforce(&policy(""))?;
    let before =
        servers.iter_mut().map(|(_, server)| settled(server)).collect::<Result<Vec<_>>>()?;
    ensure!(before.iter().all(|asked| *asked > 0), "a server that nobody asked: {before:?}");
    denied(scene, &ways)?;
    let after = servers.iter_mut().map(|(_, server)| server.asked()).collect::<Result<Vec<_>>>()?;
    ensure!(before == after, "servers were asked by who was denied: {before:?}, {after:?}");
    for (end, server) in servers {
        for client in end.clients() {
            let (its, others): (Vec<Way<'_>>, Vec<Way<'_>>) =
                ways.iter().filter(|(_, to, ..)| to == end).partition(|(from, ..)| from == client);
            for (from, to, address, ask) in its {
                scene.enforce(&one_way(*client, *end, ask.ports))?;
                let before = server.asked()?;
                ask.run(&scene.place(from)?, address)
                    .with_context(|| format!("allowed, {from:?} to {to:?}; {}", scene.denials()))?;
                wait_for_one_more(server, before)?;
            }
            let asked = settled(server)?;
            denied(scene, &others)?;
            ensure!(server.asked()? == asked, "asked by somebody else than {client:?}");
        }
    }
    Ok(())
}

/// How long a server may take to say what it has done.
const WORD: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until the server says that it was asked more often than `before`: a client may be done first.
fn wait_for_one_more(server: &mut impl Server, before: u64) -> Result<()> {
    let deadline = Instant::now() + patient(WORD);
    while server.asked()? <= before {
        ensure!(Instant::now() < deadline, "the server was not asked");
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// How often the server was asked, when it has nothing more to say of it.
fn settled(server: &mut impl Server) -> Result<u64> {
    let deadline = Instant::now() + patient(WORD);
    let mut asked = server.asked()?;
    loop {
        thread::sleep(PAUSE);
        let now = server.asked()?;
        if now == asked {
            return Ok(now);
        }
        asked = now;
        ensure!(Instant::now() < deadline, "the server goes on to be asked: {asked} times");
    }
}

/// Every client to every server, both families.
fn ways<'a>(scene: &Scene, servers: &[End], asks: &'a [Ask]) -> Vec<Way<'a>> {
    let mut ways = Vec::new();
    for to in servers {
        for from in to.clients() {
            for v6 in [false, true] {
                let address = scene.address(*from, *to, v6);
                ways.extend(asks.iter().map(|ask| (*from, *to, address, ask)));
            }
        }
    }
    ways
}

/// Tries all at once; each must fail, and the agent must say why.
fn denied(scene: &Scene, ways: &[Way<'_>]) -> Result<()> {
    let generation = scene.generation()?;
    let mut clients = Vec::new();
    for (from, _, address, ask) in ways {
        clients.push(ask.start(&scene.place(*from)?, *address)?);
    }
    for ((from, to, address, ask), client) in ways.iter().zip(clients) {
        let said = Said::wait(client)
            .with_context(|| format!("{} denied, {from:?} to {to:?}, {address}", ask.name))?;
        if (ask.is_served)(&said).is_ok() {
            bail!("{} denied and served: {from:?} to {to:?}, {address}:\n{}", ask.name, said.out);
        }
        scene.wait_for_isolation(generation, (*from, *to, *address), ask.ports[0])?;
    }
    Ok(())
}
