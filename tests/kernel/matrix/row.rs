//! The rows: what is asked, from where, and what must come of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ztseg_tests::traffic::{Ask, Outcome, Probe};

/// How the flow is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
    UdpConnected,
    Icmp,
}

/// Where the two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Two cgroups of one host, over loopback.
    Loopback,
    /// A cgroup and another host.
    Host,
    /// What is behind an interface, and another host.
    Interface,
}

/// What the policy says of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// A rule allows it.
    AllowRule,
    /// A rule denies it, although another one allows it.
    DenyRule,
    /// No rule matches.
    DefaultDeny,
    /// A rule of a policy in audit mode denies it.
    AuditRule,
    /// No rule matches, and the segment is in audit mode.
    AuditIsolation,
}

/// Which end opens the flow, as the subject sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Egress,
    Ingress,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Tcp, Kind::Udp, Kind::UdpConnected, Kind::Icmp];
pub(super) const PLACES: [Place; 3] = [Place::Loopback, Place::Host, Place::Interface];
pub(super) const CASES: [Case; 5] =
    [Case::AllowRule, Case::DenyRule, Case::DefaultDeny, Case::AuditRule, Case::AuditIsolation];
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// A row of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) v6: bool,
    pub(super) place: Place,
    pub(super) case: Case,
    pub(super) direction: Direction,
    /// Its place in the matrix, and so its port.
    number: u16,
}

/// Below the ephemeral ports, above the reserved ones.
const FIRST_PORT: u16 = 2000;

/// All rows.
pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in KINDS {
        for v6 in [false, true] {
            for place in PLACES {
                for case in CASES {
                    for direction in DIRECTIONS {
                        let number = u16::try_from(rows.len()).unwrap_or(u16::MAX);
                        rows.push(Row { kind, v6, place, case, direction, number });
                    }
                }
            }
        }
    }
    rows
}

/// What must come of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// What the client may see.
    pub(super) outcomes: &'static [Outcome],
    /// The event there must be; without one there must be none.
    pub(super) event: Option<ExpectedEvent>,
}

/// What an event must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExpectedEvent {
    pub(super) verdict: &'static str,
    pub(super) reason: &'static str,
    pub(super) rule: Option<String>,
    pub(super) isolated_by: Option<&'static str>,
}

impl Row {
    /// The port that nobody else uses.
    pub(super) fn port(&self) -> u16 {
        FIRST_PORT + self.number
    }

    /// The protocol's name in policies and events.
    pub(super) fn protocol(&self) -> &'static str {
        match (self.kind, self.v6) {
            (Kind::Tcp, _) => "tcp",
            (Kind::Udp | Kind::UdpConnected, _) => "udp",
            (Kind::Icmp, false) => "icmp",
            (Kind::Icmp, true) => "icmpv6",
        }
    }

    /// An echo request has no port: such rows differ by the peer's address, of which this is the
    /// number, from 2.
    pub(super) fn host_number(&self) -> u8 {
        let [case, direction] = [
            CASES.iter().position(|case| *case == self.case),
            DIRECTIONS.iter().position(|direction| *direction == self.direction),
        ];
        let number = 2 + 2 * case.unwrap_or_default() + direction.unwrap_or_default();
        if self.kind == Kind::Icmp { u8::try_from(number).unwrap_or(u8::MAX) } else { 2 }
    }

    /// The segment that the policy is about.
    pub(super) fn segment(&self) -> &'static str {
        match (self.place, self.case == Case::AuditIsolation) {
            (Place::Interface, false) => "guest",
            (Place::Interface, true) => "trial-guest",
            (_, false) => "app",
            (_, true) => "trial-app",
        }
    }

    /// The workload's name in events.
    pub(super) fn workload(&self) -> &'static str {
        match self.segment() {
            "guest" => "interface:zt-tap0",
            "trial-guest" => "interface:zt-tap1",
            "app" => "/app",
            _ => "/trial",
        }
    }

    /// The direction's name in events.
    pub(super) fn direction_name(&self) -> &'static str {
        match self.direction {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        }
    }

    /// The hooks that may judge it. The first must, but for an early answer.
    pub(super) fn hooks(&self) -> &'static [&'static str] {
        match (self.place, self.direction) {
            (Place::Interface, Direction::Egress) => &["tc-from-workload"],
            (Place::Interface, Direction::Ingress) => &["tc-to-workload"],
            // The answer to a SYN leaves with the listening socket, where a handshake is judged
            // packet by packet.
            (_, Direction::Ingress) if self.kind == Kind::Tcp => {
                &["cgroup-ingress", "cgroup-egress"]
            }
            (_, Direction::Ingress) => &["cgroup-ingress"],
            (_, Direction::Egress) => match (self.kind, self.v6) {
                (Kind::Tcp | Kind::UdpConnected, false) => &["cgroup-egress", "connect4"],
                (Kind::Tcp | Kind::UdpConnected, true) => &["cgroup-egress", "connect6"],
                (Kind::Udp, false) => &["cgroup-egress", "sendmsg4"],
                (Kind::Udp, true) => &["cgroup-egress", "sendmsg6"],
                (Kind::Icmp, _) => &["cgroup-egress"],
            },
        }
    }

    /// Whether no hook sees the flow: the kernel answers an echo request to this host itself,
    /// whoever runs on it.
    pub(super) fn is_unseen(&self) -> bool {
        self.kind == Kind::Icmp
            && self.direction == Direction::Ingress
            && self.place != Place::Interface
    }

    /// The client, which asks `to` from `from`.
    pub(super) fn probe(&self, from: Option<IpAddr>, to: IpAddr) -> Probe {
        let ask = match self.kind {
            Kind::Tcp => Ask::Tcp,
            Kind::Udp => Ask::Udp,
            Kind::UdpConnected => Ask::UdpConnected,
            Kind::Icmp => Ask::Ping,
        };
        // Several segments each way, and one datagram.
        let bytes = if self.kind == Kind::Tcp { 20_000 } else { 64 };
        let probe = Probe::new(ask, SocketAddr::new(to, self.port())).bytes(bytes);
        match from {
            Some(from) => probe.from(SocketAddr::new(from, 0)),
            None => probe,
        }
    }

    /// What must come of it.
    pub(super) fn expected(&self) -> Expected {
        if self.is_unseen() {
            return Expected { outcomes: &[Outcome::Ok], event: None };
        }
        let (verdict, reason) = match self.case {
            Case::AllowRule => return Expected { outcomes: &[Outcome::Ok], event: None },
            Case::DenyRule => ("DROPPED", "rule"),
            Case::DefaultDeny => ("DROPPED", "isolation"),
            Case::AuditRule => ("AUDIT", "rule"),
            Case::AuditIsolation => ("AUDIT", "isolation"),
        };
        let outcomes: &[Outcome] = match (verdict, self.place, self.direction) {
            ("AUDIT", ..) => &[Outcome::Ok],
            // What its own send ran into, the client is told; what was lost on the way, not.
            (_, Place::Loopback | Place::Host, Direction::Egress) => match self.kind {
                Kind::Tcp => &[Outcome::Eperm, Outcome::Timeout],
                // `ping_v6_sendmsg` drops the error (net/ipv6/ping.c).
                Kind::Icmp if self.v6 => &[Outcome::Timeout],
                _ => &[Outcome::Eperm],
            },
            _ => &[Outcome::Timeout],
        };
        let rule = match self.case {
            Case::DenyRule => Some(format!("matrix/no-{self}")),
            Case::AuditRule => Some(format!("trial/no-{self}")),
            _ => None,
        };
        let isolated_by = (reason == "isolation").then(|| self.segment());
        Expected { outcomes, event: Some(ExpectedEvent { verdict, reason, rule, isolated_by }) }
    }

    /// The trial's name.
    pub(super) fn name(&self) -> String {
        format!("matrix::{}", self.words().join("::"))
    }

    fn words(&self) -> [&'static str; 5] {
        let kind = match self.kind {
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
            Kind::UdpConnected => "udp_connected",
            Kind::Icmp => "icmp",
        };
        let place = match self.place {
            Place::Loopback => "loopback",
            Place::Host => "host",
            Place::Interface => "interface",
        };
        let case = match self.case {
            Case::AllowRule => "allow_rule",
            Case::DenyRule => "deny_rule",
            Case::DefaultDeny => "default_deny",
            Case::AuditRule => "audit_rule",
            Case::AuditIsolation => "audit_isolation",
        };
        [kind, if self.v6 { "v6" } else { "v4" }, place, case, self.direction_name()]
    }
}

/// As in the names of rules.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join("-").replace('_', "-"))
    }
}
