//! Ways around: what code inside a workload tries, so as to get past enforcement.
//!
//! Each attempt is made twice: where the policy allows it, it arrives (a test that cannot fail is
//! worth nothing); where the policy denies it, it does not. Who says so is the receiver, not the
//! error that the sender gets.

mod cgroups;
mod datagrams;
mod identity;
mod interfaces;
mod memory;
mod namespaces;
mod raw;
mod streams;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztseg_tests::actor::Actor;
use ztseg_tests::actor::ear::Ear;
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Listen, Server};
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Lacking;

/// The tests of this folder.
pub(crate) const TESTS: &[&[(&str, Body)]] = &[
    datagrams::TESTS,
    raw::TESTS,
    streams::TESTS,
    identity::TESTS,
    cgroups::TESTS,
    namespaces::TESTS,
    interfaces::TESTS,
    memory::TESTS,
];

/// What every policy here allows.
const ALLOWED: u16 = 2000;
/// What only an open policy allows.
const DENIED: u16 = 2001;

/// A policy: `web` is isolated both ways; `rules` are its `allow`.
fn policy(rules: &str) -> String {
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: around }}
spec:
  segments:
    web: {{ match: [ {{ cgroup: /web }} ] }}
    db: {{ match: [ {{ cgroup: /db }} ] }}
    vm: {{ match: [ {{ interface: zt-tap0 }} ] }}
  allow:
    - {{ name: base, from: web, to: any, ports: [tcp/2000, tcp/2010, udp/2000] }}
    - {{ name: vm-out, from: vm, to: any, ports: [udp/2000] }}
    - {{ name: in, from: any, to: web, ports: [tcp/2000] }}
    - {{ name: web-to-db, from: web, to: db, ports: [udp/3000] }}
{rules}
"
    )
}

/// Lets `web` send everything to everybody.
const OPEN: &str = "    - { name: open, from: web, to: any }";
/// Lets `web` do what the base rule says.
const CLOSED: &str = "";

/// A world with a workload `web` that wants to reach the other host, where an ear listens.
struct Scene {
    // In the order in which they end.
    agent: Agent,
    ear: Ear,
    _server: Server,
    web: Place,
    world: World,
}

/// Worlds with a running agent that tests have left as they found them. To start an agent takes
/// seconds where the kernel's verifier is emulated.
static LEFT: Mutex<Vec<(Agent, Place, World)>> = Mutex::new(Vec::new());

/// Ends what is left when all tests have run.
pub(crate) fn clean_up() {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

impl Scene {
    /// With a policy that allows everything to `web`.
    fn new() -> Result<Self> {
        let left = LEFT.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (agent, web, world) = match left {
            Some(left) => left,
            None => Self::make()?,
        };
        let ear = Ear::start(&world.peer.place())?;
        // Who answers does not send ICMP errors, which would be the next call's error.
        let server = serve(&world.peer.place())?;
        Ok(Self { agent, ear, _server: server, web, world })
    }

    fn make() -> Result<(Agent, Place, World)> {
        let world = World::new()?;
        let web = world.workload("/web")?;
        for cgroup in ["/db", "/other"] {
            world.cgroup(cgroup)?;
        }
        let agent = Agent::start(&world, &policy(OPEN))?;
        Ok((agent, web, world))
    }

    /// Leaves the world to the next test. Not for one that has changed it.
    fn done(self) -> Result<()> {
        self.open()?;
        let Self { agent, ear, _server: server, web, world } = self;
        drop((ear, server));
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).push((agent, web, world));
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.agent.apply(&policy(CLOSED)).map(drop)
    }

    fn open(&self) -> Result<()> {
        self.agent.apply(&policy(OPEN)).map(drop)
    }

    fn actor(&self) -> Result<Actor> {
        Actor::start(&self.web)
    }

    /// The other host.
    fn peer(&self, v6: bool, port: u16) -> SocketAddr {
        (self.world.uplink.far(v6), port).into()
    }

    /// This host.
    fn here(&self, v6: bool) -> IpAddr {
        self.world.uplink.near(v6)
    }

    /// `attempt` does something that the ear hears as `what`: where all is allowed it arrives,
    /// where it is denied it does not, and the denial is counted. It gets a number, for names that
    /// differ.
    fn only_when_allowed(
        &mut self,
        what: impl Fn(u8) -> String,
        mut attempt: impl FnMut(&mut Self, u8) -> Result<()>,
    ) -> Result<()> {
        self.open()?;
        attempt(self, 1)?;
        let heard = self.ear.count(&what(1))?;
        ensure!(heard > 0, "{} was allowed and did not arrive: {:?}", what(1), self.ear.heard()?);
        self.close()?;
        let (heard, dropped) = (self.ear.heard()?.get(&what(2)).copied(), self.dropped()?);
        attempt(self, 2)?;
        let after = self.ear.count_after_silence(&what(2))?;
        ensure!(after == heard.unwrap_or_default(), "{} was denied and arrived", what(2));
        ensure!(self.dropped()? > dropped, "nothing was counted as denied");
        Ok(())
    }

    /// How much was denied so far.
    fn dropped(&self) -> Result<u64> {
        dropped(&self.agent.status()?)
    }
}

/// On both ports, TCP and UDP, both families.
fn serve(place: &Place) -> Result<Server> {
    let mut listen = Vec::new();
    for port in [ALLOWED, DENIED] {
        for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let address = SocketAddr::from((any, port));
            listen.extend([Listen::Tcp(address), Listen::Udp(address)]);
        }
    }
    Server::start(place, &listen)
}

/// The address as an IPv6 socket says it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        SocketAddr::V6(_) => address,
    }
}

/// That the kernel has `io_uring`, and lets everybody use it.
pub(crate) fn need_io_uring() -> Result<()> {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let is_there = match disabled {
        Ok(text) => text.trim() != "2",
        // A kernel before 6.6 has no switch.
        Err(_) => fs::read_to_string("/proc/kallsyms")?.contains("sys_io_uring_setup"),
    };
    ensure!(is_there, Lacking("this kernel has no io_uring, or it is disabled".to_owned()));
    Ok(())
}

/// Packets and calls that were denied, both directions.
pub(crate) fn dropped(status: &Value) -> Result<u64> {
    let counters = &status["counters"];
    let of = |name: &str| {
        counters[name].as_u64().with_context(|| format!("no counter {name}: {counters:#}"))
    };
    Ok(of("dropped_ingress")? + of("dropped_egress")?)
}
