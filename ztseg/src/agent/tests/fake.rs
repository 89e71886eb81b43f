//! A datapath that only records.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ztseg_common::addr::Addr;
use ztseg_common::event::{Counter, Event};
use ztseg_common::key::WorkloadKey;
use ztseg_common::value::Workload;

use crate::agent::enforcer::Enforcer;
use crate::clocks::Clocks;
use crate::datapath::sweep::Swept;
use crate::datapath::{
    AddressPut, Committed, DatapathError, Finding, InterfaceSide, MapStatus, Options,
    PacketSockets, ProgramStatus, Verdicts,
};
use crate::image::{Image, SegmentSet};

/// One call of a method that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Commit { workloads: usize },
    AttachCgroup,
    Attach { index: u32, name: String, side: InterfaceSide },
    Detach { index: u32 },
    Put { key: WorkloadKey, level: Option<u32> },
    Remove { key: WorkloadKey },
    PutAddress { address: Addr },
    RetireOthers,
    DecideBesideOthers,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    generation: u32,
    events: Vec<Event>,
    unreadable: u64,
    fails: bool,
    refuses_interfaces: bool,
    findings: Vec<Finding>,
}

/// Clones share their state.
#[derive(Clone, Debug, Default)]
pub(super) struct Fake(Arc<Mutex<State>>);

impl Fake {
    /// The calls since the last time.
    pub(super) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    /// From now on everything fails, or nothing does.
    pub(super) fn fail(&self, fails: bool) {
        self.0.lock().unwrap().fails = fails;
    }

    /// From now on no interface can be attached to.
    pub(super) fn refuse_interfaces(&self) {
        self.0.lock().unwrap().refuses_interfaces = true;
    }

    /// Puts a record into the ring buffer.
    pub(super) fn push(&self, event: Event) {
        self.0.lock().unwrap().events.push(event);
    }

    /// What every inspection finds from now on.
    pub(super) fn find(&self, findings: Vec<Finding>) {
        self.0.lock().unwrap().findings = findings;
    }

    /// Records that the datapath itself cannot read.
    pub(super) fn unreadable(&self, records: u64) {
        self.0.lock().unwrap().unreadable = records;
    }

    fn call(&self, call: Call) -> Result<(), DatapathError> {
        let mut state = self.0.lock().unwrap();
        let refused = state.refuses_interfaces && matches!(call, Call::Attach { .. });
        if state.fails || refused {
            let source = anyhow::anyhow!("the fake fails");
            return Err(DatapathError::Kernel { doing: format!("{call:?}"), source });
        }
        state.calls.push(call);
        Ok(())
    }
}

impl Enforcer for Fake {
    fn commit(&mut self, image: &Image, _: &Clocks) -> Result<Committed, DatapathError> {
        self.call(Call::Commit { workloads: image.workloads.len() })?;
        let mut state = self.0.lock().unwrap();
        state.generation += 1;
        Ok(Committed { generation: state.generation })
    }

    fn attach_cgroup(&mut self) -> Result<bool, DatapathError> {
        self.call(Call::AttachCgroup).map(|()| true)
    }

    fn packet_sockets(&self) -> &PacketSockets {
        &PacketSockets::Refused
    }

    fn attach_interface(
        &mut self,
        index: u32,
        name: &str,
        side: InterfaceSide,
    ) -> Result<(), DatapathError> {
        self.call(Call::Attach { index, name: name.into(), side })
    }

    fn detach_interface(&mut self, index: u32) -> Result<(), DatapathError> {
        self.call(Call::Detach { index })
    }

    fn put_workload(
        &mut self,
        key: WorkloadKey,
        level: Option<u32>,
        workload: Workload,
    ) -> Result<(), DatapathError> {
        assert_ne!(workload.subject, 0);
        self.call(Call::Put { key, level })
    }

    fn remove_workload(&mut self, key: WorkloadKey) -> Result<(), DatapathError> {
        self.call(Call::Remove { key })
    }

    fn put_address(
        &mut self,
        image: &mut Image,
        address: Addr,
        segments: &SegmentSet,
        _: &Clocks,
    ) -> Result<AddressPut, DatapathError> {
        let Ok(host) = image.host_of(&address, segments) else {
            return Ok(AddressPut::NeedsCompile);
        };
        self.call(Call::PutAddress { address })?;
        image.hosts.set(address, host);
        Ok(AddressPut::InForce)
    }

    fn sweep(&mut self) -> Result<Swept, DatapathError> {
        Ok(Swept::default())
    }

    fn inspect(&mut self) -> Vec<Finding> {
        self.0.lock().unwrap().findings.clone()
    }

    fn retire_others(&mut self) -> Result<Vec<String>, DatapathError> {
        self.call(Call::RetireOthers)?;
        Ok(Vec::new())
    }

    fn decide_beside_others(&mut self) {
        let _ = self.call(Call::DecideBesideOthers);
    }

    fn drain_events(&mut self, each: &mut dyn FnMut(&Event)) -> u64 {
        let events = std::mem::take(&mut self.0.lock().unwrap().events);
        events.iter().for_each(each);
        std::mem::take(&mut self.0.lock().unwrap().unreadable)
    }

    fn event_fd(&self) -> Result<OwnedFd, DatapathError> {
        Err(DatapathError::NoObject)
    }

    fn verdicts(&self) -> Result<Verdicts, DatapathError> {
        Err(DatapathError::NoObject)
    }

    fn stamp(&self) -> (u64, u64) {
        (u64::from(self.0.lock().unwrap().generation) << 32, 1)
    }

    fn counters(&self) -> Result<BTreeMap<Counter, u64>, DatapathError> {
        Ok([(Counter::DroppedEgress, 17)].into())
    }

    fn programs(&self) -> Result<Vec<ProgramStatus>, DatapathError> {
        Ok(Vec::new())
    }

    fn maps(&self) -> Result<Vec<MapStatus>, DatapathError> {
        Ok(Vec::new())
    }

    fn detach(self, _options: &Options) -> Result<Vec<String>, DatapathError> {
        Ok(Vec::new())
    }
}
