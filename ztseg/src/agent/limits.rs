//! What the hooks in use cannot promise, whatever the policy says. `status` shows it.

use crate::api::types::Limit;
use crate::datapath::PacketSockets;
use crate::sockets::{Facts, adopt};

/// (stable name, what is not promised, what to do where it matters)
const LIMITS: &[(&str, &str, &str)] = &[
    (
        "icmp-to-cgroup",
        "ICMP towards a cgroup workload is not judged: the kernel answers it before any cgroup \
         hook sees it",
        "where it matters, put the workload behind a veth or tap and match that by `interface`",
    ),
    (
        "icmp-errors",
        "ICMP errors reach cgroup workloads unjudged; cgroup hooks never see them",
        "TC judges them on interfaces that a segment matches by `interface`",
    ),
    (
        "sctp-at-cgroup",
        "SCTP of cgroup workloads is not judged: its packets do not pass the cgroup hooks",
        "match the interface, or keep the sctp kernel module from loading",
    ),
    (
        "own-network",
        "a workload with CAP_NET_ADMIN in a network namespace of its own can wrap packets into a \
         tunnel or rewrite them behind its cgroup hooks",
        "take CAP_NET_ADMIN away from the workload, or match its veth by `interface`",
    ),
    (
        "source-address",
        "a rule with a CIDR takes the word of a workload behind an interface for addresses that \
         are behind no other workload's interface",
        "set rp_filter=1 on that interface, and `fib saddr . iif oif missing drop` in nftables \
         for IPv6; or name segments instead of CIDRs",
    ),
    (
        "shared-port",
        "workloads that share a UDP port on loopback (SO_REUSEADDR, SO_REUSEPORT) share the \
         flows that one of them has opened from it",
        "give services ports of their own",
    ),
    (
        "moved-socket",
        "a socket belongs to the cgroup that it was made in, also when it is passed on or its \
         process moves: with socket activation that is the service manager's",
        "let the service make its own socket",
    ),
    (
        "early-answer",
        "a denied connect or send fails at once (EPERM) only in the agent's own network \
         namespace, while netfilter has nothing at its output and postrouting there, and beyond \
         loopback only while no tap or veth is a workload; else the packet is dropped and the \
         caller of connect waits for its timeout",
        "nothing: what is denied stays denied",
    ),
    (
        "translation",
        "where a workload's packets are translated outside of its network namespace, or behind the \
         hook of its interface, its own end judges the address that it asks for (a service, a \
         published port), and where somebody has translated the sender (SNAT, masquerade), the \
         end that is asked judges the translator's; translation without connection tracking is \
         not seen through, and answers to it may be denied",
        "name the services' addresses at the end that asks and the workloads at the end that is \
         asked",
    ),
    (
        "reject-at-cgroup",
        "a cgroup hook can only drop: `reject` tells local applications by destroying their TCP \
         sockets, and tells nobody who is elsewhere, nor who sends anything but TCP",
        "where it matters, match the interface: TC sends a reset or an ICMP error",
    ),
    (
        "interface-namespace",
        "only interfaces of the agent's own network namespace can be workloads",
        "match the host's end of a veth pair, or the cgroup",
    ),
    (
        "no-inet",
        "Unix sockets and vsock are not segmented",
        "use file permissions, and separate mounts",
    ),
];

/// Only where the kernel does not do it.
const NOT_DESTROYED: (&str, &str, &str) = (
    "reject-unsupported",
    "the kernel destroys no sockets (CONFIG_INET_DIAG_DESTROY) for this agent: whoever `reject` \
     denies at a cgroup hook waits for a timeout",
    "use a kernel that has it, and give the agent CAP_NET_ADMIN",
);
/// Only where it is so.
const CLOSED: (&str, &str, &str) = (
    "reject-namespaces",
    "the network namespaces of some workloads cannot be entered: whoever `reject` denies there \
     waits for a timeout",
    "give the agent CAP_SYS_ADMIN and CAP_SYS_PTRACE, and in a container the host's processes \
     (hostPID)",
);

/// Only where some are left.
const OLDER: (&str, &str, &str) = (
    "older-sockets",
    "some sockets are older than the agent, and whose they are could not be found out: a rule with \
     a segment of cgroups does not allow an interface workload's flows to and from them",
    "give the agent CAP_SYS_ADMIN and CAP_SYS_PTRACE, and in a container the host's processes \
     (hostPID); or restart the services once",
);

/// What is not promised of packet sockets (`AF_PACKET`, `AF_XDP`), which pass no inet hook of a cgroup.
fn packets(packets: &PacketSockets) -> Limit {
    const PASS: &str = "packet sockets (CAP_NET_RAW) pass no inet cgroup hook";
    const INSTEAD: &str =
        "take CAP_NET_RAW away from the workload, or match its veth by `interface`";
    let (what, instead) = match packets {
        PacketSockets::Refused => (
            "packet sockets pass no inet cgroup hook; an isolated workload is refused new ones, \
             but keeps those that are older than the agent or than its isolation, or that were \
             made elsewhere and passed in"
                .into(),
            format!("restart the workload once it is isolated; {INSTEAD}"),
        ),
        PacketSockets::NotActive => (
            format!("{PASS}; BPF LSM, which could refuse them, is not active"),
            format!(
                "boot with `bpf` in the list `lsm=` of the kernel's command line \
                 (/sys/kernel/security/lsm has the list that is in force); or {INSTEAD}"
            ),
        ),
        PacketSockets::NotKnown => (
            format!(
                "{PASS}; whether BPF LSM is active, which could refuse them, is not known, so it is \
                 not used"
            ),
            format!("mount securityfs at /sys/kernel/security and restart the agent; or {INSTEAD}"),
        ),
        PacketSockets::NotSupported(why) => {
            (format!("{PASS}; BPF LSM is active, but does not refuse them: {why}"), INSTEAD.into())
        }
    };
    Limit { id: "packet-sockets".into(), what, instead }
}

/// The limits as the API gives them.
pub fn limits(
    telling: Option<&Facts>,
    older: Option<&adopt::Facts>,
    packet_sockets: &PacketSockets,
) -> Vec<Limit> {
    let owned = |(id, what, instead): &(&str, &str, &str)| Limit {
        id: (*id).into(),
        what: (*what).into(),
        instead: (*instead).into(),
    };
    let unsupported = telling.is_some_and(Facts::is_unsupported).then_some(NOT_DESTROYED);
    let closed = telling.is_some_and(|facts| facts.closed() > 0).then_some(CLOSED);
    let left = older.is_some_and(|facts| facts.unknown() + facts.closed() > 0).then_some(OLDER);
    let fixed = LIMITS.iter().chain(&unsupported).chain(&closed).chain(&left).map(owned);
    fixed.chain([packets(packet_sockets)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_texts_are_there() {
        let all = limits(None, None, &PacketSockets::Refused);
        let mut ids: Vec<_> = all.iter().map(|l| l.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), LIMITS.len() + 1);
        assert!(all.iter().all(|l| !l.what.is_empty() && !l.instead.is_empty()));
    }

    #[test]
    fn packet_sockets_are_a_limit_that_says_what_would_help() {
        for (packet_sockets, what, instead) in [
            (PacketSockets::Refused, "refused new ones", "restart the workload"),
            (PacketSockets::NotActive, "is not active", "`lsm=`"),
            (PacketSockets::NotKnown, "is not known", "mount securityfs"),
            (PacketSockets::NotSupported("no trampoline".into()), "no trampoline", "CAP_NET_RAW"),
        ] {
            let all = limits(None, None, &packet_sockets);
            let limit = all.iter().find(|l| l.id == "packet-sockets").expect("it is listed");
            assert!(limit.what.contains(what) && limit.instead.contains(instead), "{limit:?}");
        }
    }
}
