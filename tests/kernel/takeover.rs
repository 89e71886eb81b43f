//! An upgrade step by step: who decides while two versions are attached, and what becomes of it when an
//! agent is killed in between.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztseg::clocks::Clocks;
use ztseg::datapath::sys::{self, map_lookup, map_update, open_pinned};
use ztseg::datapath::{Capacity, Datapath, InterfaceSide, Options, has_tcx};
use ztseg::inventory::{CgroupFacts, InterfaceFacts, Inventory};
use ztseg::policy::compile::compile;
use ztseg::policy::source::Source;
use ztseg_common::ABI_VERSION;
use ztseg_tests::actor::{Actor, Handle, Kind};
use ztseg_tests::agent::{Agent, OTHER_VERSION};
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Counts, Listen, Outcome, Probe, Server, Stream, StreamKind};
use ztseg_tests::world::{World, pace, patient};

use crate::Body;
use crate::environment::{Environment, has_bpf_lsm};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("takeover::somebody_decides_whenever_an_agent_is_killed", whenever_an_agent_is_killed),
    ("takeover::a_version_that_was_detached_leaves_no_gate_open", a_version_that_was_detached),
    ("takeover::a_version_that_is_attached_by_halves_denies_nothing", attached_by_halves),
    ("takeover::what_is_learned_by_halves_opens_nothing", learned_by_halves),
    ("takeover::a_reply_that_comes_first_finds_its_flow", a_reply_that_comes_first),
    ("takeover::a_version_that_cannot_stand_back_is_replaced_all_the_same", cannot_stand_back),
    ("takeover::who_decides_is_looked_after", who_decides_is_looked_after),
];

/// The older version's policy allows this, the newer's does not.
const OLDER: u16 = 2000;
/// The other way round.
const NEWER: u16 = 2001;
/// Neither allows this.
const NEITHER: u16 = 2002;
/// Both allow this.
const EITHER: u16 = 2003;
/// A port of `/app`.
const OWN: u16 = 2004;

fn policy(rules: &str) -> String {
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: takeover }}
spec:
  segments:
    app: {{ match: [ {{ cgroup: /app }} ] }}
    guest: {{ match: [ {{ interface: zt-tap0 }} ] }}
  allow:
    - {{ name: either, from: [app, guest], to: any, ports: [udp/{EITHER}, tcp/{EITHER}] }}
    - {rules}
"
    )
}

fn opens(port: u16) -> String {
    policy(&format!("{{ name: one, from: [app, guest], to: any, ports: [udp/{port}] }}"))
}

/// An address of the other host where nothing listens.
fn beside(world: &World) -> IpAddr {
    world.uplink.addresses(7)[0]
}

struct Scene {
    // In the order in which they end.
    agent: Agent,
    _server: Server,
    app: Place,
    world: World,
}

impl Scene {
    /// A version that is about to be the older one is in force.
    fn new() -> Result<Self> {
        let world = World::new()?;
        let app = world.workload("/app")?;
        world.peer.add_address(&world.uplink.far_interface, beside(&world), 28)?;
        let far = |port| SocketAddr::from((world.uplink.far(false), port));
        let listen = [OLDER, NEWER, NEITHER].map(|port| Listen::Udp(far(port)));
        let either = [Listen::Udp(far(EITHER)), Listen::Tcp(far(EITHER))];
        let server = Server::start(&world.peer.place(), &[&listen[..], &either[..]].concat())?;
        let agent = Agent::start(&world, &opens(OLDER))?;
        Ok(Self { agent, _server: server, app, world })
    }

    /// The running agent's version is the older one from now on, and no agent runs.
    fn grow_old(&mut self) -> Result<()> {
        self.agent.kill9();
        Agent::become_another_version(&self.world)
    }

    fn folder(&self, version: &str) -> PathBuf {
        self.world.pins().join(version)
    }

    fn open(&self, version: &str, pin: &str) -> Result<OwnedFd> {
        let path = self.folder(version).join(pin);
        open_pinned(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    /// The word that says who decides, as this version's agent reads it.
    fn decides(&self) -> Result<u32> {
        word(&self.open(&this(), "maps/DECIDES")?)
    }

    fn party(&self, version: &str) -> Result<u32> {
        word(&self.open(version, "maps/PARTY")?)
    }

    fn let_decide(&self, party: u32) -> Result<()> {
        Ok(map_update(self.open(&this(), "maps/DECIDES")?.as_fd(), &0u32, &party)?)
    }

    fn detach(&self, version: &str, link: &str) -> Result<()> {
        Ok(sys::link_detach(self.open(version, &format!("links/{link}"))?.as_fd())?)
    }

    fn ask(&self, from: &Place, port: u16) -> Result<bool> {
        let probe = Probe::new(Ask::Udp, (self.world.uplink.far(false), port).into());
        let patience =
            if port == EITHER { Duration::from_secs(5) } else { Duration::from_millis(150) };
        Ok(probe.patience(patient(patience)).run(from)?.outcome == Outcome::Ok)
    }

    /// Which ports a cgroup workload reaches, and one behind an interface.
    fn expect(&self, open: &[u16], when: &str) -> Result<()> {
        let guest = self.world.guest.place();
        // Below that, an interface has one version only.
        let places = if has_tcx() { vec![&self.app, &guest] } else { vec![&self.app] };
        for (place, name) in places.into_iter().zip(["/app", "the guest"]) {
            let mut found = Vec::new();
            for port in [OLDER, NEWER, NEITHER, EITHER] {
                if self.ask(place, port)? {
                    found.push(port);
                }
            }
            ensure!(found == open, "{when}: {name} reaches {found:?}, not {open:?}");
        }
        // Both versions isolate it.
        if has_bpf_lsm() {
            let (_, said) = Actor::start(&self.app)?.try_socket(Kind::Packet)?;
            ensure!(!said.is_done(), "{when}: /app has a packet socket");
        }
        Ok(())
    }

    /// Does the first steps of a takeover, as an agent of this version with another policy does.
    fn begin(&self, policy: &str, steps: Steps) -> Result<Datapath> {
        let options = Options {
            bpffs: self.world.pins().to_owned(),
            cgroup_root: self.world.cgroup_root().to_owned(),
            capacity: Capacity::default(),
            debug: false,
        };
        let mut inventory = Inventory::new();
        for path in ["/", "/app"] {
            let folder = self.world.cgroup(path)?;
            let (id, level) = (fs::metadata(&folder)?.ino(), level(&folder)?);
            inventory.insert_cgroup(CgroupFacts { id, path: path.to_owned(), level });
        }
        let source = Source { name: "newer.yaml".into(), text: policy.into() };
        let loaded = ztseg::policy::load(&[source]).map_err(|e| anyhow::anyhow!("{e}"))?;
        self.world.host.within(move || {
            let mut datapath = Datapath::open(&options)?;
            let ifindex = nix::net::if_::if_nametoindex("zt-tap0")?;
            let name = "zt-tap0".to_owned();
            inventory.set_interfaces([InterfaceFacts { ifindex, name, host_side: false }]);
            inventory.set_policy(&loaded.resolved);
            let members: Vec<_> = inventory.memberships().cloned().collect();
            let image = compile(&loaded.resolved, &members, &options.capacity)?;
            if steps >= Steps::Committed {
                datapath.commit(&image, &Clocks::now())?;
            }
            if steps >= Steps::CgroupAttached {
                datapath.attach_cgroup()?;
            }
            if steps >= Steps::AllAttached {
                datapath.attach_interface(ifindex, "zt-tap0", InterfaceSide::Far)?;
            }
            Ok(datapath)
        })
    }

    /// Starts an agent, and sees that the takeover is over.
    fn recover(&mut self, when: &str) -> Result<()> {
        self.agent.run(&[]).with_context(|| format!("the agent, {when}"))?;
        self.expect(&[OLDER, EITHER], &format!("after a start {when}"))?;
        let other = self.folder(OTHER_VERSION);
        ensure!(!other.exists(), "{when}: {} is still there", other.display());
        ensure!(self.decides()? == 0, "{when}: {} decides alone", self.decides()?);
        Ok(())
    }
}

/// How far an agent comes before it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Steps {
    Opened,
    Committed,
    CgroupAttached,
    AllAttached,
}

fn this() -> String {
    format!("v{ABI_VERSION}")
}

fn word(map: &OwnedFd) -> Result<u32> {
    let mut word = [0u32];
    map_lookup(map.as_fd(), &0u32, &mut word)?;
    Ok(word[0])
}

/// The depth of a cgroup in its hierarchy, whose root has the inode one.
pub(crate) fn level(cgroup: &Path) -> Result<u32> {
    for (level, folder) in (0..).zip(cgroup.ancestors()) {
        if fs::metadata(folder)?.ino() == 1 {
            return Ok(level);
        }
    }
    anyhow::bail!("{} is in no cgroup hierarchy", cgroup.display())
}

/// What becomes of the newer version after its last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The older decides.
    Waits,
    /// Each decides.
    Each,
    /// The newer decides.
    Decides,
    /// It has detached some of the older's programs.
    HalfRetired,
    /// It has detached all of them.
    Retired,
}

const KILLS: [(Steps, Then, &[u16]); 8] = [
    (Steps::Opened, Then::Waits, &[OLDER, EITHER]),
    (Steps::Committed, Then::Waits, &[OLDER, EITHER]),
    (Steps::CgroupAttached, Then::Waits, &[OLDER, EITHER]),
    (Steps::AllAttached, Then::Waits, &[OLDER, EITHER]),
    (Steps::AllAttached, Then::Each, &[EITHER]),
    (Steps::AllAttached, Then::Decides, &[NEWER, EITHER]),
    (Steps::AllAttached, Then::HalfRetired, &[NEWER, EITHER]),
    (Steps::AllAttached, Then::Retired, &[NEWER, EITHER]),
];

/// Through all of it, what both versions' policies allow loses nothing, and what both deny does not
/// pass.
fn whenever_an_agent_is_killed(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.expect(&[OLDER, EITHER], "at first")?;
    let (guest, interval) = (scene.world.guest.place(), pace(Duration::from_millis(3)));
    let mut streams = Vec::new();
    for (place, name) in [(&scene.app, "/app"), (&guest, "the guest")] {
        for (kind, port) in [
            (StreamKind::Udp, EITHER),
            (StreamKind::UdpUnconnected, EITHER),
            (StreamKind::Tcp, EITHER),
            (StreamKind::TcpConnects, EITHER),
            (StreamKind::UdpUnconnected, NEITHER),
        ] {
            let to = (scene.world.uplink.far(false), port).into();
            streams.push((name, kind, port, Stream::start(place, kind, to, interval)?));
        }
    }
    for (steps, then, open) in KILLS {
        for by_older in [false, true] {
            let who = if by_older { "the older" } else { "the newer" };
            let when = format!("of {who} after {steps:?}, {then:?}");
            scene.grow_old()?;
            drop(scene.begin(&opens(NEWER), steps)?);
            if then != Then::Waits {
                scene.let_decide(0)?;
            }
            if !matches!(then, Then::Waits | Then::Each) {
                scene.let_decide(scene.party(&this())?)?;
            }
            if matches!(then, Then::HalfRetired | Then::Retired) {
                let links = fs::read_dir(scene.folder(OTHER_VERSION).join("links"))?;
                let links: Vec<PathBuf> = links.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
                let some = if then == Then::Retired { links.len() } else { links.len() / 2 };
                for link in &links[..some] {
                    sys::link_detach(open_pinned(link)?.as_fd())?;
                    fs::remove_file(link)?;
                }
            }
            scene.expect(open, &format!("with no agent, before a start {when}"))?;
            if by_older {
                Agent::swap_versions(&scene.world)?;
            }
            scene.recover(&when)?;
        }
    }
    for (name, kind, port, stream) in streams {
        let counts: Counts = stream.finish()?;
        let what = format!("{kind:?} of {name} to {port}");
        if port == NEITHER {
            ensure!(counts.received == 0 && counts.sent > 100, "{what} passed: {counts:?}");
        } else if has_tcx() || name == "/app" {
            ensure!(counts.received == counts.sent, "{what} lost something: {counts:?}");
            ensure!(counts.errors == 0 && counts.sent > 100, "{what}: {counts:?}");
        }
    }
    scene.agent.stop()
}

/// Somebody with root detaches the version that decides. While no agent runs nobody notices; that shows
/// that an open gate would be seen here. The next agent does not trust that version any more.
fn a_version_that_was_detached(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.grow_old()?;
    drop(scene.begin(&opens(NEWER), Steps::AllAttached)?);
    for link in ["ztseg_egress", "ztseg_ingress"] {
        scene.detach(OTHER_VERSION, link)?;
    }
    ensure!(scene.ask(&scene.app, NEITHER)?, "what would be an open gate is none");
    drop(scene.begin(&opens(NEWER), Steps::Opened)?);
    ensure!(!scene.ask(&scene.app, NEITHER)?, "the gate stays open");
    scene.recover("after the older was detached")?;
    scene.agent.stop()
}

/// One socket of `/app` and one of the other host, led step by step.
struct Talk {
    app: (Actor, Handle),
    peer: (Actor, Handle),
    near: SocketAddr,
    far: SocketAddr,
}

impl Talk {
    /// `/app` is to ask, from `OWN`.
    fn new(scene: &Scene, port: u16) -> Result<Self> {
        let near = SocketAddr::from((scene.world.uplink.near(false), OWN));
        let far = SocketAddr::from((beside(&scene.world), port));
        let (mut app, mut peer) =
            (Actor::start(&scene.app)?, Actor::start(&scene.world.peer.place())?);
        let ours = app.bound(Kind::Udp4, near)?;
        let theirs = peer.bound(Kind::Udp4, far)?;
        Ok(Self { app: (app, ours), peer: (peer, theirs), near, far })
    }

    /// Whether a datagram of `/app` arrives.
    fn out(&mut self) -> Result<bool> {
        let (app, socket) = (&mut self.app.0, self.app.1);
        // A denial may be told at once.
        Ok(app.send_to(socket, self.far, b"out")?.is_done()
            && self.peer.0.receive(self.peer.1)?.is_done())
    }

    /// Whether one of the other host does.
    fn back(&mut self) -> Result<bool> {
        self.peer.0.send_to(self.peer.1, self.near, b"back")?.done()?;
        Ok(self.app.0.receive(self.app.1)?.is_done())
    }
}

/// A version that sees only what comes in takes a reply for a flow of its own. It denies nothing while it
/// stands back; if it decided at once, as the control shows, the reply would be lost.
fn attached_by_halves(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.grow_old()?;
    drop(scene.begin(&opens(OLDER), Steps::CgroupAttached)?);
    scene.detach(&this(), "ztseg_egress")?;
    let mut talk = Talk::new(&scene, EITHER)?;
    ensure!(talk.out()? && talk.back()?, "an exchange is lost though the newer stands back");
    scene.let_decide(0)?;
    let mut talk = Talk::new(&scene, EITHER)?;
    ensure!(talk.out()? && !talk.back()?, "the newer knows a flow that it has not seen");
    scene.recover("while each decides")?;
    ensure!(talk.out()? && talk.back()?, "an exchange is lost after the takeover");
    scene.agent.stop()
}

/// What the newer version has seen by halves it may have allowed as a flow of the other end. When it takes
/// over, it must not go on as such: its policy allows what comes in to this port, not what goes out.
fn learned_by_halves(_: &Environment) -> Result<()> {
    let incoming = policy(&format!(
        "{{ name: in, from: any, to: app, ports: [udp/{OWN}] }}\n    \
         - {{ name: one, from: [app, guest], to: any, ports: [udp/{OLDER}] }}"
    ))
    .replace(&format!("udp/{EITHER}, "), "");
    let mut scene = Scene::new()?;
    scene.grow_old()?;
    drop(scene.begin(&incoming, Steps::CgroupAttached)?);
    scene.detach(&this(), "ztseg_egress")?;
    let mut talk = Talk::new(&scene, EITHER)?;
    ensure!(talk.out()? && talk.back()?, "an exchange is lost though the newer stands back");
    scene.agent.write_policy(&incoming)?;
    scene.agent.run(&[])?;
    ensure!(!talk.out()?, "a flow that the new policy denies goes on as a reply");
    // The other end may open it.
    ensure!(talk.back()? && talk.out()?, "what the new policy allows does not pass");
    scene.agent.stop()
}

/// The newer version knows no socket that is older than it, so not its network namespace either. The flow
/// that was carried over is found all the same, also by a packet that comes in.
fn a_reply_that_comes_first(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for stands_back in [true, false] {
        let mut talk = Talk::new(&scene, EITHER)?;
        ensure!(talk.out()? && talk.back()?, "an exchange is lost before the upgrade");
        scene.grow_old()?;
        if !stands_back {
            fs::remove_file(scene.folder(OTHER_VERSION).join("maps/DECIDES"))?;
        }
        scene.agent.run(&[])?;
        ensure!(talk.back()?, "the reply did not find its flow; stands back: {stands_back}");
        ensure!(talk.out()? && talk.back()?, "an exchange is lost after the upgrade");
    }
    // Without a flow nothing comes in, so it was the flow that let it in.
    let mut talk = Talk::new(&scene, NEITHER)?;
    ensure!(!talk.back()?, "what no flow is there for comes in");
    scene.agent.stop()
}

/// A version from before the word: each decides until it is detached, and the log says so.
fn cannot_stand_back(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.grow_old()?;
    fs::remove_file(scene.folder(OTHER_VERSION).join("maps/DECIDES"))?;
    drop(scene.begin(&opens(NEWER), Steps::AllAttached)?);
    scene.expect(&[EITHER], "beside one that cannot stand back")?;
    scene.recover("beside one that cannot stand back")?;
    let log = scene.agent.log();
    ensure!(log.contains("cannot stand back"), "it does not say so: {log}");
    scene.agent.stop()
}

/// With somebody else's number in the word this version would stand back, and nobody would decide.
fn who_decides_is_looked_after(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.agent.signal(nix::sys::signal::Signal::SIGSTOP)?;
    scene.let_decide(u32::MAX)?;
    ensure!(scene.ask(&scene.app, NEITHER)?, "the word has no effect");
    scene.agent.signal(nix::sys::signal::Signal::SIGCONT)?;
    let count = |status: &serde_json::Value| status["tampering"]["control-altered"].as_u64();
    let status = scene.agent.wait_for_status(|status| count(status) == Some(1))?;
    ensure!(status["security"].to_string().contains("DECIDES"), "{:#}", status["security"]);
    scene.expect(&[OLDER, EITHER], "after the word was put right")?;
    // With no agent, the next one puts it right before anything else.
    scene.agent.kill9();
    scene.let_decide(u32::MAX)?;
    scene.recover("after the word was altered")?;
    scene.agent.stop()
}
