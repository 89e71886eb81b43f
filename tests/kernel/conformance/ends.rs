//! What a pod is to the hooks that judge it, and where it is.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use ztseg::datapath::{Datapath, InterfaceSide};
use ztseg::image::SegmentSet;
use ztseg::inventory::Membership;
use ztseg_common::addr::proto;
use ztseg_common::key::{WorkloadKey, workload_interface};
use ztseg_tests::process::Place;
use ztseg_tests::world::{Namespace, World};

/// The hooks that judge the pods of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hooks {
    /// Each pod is a cgroup of `host`, with an address of its own on `lo`.
    Cgroup,
    /// Each pod is a namespace behind a veth of `host`: what comes in there is what it sends.
    Tc,
}

impl Hooks {
    /// Whether they judge a protocol.
    pub(super) fn judge(self, protocol: u8) -> bool {
        self == Self::Tc || protocol != proto::SCTP
    }
}

impl fmt::Display for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "cgroup hooks",
            Self::Tc => "TC hooks",
        })
    }
}

/// A pod, or something outside of the cluster.
pub(super) struct End {
    pub(super) place: Place,
    pub(super) address: IpAddr,
    workload: Option<Workload>,
    /// Its own, if it has one.
    _namespace: Option<Namespace>,
}

/// What a pod is to the kernel programs.
struct Workload {
    key: WorkloadKey,
    level: Option<u32>,
}

impl End {
    /// A pod in a cgroup; `level` is that of the world's.
    pub(super) fn in_cgroup(
        world: &World,
        name: &str,
        address: IpAddr,
        level: u32,
    ) -> Result<Self> {
        world.host.add_address("lo", address, length(address))?;
        let via = world.uplink.near(address.is_ipv6());
        world.peer.batch(&format!("route add {} via {via}\n", net(address)))?;
        let path = format!("/{}", name.replace('/', "."));
        let place = world.workload(&path)?;
        let key = fs::metadata(world.cgroup(&path)?)?.ino();
        let workload = Some(Workload { key, level: Some(level + 1) });
        Ok(Self { place, address, workload, _namespace: None })
    }

    /// Something at the other host, where no hook of ours is.
    pub(super) fn at_peer(world: &World, address: IpAddr) -> Result<Self> {
        world.peer.add_address("lo", address, length(address))?;
        let via = world.uplink.far(address.is_ipv6());
        world.host.batch(&format!("route add {} via {via}\n", net(address)))?;
        Ok(Self { place: world.peer.place(), address, workload: None, _namespace: None })
    }

    /// A namespace behind a veth; a pod, if `datapath` is to judge it. `number` is another one for each.
    pub(super) fn behind_interface(
        world: &World,
        number: usize,
        address: IpAddr,
        datapath: Option<&mut Datapath>,
    ) -> Result<Self> {
        let interface = format!("zt-end{number}");
        let namespace = world.add_routed(&format!("end{number}"), &interface, address)?;
        let mut workload = None;
        if let Some(datapath) = datapath {
            let ifindex = world.host.within(|| {
                let ifindex = if_nametoindex(interface.as_str())?;
                datapath.attach_interface(ifindex, &interface, InterfaceSide::Far)?;
                Ok(ifindex)
            })?;
            workload = Some(Workload { key: workload_interface(ifindex), level: None });
        }
        Ok(Self { place: namespace.place(), address, workload, _namespace: Some(namespace) })
    }

    /// What it is as a workload that is in these segments.
    pub(super) fn membership(&self, name: &str, segments: SegmentSet) -> Result<Membership> {
        let workload = self.workload.as_ref().context("a pod that no hook judges")?;
        let Workload { key, level } = *workload;
        Ok(Membership { key, name: name.to_owned(), level, segments })
    }
}

fn net(address: IpAddr) -> String {
    format!("{address}/{}", length(address))
}

/// Of a single address.
fn length(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}
