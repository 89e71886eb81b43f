//! Verdicts, directions, and the reasons that events give.

/// Which way a flow goes as its subject sees it: the direction of the packet that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// A peer opened the flow towards the subject.
    Ingress = 1,
    /// The subject opened the flow.
    Egress = 2,
}

impl Direction {
    /// From its number in a map or an event; zero and unknown numbers are `None`.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Ingress),
            2 => Some(Self::Egress),
            _ => None,
        }
    }

    /// The stable name that events, policies and documents use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// What happens to a packet. There is no default: code that forgets to decide does not compile.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verdict {
    /// The packet is dropped, or the system call refused.
    Deny = 1,
    /// The packet passes.
    Allow = 2,
}

impl Verdict {
    /// From its number in a map; zero and anything unknown is a deny.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        if n == Self::Allow as u8 { Self::Allow } else { Self::Deny }
    }
}

macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident = $n:literal, $text:literal; )*) => {
        /// Why a verdict is what it is. The numbers and names are stable: events carry them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $( $(#[$doc])* $name = $n, )* }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// From its number in an event; `None` for a number that this version does not know.
            pub const fn from_u8(n: u8) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }

            /// The stable name that events, metrics and documents use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// A rule decided; the record names it.
    Rule = 1, "rule";
    /// No rule matched and a segment of the subject isolates this direction.
    Isolation = 2, "isolation";
    /// No rule matched and nothing isolates the subject in this direction.
    NoIsolation = 3, "no-isolation";
    /// Both ends are the same workload, over loopback.
    SelfTraffic = 4, "self";
    /// Made by the kernel itself, not by a workload (a reset for a closed port, an echo reply).
    KernelMade = 5, "kernel-made";
    /// Neighbour or router discovery, without which no IPv6 flow works (RFC 4861).
    NeighbourDiscovery = 6, "neighbour-discovery";
    /// An ICMP error that quotes a packet of an allowed flow.
    RelatedError = 7, "related-error";
    /// Enforced at another hook of this host, which knows the workload better.
    OtherHook = 8, "other-hook";
    /// The packet ends inside a header that it announces.
    Truncated = 16, "truncated";
    /// A header contradicts itself: IP version, IPv4 header length or options, the order of IPv6
    /// extension headers, a length below that of its own header.
    Malformed = 17, "malformed";
    /// A fragment whose first fragment is not known.
    FragmentWithoutFirst = 18, "fragment-without-first";
    /// More extension headers than the parser reads.
    TooManyHeaders = 19, "too-many-headers";
    /// An Ethernet type other than IPv4, IPv6 or ARP.
    UnknownEthertype = 20, "unknown-ethertype";
    /// An ICMP error that quotes no packet of an allowed flow.
    UnrelatedError = 21, "unrelated-error";
    /// A length in a header says more than there is: of IP, UDP, a TCP header or an SCTP chunk.
    LengthBeyondPacket = 22, "length-beyond-packet";
    /// A first fragment that ends inside its headers, so that what rules ask for is hidden (RFC
    /// 1858, RFC 7112).
    TinyFragment = 23, "tiny-fragment";
    /// A later fragment that begins inside what its first one holds (RFC 3128, RFC 5722).
    OverlappingFragment = 24, "overlapping-fragment";
    /// A fragment that cannot be one: empty, not a multiple of eight bytes, beyond the longest
    /// packet, or a fragment of a fragment.
    BadFragment = 25, "bad-fragment";
    /// The packet names waypoints, so its destination is not its real end: an IPv4 source route, or
    /// an IPv6 routing header of type 0 (RFC 5095) or with segments left.
    SourceRoute = 26, "source-route";
    /// An IPv6 packet without a length in its header (RFC 2675).
    Jumbogram = 27, "jumbogram";
    /// A protocol number that means nothing in this IP version.
    UnknownProtocol = 28, "unknown-protocol";
    /// The packet's source is another workload's: a socket of this host, or an address behind
    /// another interface; or it is this host's own.
    BorrowedSource = 29, "borrowed-source";
    /// A packet socket of an isolated workload: what it sends passes no hook that judges.
    PacketSocket = 30, "packet-socket";
    /// A map value that must be there is not: the policy is incomplete, so nothing passes.
    NotInitialised = 32, "not-initialised";
}

/// Which hook judged. The numbers and names are stable: events carry them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Hook {
    /// `cgroup/connect4`
    Connect4 = 1,
    /// `cgroup/connect6`
    Connect6 = 2,
    /// `cgroup/sendmsg4`
    Sendmsg4 = 3,
    /// `cgroup/sendmsg6`
    Sendmsg6 = 4,
    /// `cgroup_skb/ingress`
    CgroupIngress = 5,
    /// `cgroup_skb/egress`
    CgroupEgress = 6,
    /// TC, packets that come from the workload
    TcFromWorkload = 7,
    /// TC, packets that go to the workload
    TcToWorkload = 8,
    /// BPF LSM, `socket_create`
    SocketCreate = 9,
}

impl Hook {
    /// Every hook, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::CgroupIngress,
        Self::CgroupEgress,
        Self::TcFromWorkload,
        Self::TcToWorkload,
        Self::SocketCreate,
    ];

    /// From its number in an event.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|h| *h as u8 == n)
    }

    /// The stable name that events and documents use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::CgroupIngress => "cgroup-ingress",
            Self::CgroupEgress => "cgroup-egress",
            Self::TcFromWorkload => "tc-from-workload",
            Self::TcToWorkload => "tc-to-workload",
            Self::SocketCreate => "socket-create",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_zero_means_nothing() {
        for r in Reason::ALL {
            assert_eq!(Reason::from_u8(*r as u8), Some(*r));
        }
        for h in Hook::ALL {
            assert_eq!(Hook::from_u8(h as u8), Some(h));
        }
        assert_eq!(Reason::from_u8(0), None);
        assert_eq!(Hook::from_u8(0), None);
        assert_eq!(Direction::from_u8(0), None);
        assert_eq!(Verdict::from_u8(0), Verdict::Deny);
        assert_eq!(Verdict::from_u8(77), Verdict::Deny);
    }
}
