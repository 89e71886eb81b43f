//! Who takes part, where they are, and what they listen on.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Listen, Server};
use ztseg_tests::world::World;

use crate::interrupt::Interrupt;

/// The policy, from the workspace's top folder.
const POLICY: &str = "policies/demo.yaml";

/// The address of a cloud's metadata service, link-local and unique local.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
/// The printer's number among the addresses of the office's link.
const PRINTER: u8 = 13;

/// Who listens on which ports of TCP and UDP. No two share a port, so that a connection that got to
/// the wrong one would not be answered.
const SERVERS: [(Who, &[u16], &[u16]); 4] = [
    (Who::Web, &[443], &[]),
    (Who::Api, &[8080], &[]),
    (Who::Db, &[5432, 5433], &[]),
    (Who::Office, &[22, 80], &[53]),
];

/// Someone who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// A service in a cgroup.
    Web,
    /// A service in a cgroup.
    Api,
    /// A service in a cgroup.
    Db,
    /// A job in a cgroup, whose segment is only audited.
    Batch,
    /// Another host.
    Office,
    /// That host's other address, which the policy excepts.
    Printer,
    /// A machine behind an interface that is a workload.
    Vm,
    /// The metadata service, which answers at the office's host.
    Metadata,
}

impl Who {
    /// Its name, which is the segment's where it is in one.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Api => "api",
            Self::Db => "db",
            Self::Batch => "batch",
            Self::Office => "office",
            Self::Printer => "printer",
            Self::Vm => "vm",
            Self::Metadata => "metadata",
        }
    }

    const fn is_service(self) -> bool {
        matches!(self, Self::Web | Self::Api | Self::Db | Self::Batch)
    }
}

/// The world with everyone in it. The servers, the agent and then the world go when it is dropped.
#[derive(Debug)]
pub(crate) struct Scene {
    servers: Vec<Server>,
    agent: Option<Agent>,
    policy: String,
    world: World,
}

impl Scene {
    /// Makes the world, with nobody in it yet.
    pub(crate) fn new() -> Result<Self> {
        let policy = fs::read_to_string(POLICY).with_context(|| format!("cannot read {POLICY}"))?;
        let world = World::new()?;
        let scene = Self { servers: Vec::new(), agent: None, policy, world };
        scene.add_addresses()?;
        Ok(scene)
    }

    /// Starts everyone who listens, instead of those who do already.
    pub(crate) fn start_servers(&mut self, interrupt: &Interrupt) -> Result<()> {
        self.servers.clear();
        for (who, tcp, udp) in SERVERS {
            interrupt.check()?;
            let mut listen = Vec::new();
            for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
                listen.extend(tcp.iter().map(|port| Listen::Tcp((any, *port).into())));
                listen.extend(udp.iter().map(|port| Listen::Udp((any, *port).into())));
            }
            self.servers.push(Server::start(&self.place(who)?, &listen)?);
        }
        Ok(())
    }

    /// Gives the office's host its further addresses, and the way to those that are not on the link.
    fn add_addresses(&self) -> Result<()> {
        let (office, uplink) = (&self.world.peer, &self.world.uplink);
        for v6 in [false, true] {
            let address = |who| self.address(Who::Office, who, v6);
            let whole = if v6 { 128 } else { 32 };
            for further in [address(Who::Printer), address(Who::Metadata)] {
                // Deprecated (RFC 4862): not the source of what does not ask for it.
                let lifetime = if v6 { "nodad preferred_lft 0" } else { "" };
                let device = &uplink.far_interface;
                office.batch(&format!("addr add {further}/{whole} dev {device} {lifetime}\n"))?;
            }
            let (to, via) = (address(Who::Metadata), address(Who::Office));
            self.world.host.batch(&format!("route add {to}/{whole} via {via}\n"))?;
        }
        Ok(())
    }

    /// Where someone runs.
    pub(crate) fn place(&self, who: Who) -> Result<Place> {
        match who {
            Who::Office | Who::Printer | Who::Metadata => Ok(self.world.peer.place()),
            Who::Vm => Ok(self.world.guest.place()),
            service => self.world.workload(&format!("/{}", service.name())),
        }
    }

    /// The address at which `from` reaches `to`: services among themselves use loopback.
    pub(crate) fn address(&self, from: Who, to: Who, v6: bool) -> IpAddr {
        let (uplink, tap) = (&self.world.uplink, &self.world.tap);
        match to {
            Who::Office => uplink.far(v6),
            Who::Printer => uplink.addresses(PRINTER)[usize::from(v6)],
            Who::Metadata => METADATA[usize::from(v6)],
            Who::Vm => tap.far(v6),
            _ if from.is_service() && v6 => Ipv6Addr::LOCALHOST.into(),
            _ if from.is_service() => Ipv4Addr::LOCALHOST.into(),
            _ if from == Who::Vm => tap.near(v6),
            _ => uplink.near(v6),
        }
    }

    /// The address that `who` sends from, where the kernel would choose another.
    pub(crate) fn source(&self, who: Who, v6: bool) -> Option<SocketAddr> {
        (who == Who::Printer)
            .then(|| (self.world.uplink.addresses(PRINTER)[usize::from(v6)], 0).into())
    }

    /// Starts the agent with the policy; gives how many rules are in force.
    pub(crate) fn start_agent(&mut self) -> Result<u64> {
        let agent = Agent::start(&self.world, &self.policy)?;
        let rules = agent.status()?["rules"].as_u64().context("the status has no rules")?;
        self.agent = Some(agent);
        Ok(rules)
    }

    /// The agent.
    pub(crate) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent does not run")
    }

    /// Stops the agent; an error if it does not end well.
    pub(crate) fn stop_agent(&mut self) -> Result<()> {
        self.agent.as_mut().context("the agent does not run")?.stop()
    }

    /// The text of the policy.
    pub(crate) fn policy(&self) -> &str {
        &self.policy
    }

    /// Files and folders that are there as long as the world is.
    pub(crate) fn traces(&self) -> Vec<PathBuf> {
        let world = &self.world;
        let folders = [world.cgroup_root(), world.folder(), world.pins()].map(Path::to_owned);
        let namespaces = [&world.host, &world.peer, &world.guest].map(|n| n.path());
        folders.into_iter().chain(namespaces).collect()
    }

    /// The world in a few lines.
    pub(crate) fn describe(&self) -> String {
        let (up, tap) = (&self.world.uplink, &self.world.tap);
        let [meta4, meta6] = METADATA;
        let (up_name, tap_name) = (&up.interface, &tap.interface);
        let [up4, up6, tap4, tap6] = [up.far(false), up.far(true), tap.far(false), tap.far(true)];
        let printer = up.addresses(PRINTER)[0];
        format!(
            "\
A small world, apart from this machine's own network and services:
  host      runs web (443), api (8080), db (5432, 5433) and batch, each in its own cgroup
  office    another host, behind {up_name}: {up4}, {up6}; the printer there: {printer}
  vm        a machine behind {tap_name}, a workload of its own: {tap4}, {tap6}
  metadata  hands out a cloud's credentials: {meta4}, {meta6}
"
        )
    }

    /// Commands for someone who wants to see more.
    pub(crate) fn how_to_look_around(&self) -> String {
        let socket = self.world.folder().join("ztseg.sock");
        let (socket, cgroup) = (socket.display(), self.world.cgroup_root().display());
        let (host, office) = (self.world.host.name(), self.world.peer.name());
        let web = self.world.uplink.near(false);
        format!(
            "\
The world stays until Ctrl-C. In another terminal:
  export ZTSEG_SOCKET={socket}
  target/release/ztseg events -f        # also: status, workloads, apply FILE
  # from office to web: port 443 is open, 5432 is not
  ip netns exec {office} timeout 2 bash -c '</dev/tcp/{web}/443' && echo allowed
  # a shell in web; there: </dev/tcp/127.0.0.1/8080 is allowed, 5432 is not
  sh -c 'echo $$ > {cgroup}/web/cgroup.procs; exec ip netns exec {host} bash'"
        )
    }
}
