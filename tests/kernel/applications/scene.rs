//! Who talks to whom: two services of one host, another host, and a machine behind an interface.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::world::{Namespace, World};

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A cgroup of the host, where a server may be.
    Service,
    /// Another cgroup of the host, where only clients are.
    Client,
    /// Behind an interface of the host.
    Vm,
    /// Another host, which is no workload.
    Far,
}

impl End {
    /// Its segment.
    pub(super) fn segment(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Client => "client",
            Self::Vm => "vm",
            Self::Far => "far",
        }
    }

    /// Who may be a client of a server here.
    pub(super) fn clients(self) -> &'static [Self] {
        match self {
            Self::Service => &[Self::Client, Self::Far, Self::Vm],
            Self::Client => &[],
            Self::Vm => &[Self::Client, Self::Far],
            Self::Far => &[Self::Client, Self::Vm],
        }
    }
}

/// A policy where all but the other host are isolated in both directions; `rules` are entries of
/// `spec`.
pub(super) fn policy(rules: &str) -> String {
    format!(
        "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: {{ name: applications }}
spec:
  segments:
    service: {{ match: [ {{ cgroup: /service }} ] }}
    client: {{ match: [ {{ cgroup: /client }} ] }}
    vm: {{ match: [ {{ interface: zt-tap0 }} ] }}
    far: {{ match: [ {{ addresses: [192.0.2.0/24, '2001:db8:1::/64', 198.51.100.128/28, '2001:db8:a::/64'] }} ] }}
{rules}
"
    )
}

/// A policy that allows one thing: what a client needs of a server.
pub(super) fn one_way(from: End, to: End, ports: &[&str]) -> String {
    let (from, to, ports) = (from.segment(), to.segment(), ports.join(", "));
    policy(&format!("  allow:\n    - {{ name: way, from: {from}, to: {to}, ports: [{ports}] }}"))
}

/// A world, with an agent from the moment that the controls are done.
pub(super) struct Scene {
    // In the order in which they end.
    agent: Option<Agent>,
    pub(super) world: World,
}

impl Scene {
    pub(super) fn new() -> Result<Self> {
        let world = World::new()?;
        for cgroup in ["/service", "/client"] {
            world.cgroup(cgroup)?;
        }
        for namespace in [&world.host, &world.peer, &world.guest] {
            give_up_early(namespace)?;
        }
        Ok(Self { agent: None, world })
    }

    /// Starts the agent with this policy, or applies it.
    pub(super) fn enforce(&mut self, policy: &str) -> Result<()> {
        if let Some(agent) = &self.agent {
            return agent.apply(policy).map(drop);
        }
        self.agent = Some(Agent::start(&self.world, policy)?);
        Ok(())
    }

    pub(super) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent does not run")
    }

    /// Stops the agent.
    pub(super) fn end(mut self) -> Result<()> {
        self.agent.take().context("the agent does not run")?.stop()
    }

    pub(super) fn place(&self, end: End) -> Result<Place> {
        match end {
            End::Service => self.world.workload("/service"),
            End::Client => self.world.workload("/client"),
            End::Vm => Ok(self.world.guest.place()),
            End::Far => Ok(self.world.peer.place()),
        }
    }

    /// Under which address `from` finds `to`.
    pub(super) fn address(&self, from: End, to: End, v6: bool) -> IpAddr {
        match (to, from) {
            (End::Vm, _) => self.world.tap.far(v6),
            (End::Far, _) => self.world.uplink.far(v6),
            (_, End::Vm) => self.world.tap.near(v6),
            (_, End::Far) => self.world.uplink.near(v6),
            _ if v6 => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// The number of the policy in force.
    pub(super) fn generation(&self) -> Result<u64> {
        let status = self.agent()?.status()?;
        status["generation"].as_u64().with_context(|| format!("no generation: {status:#}"))
    }

    /// What was denied under the policy in force, for messages.
    pub(super) fn denials(&self) -> String {
        let told = || -> Result<Vec<String>> {
            let generation = json!(self.generation()?);
            let events = self.agent()?.events()?.into_iter();
            Ok(events.filter(|e| e["generation"] == generation).map(|e| e.to_string()).collect())
        };
        match told() {
            Ok(events) => format!("denied since the last apply:\n{}", events.join("\n")),
            Err(error) => format!("the agent does not say what it denied: {error:#}"),
        }
    }

    /// Waits for the event of a denial, in this generation, by the isolation of the end that is to
    /// say it: the sender's where it is a workload of this host, else the receiver's.
    pub(super) fn wait_for_isolation(
        &self,
        generation: u64,
        (from, to, address): (End, End, IpAddr),
        ports: &str,
    ) -> Result<()> {
        let (proto, port) = ports.split_once('/').unwrap_or((ports, "0"));
        let port: u16 = port.parse().with_context(|| format!("no number: {port}"))?;
        let (end, direction, side) =
            if from == End::Far { (to, "ingress", "local") } else { (from, "egress", "peer") };
        let event = self.agent()?.wait_for_event(|event| {
            event["generation"] == json!(generation)
                && event["verdict"] == "DROPPED"
                && event["direction"] == direction
                && event["proto"] == proto
                && event[side]["ip"] == json!(address)
                && event[side]["port"] == json!(port)
                && event["segments"] == json!([end.segment()])
        });
        let event = event.with_context(|| format!("{from:?} to {to:?}, {address}, {ports}"))?;
        ensure!(
            event["reason"] == "isolation" && event["rule"] == Value::Null,
            "not for its isolation: {event:#}"
        );
        Ok(())
    }
}

/// Waits until a file has a text.
pub(super) fn wait_for_text(file: &Path, text: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let written = fs::read_to_string(file).unwrap_or_default();
        if written.contains(text) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no `{text}` in {}: {written}", file.display());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Who gets no answer to a SYN gives up after seconds, not after two minutes.
pub(super) fn give_up_early(namespace: &Namespace) -> Result<()> {
    namespace.set(&[("ipv4/tcp_syn_retries", "1")])
}
