//! A commit is atomic: under traffic, no packet meets half of a policy.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::policies::{ALLOWED, DENIED_IN, DENIED_OUT, alternating};
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Listen, Server, Stream, StreamKind};
use ztseg_tests::world::{World, pace, patient, times};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("commit::two_hundred_policies_under_traffic", two_hundred_policies_under_traffic),
    ("commit::a_revocation_hits_live_flows", a_revocation_hits_live_flows),
];

/// How many policies are put in force.
const POLICIES: u32 = 200;
pub(crate) const KINDS: [StreamKind; 4] =
    [StreamKind::Tcp, StreamKind::Udp, StreamKind::UdpUnconnected, StreamKind::TcpConnects];

/// Every kind of stream from `from` to `to`.
pub(crate) fn streams(
    from: &Place,
    to: SocketAddr,
    kinds: &[StreamKind],
) -> Result<Vec<(String, Stream)>> {
    // An emulated machine must not be asked for more than it can do: its sockets would overflow.
    let interval = pace(Duration::from_millis(2));
    let start = |kind: &StreamKind| {
        let stream = Stream::start(from, *kind, to, interval);
        Ok((format!("{kind:?} to {to}"), stream.with_context(|| format!("{kind:?} to {to}"))?))
    };
    kinds.iter().map(start).collect()
}

fn two_hundred_policies_under_traffic(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let (app, open) = (world.workload("/app")?, world.workload("/open")?);
    let peer = world.peer.place();
    let agent = Agent::start(&world, &alternating(0))?;
    let listen = |address: IpAddr, ports: &[u16]| -> Vec<Listen> {
        let both = |port: &u16| {
            [Listen::Tcp((address, *port).into()), Listen::Udp((address, *port).into())]
        };
        ports.iter().flat_map(both).collect()
    };
    let (loopback, near): (IpAddr, IpAddr) = ("127.0.0.1".parse()?, world.uplink.near(true));
    let far = world.uplink.far(true);
    let servers = [
        Server::start(&open, &listen(loopback, &[ALLOWED, DENIED_OUT]))?,
        Server::start(&peer, &listen(far, &[ALLOWED, DENIED_OUT]))?,
        Server::start(&app, &listen(near, &[ALLOWED, DENIED_IN]))?,
    ];

    let mut allowed = streams(&app, (loopback, ALLOWED).into(), &KINDS)?;
    allowed.extend(streams(&app, (far, ALLOWED).into(), &KINDS)?);
    allowed.extend(streams(&peer, (near, ALLOWED).into(), &KINDS)?);
    // A connection that is denied never stands, so there is no stream on one.
    let mut denied = streams(&app, (loopback, DENIED_OUT).into(), &KINDS[1..])?;
    denied.extend(streams(&app, (far, DENIED_OUT).into(), &KINDS[1..])?);
    denied.extend(streams(&peer, (near, DENIED_IN).into(), &KINDS[1..])?);

    let before = agent.status()?["generation"].as_u64().context("no generation")?;
    let policies = u64::from(times(POLICIES));
    for number in 1..=policies {
        agent.apply(&alternating(number))?;
    }
    println!("{policies} policies were put in force");
    let after = agent.status()?["generation"].as_u64().context("no generation")?;
    ensure!(after == before + policies, "{} generations, not {policies}", after - before);
    // What passes late would pass now.
    thread::sleep(patient(Duration::from_millis(100)));

    let mut wrong = String::new();
    for (name, stream) in allowed {
        let counts = stream.finish().with_context(|| name.clone())?;
        if counts.received != counts.sent
            || counts.errors != 0
            || counts.sent < u64::from(times(100))
        {
            writeln!(wrong, "allowed, but not all came back: {name}: {counts:?}")?;
        }
    }
    for (name, stream) in denied {
        let counts = stream.finish().with_context(|| name.clone())?;
        if counts.received != 0 || counts.sent < 2 {
            writeln!(wrong, "denied, but some came back: {name}: {counts:?}")?;
        }
    }
    for server in servers {
        for (port, count) in server.finish()? {
            if count != 0 && !port.ends_with(&format!(":{ALLOWED}")) {
                writeln!(wrong, "denied, but {count} arrived at {port}")?;
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// The subject's direction of a flow that is to be revoked.
const REVOKED: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: revoked }
spec:
  segments:
    app: { match: [ { cgroup: /app } ] }
    guest: { match: [ { interface: zt-tap0 } ] }
";

/// From the moment that the apply returns, nothing arrives: at a cgroup's sockets, old and new, and
/// behind an interface. When the flow is allowed again, it goes on.
fn a_revocation_hits_live_flows(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let allowing = format!("{REVOKED}  allow: [ {{ from: [app, guest], to: any }} ]\n");
    let app = world.workload("/app")?;
    let agent = Agent::start(&world, &allowing)?;
    let to = SocketAddr::from((world.uplink.far(false), ALLOWED));
    let mut server = Server::start(&world.peer.place(), &[Listen::Tcp(to), Listen::Udp(to)])?;
    let mut all = streams(&app, to, &KINDS[..3])?;
    all.extend(streams(&world.guest.place(), to, &KINDS[..3])?);
    let mut counts = || Ok::<Vec<u64>, anyhow::Error>(server.counts()?.into_values().collect());
    for _ in 0..3 {
        agent.apply(REVOKED)?;
        // What was let through before is read by now.
        thread::sleep(patient(Duration::from_millis(20)));
        let before = counts()?;
        thread::sleep(Duration::from_millis(200));
        let after = counts()?;
        ensure!(before == after, "denied, but {before:?} became {after:?}");
        agent.apply(&allowing)?;
        // TCP tries again after a while, which doubles.
        let start = Instant::now();
        while counts()?.iter().zip(&after).any(|(now, after)| now <= after) {
            ensure!(
                start.elapsed() < patient(Duration::from_secs(10)),
                "allowed, but not all goes on"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
    for (name, stream) in all {
        let counts = stream.finish()?;
        // TCP makes good what was lost.
        let whole = counts.received == counts.sent;
        ensure!(whole == name.starts_with("Tcp"), "{name}: {counts:?}");
    }
    Ok(())
}
