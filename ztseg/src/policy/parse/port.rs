//! Protocols and ports: `tcp/443`, `udp/8000-8099`, `icmp/echo-request`, `any`.

use std::fmt;

use ztseg_common::addr::proto;

use super::icmp;
use crate::policy::diagnostic::quote;
use crate::policy::kubernetes::labels::is_port_name;
use crate::policy::model::Port;
use crate::policy::names;
use crate::policy::resolved::PortRange;

/// What is wrong with a port's text, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PortError {
    pub(super) message: String,
    pub(super) help: String,
}

pub(super) const PROTOCOLS: [(&str, u8); 5] = [
    ("tcp", proto::TCP),
    ("udp", proto::UDP),
    ("sctp", proto::SCTP),
    ("icmp", proto::ICMP),
    ("icmpv6", proto::ICMPV6),
];

/// Protocols whose ports a pod can name (Kubernetes' `ContainerPort.protocol`).
const WITH_NAMED_PORTS: [(&str, u8); 3] = [PROTOCOLS[0], PROTOCOLS[1], PROTOCOLS[2]];

/// Service names that people write most often (IANA "Service Name and Transport Protocol Port
/// Number Registry"), to name the number in the message.
const SERVICES: [(&str, u16); 16] = [
    ("ssh", 22),
    ("smtp", 25),
    ("domain", 53),
    ("dns", 53),
    ("http", 80),
    ("ntp", 123),
    ("snmp", 161),
    ("ldap", 389),
    ("https", 443),
    ("syslog", 514),
    ("ldaps", 636),
    ("mysql", 3306),
    ("postgresql", 5432),
    ("postgres", 5432),
    ("redis", 6379),
    ("amqp", 5672),
];

fn error(message: String, help: impl Into<String>) -> PortError {
    PortError { message, help: help.into() }
}

impl fmt::Display for PortRange {
    /// As [`parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, first, last } = *self;
        let Some(number) = protocol else { return f.write_str("any") };
        match PROTOCOLS.into_iter().find(|(_, known)| *known == number) {
            Some((name, _)) => f.write_str(name)?,
            None => write!(f, "{number}")?,
        }
        let icmp = matches!(number, proto::ICMP | proto::ICMPV6);
        let most = if icmp { u16::from(u8::MAX) } else { u16::MAX };
        // Port zero is nobody's; a range may be written with it or without.
        if first <= u16::from(!icmp) && last == most {
            return Ok(());
        }
        let named = icmp::types(number).iter().find(|(kind, _)| u16::from(*kind) == first);
        match named.filter(|_| first == last) {
            Some((_, name)) => write!(f, "/{name}"),
            None if first == last => write!(f, "/{first}"),
            None => write!(f, "/{first}-{last}"),
        }
    }
}

/// Reads exactly one protocol and port, or type: what a flow has.
pub(crate) fn one(text: &str) -> Result<(u8, u16), String> {
    let range = parse(text).map_err(|error| format!("{}; {}", error.message, error.help))?;
    match range {
        PortRange { protocol: Some(protocol), first, last } if first == last => {
            Ok((protocol, first))
        }
        _ => Err(format!(
            "{} is more than one port; a flow has one, such as `tcp/443` or `icmp/echo-request`",
            quote(text)
        )),
    }
}

/// The address family that a protocol belongs to, if to one alone.
pub(crate) const fn is_v4(protocol: u8) -> Option<bool> {
    match protocol {
        proto::ICMP => Some(true),
        proto::ICMPV6 => Some(false),
        _ => None,
    }
}

/// The first and the last port or type of a protocol; the whole range where it has neither.
pub(crate) const fn bounds(protocol: u8) -> (u16, u16) {
    match protocol {
        proto::TCP | proto::UDP | proto::SCTP => (1, u16::MAX),
        proto::ICMP | proto::ICMPV6 => (0, u8::MAX as u16),
        _ => (0, u16::MAX),
    }
}

/// Reads one entry of `ports`, which may be one that pods have a name for.
pub(super) fn entry(text: &str) -> Result<Port, PortError> {
    if let Some((protocol, name)) = text.split_once('/')
        && let Some((_, number)) = WITH_NAMED_PORTS.into_iter().find(|(word, _)| *word == protocol)
        && is_port_name(name)
    {
        return Ok(Port::Named { name: name.to_owned(), protocol: Some(number) });
    }
    parse(text).map(Port::Range)
}

/// The number that a service of this name usually has.
pub(in crate::policy) fn usual_number(service: &str) -> Option<u16> {
    SERVICES.iter().find(|(name, _)| *name == service).map(|(_, number)| *number)
}

/// Reads ports by number.
pub(super) fn parse(text: &str) -> Result<PortRange, PortError> {
    if text == "any" {
        return Ok(PortRange::ANY);
    }
    let (protocol, port) = match text.split_once('/') {
        Some((protocol, port)) => (protocol, Some(port)),
        None => (text, None),
    };
    let Some((name, number)) = PROTOCOLS.into_iter().find(|(name, _)| *name == protocol) else {
        return Err(not_a_protocol(text, protocol, port));
    };
    let icmp = matches!(number, proto::ICMP | proto::ICMPV6);
    let (first, last) = match port {
        None if icmp => (0, u16::from(u8::MAX)),
        None => (0, u16::MAX),
        Some(kind) if icmp => {
            let n = icmp_type(name, number, kind)?;
            (n, n)
        }
        Some(range) => port_range(name, range)?,
    };
    Ok(PortRange { protocol: Some(number), first, last })
}

fn not_a_protocol(text: &str, protocol: &str, port: Option<&str>) -> PortError {
    let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let known = |s: &str| PROTOCOLS.iter().any(|(name, _)| *name == s);
    let message = format!("{} is not a port", quote(text));
    if protocol == "any" {
        return error(message, "write `any` alone for every protocol and port, or `tcp/443`");
    }
    if is_number(text) {
        return error(message, format!("write the protocol too: `tcp/{text}` or `udp/{text}`"));
    }
    let lower = protocol.to_ascii_lowercase();
    if let Some(port) = port
        && (known(&lower) || known(&port.to_ascii_lowercase()))
    {
        let port = port.to_ascii_lowercase();
        let (protocol, port) = if known(&lower) { (lower, port) } else { (port, lower) };
        return error(message, format!("write `{protocol}/{port}`"));
    }
    if let Some((protocol, port)) = lower.split_once([':', ' '])
        && known(protocol)
    {
        return error(message, format!("write `{protocol}/{}`", port.trim()));
    }
    if known(&lower) {
        return error(message, format!("write `{lower}`"));
    }
    let message = format!("{} is not a protocol that ports can name", quote(protocol));
    let near = names::nearest(protocol, PROTOCOLS.iter().map(|(name, _)| *name));
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "write `tcp`, `udp`, `sctp`, `icmp` or `icmpv6`; `any` is every protocol".into(),
    };
    error(message, help)
}

fn port_range(name: &str, range: &str) -> Result<(u16, u16), PortError> {
    let whole = format!("{name}/{range}");
    if range == "*" {
        return Err(error(format!("{} is not a port", quote(&whole)), format!("write `{name}`")));
    }
    if range.contains(',') {
        let list: Vec<_> = range.split(',').map(|p| format!("{name}/{}", p.trim())).collect();
        let help = format!("write each as an entry of its own: [{}]", list.join(", "));
        return Err(error(format!("{} is not a port", quote(&whole)), help));
    }
    if range.bytes().any(|b| b.is_ascii_alphabetic()) && names::is_well_formed(range) {
        return Err(named_port(name, range));
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first_port, last_port) = (port_number(&whole, first)?, port_number(&whole, last)?);
    if first_port > last_port {
        let message = format!("the range {} ends before it starts", quote(&whole));
        return Err(error(message, format!("write `{name}/{last}-{first}`")));
    }
    Ok((first_port, last_port))
}

fn named_port(protocol: &str, name: &str) -> PortError {
    let message = format!("{} is a port's name", quote(&format!("{protocol}/{name}")));
    let number = usual_number(name).unwrap_or(443);
    error(message, format!("write its number, for example `{protocol}/{number}`"))
}

fn port_number(whole: &str, text: &str) -> Result<u16, PortError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        let help = "write `tcp/443`, `tcp/8000-8099`, or `tcp` for every port";
        return Err(error(format!("{} is not a port", quote(whole)), help));
    }
    match text.parse() {
        Ok(0) | Err(_) => {
            let message = format!("port {} is out of range", quote(text));
            Err(error(message, "ports are 1 to 65535; leave the number out for every port"))
        }
        Ok(port) => Ok(port),
    }
}

fn icmp_type(name: &str, protocol: u8, text: &str) -> Result<u16, PortError> {
    let types = icmp::types(protocol);
    if let Some((number, _)) = types.iter().find(|(_, known)| *known == text) {
        return Ok(u16::from(*number));
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse::<u8>().map(u16::from).map_err(|_| {
            error(format!("{name} type {} is out of range", quote(text)), "types are 0 to 255")
        });
    }
    let message = format!("{} is not a type of {name}", quote(text));
    let help = match names::nearest(text, types.iter().map(|(_, known)| *known)) {
        Some(near) => format!("did you mean `{name}/{near}`?"),
        None => format!("write its number, or a name such as `{name}/echo-request`"),
    };
    Err(error(message, help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(protocol: u8, first: u16, last: u16) -> PortRange {
        PortRange { protocol: Some(protocol), first, last }
    }

    #[test]
    fn every_form_is_read() {
        for (text, expected) in [
            ("any", PortRange::ANY),
            ("tcp/443", range(6, 443, 443)),
            ("udp/8000-8099", range(17, 8000, 8099)),
            ("sctp/3868", range(132, 3868, 3868)),
            ("tcp", range(6, 0, 65535)),
            ("udp", range(17, 0, 65535)),
            ("tcp/1-65535", range(6, 1, 65535)),
            ("icmp", range(1, 0, 255)),
            ("icmp/echo-request", range(1, 8, 8)),
            ("icmp/0", range(1, 0, 0)),
            ("icmpv6", range(58, 0, 255)),
            ("icmpv6/128", range(58, 128, 128)),
            ("icmpv6/packet-too-big", range(58, 2, 2)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
            if text != "tcp/1-65535" {
                assert_eq!(parse(&expected.to_string()), Ok(expected), "{expected}");
            }
        }
        // Port zero is nobody's, so these two are one.
        assert_eq!(range(6, 1, 65535).to_string(), "tcp");
        for text in ["any", "tcp", "udp/8000-8099", "icmp/echo-request", "icmpv6", "icmpv6/200"] {
            assert_eq!(parse(text).map(|range| range.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_answered_with_what_to_write() {
        for (text, message, help) in [
            ("443", "`443` is not a port", "write the protocol too: `tcp/443` or `udp/443`"),
            ("TCP/443", "`TCP/443` is not a port", "write `tcp/443`"),
            ("443/tcp", "`443/tcp` is not a port", "write `tcp/443`"),
            ("tcp:443", "`tcp:443` is not a port", "write `tcp/443`"),
            ("tcp/*", "`tcp/*` is not a port", "write `tcp`"),
            (
                "tcp/80,443",
                "`tcp/80,443` is not a port",
                "write each as an entry of its own: [tcp/80, tcp/443]",
            ),
            (
                "tcp/https",
                "`tcp/https` is a port's name",
                "write its number, for example `tcp/443`",
            ),
            ("tcp/90-80", "the range `tcp/90-80` ends before it starts", "write `tcp/80-90`"),
            (
                "udp/65536",
                "port `65536` is out of range",
                "ports are 1 to 65535; leave the number out for every port",
            ),
            (
                "udp/0",
                "port `0` is out of range",
                "ports are 1 to 65535; leave the number out for every port",
            ),
            ("icmp/256", "icmp type `256` is out of range", "types are 0 to 255"),
            (
                "icmp/echo-requst",
                "`echo-requst` is not a type of icmp",
                "did you mean `icmp/echo-request`?",
            ),
            ("tpc", "`tpc` is not a protocol that ports can name", "did you mean `tcp`?"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!((error.message.as_str(), error.help.as_str()), (message, help));
        }
        for text in ["", "/", "tcp/", "tcp/-", "tcp/1-", "tcp/-1", "tcp/+1", "any/80", "gre"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
