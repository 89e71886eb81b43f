//! Traffic that is older than what judges it: than the agent, or than its workload's segment. It is
//! judged in its true orientation, and what stays allowed loses nothing.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::actor::{Actor, Kind};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Listen, Server, Stream, StreamKind};
use ztseg_tests::world::{World, pace, patient};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("adoption::connections_older_than_the_agent", older_than_the_agent),
    ("adoption::connections_older_than_their_segment", older_than_the_segment),
    ("adoption::an_answer_finds_its_flow_when_a_segment_comes", answers),
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
    fn new(interval: Duration) -> Result<Self> {
        let world = World::new()?;
        let app = world.workload("/app")?;
        let inside = Place { namespace: Some(world.guest.path()), ..app.clone() };
        let far = world.peer.place();
        let listen = ["0.0.0.0", "::"].map(|any| -> Result<Listen> {
            let address = SocketAddr::new(any.parse()?, PORT);
            Ok(Listen::Tcp(address))
        });
        let listen = listen.into_iter().collect::<Result<Vec<_>>>()?;
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
                let to = (to, PORT).into();
                streams.push((name, opened, Stream::start(from, StreamKind::Tcp, to, interval)?));
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

fn older_than_the_agent(_: &Environment) -> Result<()> {
    let interval = pace(Duration::from_millis(5));
    for (rule, opened) in [(ONLY_OUT, true), (ONLY_IN, false)] {
        let scene = Scene::new(interval)?;
        let mut agent = Agent::start(&scene.world, &policy(rule))?;
        scene.check(opened, interval).with_context(|| rule.to_owned())?;
        agent.stop()?;
    }
    Ok(())
}

fn older_than_the_segment(_: &Environment) -> Result<()> {
    let interval = pace(Duration::from_millis(5));
    for (rule, opened) in [(ONLY_OUT, true), (ONLY_IN, false)] {
        let scene = Scene::new(interval)?;
        let mut agent = Agent::start(&scene.world, NO_SEGMENT)?;
        agent.apply(&policy(rule))?;
        scene.check(opened, interval).with_context(|| rule.to_owned())?;
        agent.stop()?;
    }
    Ok(())
}

/// An answer that is on its way while the workload gets its segment, or another one, belongs to a flow
/// that was opened before; whoever else comes from there is nobody.
fn answers(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let app = &mut Actor::start(&world.workload("/app/inner")?)?;
    let far = &mut Actor::start(&world.peer.place())?;
    // Open for who asks: an answer that is taken for a question is denied.
    let outer = policy("{ name: out, from: app, to: any, ports: [udp/2000] }");
    let both =
        outer.replace("  allow:", "    inner: { match: [ { cgroup: /app/inner } ] }\n  allow:");
    let closed = policy("{ name: out, from: app, to: any, ports: [udp/2001] }");
    let mut agent = Agent::start(&world, NO_SEGMENT)?;
    for v6 in [false, true] {
        let any: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
        let kind = if v6 { Kind::Udp6 } else { Kind::Udp4 };
        let server = far.bound(kind, (any, PORT).into())?;
        let stranger = far.bound(kind, (any, PORT + 7).into())?;
        for connected in [false, true] {
            for (before, after, arrives) in [
                (NO_SEGMENT, outer.as_str(), true),
                (outer.as_str(), both.as_str(), true),
                (both.as_str(), outer.as_str(), true),
                (outer.as_str(), NO_SEGMENT, true),
                (NO_SEGMENT, closed.as_str(), false),
            ] {
                agent.apply(before)?;
                let asker = app.bound(kind, (world.uplink.near(v6), 0).into())?;
                let to = (world.uplink.far(v6), PORT).into();
                if connected {
                    app.connect(asker, to)?.done()?;
                    app.send(asker, b"question")?.done()?;
                } else {
                    app.send_to(asker, to, b"question")?.done()?;
                }
                far.receive(server)?.done()?;
                let back = SocketAddr::from((world.uplink.near(v6), app.port(asker)?));
                agent.apply(after)?;
                far.send_to(stranger, back, b"stranger")?.done()?;
                if after != NO_SEGMENT {
                    ensure!(!app.receive(asker)?.is_done(), "a stranger's datagram arrived");
                } else if !connected {
                    app.receive(asker)?.done()?;
                }
                far.send_to(server, back, b"answer")?.done()?;
                let arrived = app.receive(asker)?.is_done();
                ensure!(
                    arrived == arrives,
                    "v6: {v6}, connected: {connected}: arrived is {arrived}\n{before}\n{after}"
                );
                app.close(asker)?;
            }
        }
        far.close(server)?;
        far.close(stranger)?;
    }
    agent.stop()
}
