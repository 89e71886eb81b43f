//! Addresses and CIDRs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::policy::diagnostic::quote;

/// What is wrong with an address, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NetworkError {
    pub(crate) message: String,
    pub(crate) help: String,
}

fn error(message: String, help: impl Into<String>) -> NetworkError {
    NetworkError { message, help: help.into() }
}

/// Whether `text` looks as if an address was meant, rather than a name.
pub(super) fn looks_like_one(text: &str) -> bool {
    let digits = text.bytes().any(|b| b.is_ascii_digit());
    let v4 = digits && text.contains('.') && !text.bytes().any(|b| b.is_ascii_alphabetic());
    text.contains('/') || text.contains(':') || v4
}

/// Whether `text` looks as if the name of a host was meant.
pub(super) fn looks_like_dns(text: &str) -> bool {
    let host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
    let named = text.contains('.') && text.bytes().any(|b| b.is_ascii_alphabetic());
    text == "localhost" || (named && text.bytes().all(host))
}

/// An address, in its canonical family.
pub(super) fn address(text: &str) -> Result<IpAddr, NetworkError> {
    match text.parse() {
        Ok(IpAddr::V6(v6)) => not_mapped(text, v6, None).map(IpAddr::V6),
        Ok(v4) => Ok(v4),
        Err(_) => {
            let help = match text.split_once('%') {
                Some((address, _)) => format!("leave the zone out: `{address}`"),
                None => "write an address such as `192.0.2.7` or `\"2001:db8::7\"`".to_owned(),
            };
            Err(error(format!("{} is not an IP address", quote(text)), help))
        }
    }
}

/// A CIDR, or an address as a CIDR of full length.
pub(crate) fn network(text: &str) -> Result<IpNet, NetworkError> {
    let Some((before, length)) = text.split_once('/') else {
        return address(text).map(IpNet::from);
    };
    let no_cidr = |help: String| error(format!("{} is not a CIDR", quote(text)), help);
    let ip: IpAddr = before
        .parse()
        .map_err(|_| no_cidr("write for example `192.0.2.0/24` or `\"2001:db8::/32\"`".into()))?;
    let most: u8 = if ip.is_ipv4() { 32 } else { 128 };
    if let Some(prefix) = length.parse().ok().and_then(|mask| ipnet::ip_mask_to_prefix(mask).ok())
        && ip.is_ipv4()
    {
        return Err(no_cidr(format!("write the prefix length: `{before}/{prefix}`")));
    }
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(no_cidr(format!("write the prefix length as a number: `{before}/{most}`")));
    }
    let length = length.parse().ok().filter(|n: &u8| *n <= most).ok_or_else(|| {
        error(
            format!("the prefix length in {} is out of range", quote(text)),
            format!("it is 0 to {most} for {}", if most == 32 { "IPv4" } else { "IPv6" }),
        )
    })?;
    if let IpAddr::V6(v6) = ip {
        not_mapped(text, v6, Some(length))?;
    }
    let net = IpNet::new_assert(ip, length);
    if net.addr() != net.network() {
        let message = format!("{} has bits set after its prefix", quote(text));
        let (whole, one) = (net.trunc(), ip);
        let help = format!("write `{whole}` for the network, or `{one}` for the one address");
        return Err(error(message, help));
    }
    Ok(net)
}

/// RFC 4291 section 2.5.5.2. Flows of such addresses are IPv4, whatever socket they are on.
fn not_mapped(text: &str, v6: Ipv6Addr, length: Option<u8>) -> Result<Ipv6Addr, NetworkError> {
    const MAPPED: u8 = 96;
    let Some(v4) = v6.to_ipv4_mapped() else { return Ok(v6) };
    let message = format!("{} is an IPv4 address written as IPv6", quote(text));
    Err(match length {
        None => error(message, format!("write `{v4}`")),
        Some(length) if length >= MAPPED => {
            let short = length - MAPPED;
            let bits = u32::from(v4) & u32::MAX.checked_shl(32 - u32::from(short)).unwrap_or(0);
            error(message, format!("write `{}/{short}`", Ipv4Addr::from_bits(bits)))
        }
        Some(_) => error(message, "write the IPv4 network"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_cidrs_are_read() {
        for (text, expected) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:DB8::7", "2001:db8::7/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(network(text).map(|n| n.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_answered_with_what_to_write() {
        for (text, help) in [
            (
                "192.0.2.7/24",
                "write `192.0.2.0/24` for the network, or `192.0.2.7` for the one address",
            ),
            (
                "2001:db8::7/64",
                "write `2001:db8::/64` for the network, or `2001:db8::7` for the one address",
            ),
            ("192.0.2.0/33", "it is 0 to 32 for IPv4"),
            ("::/129", "it is 0 to 128 for IPv6"),
            ("::/999", "it is 0 to 128 for IPv6"),
            ("192.0.2.0/255.255.255.0", "write the prefix length: `192.0.2.0/24`"),
            ("192.0.2.0/", "write the prefix length as a number: `192.0.2.0/32`"),
            ("::ffff:192.0.2.7", "write `192.0.2.7`"),
            ("::ffff:192.0.2.0/120", "write `192.0.2.0/24`"),
            ("::ffff:192.0.2.0/96", "write `0.0.0.0/0`"),
            ("::ffff:192.0.2.0/64", "write the IPv4 network"),
            ("fe80::1%eth0", "leave the zone out: `fe80::1`"),
            ("192.0.2.300", "write an address such as `192.0.2.7` or `\"2001:db8::7\"`"),
        ] {
            assert_eq!(network(text).map_err(|e| e.help), Err(help.to_owned()), "{text}");
        }
        for text in ["", "/", "/8", "010.0.0.1", "192.0.2.0/+8", "192.0.2.0/8/8", "1.2.3/8"] {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_hosts_are_told_from_names_and_addresses() {
        for text in ["db.example.com", "*.example.com", "localhost", "_sip.example.com"] {
            assert!(looks_like_dns(text) && !looks_like_one(text), "{text}");
        }
        for text in ["192.0.2.300", "10.0.0.0/8", "2001:db8::1", "10.0.0.1-10.0.0.9"] {
            assert!(looks_like_one(text) && !looks_like_dns(text), "{text}");
        }
        assert!(!looks_like_one("web-1") && !looks_like_dns("web-1"));
    }
}
