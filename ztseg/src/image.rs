//! The image: one complete compiled policy, as plain data.
//!
//! The datapath writes it into a set of maps, `check` and the tests evaluate it in place, and
//! `diff` compares two of them.

mod hosts;
mod identities;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use rustc_hash::FxHashMap;
use ztseg_common::addr::Addr;
use ztseg_common::eval::Lookup;
use ztseg_common::key::{EntryKey, PrefixKey, WorkloadKey};
use ztseg_common::value::{Entry, Fallback, Peer, Rule, Subject, Workload};

pub use self::hosts::Hosts;
pub use self::identities::Identities;
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
    pub hosts: Hosts,
    /// Peers known by a prefix; one per prefix, the longest wins.
    pub prefixes: Arc<BTreeMap<PrefixKey, Peer>>,
    /// The classes of every segment set that has some: the empty set, each segment alone, and
    /// each set that a workload has. A workload that appears with a set in here needs no new
    /// generation. (A set that only addresses have makes no subject, so it has no place here;
    /// [`Image::peer`] tells its identity class.)
    pub classes: BTreeMap<SegmentSet, Classes>,
    /// The identity classes. An address that joins or leaves segments needs no new generation where
    /// its class is among them ([`Image::host_of`]).
    pub identities: Arc<Identities>,
}

/// No peer had this class when the policy was compiled, so that no rule has an entry for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no peer was in these segments at once yet, so the policy must be compiled again")]
pub struct UnknownClass;

impl Image {
    /// What the policy knows of a peer's address: the exact host, else the longest prefix.
    pub fn peer(&self, addr: &Addr) -> Peer {
        self.hosts.get(addr).unwrap_or_else(|| self.around(addr))
    }

    /// The entry among [`Self::hosts`] of an address that is in these segments, beside those whose own
    /// `addresses` hold it. None: it needs no entry, the longest prefix says the same.
    ///
    /// CIDRs of rules are the policy's, so the address class stays.
    pub fn host_of(
        &self,
        address: &Addr,
        segments: &SegmentSet,
    ) -> Result<Option<Peer>, UnknownClass> {
        let of_policy = self.hosts.of_policy(address);
        if segments.is_empty() {
            return Ok(of_policy);
        }
        let around = self.around(address);
        let policy = of_policy.unwrap_or(around);
        let identity = self.identities.joined(policy.identity, segments).ok_or(UnknownClass)?;
        let peer = Peer { identity, ..policy };
        Ok((peer != around).then_some(peer))
    }

    /// What the longest prefix says.
    fn around(&self, address: &Addr) -> Peer {
        longest_prefix(&self.prefixes, (0..=128).rev(), address)
    }
}

/// What the longest prefix around an address says, of these lengths, the longest first.
pub(crate) fn longest_prefix(
    prefixes: &BTreeMap<PrefixKey, Peer>,
    lengths: impl IntoIterator<Item = u32>,
    address: &Addr,
) -> Peer {
    let bits = u128::from_be_bytes(address.octets);
    let of_length = |prefix_len: u32| {
        let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
        let addr = Addr { octets: (bits & mask).to_be_bytes() };
        prefixes.get(&PrefixKey { prefix_len, addr }).copied()
    };
    lengths.into_iter().find_map(of_length).unwrap_or(Peer::UNKNOWN)
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
