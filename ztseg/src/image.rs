//! The image: one complete compiled policy, as plain data.
//!
//! The datapath writes it into a set of maps, `check` and the tests evaluate it in place, and
//! `diff` compares two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use rustc_hash::FxHashMap;
use ztseg_common::addr::Addr;
use ztseg_common::eval::Lookup;
use ztseg_common::key::{EntryKey, PrefixKey, WorkloadKey};
use ztseg_common::value::{Entry, Fallback, Peer, Rule, Subject, Workload};

use crate::policy::resolved::SegmentId;

/// The segments that a workload is in.
pub type SegmentSet = BTreeSet<SegmentId>;

/// The classes of a segment set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Subject class.
    pub subject: u32,
    /// Identity class.
    pub identity: u32,
}

/// One compiled policy.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The workloads of this host.
    pub workloads: BTreeMap<WorkloadKey, Workload>,
    /// Bit n: the cgroup of one of them lies n levels below the root of the cgroup hierarchy.
    pub levels: u32,
    /// By subject class; index zero is never used.
    pub subjects: Vec<Subject>,
    /// By rank; index zero is never used. Ends are in nanoseconds since 1970.
    pub rules: Vec<Rule>,
    /// What stands behind rules that expire; index zero is never used.
    pub fallbacks: Vec<Fallback>,
    /// By [`ztseg_common::key::port_slot`]: all [`ztseg_common::key::PORT_SLOTS`] of them.
    pub ports: Vec<u16>,
    /// The verdict entries.
    pub entries: Arc<FxHashMap<EntryKey, Entry>>,
    /// Peers known by a whole address.
    pub hosts: Arc<FxHashMap<Addr, Peer>>,
    /// Peers known by a prefix; one per prefix, the longest wins.
    pub prefixes: Arc<BTreeMap<PrefixKey, Peer>>,
    /// The classes of every segment set that has some: the empty set, each segment alone, and
    /// each set that a workload has. A workload that appears with a set in here needs no new
    /// generation. (A set that only addresses have makes no subject, so it has no place here;
    /// [`Image::peer`] tells its identity class.)
    pub classes: BTreeMap<SegmentSet, Classes>,
}

impl Image {
    /// What the policy knows of a peer's address: the exact host, else the longest prefix.
    pub fn peer(&self, addr: &Addr) -> Peer {
        if let Some(peer) = self.hosts.get(addr) {
            return *peer;
        }
        let bits = u128::from_be_bytes(addr.octets);
        (0..=128u32)
            .rev()
            .find_map(|prefix_len| {
                let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
                let addr = Addr { octets: (bits & mask).to_be_bytes() };
                self.prefixes.get(&PrefixKey { prefix_len, addr }).copied()
            })
            .unwrap_or(Peer::UNKNOWN)
    }
}

impl Image {
    /// The policy as it is at a moment, for the evaluator.
    pub fn at(&self, now: Timestamp) -> At<'_> {
        At { image: self, now: nanoseconds(now) }
    }

    /// The policy when no rule has ended.
    pub fn whole(&self) -> At<'_> {
        At { image: self, now: 0 }
    }
}

/// Nanoseconds since 1970, at least one: zero in a rule means that it does not end.
pub fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0).max(1)
}

/// An image at a moment.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    image: &'a Image,
    now: u64,
}

impl Lookup for At<'_> {
    fn subject(&self, class: u32) -> Option<Subject> {
        self.image.subjects.get(class as usize).copied().filter(|_| class != 0)
    }

    fn port_class(&self, slot: u32) -> u16 {
        self.image.ports.get(slot as usize).copied().unwrap_or(0)
    }

    fn entry(&self, key: &EntryKey) -> Option<&Entry> {
        self.image.entries.get(key)
    }

    fn rule(&self, rank: u32) -> Option<&Rule> {
        self.image.rules.get(rank as usize).filter(|_| rank != 0)
    }

    fn fallback(&self, index: u32) -> Option<Fallback> {
        self.image.fallbacks.get(index as usize).copied().filter(|_| index != 0)
    }

    fn now(&self) -> u64 {
        self.now
    }
}
