//! Cases of Kubernetes' policies that others wrote, on this kernel: each pod is a cgroup with an address
//! of its own, and each probe a socket in it. The states of one test follow each other as live updates.

use std::collections::{BTreeMap, BTreeSet};
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
use ztseg_tests::conformance::{address, folder, is_asked, list, read, service, sources, text};
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, PATIENCE, Probe, Server};
use ztseg_tests::world::{World, patient};

use crate::Body;
use crate::environment::Lacking;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("conformance::kubernetes_end_to_end_on_ipv4", |_| suite("k8s-e2e-ipv4")),
    ("conformance::kubernetes_end_to_end_on_ipv6", |_| suite("k8s-e2e-ipv6")),
    ("conformance::recipes", |_| suite("recipes")),
];

/// Probes that are asked at the same time.
const AT_ONCE: usize = 8;
/// How long an answer may take that must come.
const ANSWER: Duration = Duration::from_secs(5);

/// What was asked.
#[derive(Debug, Default)]
struct Tally {
    states: usize,
    updates: usize,
    allowed: usize,
    denied: usize,
    /// Of SCTP, which the cgroup hooks do not judge.
    sctp: usize,
}

fn suite(name: &str) -> Result<()> {
    let folder = folder().map_err(Lacking)?;
    let mut cases = read(&folder.join("cases.jsonl"));
    cases.retain(|case| text(case, "suite") == name);
    ensure!(!cases.is_empty(), "there is no suite {name}");
    let mut tally = Tally::default();
    let mut scene = None;
    for states in cases.chunk_by(|a, b| sequence(a).is_some() && sequence(a) == sequence(b)) {
        one_after_the_other(states, &mut scene, &mut tally)
            .with_context(|| format!("in {}", text(&states[0], "name")))?;
    }
    println!(
        "{name}: {} states, {} of them live updates; {} probes allowed and {} denied as expected, each \
         with an answer without a policy; {} probes of SCTP not asked: these hooks do not judge it",
        tally.states, tally.updates, tally.allowed, tally.denied, tally.sctp
    );
    ensure!(tally.allowed > 0 && tally.denied > 0, "{tally:?}");
    Ok(())
}

/// Which test a state is a step of.
fn sequence(case: &Value) -> Option<&str> {
    case.get("sequence")?.get("id")?.as_str()
}

/// A world with the pods of tests. Loading the programs takes longer than asking, so tests follow each
/// other in one world as long as no name has two addresses, and no address two names.
struct Scene {
    // In the order in which they end.
    datapath: Datapath,
    servers: Vec<Server>,
    /// What the servers answer: the name of an end, protocol and port.
    served: BTreeSet<(String, u8, u16)>,
    ends: BTreeMap<String, End>,
    root: CgroupRoot,
    world: World,
}

/// A pod, or something outside of the cluster.
struct End {
    place: Place,
    address: IpAddr,
    /// Id and level of a pod's cgroup.
    cgroup: Option<(u64, u32)>,
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

fn one_after_the_other(
    states: &[Value],
    scene: &mut Option<Scene>,
    tally: &mut Tally,
) -> Result<()> {
    let is_ours = |probe: &&Value| is_asked(probe) && service(probe).0 != proto::SCTP;
    let probes = |state| list(state, "probes").iter().filter(is_ours);
    let all: Vec<&Value> = states.iter().flat_map(probes).collect();
    let sctp = |probe: &&Value| is_asked(probe) && service(probe).0 == proto::SCTP;
    tally.sctp += states.iter().flat_map(|s| list(s, "probes")).filter(sctp).count();
    tally.states += states.len();
    tally.updates += states.len() - 1;
    if all.is_empty() {
        return Ok(());
    }
    if scene.as_ref().is_none_or(|scene| !scene.has_room_for(states)) {
        // The one before ends first.
        drop(scene.take());
    }
    let scene = match scene {
        Some(scene) => scene,
        None => scene.insert(Scene::new()?),
    };
    scene.add(states, &all)?;
    // A server that is not there would look like a denial.
    scene.ask(&all, |_| true).context("without a policy")?;
    for state in states {
        scene.enforce(state)?;
        let expected = |probe: &Value| text(probe, "expect") == "allow";
        let probes: Vec<&Value> = probes(state).collect();
        scene.ask(&probes, expected).with_context(|| text(state, "name").to_owned())?;
        let allowed = probes.iter().filter(|probe| expected(probe)).count();
        tally.allowed += allowed;
        tally.denied += probes.len() - allowed;
    }
    Ok(())
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let root = mounts::cgroup_root(Some(world.cgroup_root()))?;
        let options = Options {
            bpffs: world.pins().to_owned(),
            cgroup_root: world.cgroup_root().to_owned(),
            capacity: Capacity::default(),
            debug: false,
        };
        let datapath = Datapath::open(&options)?;
        let (servers, served, ends) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        let mut scene = Self { datapath, servers, served, ends, root, world };
        scene.commit(&Resolved::default(), Vec::new())?;
        scene.datapath.attach_cgroup()?;
        Ok(scene)
    }

    fn has_room_for(&self, states: &[Value]) -> bool {
        named(states).all(|(name, address, _)| {
            self.ends.iter().all(|(other, end)| (*other == name) == (end.address == address))
        })
    }

    /// Adds what is not there yet, and starts what the probes ask; nothing is enforced after it.
    fn add(&mut self, states: &[Value], probes: &[&Value]) -> Result<()> {
        self.commit(&Resolved::default(), Vec::new())?;
        let world = &self.world;
        for (name, address, is_pod) in named(states) {
            if self.ends.contains_key(&name) {
                continue;
            }
            let (v6, net) = (address.is_ipv6(), format!("{address}/{}", length(address)));
            let (place, cgroup) = if is_pod {
                world.host.add_address("lo", address, length(address))?;
                world.peer.batch(&format!("route add {net} via {}\n", world.uplink.near(v6)))?;
                let path = format!("/{}", name.replace('/', "."));
                let place = world.workload(&path)?;
                let id = fs::metadata(world.cgroup(&path)?)?.ino();
                (place, Some((id, self.root.level + 1)))
            } else {
                world.peer.add_address("lo", address, length(address))?;
                world.host.batch(&format!("route add {net} via {}\n", world.uplink.far(v6)))?;
                (world.peer.place(), None)
            };
            self.ends.insert(name, End { place, address, cgroup });
        }
        for probe in probes {
            let (name, (protocol, port)) = (text(probe, "to"), service(probe));
            if self.served.insert((name.to_owned(), protocol, port)) {
                let end = end(&self.ends, name)?;
                let at = SocketAddr::new(end.address, port);
                let listen = if protocol == proto::TCP { Listen::Tcp(at) } else { Listen::Udp(at) };
                self.servers.push(Server::start(&end.place, &[listen])?);
            }
        }
        Ok(())
    }

    /// Puts a state's policies in force, whatever was before.
    fn enforce(&mut self, state: &Value) -> Result<()> {
        let loaded = load(&sources(state)).map_err(|found| anyhow!(found.render(false)))?;
        let mut members = Vec::new();
        for pod in &loaded.pods {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let (id, level) = end(&self.ends, &name)?.cgroup.context("a pod without a cgroup")?;
            let segments = pod.segments.clone().context("a pod of its node's network")?;
            members.push(membership(id, &name, level, segments));
        }
        self.commit(&loaded.resolved, members)
    }

    fn commit(&mut self, resolved: &Resolved, mut members: Vec<Membership>) -> Result<()> {
        let id = fs::metadata(&self.root.path)?.ino();
        members.push(membership(id, "/", self.root.level, SegmentSet::new()));
        let image: Image = compile(resolved, &members, &Capacity::default())?;
        self.datapath.commit(&image, &Clocks::now())?;
        Ok(())
    }

    /// Asks all probes and compares what they see.
    fn ask(&self, probes: &[&Value], expected: impl Fn(&Value) -> bool + Sync) -> Result<()> {
        let ends = &self.ends;
        let wrong = |probe: &Value| -> Result<()> {
            let (from, to) = (end(ends, text(probe, "from"))?, end(ends, text(probe, "to"))?);
            let (protocol, port) = service(probe);
            let ask = if protocol == proto::TCP { Ask::Tcp } else { Ask::Udp };
            let is_allowed = expected(probe);
            let report = Probe::new(ask, (to.address, port).into())
                .from((from.address, 0))
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
        Ok(())
    }
}

fn end<'a>(ends: &'a BTreeMap<String, End>, name: &str) -> Result<&'a End> {
    ends.get(name).with_context(|| format!("no {name}"))
}

/// Of a single address.
fn length(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn membership(key: u64, name: &str, level: u32, segments: SegmentSet) -> Membership {
    Membership { key, name: name.to_owned(), level: Some(level), segments }
}
