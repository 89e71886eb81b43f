//! Traffic that is older than what judges it: than the agent, or than its workload's segment. It is
//! judged in its true orientation, and what stays allowed loses nothing.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Counts, Listen, Server, Stream, StreamKind};
use ztseg_tests::world::{World, patient};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("adoption::connections_older_than_the_agent", older_than_the_agent),
    ("adoption::connections_older_than_their_segment", older_than_the_segment),
    ("adoption::no_datagram_is_lost_when_a_segment_comes", datagrams),
];

/// The port at which everybody listens.
const PORT: u16 = 2000;

/// `/app` in no segment.
const NO_SEGMENT: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: adoption }
spec:
  segments:
    other: { match: [ { cgroup: /other } ] }
";

/// A segment of `/app` with a rule.
fn policy(rule: &str) -> String {
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: adoption }}
spec:
  segments:
    app: {{ match: [ {{ cgroup: /app }} ] }}
  allow:
    - {rule}
"
    )
}

/// One direction is open: a connection that is taken for one of the other end's goes on where it must
/// not.
const ONLY_OUT: &str = "{ name: out, from: app, to: any }";
/// With its port: nothing says of a client's socket that is older than the agent that it is no
/// server's whose listener has gone.
const ONLY_IN: &str = "{ name: in, from: any, to: app, ports: [tcp/2000] }";

/// A client and a server of `/app`, each in the host's network namespace and in one of its own.
struct Scene {
    // In the order in which they end.
    streams: Vec<(&'static str, bool, Stream)>,
    _servers: Vec<Server>,
    world: World,
}

impl Scene {
    fn new(kinds: &[StreamKind], interval: Duration) -> Result<Self> {
        let world = World::new()?;
        let app = world.workload("/app")?;
        let inside = Place { namespace: Some(world.guest.path()), ..app.clone() };
        let far = world.peer.place();
        let listen = ["0.0.0.0", "::"].map(|any| -> Result<[Listen; 2]> {
            let address = SocketAddr::new(any.parse()?, PORT);
            Ok([Listen::Tcp(address), Listen::Udp(address)])
        });
        let listen = listen.into_iter().collect::<Result<Vec<_>>>()?.concat();
        let servers = [&app, &inside, &far].map(|place| Server::start(place, &listen));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let mut streams = Vec::new();
        for v6 in [false, true] {
            let (far_address, near, guest) =
                (world.uplink.far(v6), world.uplink.near(v6), world.tap.far(v6));
            for (name, opened, from, to) in [
                ("client", true, &app, far_address),
                ("server", false, &far, near),
                ("client in a namespace of its own", true, &inside, far_address),
                ("server in a namespace of its own", false, &far, guest),
            ] {
                for kind in kinds {
                    let stream = Stream::start(from, *kind, (to, PORT).into(), interval)?;
                    streams.push((name, opened, stream));
                }
            }
        }
        Ok(Self { streams, _servers: servers, world })
    }

    /// Ends the streams: those go on that `/app` opened, or those that others did.
    fn check(self, opened_go_on: bool, interval: Duration) -> Result<()> {
        let since = Instant::now();
        let watched = patient(Duration::from_millis(500));
        thread::sleep(watched);
        let after = since.elapsed().min(watched).as_millis() / interval.as_millis() / 2;
        for (name, opened, stream) in self.streams {
            let counts = stream.finish()?;
            let lost = u128::from(counts.sent.saturating_sub(counts.received));
            ensure!(counts.received > 0, "{name}: it never worked: {counts:?}");
            if opened == opened_go_on {
                ensure!(lost == 0 && counts.errors == 0, "{name}: it was cut: {counts:?}");
            } else {
                ensure!(lost > after, "{name}: it went on: {counts:?}");
            }
        }
        Ok(())
    }
}

const TCP: &[StreamKind] = &[StreamKind::Tcp];

fn older_than_the_agent(_: &Environment) -> Result<()> {
    let interval = patient(Duration::from_millis(5));
    for (rule, opened) in [(ONLY_OUT, true), (ONLY_IN, false)] {
        let scene = Scene::new(TCP, interval)?;
        let mut agent = Agent::start(&scene.world, &policy(rule))?;
        scene.check(opened, interval).with_context(|| rule.to_owned())?;
        agent.stop()?;
    }
    Ok(())
}

fn older_than_the_segment(_: &Environment) -> Result<()> {
    let interval = patient(Duration::from_millis(5));
    for (rule, opened) in [(ONLY_OUT, true), (ONLY_IN, false)] {
        let scene = Scene::new(TCP, interval)?;
        let mut agent = Agent::start(&scene.world, NO_SEGMENT)?;
        agent.apply(&policy(rule))?;
        scene.check(opened, interval).with_context(|| rule.to_owned())?;
        agent.stop()?;
    }
    Ok(())
}

/// Answers that are on their way while the workload gets its segment belong to flows that nobody
/// has judged yet.
fn datagrams(_: &Environment) -> Result<()> {
    let interval = patient(Duration::from_millis(1));
    let scene = Scene::new(&[StreamKind::Udp, StreamKind::UdpUnconnected], interval)?;
    // Open for who asks; an answer that is taken for a question is denied.
    let both = policy(
        "{ name: out, from: app, to: any, ports: [udp/2000] }
    - { name: in, from: any, to: app, ports: [udp/2000] }",
    );
    let mut agent = Agent::start(&scene.world, NO_SEGMENT)?;
    for _ in 0..30 {
        agent.apply(&both)?;
        agent.apply(NO_SEGMENT)?;
    }
    let mut lost = Vec::new();
    for (name, _, stream) in scene.streams {
        let counts: Counts = stream.finish()?;
        ensure!(counts.received > 100, "{name}: {counts:?}");
        if counts.sent != counts.received {
            lost.push((name, counts));
        }
    }
    ensure!(lost.is_empty(), "lost: {lost:?}");
    agent.stop()
}
