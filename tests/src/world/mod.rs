//! Cgroups, network namespaces and folders of one world, removed again whatever happens.
//!
//! ```text
//!   peer ── up0 ═══ zt-up0 ── host ── zt-tap0 ═══ eth0 ── guest
//!   192.0.2.2      192.0.2.1        198.51.100.1    198.51.100.2
//!   2001:db8:1::2  2001:db8:1::1    2001:db8:2::1   2001:db8:2::2
//! ```
//! The agent and the cgroup workloads live in `host`, which forwards between the other two. No
//! world touches the machine's own network namespace or the root of its cgroup tree.

mod bpffs;
mod cgroup;
mod leftovers;
mod network;
pub(crate) mod offload;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use self::bpffs::Bpffs;
pub use self::network::{Link, Namespace};
use crate::process::Place;

/// How the names of cgroups, pin folders and temporary folders begin.
const PREFIX: &str = "ztseg-test";
/// Where the pins are.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Set in a virtual machine of our own, where the tests may do anything.
pub const IN_VM: &str = "ZTSEG_IN_VM";

/// So much longer than `limit` as this machine may need: a virtual machine may be emulated, and
/// the kernel's verifier in it, too.
pub fn patient(limit: Duration) -> Duration {
    if std::env::var_os(IN_VM).is_some() { limit * 8 } else { limit }
}

/// How far apart messages are that are sent while agents start: an emulated processor must have time for
/// those, too.
pub fn pace(here: Duration) -> Duration {
    if std::env::var_os(IN_VM).is_some() { here * 50 } else { here }
}

/// How often something is done `here` times on a real machine: a tenth of it in a virtual machine,
/// where all is about as much slower. What is printed is what was done.
pub fn times(here: u32) -> u32 {
    if std::env::var_os(IN_VM).is_some() { here / 10 } else { here }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A world. Make it before what runs in it, so that it is dropped after.
#[derive(Debug)]
pub struct World {
    /// `PID-N`: the names of all that it has contain this.
    id: String,
    pins: Folder,
    folder: Folder,
    cgroup: cgroup::Tree,
    /// Where the agent and the cgroup workloads are.
    pub host: Namespace,
    /// Another host.
    pub peer: Namespace,
    /// What an interface of `host` leads to.
    pub guest: Namespace,
    /// Between `host` and `peer`.
    pub uplink: Link,
    /// Between `host` and `guest`.
    pub tap: Link,
}

impl World {
    /// Makes a world, and removes what dead runs left.
    pub fn new() -> Result<Self> {
        leftovers::remove()?;
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("{PREFIX}-{id}");
        let cgroup = cgroup::Tree::new(&name)?;
        let folder = Folder(std::env::temp_dir().join(&name));
        fs::create_dir(&folder.0).with_context(|| format!("cannot make {}", folder.0.display()))?;
        // The agent makes it.
        let pins = Folder(Path::new(BPFFS).join(&name));
        let namespace = |role: &str| Namespace::new(&format!("zt-{id}-{role}"));
        let (host, peer, guest) = (namespace("host")?, namespace("peer")?, namespace("guest")?);
        let (uplink, tap) = (Link::new(1, "zt-up0", "up0"), Link::new(2, "zt-tap0", "eth0"));
        host.allow_forwarding()?;
        uplink.join(&host, &peer)?;
        tap.join(&host, &guest)?;
        let world = Self { id, pins, folder, cgroup, host, peer, guest, uplink, tap };
        world.ensure_apart()?;
        Ok(world)
    }

    /// `PID-N`, for names of further things.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Another namespace behind an interface of `host`; `number` is the link's, from 3.
    pub fn add_host(&self, role: &str, number: u8, interface: &str) -> Result<(Namespace, Link)> {
        let namespace = Namespace::new(&format!("zt-{}-{role}", self.id))?;
        let link = Link::new(number, interface, "eth0");
        link.join(&self.host, &namespace)?;
        Ok((namespace, link))
    }

    /// Another namespace behind an interface of `host`, which routes one address to it, and all else from
    /// there.
    pub fn add_routed(&self, role: &str, interface: &str, address: IpAddr) -> Result<Namespace> {
        let namespace = Namespace::new(&format!("zt-{}-{role}", self.id))?;
        network::join_routed(&self.host, interface, &namespace, address)?;
        Ok(namespace)
    }

    /// Another namespace behind the other host, which forwards to it; `number` is the link's, from 3.
    pub fn add_host_beyond(&self, role: &str, number: u8) -> Result<(Namespace, Link)> {
        let namespace = Namespace::new(&format!("zt-{}-{role}", self.id))?;
        let link = Link::new(number, "beyond0", "eth0");
        self.peer.allow_forwarding()?;
        link.join(&self.peer, &namespace)?;
        for (v6, length) in [(false, 28), (true, 64)] {
            let (net, via) = (link.near(v6), self.uplink.far(v6));
            let net = ipnet::IpNet::new(net, length)?.trunc();
            self.host.batch(&format!("route add {net} via {via}\n"))?;
        }
        Ok((namespace, link))
    }

    /// The folder of the world's own cgroup: the agent's `cgroupRoot`.
    pub fn cgroup_root(&self) -> &Path {
        self.cgroup.path()
    }

    /// Makes a cgroup below the world's, parents included; `path` begins with a slash.
    pub fn cgroup(&self, path: &str) -> Result<PathBuf> {
        self.cgroup.make(path)
    }

    /// Removes a cgroup of the world and all below it; what runs there is killed.
    pub fn remove_cgroup(&self, path: &str) -> Result<()> {
        self.cgroup.remove(path)
    }

    /// A workload of `host` in a cgroup of the world, which is made if it is not there.
    pub fn workload(&self, cgroup: &str) -> Result<Place> {
        Ok(Place { cgroup: Some(self.cgroup(cgroup)?), namespace: Some(self.host.path()) })
    }

    /// A temporary folder.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// The agent's pin folder.
    pub fn pins(&self) -> &Path {
        &self.pins.0
    }

    /// That nothing enforced here can reach the machine itself.
    pub fn ensure_apart(&self) -> Result<()> {
        if std::env::var_os(IN_VM).is_some() {
            return Ok(());
        }
        ensure!(
            self.cgroup.is_below_the_mount(),
            "{} is not below the root of the cgroup tree",
            self.cgroup_root().display()
        );
        let host = fs::metadata(self.host.path()).context("cannot read the namespace host")?;
        let own = fs::metadata("/proc/self/ns/net").context("cannot read the own namespace")?;
        // In a container, the machine's first process may be out of sight.
        for machines in [Some(own), fs::metadata("/proc/1/ns/net").ok()].into_iter().flatten() {
            ensure!(
                (machines.dev(), machines.ino()) != (host.dev(), host.ino()),
                "the namespace host is the machine's"
            );
        }
        Ok(())
    }
}

/// A folder that is removed with all in it when this is dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Whatever fails here is removed by the next run.
        let _ = fs::remove_dir_all(&self.0);
    }
}
