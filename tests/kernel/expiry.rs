//! Rules that end: on time, for flows that are open, and with no agent.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use jiff::{SignedDuration, Timestamp};
use ztseg::clocks::Clocks;
use ztseg_common::packet::tcp::ACK;
use ztseg_tests::actor::ear::Ear;
use ztseg_tests::actor::forge::mark;
use ztseg_tests::actor::{Actor, Handle, Kind};
use ztseg_tests::agent::Agent;
use ztseg_tests::traffic::{Listen, Server};
use ztseg_tests::world::{World, patient};

use crate::Body;
use crate::environment::{Environment, Lacking};
use crate::sequences::{App, HANDSHAKE, Peer, on_a_line};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("expiry::a_flow_ends_with_its_rule", flow_ends),
    ("expiry::a_denial_ends_with_its_rule", denial_ends),
    ("expiry::the_next_rule_takes_over", next_rule),
    ("expiry::a_clock_that_is_set_moves_the_end", clock_is_set),
    ("expiry::on_time_and_with_no_agent", no_agent),
    ("expiry::the_agent_follows_a_clock_that_is_set", agent_follows),
];

/// So long from now.
fn until(time: Duration) -> Timestamp {
    Timestamp::now() + SignedDuration::try_from(time).unwrap_or_default()
}

/// Waits until a moment has passed.
fn wait_for(end: Timestamp) {
    while Timestamp::now() <= end {
        thread::sleep(Duration::from_millis(1));
    }
}

/// `app` may ask for port 80 until `end`.
fn allow(end: Timestamp) -> String {
    format!(
        "\n  allow: [ {{ name: out, from: app, to: any, ports: [tcp/80, udp/80], expires: \"{end}\" }} ]"
    )
}

fn flow_ends(_: &Environment) -> Result<()> {
    on_a_line("expiry", |line| {
        let end = until(patient(Duration::from_millis(300)));
        line.policy(&allow(end))?;
        line.expect(&HANDSHAKE)?;
        while Timestamp::now() < end - SignedDuration::from_millis(20) {
            let passes = line.udp(true, 1000)? && line.udp(false, 1000)?;
            line.expect(&[(App, ACK, true), (Peer, ACK, true)])?;
            ensure!(passes || Timestamp::now() >= end, "a datagram is denied before the end");
            thread::sleep(Duration::from_millis(5));
        }
        wait_for(end);
        line.expect(&[(App, ACK, false), (Peer, ACK, false), (App, ACK, false)])?;
        ensure!(
            !line.udp(false, 1000)? && !line.udp(true, 1000)?,
            "a datagram passes after the end"
        );
        Ok(())
    })
}

fn denial_ends(_: &Environment) -> Result<()> {
    on_a_line("denial", |line| {
        let end = until(patient(Duration::from_millis(200)));
        line.policy(&format!(
            "
  deny: [ {{ name: no, from: app, to: any, expires: \"{end}\" }} ]
  allow: [ {{ name: out, from: app, to: any, ports: [udp/80] }} ]"
        ))?;
        // To the end, so that the last denial is one that is remembered.
        while Timestamp::now() < end {
            ensure!(!line.udp(true, 1000)? || Timestamp::now() >= end, "it passes before the end");
        }
        wait_for(end);
        ensure!(line.udp(true, 1000)?, "it is denied after the end");
        ensure!(line.udp(false, 1000)?, "the answer is denied");
        Ok(())
    })
}

/// A flow that another rule allows, too, does not notice; and an exception of the admin kind gives
/// way to what stands behind it.
fn next_rule(_: &Environment) -> Result<()> {
    on_a_line("next", |line| {
        let end = until(patient(Duration::from_millis(200)));
        line.policy(&format!(
            "
  allow:
    - {{ name: first, from: app, to: any, ports: [udp/80], expires: \"{end}\" }}
    - {{ name: then, from: app, to: 0.0.0.0/0, ports: [udp] }}
    - {{ name: then6, from: app, to: \"::/0\" }}"
        ))?;
        while Timestamp::now() < end + SignedDuration::from_millis(50) {
            ensure!(line.udp(true, 1000)? && line.udp(false, 1000)?, "a packet is lost");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })
}

fn clock_is_set(_: &Environment) -> Result<()> {
    on_a_line("clock", |line| {
        let end = until(Duration::from_secs(3600));
        let now = Clocks::now();
        let set = |hours| Clocks { wall: now.wall + SignedDuration::from_hours(hours), ..now };
        for (hours, passes) in [(0, true), (2, false), (-5, true), (1, false), (0, true)] {
            line.policy_at(&allow(end), &set(hours))?;
            ensure!(line.udp(true, 1000)? == passes, "{hours} hours later: passes is not {passes}");
        }
        Ok(())
    })
}

const BASE: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: expiry }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    vm: { match: [ { interface: zt-tap* } ] }
";
const PORT: u16 = 2000;

/// A socket of an actor that goes on sending.
struct Sender {
    name: &'static str,
    actor: Actor,
    socket: Handle,
    /// Where to, unless it is connected.
    to: Option<SocketAddr>,
}

impl Sender {
    fn send(&mut self, text: &str) -> Result<()> {
        let bytes = mark(text);
        // Whether it arrives is for the ear to say.
        match self.to {
            Some(to) => self.actor.send_to(self.socket, to, &bytes)?,
            None => self.actor.send(self.socket, &bytes)?,
        };
        Ok(())
    }
}

fn senders(world: &World) -> Result<Vec<Sender>> {
    let (web, vm) = (world.workload("/web")?, world.guest.place());
    let mut senders = Vec::new();
    for v6 in [false, true] {
        let to = SocketAddr::from((world.uplink.far(v6), PORT));
        let (tcp, udp) = if v6 { (Kind::Tcp6, Kind::Udp6) } else { (Kind::Tcp4, Kind::Udp4) };
        for (place, names) in
            [(&web, ["webTcp", "webUdp", "webTo"]), (&vm, ["vmTcp", "vmUdp", "vmTo"])]
        {
            for (name, kind, connected) in
                [(names[0], tcp, true), (names[1], udp, true), (names[2], udp, false)]
            {
                let mut actor = Actor::start(place)?;
                let socket = actor.socket(kind)?;
                if connected {
                    actor.connect(socket, to)?.done()?;
                }
                let to = (!connected).then_some(to);
                senders.push(Sender { name, actor, socket, to });
            }
        }
    }
    Ok(senders)
}

fn no_agent(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let mut agent = Agent::start(&world, BASE)?;
    let any = [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|any| (any, PORT).into());
    let listen: Vec<_> =
        any.iter().flat_map(|any| [Listen::Tcp(*any), Listen::Udp(*any)]).collect();
    let _server = Server::start(&world.peer.place(), &listen)?;
    let mut ear = Ear::start(&world.peer.place())?;
    let end = until(patient(Duration::from_secs(4)));
    agent.apply(&format!(
        "{BASE}  allow: [ {{ name: open, from: [web, vm], to: any, ports: [tcp/{PORT}, udp/{PORT}], \
         expires: \"{end}\" }} ]"
    ))?;
    let mut senders = senders(&world)?;
    agent.kill9();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let stop = end + SignedDuration::from_millis(600);
    for round in 0.. {
        if Timestamp::now() > stop {
            break;
        }
        for (number, sender) in senders.iter_mut().enumerate() {
            let text = format!("{}{number}x{round}", sender.name);
            let start = Timestamp::now();
            sender.send(&text)?;
            // What was sent around the end may be either.
            if Timestamp::now() < end {
                before.push(text);
            } else if start >= end {
                after.push(text);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    let count = senders.len();
    println!(
        "{} messages before the end, {} after it, on {count} flows",
        before.len(),
        after.len()
    );
    ensure!(before.len() >= 2 * count && after.len() >= 2 * count, "too few messages to tell");
    // All that is on its way has arrived when the last one before the end has.
    ear.count(&format!("mark/{}", before[before.len() - 1]))?;
    let heard = ear.heard()?;
    let is_heard = |text: &&String| heard.contains_key(&format!("mark/{text}"));
    let lost: Vec<_> = before.iter().filter(|text| !is_heard(text)).collect();
    ensure!(lost.is_empty(), "lost before the end: {lost:?}");
    let late: Vec<_> = after.iter().filter(is_heard).collect();
    ensure!(late.is_empty(), "arrived after the end: {late:?}");
    Ok(())
}

/// Only in a machine of our own: the clock is everybody's.
fn agent_follows(environment: &Environment) -> Result<()> {
    ensure!(
        environment.in_vm,
        Lacking("sets the clock of the whole machine: only in a virtual machine of its own".into())
    );
    let world = World::new()?;
    let mut agent = Agent::start(&world, BASE)?;
    let mut ear = Ear::start(&world.peer.place())?;
    let mut web = Actor::start(&world.workload("/web")?)?;
    let socket = web.socket(Kind::Udp4)?;
    let to = SocketAddr::from((world.uplink.far(false), PORT));
    let end = until(Duration::from_secs(3600));
    agent.apply(&format!(
        "{BASE}  allow: [ {{ name: open, from: web, to: any, ports: [udp/{PORT}], expires: \"{end}\" }} ]"
    ))?;
    let mut arrives = |text: &str| -> Result<bool> {
        web.send_to(socket, to, &mark(text))?;
        Ok(ear.count_after_silence(&format!("mark/{text}"))? > 0)
    };
    ensure!(arrives("before")?, "an allowed datagram is lost");
    let started = Instant::now();
    for (hours, passes) in [(2, false), (-2, true)] {
        let clock = nix::time::ClockId::CLOCK_REALTIME;
        let now = Duration::from(nix::time::clock_gettime(clock)?);
        let step = Duration::from_secs(3600 * u64::try_from(i64::abs(hours))?);
        let set = if hours > 0 { now + step } else { now.saturating_sub(step) };
        nix::time::clock_settime(clock, set.into())?;
        let deadline = Instant::now() + patient(Duration::from_secs(2));
        for n in 0.. {
            if arrives(&format!("set{}x{n}", i64::abs(hours) + i64::from(passes)))? == passes {
                break;
            }
            ensure!(Instant::now() < deadline, "{hours} hours later: passes is not {passes}");
        }
    }
    println!("both steps took effect within {:?}", started.elapsed());
    agent.stop()
}
