//! Values of the policy maps. Zero in a field means "deny" or "not initialised".

use bytemuck::{Pod, Zeroable};

use crate::key::{ADDRESS_UNKNOWN, IDENTITY_UNKNOWN, PORTS_PER_CHUNK};
use crate::shares::Shares;
use crate::verdict::Direction;

/// One workload of this host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Workload {
    /// Subject class: its rules where it is the subject.
    pub subject: u32,
    /// Identity class: how rules see it where it is the peer.
    pub identity: u32,
    /// [`WORKLOAD_HOST_SIDE`], [`WORKLOAD_HOST`]; set by the datapath.
    pub flags: u32,
    /// Zero.
    pub zero: u32,
}

/// Flag of a [`Workload`]: the workload is this host's side of the interface (a network card), so
/// packets of local sockets have been judged at the cgroup hooks.
pub const WORKLOAD_HOST_SIDE: u32 = 1;
/// Flag of a [`Workload`]: it is the host, the root of the cgroups that are enforced.
pub const WORKLOAD_HOST: u32 = 2;

/// What a direction of a subject class does when no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isolation {
    /// Deny: an isolating segment of the workload enforces.
    Enforce = 1,
    /// Allow, and report what would be denied: every isolating segment is in audit mode.
    Audit = 2,
    /// Allow: no segment isolates this direction.
    Open = 3,
}

impl Isolation {
    /// From its number in a map; zero and anything unknown enforces.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            2 => Self::Audit,
            3 => Self::Open,
            _ => Self::Enforce,
        }
    }
}

/// A subject class.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Subject {
    /// An [`Isolation`], for ingress.
    pub ingress: u8,
    /// An [`Isolation`], for egress.
    pub egress: u8,
    /// [`SUBJECT_REJECT_INGRESS`], [`SUBJECT_REJECT_EGRESS`], [`SUBJECT_FAILSAFE`].
    pub flags: u16,
    /// Which shapes of entries there are for ingress ([`crate::key::shape`]): of this class in the
    /// lower bits, of [`crate::key::SUBJECT_ANY`] shifted up by [`crate::key::SHAPES`].
    pub ingress_shapes: u16,
    /// Which shapes of entries there are for egress.
    pub egress_shapes: u16,
}

/// Flag of a [`Subject`]: who meets its isolation on ingress is told so, as by [`RULE_REJECT`].
pub const SUBJECT_REJECT_INGRESS: u16 = 1;
/// Flag of a [`Subject`]: the same on egress.
pub const SUBJECT_REJECT_EGRESS: u16 = 2;
/// Flag of a [`Subject`]: its failsafe ports stay open whatever the policy says, and so do its packet
/// sockets, by which a DHCP client asks.
pub const SUBJECT_FAILSAFE: u16 = 4;

impl Subject {
    /// Whether who meets the isolation of a direction is told so.
    #[inline(always)]
    pub const fn rejects(&self, direction: Direction) -> bool {
        let flag = match direction {
            Direction::Ingress => SUBJECT_REJECT_INGRESS,
            Direction::Egress => SUBJECT_REJECT_EGRESS,
        };
        self.flags & flag != 0
    }
}

/// What is known of a peer's address, in the host hash and in the prefix trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Peer {
    /// Identity class by the segments whose `addresses` contain it. A peer whose workload on this
    /// host is known has that workload's identity class instead.
    pub identity: u32,
    /// Address class by the CIDRs of rules around it.
    pub address: u32,
}

impl Peer {
    /// A peer of which nothing is known: in no segment, in no CIDR.
    pub const UNKNOWN: Self = Self { identity: IDENTITY_UNKNOWN, address: ADDRESS_UNKNOWN };
}

/// One tier's best matching rules under one [`crate::key::EntryKey`]: ranks, zero for none.
///
/// The rank of a rule is its place (from one) in the order of evaluation over the whole policy, and
/// its index in the table of [`Rule`]s. With [`RANK_EXPIRES`] the number is the index of a
/// [`Fallback`] instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Ranks {
    /// The best rule that takes effect: any rule but a deny in audit mode.
    pub effective: u32,
    /// The best rule of all, as if every policy enforced.
    pub shadow: u32,
}

/// Bit of a rank in [`Ranks`]: the best rule expires, and the other bits are the index of the
/// [`Fallback`] that says which one, and what holds afterwards.
pub const RANK_EXPIRES: u32 = 1 << 31;

/// A rule that expires, under one entry of one tier, and what stands behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Fallback {
    /// The rank of the rule that holds until it expires.
    pub rank: u32,
    /// What holds then: as a field of [`Ranks`].
    pub next: u32,
}

/// How many rules may expire one after the other under one entry of one tier.
pub const MAX_FALLBACKS: usize = 8;

/// The tiers, in the order of evaluation; indexes into [`Entry::tiers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tier {
    /// By priority; `allow`, `deny` and `pass`; the first match ends the tier.
    Admin = 0,
    /// Deny beats allow, then isolation.
    Application = 1,
    /// As admin, for what is still undecided.
    Baseline = 2,
}

impl Tier {
    /// The name that policies and documents use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Application => "application",
            Self::Baseline => "baseline",
        }
    }
}

/// A verdict entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Entry {
    /// By [`Tier`].
    pub tiers: [Ranks; 3],
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Action {
    /// Drop.
    Deny = 1,
    /// Let pass.
    Allow = 2,
    /// End the tier undecided (admin and baseline tiers).
    Pass = 3,
}

impl Action {
    /// The name that policies and documents use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
            Self::Pass => "pass",
        }
    }

    /// From its number in a map; zero and anything unknown is a deny.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            2 => Self::Allow,
            3 => Self::Pass,
            _ => Self::Deny,
        }
    }
}

/// Flag of a [`Rule`]: report what it allows, too.
pub const RULE_LOG: u8 = 1;
/// Flag of a [`Rule`]: what it denies is told so, with a reset or an ICMP error.
pub const RULE_REJECT: u8 = 2;

/// A rule; its index in the table is its rank, and index zero is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Rule {
    /// An [`Action`].
    pub action: u8,
    /// [`RULE_LOG`], [`RULE_REJECT`].
    pub flags: u8,
    /// Zero.
    pub zero: [u8; 6],
    /// How many decisions it made in this generation; counted by the kernel programs.
    pub hits: u64,
    /// When it ends, in nanoseconds; zero for never. In the kernel on the boot-time clock, in an
    /// image since 1970.
    pub expires: u64,
}

impl Rule {
    /// Whether it has ended at `now`, on the clock of [`Self::expires`].
    #[inline(always)]
    pub const fn is_over(&self, now: u64) -> bool {
        self.expires != 0 && self.expires <= now
    }
}

/// Sixty-four neighbouring port classes ([`crate::key::port_slot`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PortChunk {
    /// Port classes; zero is "not initialised".
    pub classes: [u16; PORTS_PER_CHUNK],
}

/// Flag of [`Control`]: the cgroup programs are attached to the root of the whole hierarchy, so that
/// they see every socket.
pub const CONTROL_WHOLE_HIERARCHY: u32 = 2;
/// Flag of [`Control`]: some interface leads to a workload, so that who is asked may show only when
/// the packet is on its way there.
pub const CONTROL_FAR_INTERFACES: u32 = 4;

/// The one word that programs read first, and the agent's settings for them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Control {
    /// The active generation (upper half; its lowest bit is the slot) and the inventory epoch
    /// (lower half). Written as one 64-bit store. Zero: no policy yet, everything passes unjudged
    /// (the agent attaches only after the first commit).
    pub stamp: u64,
    /// Bit n: some workload's cgroup lies n levels below the root of the cgroup hierarchy.
    pub levels: u32,
    /// [`CONTROL_WHOLE_HIERARCHY`], [`CONTROL_FAR_INTERFACES`].
    pub flags: u32,
    /// Network namespace cookie of the agent.
    pub netns: u64,
    /// Boot time in nanoseconds until when TC judges a TCP segment without SYN, of an unknown
    /// flow, in both orientations (flows older than the attachment).
    pub adopt_until: u64,
    /// Jiffies a second on this kernel.
    pub hz: u32,
    /// Events that one workload may send a second on one CPU; the rest is counted.
    pub event_budget: u32,
    /// What marks an answer to a denied packet on its way back; random, never zero.
    pub answer_mark: u32,
    /// Zero.
    pub zero: u32,
    /// How much of the flow tables a workload may have.
    pub shares: Shares,
}

/// The generation in a [`Control::stamp`].
#[inline(always)]
pub const fn generation(stamp: u64) -> u32 {
    (stamp >> 32) as u32
}

/// The slot of the outer maps that a stamp's generation lies in.
#[inline(always)]
pub const fn slot(stamp: u64) -> u32 {
    generation(stamp) & 1
}

const _: () = {
    assert!(size_of::<Workload>() == 16);
    assert!(size_of::<Subject>() == 8);
    assert!(size_of::<Peer>() == 8);
    assert!(size_of::<Entry>() == 24);
    assert!(size_of::<Fallback>() == 8);
    assert!(size_of::<Rule>() == 24);
    assert!(size_of::<PortChunk>() == 128);
    assert!(size_of::<Control>() == 64);
};
