//! Failsafe: ports and peers that stay open for the host itself, whatever the policy says.
//!
//! It is part of the agent's configuration, not of a policy, and becomes rules in front of all
//! others for a segment of its own: the host, the units that are listed, and the host's side of
//! interfaces that a segment names. So the evaluator and the kernel programs know nothing of it.

use std::fmt;

use super::diagnostic::quote;
use super::parse::network;
use super::resolved::{
    Ends, Isolation, Network, PortRange, Resolved, Rule, Segment, SegmentId, Selector, Side,
};
use super::source::Position;
use ipnet::IpNet;
use ztseg_common::addr::proto;

/// The protocols that a port can be opened for.
const PROTOCOLS: [(&str, u8); 3] =
    [("tcp", proto::TCP), ("udp", proto::UDP), ("sctp", proto::SCTP)];
const EXAMPLE: &str = "`\"tcp:22\"`, `\"tcp:198.51.100.0/24:22\"` or `\"tcp:[2001:db8::/32]:22\"`";

/// A port that stays open, as users of Felix write it: `tcp:22`, `tcp:198.51.100.0/24:22`,
/// `tcp:[2001:db8::/32]:22`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    protocol: u8,
    peers: Option<IpNet>,
    port: u16,
}

/// What is wrong with an opening, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub struct OpeningError {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

fn error(message: String, help: impl Into<String>) -> OpeningError {
    OpeningError { message, help: help.into() }
}

impl Opening {
    const fn to_everybody(protocol: u8, port: u16) -> Self {
        Self { protocol, peers: None, port }
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, OpeningError> {
        let wrong = |help: String| error(format!("{} is not a port", quote(text)), help);
        let Some((name, rest)) = text.split_once(':') else {
            return Err(wrong(match text.split_once('/') {
                Some((name, port)) => format!("write `\"{name}:{port}\"`"),
                None if text.bytes().all(|b| b.is_ascii_digit()) => {
                    format!("write the protocol too: `\"tcp:{text}\"` or `\"udp:{text}\"`")
                }
                None => format!("write {EXAMPLE}"),
            }));
        };
        let Some((_, protocol)) = PROTOCOLS.into_iter().find(|(known, _)| *known == name) else {
            let message = format!("{} is not a protocol that can stay open", quote(name));
            return Err(error(message, "write `tcp`, `udp` or `sctp`, as in `\"tcp:22\"`"));
        };
        let (peers, port) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((peers, port)) => (Some(peers), port),
        };
        let peers = peers.map(|peers| Self::parse_peers(text, peers)).transpose()?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port > 0 => Ok(Self { protocol, peers, port }),
            _ if digits => {
                let message = format!("port {} in {} is out of range", quote(port), quote(text));
                Err(error(message, "ports are 1 to 65535"))
            }
            _ => Err(wrong(format!("write {EXAMPLE}"))),
        }
    }

    fn parse_peers(text: &str, peers: &str) -> Result<IpNet, OpeningError> {
        let inner = peers.strip_prefix('[').and_then(|p| p.strip_suffix(']'));
        if inner.is_none() && peers.contains(':') {
            let message = format!("{} is not a port", quote(text));
            return Err(error(message, "write IPv6 in brackets: `\"tcp:[2001:db8::/32]:22\"`"));
        }
        network::network(inner.unwrap_or(peers))
            .map_err(|e| error(format!("{} in {}", e.message, quote(text)), e.help))
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PROTOCOLS.iter().find(|(_, n)| *n == self.protocol).map_or("", |(name, _)| name);
        match &self.peers {
            None => write!(f, "{name}:{}", self.port),
            Some(IpNet::V4(net)) => write!(f, "{name}:{net}:{}", self.port),
            Some(IpNet::V6(net)) => write!(f, "{name}:[{net}]:{}", self.port),
        }
    }
}

/// What stays open, and for which units besides the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failsafe {
    /// Ports of the host that peers reach.
    pub inbound: Vec<Opening>,
    /// Ports of peers that the host reaches.
    pub outbound: Vec<Opening>,
    /// Units of the system manager that have the same; `*` globs.
    pub units: Vec<String>,
}

impl Default for Failsafe {
    fn default() -> Self {
        let units = ["ssh.service", "systemd-networkd.service", "systemd-resolved.service"];
        Self {
            inbound: vec![
                Opening::to_everybody(proto::TCP, 22),
                Opening::to_everybody(proto::UDP, 68),
            ],
            outbound: vec![
                Opening::to_everybody(proto::UDP, 53),
                Opening::to_everybody(proto::UDP, 67),
            ],
            units: units.map(str::to_owned).to_vec(),
        }
    }
}

impl Failsafe {
    /// Nothing stays open.
    pub const fn off() -> Self {
        Self { inbound: Vec::new(), outbound: Vec::new(), units: Vec::new() }
    }

    /// Whether nothing stays open.
    pub fn is_off(&self) -> bool {
        self.inbound.is_empty() && self.outbound.is_empty()
    }

    /// Puts its rules in front of all others, for a segment of its own.
    pub fn add_to(&self, resolved: &mut Resolved) {
        if self.is_off() {
            return;
        }
        let position = Position { file: "failsafe".into(), line: 1, column: 1 };
        // A policy of more than 2^32 segments fits no memory.
        let id = SegmentId(u32::try_from(resolved.segments.len()).unwrap_or(u32::MAX));
        let host = Selector { host: true, ..Selector::default() };
        let unit = |u: &String| Selector { unit: Some(u.clone()), ..Selector::default() };
        resolved.segments.push(Segment {
            name: "failsafe".into(),
            policy: "failsafe".into(),
            ingress: Isolation::Open,
            egress: Isolation::Open,
            reject: false,
            selectors: std::iter::once(host).chain(self.units.iter().map(unit)).collect(),
            addresses: Vec::new(),
            position: position.clone(),
        });
        resolved.failsafe = Some(id);
        let rule = |ends: Ends, opening: &Opening| {
            let own = Side { segments: vec![id], ..Side::default() };
            let network = |cidr| Network { cidr, except: Vec::new() };
            let peers = Side {
                any: opening.peers.is_none(),
                networks: opening.peers.map(network).into_iter().collect(),
                ..Side::default()
            };
            let (word, from, to) = if ends == Ends::Ingress {
                ("inbound", peers, own)
            } else {
                ("outbound", own, peers)
            };
            let Opening { protocol, port, .. } = *opening;
            let name = format!("failsafe/{word} {opening}");
            let ports = PortRange::one(protocol, port);
            Rule::built_in(name, ends, [from, to], ports, position.clone())
        };
        let inbound = self.inbound.iter().map(|o| rule(Ends::Ingress, o));
        let outbound = self.outbound.iter().map(|o| rule(Ends::Egress, o));
        let rules: Vec<Rule> = inbound.chain(outbound).collect();
        resolved.rules.splice(0..0, rules);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_printed_again() {
        for (text, protocol, peers, port) in [
            ("tcp:22", proto::TCP, None, 22),
            ("udp:68", proto::UDP, None, 68),
            ("sctp:3868", proto::SCTP, None, 3868),
            ("tcp:198.51.100.0/24:22", proto::TCP, Some("198.51.100.0/24"), 22),
            ("tcp:[2001:db8::/32]:65535", proto::TCP, Some("2001:db8::/32"), 65535),
        ] {
            let peers = peers.map(|p| p.parse().expect("a CIDR"));
            let found = Opening::parse(text).expect(text);
            assert_eq!(found, Opening { protocol, peers, port });
            assert_eq!(found.to_string(), text);
        }
        // One address is a network of one.
        let one = Opening::parse("tcp:[2001:db8::7]:22").expect("read");
        assert_eq!(one.to_string(), "tcp:[2001:db8::7/128]:22");
        assert_eq!(
            Opening::parse("udp:192.0.2.7:53").expect("read").to_string(),
            "udp:192.0.2.7/32:53"
        );
    }

    #[test]
    fn what_is_wrong_is_answered_with_what_to_write() {
        for (text, part) in [
            ("22", "write the protocol too: `\"tcp:22\"` or `\"udp:22\"`"),
            ("tcp/22", "write `\"tcp:22\"`"),
            ("ssh", "write `\"tcp:22\"`, "),
            ("icmp:8", "write `tcp`, `udp` or `sctp`"),
            ("TCP:22", "write `tcp`, `udp` or `sctp`"),
            ("tcp:0", "ports are 1 to 65535"),
            ("tcp:65536", "ports are 1 to 65535"),
            ("tcp:22-23", "write `\"tcp:22\"`, "),
            ("tcp:+22", "write `\"tcp:22\"`, "),
            ("tcp:", "write `\"tcp:22\"`, "),
            ("tcp:2001:db8::/32:22", "write IPv6 in brackets"),
            ("tcp:198.51.100.7/24:22", "write `198.51.100.0/24` for the network"),
            ("tcp:host:22", "write an address"),
            ("tcp::22", "write an address"),
        ] {
            let found = Opening::parse(text).expect_err(text);
            assert!(found.help.contains(part), "{text}: {found:?}");
            assert!(found.message.contains('`'), "{text}: {found:?}");
        }
    }

    #[test]
    fn an_empty_list_adds_nothing() {
        let mut resolved = Resolved::default();
        Failsafe { units: vec!["a.service".into()], ..Failsafe::off() }.add_to(&mut resolved);
        assert_eq!(resolved, Resolved::default());
        Failsafe { inbound: Vec::new(), ..Failsafe::default() }.add_to(&mut resolved);
        let names: Vec<_> = resolved.rules.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["failsafe/outbound udp:53", "failsafe/outbound udp:67"]);
        assert_eq!((resolved.own_segments(), resolved.own_rules()), (0, 0));
    }
}
