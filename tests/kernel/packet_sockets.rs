//! Packet sockets: an isolated workload gets none, where BPF LSM is active.

use std::fs;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use serde_json::Value;
use ztseg::datapath::sys::{map_lookup, map_update, open_pinned};
use ztseg_common::ABI_VERSION;
use ztseg_tests::actor::{Actor, Kind, Said};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::world::World;

use crate::Body;
use crate::around::dropped;
use crate::environment::{Environment, Lacking, has_bpf_lsm, no_bpf_lsm};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("packet_sockets::of_an_isolated_workload", isolated),
    ("packet_sockets::in_namespaces_of_its_own", in_namespaces),
    ("packet_sockets::through_a_ring", through_a_ring),
    ("packet_sockets::are_reported_in_audit_mode", audit),
    ("packet_sockets::follow_the_policy", follow_the_policy),
    ("packet_sockets::of_the_host_and_failsafe_units", host_and_failsafe),
    ("packet_sockets::without_an_agent", without_an_agent),
    ("packet_sockets::while_another_version_decides", while_another_decides),
    ("packet_sockets::where_bpf_lsm_is_not_active", not_active),
];

const KINDS: [Kind; 4] = [Kind::Packet, Kind::PacketRaw, Kind::PacketObsolete, Kind::Xdp];
const REASON: &str = "packet-socket";

/// `web` is isolated as said, `db` in no direction though a rule names it; `other` is in no segment.
fn policy(of_web: &str) -> String {
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: packets }}
spec:
  segments:
    web: {{ {of_web} match: [ {{ cgroup: /web }} ] }}
    db: {{ isolation: [], match: [ {{ cgroup: /db }} ] }}
  allow:
    - {{ name: all, from: web, to: any }}
    - {{ name: db, from: db, to: web }}
"
    )
}

/// In both directions.
const ISOLATED: &str = "";
const OPEN: &str = "isolation: [],";

/// A world with a workload `web`, whose agent runs.
struct Stage {
    // In the order in which they end.
    agent: Agent,
    web: Place,
    world: World,
}

impl Stage {
    fn new(of_web: &str) -> Result<Self> {
        need_bpf_lsm()?;
        let world = World::new()?;
        let web = world.workload("/web")?;
        for cgroup in ["/db", "/other"] {
            world.cgroup(cgroup)?;
        }
        let agent = Agent::start(&world, &policy(of_web))?;
        let text = limit(&agent)?;
        ensure!(text.contains("refused new ones"), "{text}");
        Ok(Self { agent, web, world })
    }

    /// That `web` is refused each kind, or none.
    fn expect(&self, refused: bool, when: &str) -> Result<()> {
        expect(&mut Actor::start(&self.web)?, refused, when)
    }

    /// An event of `web`'s with this verdict and family.
    fn wait_for(&self, verdict: &str, family: &str) -> Result<Value> {
        self.agent.wait_for_event(|e| {
            e["workload"] == "/web"
                && e["reason"] == REASON
                && e["verdict"] == verdict
                && e["proto"] == family
        })
    }
}

fn need_bpf_lsm() -> Result<()> {
    match no_bpf_lsm() {
        Some(why) => Err(Lacking(format!("{why}: nothing refuses packet sockets")).into()),
        None => Ok(()),
    }
}

/// That each kind is refused, or none. A kernel need not have `AF_XDP`, which shows only in what is
/// not refused.
fn expect(actor: &mut Actor, refused: bool, when: &str) -> Result<()> {
    for kind in KINDS {
        let (_, said) = actor.try_socket(kind)?;
        let is_right = match said {
            Said::Done(_) => !refused,
            Said::Error(Errno::EPERM) => refused,
            Said::Error(Errno::EAFNOSUPPORT) => !refused && kind == Kind::Xdp,
            Said::Error(_) => false,
        };
        ensure!(is_right, "{when}: {kind:?}: {said:?}, refused: {refused}");
    }
    Ok(())
}

/// What the status says about packet sockets.
fn limit(agent: &Agent) -> Result<String> {
    let status = agent.status()?;
    let limits = status["limits"].as_array().context("no limits in the status")?;
    let limit = limits.iter().find(|limit| limit["id"] == "packet-sockets");
    Ok(limit.context("no limit for packet sockets")?.to_string())
}

fn isolated(_: &Environment) -> Result<()> {
    need_bpf_lsm()?;
    let world = World::new()?;
    let places = ["/web", "/web/below/it", "/db", "/other"].map(|path| world.workload(path));
    let [web, below, db, other] = places;
    let (web, below, db, other) = (web?, below?, db?, other?);
    for place in [&web, &below, &db, &other] {
        expect(&mut Actor::start(place)?, false, "without an agent")?;
    }
    let mut agent = Agent::start(&world, &policy(ISOLATED))?;
    let text = limit(&agent)?;
    ensure!(text.contains("refused new ones"), "{text}");
    let status = agent.status()?;
    let actor = &mut Actor::start(&web)?;
    expect(actor, true, "isolated")?;
    // All else goes on.
    actor.socket(Kind::Udp4)?;
    actor.socket(Kind::Raw4(255))?;
    for (kind, family) in [(Kind::Packet, "AF_PACKET"), (Kind::Xdp, "AF_XDP")] {
        let event = agent.wait_for_event(|e| e["reason"] == REASON && e["proto"] == family)?;
        ensure!(
            event["verdict"] == "DROPPED"
                && event["workload"] == "/web"
                && event["direction"] == "egress"
                && event["hook"] == "socket-create"
                && event["pid"] == actor.pid()
                && event["comm"].as_str().is_some_and(|comm| !comm.is_empty())
                && event["segments"][0] == "web"
                && event["isolatedBy"][0] == "web",
            "{kind:?}: {event:#}"
        );
    }
    let (_, compact, _) = agent.command(&["events"])?;
    ensure!(compact.contains("/web (web) AF_PACKET socket DROPPED (egress because"), "{compact}");
    expect(&mut Actor::start(&below)?, true, "below an isolated cgroup")?;
    // Each is counted, whatever is folded.
    let refused = dropped(&agent.status()?)? - dropped(&status)?;
    ensure!(refused == 2 * KINDS.len() as u64, "{refused} refusals were counted");
    let counters = &agent.status()?["counters"];
    let of = |name: &str| counters[name].as_u64().unwrap_or_default();
    let told = of("events_sent") + of("events_folded") + of("events_over_budget");
    let all = of("dropped_ingress") + of("dropped_egress") + of("audited");
    ensure!(told + of("events_lost") == all, "an event is not accounted for: {counters:#}");
    expect(&mut Actor::start(&db)?, false, "in a segment that does not isolate")?;
    expect(&mut Actor::start(&other)?, false, "in no segment")?;
    expect(&mut Actor::start(&world.host.place())?, false, "outside of the cgroup root")?;
    agent.stop()
}

/// Root in namespaces of its own is who it was.
fn in_namespaces(_: &Environment) -> Result<()> {
    let mut stage = Stage::new(ISOLATED)?;
    for refused in [true, false] {
        stage.agent.apply(&policy(if refused { ISOLATED } else { OPEN }))?;
        let actor = &mut Actor::start(&stage.web)?;
        actor.unshare(true, true)?.done()?;
        // In a user namespace, AF_XDP and the rest want CAP_NET_RAW in it, which it has.
        expect(actor, refused, "in namespaces of its own")?;
    }
    stage.agent.stop()
}

fn through_a_ring(_: &Environment) -> Result<()> {
    let mut stage = Stage::new(ISOLATED)?;
    crate::around::need_io_uring()?;
    let control = &mut Actor::start(&stage.world.host.place())?;
    for elsewhere in [false, true] {
        match control.try_socket_by_ring(Kind::Packet, elsewhere)? {
            Said::Error(Errno::EINVAL) => {
                return Err(Lacking("this kernel's io_uring makes no sockets".to_owned()).into());
            }
            said => said.done()?,
        };
        let said = Actor::start(&stage.web)?.try_socket_by_ring(Kind::Packet, elsewhere)?;
        ensure!(said == Said::Error(Errno::EPERM), "elsewhere: {elsewhere}: {said:?}");
    }
    stage.agent.stop()
}

fn audit(_: &Environment) -> Result<()> {
    let mut stage = Stage::new("mode: audit,")?;
    stage.expect(false, "in audit mode")?;
    for family in ["AF_PACKET", "AF_XDP"] {
        stage.wait_for("AUDIT", family)?;
    }
    let status = stage.agent.status()?;
    ensure!(dropped(&status)? == 0, "something was denied: {:#}", status["counters"]);
    stage.agent.stop()
}

/// A change of the policy holds for the next socket; those that are there stay, and TC looks at them.
fn follow_the_policy(_: &Environment) -> Result<()> {
    let mut stage = Stage::new(OPEN)?;
    let one_way = ["isolation: [ingress],", "isolation: [egress],"];
    let cases = [(OPEN, false), (ISOLATED, true), (one_way[0], true), (one_way[1], true)];
    for (of_web, refused) in cases.into_iter().chain([("mode: audit,", false), (ISOLATED, true)]) {
        stage.agent.apply(&policy(of_web))?;
        stage.expect(refused, of_web)?;
    }
    let whole = policy(ISOLATED).replace("spec:", "spec:\n  mode: audit");
    stage.agent.apply(&whole)?;
    stage.expect(false, "with a policy in audit mode")?;
    stage.agent.apply(&policy(ISOLATED))?;
    stage.expect(true, "isolated again")?;
    // One direction alone is named.
    let ingress = policy(one_way[0]);
    stage.agent.apply(&ingress)?;
    stage.expect(true, "isolated on ingress")?;
    let event =
        stage.agent.wait_for_event(|e| e["reason"] == REASON && e["direction"] == "ingress")?;
    ensure!(event["isolatedBy"][0] == "web", "{event:#}");
    stage.agent.stop()
}

/// A DHCP client asks by one.
fn host_and_failsafe(_: &Environment) -> Result<()> {
    const LOCKED: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: locked }
spec:
  segments:
    everything: { match: [ { host: true }, { unit: \"*\" } ] }
";
    const NETWORKD: &str = "/system.slice/systemd-networkd.service";
    const WEB: &str = "/system.slice/web.service";
    const LOOK_ALIKE: &str =
        "/user.slice/user-1.slice/user@1.service/app.slice/systemd-networkd.service";
    need_bpf_lsm()?;
    let world = World::new()?;
    // A process in the root of the world, as it has children, too.
    let paths = [("/", false), (NETWORKD, false), (WEB, true), (LOOK_ALIKE, true)];
    let places: Vec<Place> =
        paths.iter().map(|(path, _)| world.workload(path)).collect::<Result<_>>()?;
    let off = "failsafe: { inbound: [], outbound: [] }\n";
    for (settings, unit_refused) in [("", false), (off, true)] {
        let mut agent = Agent::start_with(&world, LOCKED, settings, &[])?;
        for ((path, refused), place) in paths.iter().zip(&places) {
            let refused = if *path == NETWORKD { unit_refused } else { *refused };
            expect(&mut Actor::start(place)?, refused, &format!("{path}, settings: {settings}"))?;
        }
        agent.stop()?;
    }
    Ok(())
}

fn without_an_agent(_: &Environment) -> Result<()> {
    let mut stage = Stage::new(ISOLATED)?;
    stage.expect(true, "with an agent")?;
    stage.agent.kill9();
    stage.expect(true, "after the agent was killed")?;
    stage.agent.run(&[])?;
    stage.expect(true, "after a start")?;
    stage.wait_for("DROPPED", "AF_PACKET")?;
    stage.agent.stop()?;
    stage.expect(true, "after the agent was stopped")?;
    let config = stage.agent.config().to_string_lossy().into_owned();
    let (status, out, err) = stage.agent.command(&["detach", "--config", &config])?;
    ensure!(status == Some(0) && out.contains("ztseg_packet"), "{status:?}: {out}{err}");
    ensure!(!stage.world.pins().exists(), "{} is still there", stage.world.pins().display());
    stage.expect(false, "after `detach`")
}

/// Who stands back refuses nothing: what the other version says is what counts.
fn while_another_decides(_: &Environment) -> Result<()> {
    let mut stage = Stage::new(ISOLATED)?;
    stage.agent.kill9();
    let maps = stage.world.pins().join(format!("v{ABI_VERSION}/maps"));
    let word = |name: &str| open_pinned(&maps.join(name)).context("the word is not there");
    let (decides, party) = (word("DECIDES")?, word("PARTY")?);
    let mut own = [0u32];
    map_lookup(party.as_fd(), &0u32, &mut own)?;
    for (number, refused) in [(own[0], true), (own[0] ^ 1, false), (0, true)] {
        map_update(decides.as_fd(), &0u32, &number)?;
        stage.expect(refused, &format!("while {number} decides, and this is {}", own[0]))?;
    }
    stage.agent.run(&[])?;
    stage.agent.stop()
}

/// What the agent cannot do it does not say it does. (That the kernel would do it is not to be seen by
/// this agent: it looks at the list of active modules.)
fn not_active(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let web = world.workload("/web")?;
    let mut agent = Agent::new(&world, &policy(ISOLATED), "")?;
    let link = world.pins().join(format!("v{ABI_VERSION}/links/ztseg_packet"));
    let is_there = fs::exists("/sys/kernel/security")?;
    ensure!(is_there, Lacking("this kernel has no place for securityfs".to_owned()));
    for _ in 0..2 {
        if has_bpf_lsm() {
            agent.run(&[])?;
            expect(&mut Actor::start(&web)?, true, "where it is active")?;
            let text = limit(&agent)?;
            ensure!(text.contains("refused new ones"), "{text}");
            ensure!(link.exists(), "it is not pinned");
            agent.stop()?;
        }
        agent.pretend_modules("lockdown,capability,landlock,yama,apparmor")?;
        agent.run(&[])?;
        let text = limit(&agent)?;
        ensure!(text.contains("is not active") && text.contains("lsm="), "{text}");
        expect(&mut Actor::start(&web)?, false, "where it is not active")?;
        ensure!(!link.exists(), "a link is left that nobody looks after");
        let hooks = agent.status()?["hooks"].to_string();
        ensure!(!hooks.contains("ztseg_packet"), "{hooks}");
        agent.stop()?;
        agent.pretend_nothing();
    }
    Ok(())
}
