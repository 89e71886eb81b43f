//! Names of ICMP types.

use ztseg_common::addr::proto;

/// IANA "Internet Control Message Protocol (ICMP) Parameters", types that are not deprecated by
/// RFC 6918.
const ICMP: &[(u8, &str)] = &[
    (0, "echo-reply"),
    (3, "destination-unreachable"),
    (5, "redirect"),
    (8, "echo-request"),
    (9, "router-advertisement"),
    (10, "router-solicitation"),
    (11, "time-exceeded"),
    (12, "parameter-problem"),
    (13, "timestamp-request"),
    (14, "timestamp-reply"),
    (40, "photuris"),
    (42, "extended-echo-request"),
    (43, "extended-echo-reply"),
];

/// IANA "Internet Control Message Protocol version 6 (`ICMPv6`) Parameters".
const ICMPV6: &[(u8, &str)] = &[
    (1, "destination-unreachable"),
    (2, "packet-too-big"),
    (3, "time-exceeded"),
    (4, "parameter-problem"),
    (128, "echo-request"),
    (129, "echo-reply"),
    (130, "multicast-listener-query"),
    (131, "multicast-listener-report"),
    (132, "multicast-listener-done"),
    (133, "router-solicitation"),
    (134, "router-advertisement"),
    (135, "neighbor-solicitation"),
    (136, "neighbor-advertisement"),
    (137, "redirect"),
    (138, "router-renumbering"),
    (139, "node-information-query"),
    (140, "node-information-response"),
    (141, "inverse-neighbor-discovery-solicitation"),
    (142, "inverse-neighbor-discovery-advertisement"),
    (143, "version-2-multicast-listener-report"),
    (144, "home-agent-address-discovery-request"),
    (145, "home-agent-address-discovery-reply"),
    (146, "mobile-prefix-solicitation"),
    (147, "mobile-prefix-advertisement"),
    (148, "certification-path-solicitation"),
    (149, "certification-path-advertisement"),
    (151, "multicast-router-advertisement"),
    (152, "multicast-router-solicitation"),
    (153, "multicast-router-termination"),
    (155, "rpl-control"),
    (157, "duplicate-address-request"),
    (158, "duplicate-address-confirmation"),
    (160, "extended-echo-request"),
    (161, "extended-echo-reply"),
];

/// The types of a protocol that have names.
pub(super) fn types(protocol: u8) -> &'static [(u8, &'static str)] {
    match protocol {
        proto::ICMP => ICMP,
        proto::ICMPV6 => ICMPV6,
        _ => &[],
    }
}
