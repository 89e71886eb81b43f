//! Keys of the policy maps, and the numbers that stand for classes.
//!
//! A *class* is a number for things that every rule treats alike, so that a new flow costs a fixed
//! number of lookups however many rules there are. All class numbers belong to one generation.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, proto};

/// In an [`EntryKey`]: the entry holds for every subject (`from: any` on egress, `to: any` on
/// ingress), so that such a rule is not copied into every class.
pub const SUBJECT_ANY: u32 = 0;
/// Subject class of a workload that no segment knows.
pub const SUBJECT_UNMANAGED: u32 = 1;
/// The first subject class that the compiler gives out.
pub const SUBJECT_FIRST: u32 = 2;

/// Identity class of a peer that is in no segment, or of which nothing is known.
pub const IDENTITY_UNKNOWN: u32 = 1;
/// Identity class of a local port that no socket listens on. Every `allow` rule *to* a segment
/// matches it on egress, so that a service which is down answers "connection refused", as it would
/// without ztseg, where the policy allows the connection.
pub const IDENTITY_NOBODY: u32 = 2;
/// The first identity class that the compiler gives out.
pub const IDENTITY_FIRST: u32 = 3;

/// Address class of an address that no rule's CIDR contains.
pub const ADDRESS_UNKNOWN: u32 = 1;
/// The first address class that the compiler gives out.
pub const ADDRESS_FIRST: u32 = 2;

/// Port class of a (protocol, port) that no rule names.
pub const PORT_UNNAMED: u16 = 1;
/// The first port class that the compiler gives out.
pub const PORT_FIRST: u16 = 2;
/// In an [`EntryKey`]: the entry holds for every protocol and port.
pub const PORT_ANY: u16 = 0;

/// The key of a workload: the id of its cgroup, or [`workload_interface`].
pub type WorkloadKey = u64;

/// The deepest level below the root of the cgroup hierarchy at which a cgroup can be a workload;
/// what lies deeper belongs to its ancestor at this level or above.
pub const MAX_CGROUP_LEVEL: u32 = 23;

const INTERFACE: u64 = 1 << 63;

/// The key of an interface workload, by its index in the agent's network namespace.
///
/// cgroup ids are kernfs node numbers, which the kernel counts up from one (`fs/kernfs/dir.c`), so
/// the topmost bit is free to tell the two apart.
#[inline(always)]
pub const fn workload_interface(ifindex: u32) -> WorkloadKey {
    INTERFACE | ifindex as u64
}

/// The interface index of a key made by [`workload_interface`].
pub const fn interface_of(key: WorkloadKey) -> Option<u32> {
    #[expect(clippy::cast_possible_truncation, reason = "an interface index has 32 bits")]
    if key & INTERFACE != 0 { Some((key & !INTERFACE) as u32) } else { None }
}

/// What the `peer` number in an [`EntryKey`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PeerKind {
    /// An identity class.
    Identity = 1,
    /// An address class.
    Address = 2,
    /// Every peer; the number is zero.
    Any = 3,
}

/// Key of the verdict entries: one (subject class, direction, peer, port class).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct EntryKey {
    /// Subject class, or [`SUBJECT_ANY`].
    pub subject: u32,
    /// Identity class or address class, by `kind`; zero for [`PeerKind::Any`].
    pub peer: u32,
    /// Port class, or [`PORT_ANY`].
    pub port: u16,
    /// A [`PeerKind`].
    pub kind: u8,
    /// A [`crate::verdict::Direction`].
    pub direction: u8,
}

impl EntryKey {
    /// The bit that this key's shape has in [`crate::value::Subject`]'s masks.
    #[inline(always)]
    pub const fn shape(&self) -> u16 {
        shape(self.kind, self.port != PORT_ANY)
    }
}

/// How many shapes of entries one subject can have.
pub const SHAPES: u32 = 6;

/// The bit of one (peer kind, with or without port class) in a subject's shape mask.
#[inline(always)]
pub const fn shape(kind: u8, with_port: bool) -> u16 {
    1 << (((kind - 1) << 1) | with_port as u8)
}

/// Key of the longest-prefix trie over peers' addresses (`struct bpf_lpm_trie_key`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct PrefixKey {
    /// Prefix length over the 16 bytes: 96 plus the length for IPv4.
    pub prefix_len: u32,
    /// The address, bits after the prefix zero.
    pub addr: Addr,
}

/// How many port classes stand in one element of the port table.
pub const PORTS_PER_CHUNK: usize = 64;
/// Number of elements of the port table.
pub const PORT_CHUNKS: usize = PORT_SLOTS.div_ceil(PORTS_PER_CHUNK);
/// Number of (protocol, port) slots: three protocols with ports, two with types, and the rest.
pub const PORT_SLOTS: usize = 3 * 65536 + 2 * 256 + 256;

const TCP_BASE: u32 = 0;
const UDP_BASE: u32 = 65536;
const SCTP_BASE: u32 = 2 * 65536;
const ICMP_BASE: u32 = 3 * 65536;
const ICMPV6_BASE: u32 = ICMP_BASE + 256;
const OTHER_BASE: u32 = ICMPV6_BASE + 256;

/// The slot of (protocol, port) in the port table; always below [`PORT_SLOTS`].
///
/// `port` is the destination port of the packet that opens the flow, for ICMP and `ICMPv6` the
/// type, and nothing for any other protocol.
#[inline(always)]
pub const fn port_slot(protocol: u8, port: u16) -> u32 {
    match protocol {
        proto::TCP => TCP_BASE + port as u32,
        proto::UDP => UDP_BASE + port as u32,
        proto::SCTP => SCTP_BASE + port as u32,
        proto::ICMP => ICMP_BASE + (port & 0xff) as u32,
        proto::ICMPV6 => ICMPV6_BASE + (port & 0xff) as u32,
        other => OTHER_BASE + other as u32,
    }
}

/// Key of the table of IPv4 flows that are not kept in a socket.
///
/// A flow has one key at its subject, whichever way a packet goes: `local` is the subject's end.
/// Twenty bytes, because the hash of the key and the cache lines of an element are most of what a
/// packet of a known flow costs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FlowKey4 {
    /// The subject's address.
    pub local: [u8; 4],
    /// The peer's address.
    pub remote: [u8; 4],
    /// The subject's port; see [`crate::packet::Packet::flow_ports`] for ICMP.
    pub local_port: Port,
    /// The peer's port.
    pub remote_port: Port,
    /// Where the subject was seen.
    pub place: Place,
}

/// As [`FlowKey4`], for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FlowKey6 {
    /// The subject's address.
    pub local: Addr,
    /// The peer's address.
    pub remote: Addr,
    /// The subject's port.
    pub local_port: Port,
    /// The peer's port.
    pub remote_port: Port,
    /// Where the subject was seen.
    pub place: Place,
}

/// Where a flow was seen, and its protocol: equal addresses in different places are different flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Place {
    /// The subject; see [`scope`].
    pub scope: u32,
    /// IP protocol number in the low byte; above it the low 24 bits of the network namespace
    /// cookie at cgroup hooks, zero at TC. (Cookies are given out one after the other,
    /// `net/core/net_namespace.c`.)
    pub netns_protocol: u32,
}

impl Place {
    /// Of a workload's flow.
    #[inline(always)]
    pub const fn new(workload: WorkloadKey, netns: u32, protocol: u8) -> Self {
        Self::of(scope(workload), netns, protocol)
    }

    /// By [`scope`].
    #[inline(always)]
    pub const fn of(scope: u32, netns: u32, protocol: u8) -> Self {
        Self { scope, netns_protocol: netns << 8 | protocol as u32 }
    }

    /// The protocol in it.
    #[inline(always)]
    pub const fn protocol(self) -> u8 {
        self.netns_protocol.to_le_bytes()[0]
    }

    /// The same in a network namespace that is not known.
    #[must_use]
    pub const fn anywhere(self) -> Self {
        Self { netns_protocol: self.netns_protocol & 0xff, ..self }
    }
}

/// Key of who sent what is translated on its way over loopback: the ends that its packets have when
/// they arrive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct SenderKey {
    /// The sender's address.
    pub from: Addr,
    /// The receiver's address.
    pub to: Addr,
    /// The sender's port.
    pub from_port: Port,
    /// The receiver's port.
    pub to_port: Port,
    /// As in [`Place::netns_protocol`].
    pub netns_protocol: u32,
}

/// In the place of UDP in a [`Place`]: under this key is a [`crate::state::Mapping`], and no flow; the
/// two may have the same ends. (255 is reserved by IANA.)
pub const MAPPED_UDP: u8 = 255;

const SCOPE_INTERFACE: u32 = 1 << 31;

/// [`Place::scope`] of a workload: its cgroup id or interface index, with a bit to tell them apart.
///
/// The number outlives an agent, so that the next one's flows are the same flows. cgroup ids are
/// given out one after the other; two that share their low 31 bits in one network namespace would
/// have to be made two thousand million cgroups apart.
#[inline(always)]
pub const fn scope(key: WorkloadKey) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    let low = key as u32;
    if key & INTERFACE != 0 { low | SCOPE_INTERFACE } else { low & !SCOPE_INTERFACE }
}

const _: () = {
    assert!(size_of::<EntryKey>() == 12);
    assert!(size_of::<PrefixKey>() == 20);
    assert!(size_of::<FlowKey4>() == 20);
    assert!(size_of::<FlowKey6>() == 44);
    assert!(size_of::<SenderKey>() == 40);
    assert!((OTHER_BASE + 255) as usize == PORT_SLOTS - 1);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_slots_never_overlap() {
        let mut seen = std::vec![false; PORT_SLOTS];
        let mut take = |p: u8, port: u16| {
            let s = port_slot(p, port) as usize;
            assert!(!core::mem::replace(&mut seen[s], true), "{p}/{port} shares slot {s}");
        };
        for p in [proto::TCP, proto::UDP, proto::SCTP] {
            (0..=u16::MAX).for_each(|port| take(p, port));
        }
        for p in [proto::ICMP, proto::ICMPV6] {
            (0..=255).for_each(|t| take(p, t));
        }
        for p in 0..=255 {
            if ![proto::TCP, proto::UDP, proto::SCTP, proto::ICMP, proto::ICMPV6].contains(&p) {
                take(p, 0);
            }
        }
    }

    #[test]
    fn interface_keys_are_apart_from_cgroup_ids() {
        assert_eq!(interface_of(workload_interface(7)), Some(7));
        assert_eq!(interface_of(7), None);
        assert_ne!(scope(workload_interface(7)), scope(7));
    }

    #[test]
    fn shapes_are_distinct_bits() {
        let mut all = 0;
        for kind in [PeerKind::Identity, PeerKind::Address, PeerKind::Any] {
            for with_port in [false, true] {
                let bit = shape(kind as u8, with_port);
                assert_eq!(bit.count_ones(), 1);
                assert_eq!(all & bit, 0);
                all |= bit;
            }
        }
        assert_eq!(all, 0b11_1111);
    }
}
