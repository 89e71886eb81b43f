//! What the agent needs of the datapath.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use ztseg_common::addr::Addr;
use ztseg_common::event::{Counter, Event};
use ztseg_common::key::WorkloadKey;
use ztseg_common::value::Workload;

use crate::clocks::Clocks;
use crate::datapath::sweep::Swept;
use crate::datapath::{
    AddressPut, Committed, Datapath, DatapathError, Finding, InterfaceSide, MapStatus, Options,
    PacketSockets, ProgramStatus, Verdicts,
};
use crate::image::{Image, SegmentSet};

/// The datapath as the agent uses it. [`Datapath`] says what each method does.
#[expect(missing_docs, reason = "each is documented at Datapath, which has the same names")]
pub trait Enforcer: Sized {
    fn commit(&mut self, image: &Image, clocks: &Clocks) -> Result<Committed, DatapathError>;
    fn attach_cgroup(&mut self) -> Result<bool, DatapathError>;
    fn packet_sockets(&self) -> &PacketSockets;
    fn attach_interface(
        &mut self,
        ifindex: u32,
        name: &str,
        side: InterfaceSide,
    ) -> Result<(), DatapathError>;
    fn detach_interface(&mut self, ifindex: u32) -> Result<(), DatapathError>;
    fn put_workload(
        &mut self,
        key: WorkloadKey,
        level: Option<u32>,
        workload: Workload,
    ) -> Result<(), DatapathError>;
    fn remove_workload(&mut self, key: WorkloadKey) -> Result<(), DatapathError>;
    fn put_address(
        &mut self,
        image: &mut Image,
        address: Addr,
        segments: &SegmentSet,
        clocks: &Clocks,
    ) -> Result<AddressPut, DatapathError>;
    fn inspect(&mut self) -> Vec<Finding>;
    fn sweep(&mut self) -> Result<Swept, DatapathError>;
    fn retire_others(&mut self) -> Result<Vec<String>, DatapathError>;
    fn decide_beside_others(&mut self);
    fn drain_events(&mut self, each: &mut dyn FnMut(&Event)) -> u64;
    fn event_fd(&self) -> Result<OwnedFd, DatapathError>;
    fn verdicts(&self) -> Result<Verdicts, DatapathError>;
    fn stamp(&self) -> (u64, u64);
    fn counters(&self) -> Result<BTreeMap<Counter, u64>, DatapathError>;
    fn programs(&self) -> Result<Vec<ProgramStatus>, DatapathError>;
    fn maps(&self) -> Result<Vec<MapStatus>, DatapathError>;
    /// Gives the datapath up and removes everything that it pinned.
    fn detach(self, options: &Options) -> Result<Vec<String>, DatapathError>;
}

impl Enforcer for Datapath {
    fn commit(&mut self, image: &Image, clocks: &Clocks) -> Result<Committed, DatapathError> {
        Self::commit(self, image, clocks)
    }

    fn attach_cgroup(&mut self) -> Result<bool, DatapathError> {
        Self::attach_cgroup(self)
    }

    fn packet_sockets(&self) -> &PacketSockets {
        Self::packet_sockets(self)
    }

    fn attach_interface(
        &mut self,
        ifindex: u32,
        name: &str,
        side: InterfaceSide,
    ) -> Result<(), DatapathError> {
        Self::attach_interface(self, ifindex, name, side)
    }

    fn detach_interface(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        Self::detach_interface(self, ifindex)
    }

    fn put_workload(
        &mut self,
        key: WorkloadKey,
        level: Option<u32>,
        workload: Workload,
    ) -> Result<(), DatapathError> {
        Self::put_workload(self, key, level, workload)
    }

    fn remove_workload(&mut self, key: WorkloadKey) -> Result<(), DatapathError> {
        Self::remove_workload(self, key)
    }

    fn put_address(
        &mut self,
        image: &mut Image,
        address: Addr,
        segments: &SegmentSet,
        clocks: &Clocks,
    ) -> Result<AddressPut, DatapathError> {
        Self::put_address(self, image, address, segments, clocks)
    }

    fn inspect(&mut self) -> Vec<Finding> {
        Self::inspect(self)
    }

    fn sweep(&mut self) -> Result<Swept, DatapathError> {
        Self::sweep(self)
    }

    fn retire_others(&mut self) -> Result<Vec<String>, DatapathError> {
        Self::retire_others(self)
    }

    fn decide_beside_others(&mut self) {
        Self::decide_beside_others(self);
    }

    fn drain_events(&mut self, each: &mut dyn FnMut(&Event)) -> u64 {
        Self::drain_events(self, each)
    }

    fn event_fd(&self) -> Result<OwnedFd, DatapathError> {
        Self::event_fd(self)
    }

    fn verdicts(&self) -> Result<Verdicts, DatapathError> {
        Self::verdicts(self)
    }

    fn stamp(&self) -> (u64, u64) {
        Self::stamp(self)
    }

    fn counters(&self) -> Result<BTreeMap<Counter, u64>, DatapathError> {
        Self::counters(self)
    }

    fn programs(&self) -> Result<Vec<ProgramStatus>, DatapathError> {
        Self::programs(self)
    }

    fn maps(&self) -> Result<Vec<MapStatus>, DatapathError> {
        Self::maps(self)
    }

    fn detach(self, options: &Options) -> Result<Vec<String>, DatapathError> {
        // Its descriptors are closed before the pins go.
        let close = |_: Self| ();
        close(self);
        Self::detach_all(options)
    }
}
