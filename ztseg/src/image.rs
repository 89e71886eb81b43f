//! The image: one complete compiled policy, as plain data.
//!
//! The datapath writes it into a set of maps, `check` and the tests evaluate it in place, and
//! `diff` compares two of them.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use ztseg_common::addr::Addr;
use ztseg_common::eval::Lookup;
use ztseg_common::key::{EntryKey, PrefixKey, WorkloadKey};
use ztseg_common::value::{Entry, Peer, Rule, Subject, Workload};

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
    /// By rank; index zero is never used.
    pub rules: Vec<Rule>,
    /// By [`ztseg_common::key::port_slot`]: all [`ztseg_common::key::PORT_SLOTS`] of them.
    pub ports: Vec<u16>,
    /// The verdict entries.
    pub entries: FxHashMap<EntryKey, Entry>,
    /// Peers known by a whole address.
    pub hosts: FxHashMap<Addr, Peer>,
    /// Peers known by a prefix; one per prefix, the longest wins.
    pub prefixes: BTreeMap<PrefixKey, Peer>,
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

impl Lookup for Image {
    fn subject(&self, class: u32) -> Option<Subject> {
        self.subjects.get(class as usize).copied().filter(|_| class != 0)
    }

    fn port_class(&self, slot: u32) -> u16 {
        self.ports.get(slot as usize).copied().unwrap_or(0)
    }

    fn entry(&self, key: &EntryKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    fn rule(&self, rank: u32) -> Option<Rule> {
        self.rules.get(rank as usize).copied().filter(|_| rank != 0)
    }
}
