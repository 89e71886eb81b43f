//! What passes without a rule, since no IPv6 network works without it, and what only looks like it.

use std::vec;

use super::build::{self, LAST, MORE, V6, icmp, options};
use super::*;

const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn is_discovery(packet: &V6) -> bool {
    let p = parse_both(&packet.bytes()).expect("parses");
    assert!(p.is_icmp(IcmpKind::Discovery) || p.is_icmp(IcmpKind::Other));
    p.is_icmp(IcmpKind::Discovery)
}

/// (type, bytes behind the first eight that RFC 4861 demands, whether only routers send it)
const NEIGHBOUR: [(u8, usize, bool); 5] =
    [(133, 0, false), (134, 8, true), (135, 16, false), (136, 16, false), (137, 32, true)];

fn neighbour(kind: u8, code: u8, data: usize) -> V6 {
    V6::new(58, &icmp(kind, code, 0, data)).hop_limit(255).from(LINK_LOCAL)
}

#[test]
fn neighbours_and_routers_need_hop_limit_255() {
    for (kind, data, _) in NEIGHBOUR {
        assert!(is_discovery(&neighbour(kind, 0, data)), "type {kind}");
        for hop_limit in [0, 1, 64, 254] {
            assert!(!is_discovery(&neighbour(kind, 0, data).hop_limit(hop_limit)), "type {kind}");
        }
    }
}

#[test]
fn neighbours_and_routers_need_code_zero_and_their_length() {
    for (kind, data, _) in NEIGHBOUR {
        assert!(!is_discovery(&neighbour(kind, 1, data)), "type {kind}");
        if data > 0 {
            assert!(!is_discovery(&neighbour(kind, 0, data - 1)), "type {kind}");
        }
    }
}

#[test]
fn routers_speak_from_a_link_local_address() {
    for (kind, data, router) in NEIGHBOUR {
        let global = neighbour(kind, 0, data).from(build::V6_SRC);
        assert_eq!(is_discovery(&global), !router, "type {kind}");
        // Duplicate address detection asks from no address.
        let nobody = neighbour(kind, 0, data).from([0; 16]);
        assert_eq!(is_discovery(&nobody), !router, "type {kind}");
    }
}

#[test]
fn discovery_is_never_fragmented() {
    let first = build::fragment(1, 0, MORE);
    assert!(!is_discovery(&neighbour(135, 0, 16).with(first)));
    let atomic = build::fragment(1, 0, LAST);
    assert!(is_discovery(&neighbour(135, 0, 16).with(atomic)));
}

#[test]
fn inverse_and_other_types_are_no_discovery() {
    for kind in [138, 139, 140, 141, 142, 144, 151, 200] {
        assert!(!is_discovery(&neighbour(kind, 0, 32)), "type {kind}");
        let listener = neighbour(kind, 0, 32).hop_limit(1).with(options(0, 0));
        assert!(!is_discovery(&listener), "type {kind}");
    }
}

/// (type, bytes behind the first eight): query, report and done of `MLDv1`, report of `MLDv2`.
const LISTENER: [(u8, usize); 4] = [(130, 16), (131, 16), (132, 16), (143, 0)];

fn listener(kind: u8, data: usize) -> V6 {
    let alert = build::Extension { number: 0, rest: vec![0, 5, 2, 0, 0, 1, 0] };
    V6::new(58, &icmp(kind, 0, 0, data)).hop_limit(1).from(LINK_LOCAL).with(alert)
}

#[test]
fn listeners_need_hop_limit_1_and_hop_by_hop_options() {
    for (kind, data) in LISTENER {
        assert!(is_discovery(&listener(kind, data)), "type {kind}");
        for hop_limit in [0, 2, 64, 255] {
            assert!(!is_discovery(&listener(kind, data).hop_limit(hop_limit)), "type {kind}");
        }
        let mut without = listener(kind, data);
        without.extensions.clear();
        assert!(!is_discovery(&without), "type {kind}");
        if data > 0 {
            assert!(!is_discovery(&listener(kind, data - 1)), "type {kind}");
        }
    }
}

#[test]
fn only_reports_come_from_no_address() {
    for (kind, data) in LISTENER {
        assert!(!is_discovery(&listener(kind, data).from(build::V6_SRC)), "type {kind}");
        assert_eq!(is_discovery(&listener(kind, data).from([0; 16])), kind != 130, "type {kind}");
    }
}

#[test]
fn errors_and_echoes_are_told_apart_in_both_families() {
    for kind in [1, 2, 3, 4, 100, 127] {
        let p = parse_both(&V6::new(58, &icmp(kind, 0, 0, 40)).bytes()).expect("parses");
        assert!(p.is_icmp(IcmpKind::Error), "type {kind}");
    }
    for kind in 0..=255 {
        let expected = match kind {
            8 => IcmpKind::EchoRequest,
            0 => IcmpKind::EchoReply,
            3 | 4 | 5 | 11 | 12 => IcmpKind::Error,
            _ => IcmpKind::Other,
        };
        let p = parse_both(&build::V4::new(1, &icmp(kind, 0, 0, 0)).bytes()).expect("parses");
        assert!(p.is_icmp(expected), "type {kind}");
    }
}
