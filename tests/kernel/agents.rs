//! The agent's life: reloads, a second agent, restarts. Enforcement goes on through all of it.

use std::fs;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use ztseg::datapath::Capacity;
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, PATIENCE, Probe, Server, Stream, StreamKind};
use ztseg_tests::world::{BPFFS, World, pace, patient};

use crate::Body;
use crate::environment::Environment;
use crate::programs::Unattached;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("agents::a_bad_policy_changes_nothing", a_bad_policy_changes_nothing),
    ("agents::a_changed_file_is_in_force", a_changed_file_is_in_force),
    ("agents::a_second_agent_is_refused", a_second_agent_is_refused),
    ("agents::a_restart_loses_no_packet", a_restart_loses_no_packet),
    ("agents::a_connection_older_than_the_agent", a_connection_older_than_the_agent),
    ("agents::an_older_servers_connection_is_its_clients", an_older_servers_connection),
    ("agents::detach_leaves_nothing", detach_leaves_nothing),
    ("agents::that_start_at_once_mount_one_bpffs", at_once),
];

const ALLOWED: u16 = 2000;
const DENIED: u16 = 2001;

/// `/app` may open connections and datagrams to these ports only, and be asked for nothing.
fn policy(ports: &[u16]) -> String {
    let ports: Vec<_> =
        ports.iter().flat_map(|p| [format!("tcp/{p}"), format!("udp/{p}")]).collect();
    let ports = ports.join(", ");
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: agents }}
spec:
  segments:
    app: {{ match: [ {{ cgroup: /app }} ] }}
  allow:
    - {{ name: open, from: app, to: any, ports: [{ports}] }}
"
    )
}

/// A world with an agent, `/app`, and a server in another namespace.
struct Scene {
    // In the order in which they end.
    agent: Agent,
    _server: Server,
    app: Place,
    world: World,
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        // There before the agent, which takes a moment to notice a new cgroup.
        let app = world.workload("/app")?;
        let agent = Agent::start(&world, &policy(&[ALLOWED]))?;
        let server = server(&world)?;
        let scene = Self { agent, _server: server, app, world };
        scene.check(true)?;
        Ok(scene)
    }

    fn to(&self, port: u16) -> SocketAddr {
        (self.world.uplink.far(false), port).into()
    }

    fn ask(&self, port: u16) -> Result<Outcome> {
        let probe = Probe::new(Ask::Udp, self.to(port)).patience(patient(PATIENCE));
        Ok(probe.run(&self.app)?.outcome)
    }

    /// That the first policy is enforced, or nothing is.
    fn check(&self, enforced: bool) -> Result<()> {
        let found = [self.ask(ALLOWED)?, self.ask(DENIED)?];
        let denied = if enforced { Outcome::Eperm } else { Outcome::Ok };
        ensure!(found == [Outcome::Ok, denied], "{found:?}, enforced should be: {enforced}");
        Ok(())
    }
}

fn server(world: &World) -> Result<Server> {
    let listen = [ALLOWED, DENIED].map(|port| SocketAddr::from((world.uplink.far(false), port)));
    let listen = listen.map(|to| [Listen::Tcp(to), Listen::Udp(to)]).concat();
    Server::start(&world.peer.place(), &listen)
}

fn a_bad_policy_changes_nothing(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let generation = scene.agent.status()?["generation"].clone();
    let bad = policy(&[ALLOWED, DENIED]).replace("from: app", "from: ghosts");

    // Asked for: the one who asks is told.
    let file = scene.world.folder().join("bad.yaml");
    fs::write(&file, &bad)?;
    let (status, _, error) = scene.agent.command(&["apply", &file.to_string_lossy()])?;
    ensure!(status == Some(2), "exit status {status:?}, not 2: {error}");
    ensure!(error.contains("ghosts") && error.contains("bad.yaml:"), "{error}");
    scene.check(true)?;

    // Found in the folder: the status tells.
    scene.agent.write_policy(&bad)?;
    let file = |status: &Value| status["lastError"].to_string().contains("policy.yaml");
    let status = scene.agent.wait_for_status(file)?;
    ensure!(status["lastError"].to_string().contains("ghosts"), "{status:#}");
    ensure!(status["generation"] == generation, "generation {generation} became {status:#}");
    scene.check(true)?;

    scene.agent.write_policy(&policy(&[ALLOWED]))?;
    scene.agent.wait_for_status(|status| status["lastError"].is_null())?;
    scene.check(true)?;
    scene.agent.stop()
}

fn a_changed_file_is_in_force(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let generation = scene.agent.status()?["generation"].as_u64();
    scene.agent.write_policy(&policy(&[ALLOWED, DENIED]))?;
    scene.agent.wait_for_status(|status| status["generation"].as_u64() > generation)?;
    scene.check(false)?;
    scene.agent.stop()
}

fn a_second_agent_is_refused(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let pid = scene.agent.pid();
    let (status, _, error) = scene.agent.spawn(&[])?.wait(Duration::from_secs(20))?;
    ensure!(status.code() == Some(3), "{status}, not exit status 3: {error}");
    ensure!(error.contains("another"), "it does not say why: {error}");
    ensure!(scene.agent.status()?["pid"] == json!(pid), "the first agent is not what answers");
    scene.check(true)?;
    scene.agent.stop()
}

/// Also when it is killed; and what is denied stays denied while no agent runs.
fn a_restart_loses_no_packet(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let interval = pace(Duration::from_millis(2));
    let kinds =
        [StreamKind::Tcp, StreamKind::Udp, StreamKind::UdpUnconnected, StreamKind::TcpConnects];
    let start = |kind| Stream::start(&scene.app, kind, scene.to(ALLOWED), interval);
    let streams: Vec<_> = kinds.into_iter().map(start).collect::<Result<_>>()?;
    for kill in [false, true, false] {
        if kill {
            scene.agent.kill9();
        } else {
            scene.agent.stop()?;
        }
        scene.check(true)?;
        scene.agent.run(&[])?;
        scene.check(true)?;
    }
    for (kind, stream) in kinds.into_iter().zip(streams) {
        let counts = stream.finish()?;
        ensure!(
            counts.received == counts.sent && counts.errors == 0 && counts.sent > 100,
            "{kind:?} lost something: {counts:?}"
        );
    }
    scene.agent.stop()
}

/// What the policy allows goes on, what it denies ends, whichever end opened it.
fn a_connection_older_than_the_agent(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let app = world.workload("/app")?;
    let _server = server(&world)?;
    let near = SocketAddr::from((world.uplink.near(false), DENIED));
    let _own_server = Server::start(&app, &[Listen::Tcp(near)])?;
    let interval = patient(Duration::from_millis(5));
    let far = |port| SocketAddr::from((world.uplink.far(false), port));
    let allowed = Stream::start(&app, StreamKind::Tcp, far(ALLOWED), interval)?;
    let denied = Stream::start(&app, StreamKind::Tcp, far(DENIED), interval)?;
    let denied_in = Stream::start(&world.peer.place(), StreamKind::Tcp, near, interval)?;
    thread::sleep(Duration::from_millis(200));
    let mut agent = Agent::start(&world, &policy(&[ALLOWED]))?;
    let ready = Instant::now();
    let watched = patient(Duration::from_millis(500));
    thread::sleep(watched);
    let allowed = allowed.finish()?;
    ensure!(
        allowed.received == allowed.sent && allowed.errors == 0,
        "the allowed connection did not go on: {allowed:?}"
    );
    for (name, stream) in [("out", denied), ("in", denied_in)] {
        let counts = stream.finish()?;
        // It ran for a while before the agent, and after it at least as long as was slept.
        let after = ready.elapsed().min(watched).as_millis() / interval.as_millis() / 2;
        ensure!(
            u128::from(counts.sent.saturating_sub(counts.received)) > after,
            "the denied connection {name} went on: {counts:?}"
        );
    }
    agent.stop()
}

/// A server's connection from before the agent is its client's: it ends with the rule that let the
/// client in, although the server may open connections to anybody.
fn an_older_servers_connection(_: &Environment) -> Result<()> {
    const MAY_ASK: &str = "\n    - { name: out, from: app, to: any }";
    const MAY_BE_ASKED: &str = "\n    - { name: in, from: any, to: app, ports: [tcp/2001] }";
    let world = World::new()?;
    let app = world.workload("/app")?;
    let near = SocketAddr::from((world.uplink.near(false), DENIED));
    let _server = Server::start(&app, &[Listen::Tcp(near)])?;
    let interval = patient(Duration::from_millis(5));
    let stream = Stream::start(&world.peer.place(), StreamKind::Tcp, near, interval)?;
    let both = format!("{}{}{}\n", policy(&[9]).trim_end(), MAY_ASK, MAY_BE_ASKED);
    let mut agent = Agent::start(&world, &both)?;
    thread::sleep(patient(Duration::from_millis(200)));
    let generation = agent.status()?["generation"].as_u64();
    agent.write_policy(&format!("{}{}\n", policy(&[9]).trim_end(), MAY_ASK))?;
    agent.wait_for_status(|status| status["generation"].as_u64() > generation)?;
    let watched = patient(Duration::from_millis(500));
    thread::sleep(watched);
    let counts = stream.finish()?;
    let after = u64::try_from(watched.as_millis() / interval.as_millis() / 2)?;
    ensure!(
        counts.sent.saturating_sub(counts.received) > after,
        "it went on as if the server had opened it: {counts:?}"
    );
    ensure!(counts.received > 20, "it was not let through before: {counts:?}");
    agent.stop()
}

fn detach_leaves_nothing(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let config = scene.agent.config().to_string_lossy().into_owned();
    let (status, _, error) = scene.agent.command(&["detach", "--config", &config])?;
    ensure!(status == Some(3), "detached under a running agent: {status:?} {error}");
    scene.check(true)?;
    scene.agent.stop()?;
    scene.check(true)?;
    let (status, said, error) = scene.agent.command(&["detach", "--config", &config])?;
    ensure!(status == Some(0) && said.contains("detached"), "{status:?} {said} {error}");
    scene.check(false)?;
    ensure!(!scene.world.pins().exists(), "{} is still there", scene.world.pins().display());
    Ok(())
}

/// Where no bpffs is mounted, each agent would mount one; the second would hide the first one's pins.
fn at_once(_: &Environment) -> Result<()> {
    const AGENTS: usize = 4;
    // A mount namespace belongs to a thread, and those that it starts are in it, too.
    let in_own_mounts = thread::spawn(|| -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("none"), BPFFS, Some("tmpfs"), MsFlags::empty(), none)?;
        // The host's own stays in the list, below.
        let hidden = bpffs_mounts()?;
        let start = Barrier::new(AGENTS);
        let open = |number: usize| -> Result<Unattached> {
            start.wait();
            Unattached::open(&format!("once{number}"), Capacity::default())
        };
        let opened = thread::scope(|scope| -> Result<Vec<Unattached>> {
            let open = &open;
            let all: Vec<_> = (0..AGENTS).map(|n| scope.spawn(move || open(n))).collect();
            all.into_iter().map(|one| one.join().map_err(|_| anyhow!("it panicked"))?).collect()
        })?;
        for one in &opened {
            ensure!(one.maps().exists(), "{} is hidden", one.maps().display());
        }
        let mounts = bpffs_mounts()?;
        ensure!(mounts.len() == hidden.len() + 1, "{hidden:#?} became {mounts:#?}");
        Ok(())
    });
    in_own_mounts.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// The lines of this thread's `/proc/PID/mountinfo` (proc(5)) that are a bpffs at the standard place.
fn bpffs_mounts() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let is_there = |line: &&str| line.contains(&format!(" {BPFFS} ")) && line.contains(" - bpf ");
    Ok(mounts.lines().filter(is_there).map(str::to_owned).collect())
}
