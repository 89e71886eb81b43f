//! A world with the pods of tests, and what is asked in it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;
use ztseg::clocks::Clocks;
use ztseg::datapath::{Capacity, Datapath, Options};
use ztseg::discover::mounts::{self, CgroupRoot};
use ztseg::image::{Image, SegmentSet};
use ztseg::inventory::Membership;
use ztseg::policy::compile::compile;
use ztseg::policy::load;
use ztseg::policy::resolved::Resolved;
use ztseg_common::addr::proto;
use ztseg_tests::conformance::{address, list, service, sources, text};
use ztseg_tests::traffic::{Ask, Listen, Outcome, PATIENCE, Probe, Server};
use ztseg_tests::world::{World, patient};

use super::ends::{End, Hooks};

/// Probes that are asked at the same time.
const AT_ONCE: usize = 8;
/// How long an answer may take that must come.
const ANSWER: Duration = Duration::from_secs(5);
/// What a client sends once it is connected, or at once in a datagram.
const BYTES: usize = 64;

/// A world with the pods of tests. Loading the programs takes longer than asking, so tests follow each
/// other in one world as long as no name has two addresses, and no address two names.
pub(super) struct Scene {
    hooks: Hooks,
    // In the order in which they end.
    datapath: Datapath,
    /// What answers, by what is asked: the name of an end, protocol and port.
    servers: BTreeMap<(String, u8, u16), Served>,
    ends: BTreeMap<String, End>,
    root: CgroupRoot,
    world: World,
}

/// A server, and how much must have come to it so far.
struct Served {
    server: Server,
    expected: u64,
}

/// Each thing that the states of a test have: its name, its address, whether it is a pod.
fn named(states: &[Value]) -> impl Iterator<Item = (String, IpAddr, bool)> {
    let pod =
        |pod| (format!("{}/{}", text(pod, "namespace"), text(pod, "name")), address(pod), true);
    let outside = |outside| (format!("ext:{}", text(outside, "name")), address(outside), false);
    states.iter().flat_map(move |state| {
        let pods = list(state, "pods").iter().map(pod);
        pods.chain(list(state, "externals").iter().map(outside))
    })
}

impl Scene {
    pub(super) fn new(hooks: Hooks) -> Result<Self> {
        let world = World::new()?;
        let root = mounts::cgroup_root(Some(world.cgroup_root()))?;
        let options = Options {
            bpffs: world.pins().to_owned(),
            cgroup_root: world.cgroup_root().to_owned(),
            capacity: Capacity::default(),
            debug: false,
        };
        world.ensure_apart()?;
        // As the agent, which is in the namespace of the interfaces.
        let datapath = world.host.within(|| Ok(Datapath::open(&options)?))?;
        let (servers, ends) = (BTreeMap::new(), BTreeMap::new());
        let mut scene = Self { hooks, datapath, servers, ends, root, world };
        scene.commit(&Resolved::default(), Vec::new())?;
        if hooks == Hooks::Cgroup {
            scene.datapath.attach_cgroup()?;
        }
        Ok(scene)
    }

    pub(super) fn has_room_for(&self, states: &[Value]) -> bool {
        named(states).all(|(name, address, _)| {
            self.ends.iter().all(|(other, end)| (*other == name) == (end.address == address))
        })
    }

    /// Adds what is not there yet, and starts what the probes ask; nothing is enforced after it.
    pub(super) fn add(&mut self, states: &[Value], probes: &[&Value]) -> Result<()> {
        self.commit(&Resolved::default(), Vec::new())?;
        for (name, address, is_pod) in named(states) {
            if self.ends.contains_key(&name) {
                continue;
            }
            let (world, number) = (&self.world, self.ends.len());
            let end = match (self.hooks, is_pod) {
                (Hooks::Cgroup, true) => End::in_cgroup(world, &name, address, self.root.level),
                (Hooks::Cgroup, false) => End::at_peer(world, address),
                (Hooks::Tc, _) => {
                    let datapath = is_pod.then_some(&mut self.datapath);
                    End::behind_interface(world, number, address, datapath)
                }
            };
            self.ends.insert(name, end?);
        }
        for probe in probes {
            let asked = asked(probe);
            if !self.servers.contains_key(&asked) {
                let (name, protocol, port) = &asked;
                let end = end(&self.ends, name)?;
                let listen = listen(*protocol, SocketAddr::new(end.address, *port));
                let server = Server::start(&end.place, &[listen])?;
                self.servers.insert(asked, Served { server, expected: 0 });
            }
        }
        Ok(())
    }

    /// Puts a state's policies in force, whatever was before.
    pub(super) fn enforce(&mut self, state: &Value) -> Result<()> {
        let loaded = load(&sources(state)).map_err(|found| anyhow!(found.render(false)))?;
        let mut members = Vec::new();
        for pod in &loaded.pods {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let segments = pod.segments.clone().context("a pod of its node's network")?;
            members.push(end(&self.ends, &name)?.membership(&name, segments)?);
        }
        self.commit(&loaded.resolved, members)
    }

    fn commit(&mut self, resolved: &Resolved, mut members: Vec<Membership>) -> Result<()> {
        if self.hooks == Hooks::Cgroup {
            members.push(Membership {
                key: fs::metadata(&self.root.path)?.ino(),
                name: "/".to_owned(),
                level: Some(self.root.level),
                segments: SegmentSet::new(),
            });
        }
        let image: Image = compile(resolved, &members, &Capacity::default())?;
        self.datapath.commit(&image, &Clocks::now())?;
        Ok(())
    }

    /// Asks all probes and compares what they and the servers see.
    pub(super) fn ask(
        &mut self,
        probes: &[&Value],
        expected: impl Fn(&Value) -> bool + Sync,
    ) -> Result<()> {
        let ends = &self.ends;
        let wrong = |probe: &Value| -> Result<()> {
            let (from, to) = (end(ends, text(probe, "from"))?, end(ends, text(probe, "to"))?);
            let (protocol, port) = service(probe);
            let is_allowed = expected(probe);
            let report = Probe::new(ask(protocol), (to.address, port).into())
                .from((from.address, 0))
                .bytes(BYTES)
                .patience(patient(if is_allowed { ANSWER } else { PATIENCE }))
                .run(&from.place)?;
            match report.outcome {
                Outcome::Ok if is_allowed => Ok(()),
                Outcome::Eperm | Outcome::Timeout if !is_allowed => Ok(()),
                _ => bail!("{probe}: {report:?}"),
            }
        };
        for probes in probes.chunks(AT_ONCE) {
            thread::scope(|scope| {
                let asked: Vec<_> =
                    probes.iter().map(|probe| scope.spawn(|| wrong(probe))).collect();
                asked.into_iter().try_for_each(|one| {
                    one.join().unwrap_or_else(|_| Err(anyhow!("a probe panicked")))
                })
            })?;
        }
        for probe in probes.iter().filter(|probe| expected(probe)) {
            let served = self.servers.get_mut(&asked(probe)).context("no server")?;
            served.expected += counted(service(probe).0);
        }
        self.compare()
    }

    /// What was allowed has come to the servers, and nothing else: a request that came and was not
    /// answered is no denial.
    fn compare(&mut self) -> Result<()> {
        for ((name, protocol, port), served) in &mut self.servers {
            let came: u64 = served.server.counts()?.values().sum();
            let expected = served.expected;
            ensure!(
                came == expected,
                "{came} came to {name}, protocol {protocol}, port {port}, not {expected}"
            );
        }
        Ok(())
    }
}

fn end<'a>(ends: &'a BTreeMap<String, End>, name: &str) -> Result<&'a End> {
    ends.get(name).with_context(|| format!("no {name}"))
}

/// What a probe asks: the name of an end, protocol and port.
fn asked(probe: &Value) -> (String, u8, u16) {
    let (protocol, port) = service(probe);
    (text(probe, "to").to_owned(), protocol, port)
}

fn ask(protocol: u8) -> Ask {
    match protocol {
        proto::TCP => Ask::Tcp,
        proto::UDP => Ask::Udp,
        _ => Ask::Sctp,
    }
}

fn listen(protocol: u8, at: SocketAddr) -> Listen {
    match protocol {
        proto::TCP => Listen::Tcp(at),
        proto::UDP => Listen::Udp(at),
        _ => Listen::Sctp(at),
    }
}

/// What a server counts of one request.
fn counted(protocol: u8) -> u64 {
    match protocol {
        // The connection, and its bytes.
        proto::TCP => 1 + BYTES as u64,
        _ => 1,
    }
}
