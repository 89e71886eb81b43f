//! One packet for each way to be unreadable.

use std::vec;
use std::vec::Vec;

use super::build::{self, V4, V6, authentication, options, routing, syn};
use super::*;

fn refused(bytes: &[u8]) -> Reason {
    let reason = parse_both(bytes).expect_err("refused");
    assert!(parse(&Plain(bytes), 0).is_err());
    reason
}

/// A packet with one byte changed.
fn changed(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

#[test]
fn nothing_at_all() {
    assert_eq!(refused(&[]), Reason::Truncated);
}

#[test]
fn another_ip_version() {
    let v4 = V4::new(6, &syn()).bytes();
    assert_eq!(refused(&changed(v4.clone(), 0, 0x55)), Reason::Malformed);
    assert_eq!(refused(&changed(v4, 0, 0x05)), Reason::Malformed);
}

#[test]
fn every_cut_of_a_packet() {
    let tcp = build::tcp(1, 2, 2, 6, 9);
    for whole in [
        V4::new(6, &tcp).bytes(),
        V4::new(132, &build::sctp(1, 2, 1, 12)).bytes(),
        V6::new(6, &tcp).bytes(),
        V6::new(6, &tcp).with(options(60, 1)).bytes(),
        V6::new(17, &build::udp(1, 2, 5)).bytes(),
        V4::new(1, &build::icmp(8, 0, 1, 30)).bytes(),
        V4::new(47, &[0; 12]).bytes(),
    ] {
        for n in 0..whole.len() {
            let reason = refused(&whole[..n]);
            assert!(matches!(reason, Reason::Truncated | Reason::LengthBeyondPacket), "{n} bytes");
        }
        assert!(parse_both(&whole).is_ok());
    }
}

#[test]
fn ipv4_header_length_below_its_least() {
    assert_eq!(refused(&changed(V4::new(6, &syn()).bytes(), 0, 0x44)), Reason::Malformed);
}

#[test]
fn ipv4_header_length_beyond_the_packet() {
    assert_eq!(refused(&changed(V4::new(6, &[0; 4]).bytes(), 0, 0x4f)), Reason::Malformed);
}

#[test]
fn ipv4_total_length_below_its_header() {
    for total in [0, 10, 19] {
        assert_eq!(refused(&changed(V4::new(6, &syn()).bytes(), 3, total)), Reason::Malformed);
    }
}

#[test]
fn ipv4_total_length_inside_the_transport_header() {
    assert_eq!(refused(&changed(V4::new(6, &syn()).bytes(), 3, 39)), Reason::Truncated);
}

#[test]
fn ipv4_total_length_beyond_the_packet() {
    assert_eq!(refused(&changed(V4::new(6, &syn()).bytes(), 3, 41)), Reason::LengthBeyondPacket);
}

#[test]
fn ipv4_options_that_do_not_fit() {
    let with = |options| V4::new(6, &syn()).options(options).bytes();
    assert_eq!(refused(&with(&[7, 1, 0, 0])), Reason::Malformed);
    assert_eq!(refused(&with(&[7, 5, 0, 0])), Reason::Malformed);
    assert_eq!(refused(&with(&[1, 1, 1, 7])), Reason::Malformed);
}

#[test]
fn ipv4_source_routes() {
    for kind in [131, 137] {
        let route = [1, kind, 7, 4, 198, 51, 100, 9];
        let bytes = V4::new(6, &syn()).options(&route).bytes();
        assert_eq!(refused(&bytes), Reason::SourceRoute);
        // As an option of another kind carries it, it is none.
        let data = [68, 7, kind, 7, 4, 0, 0, 0];
        assert!(parse_both(&V4::new(6, &syn()).options(&data).bytes()).is_ok());
    }
}

#[test]
fn ipv6_payload_length_beyond_the_packet() {
    assert_eq!(refused(&changed(V6::new(6, &syn()).bytes(), 5, 21)), Reason::LengthBeyondPacket);
    let udp = V6::new(17, &build::udp(1, 2, 8)).bytes();
    assert_eq!(refused(&udp[..udp.len() - 1]), Reason::LengthBeyondPacket);
}

#[test]
fn ipv6_jumbograms() {
    let jumbo = build::Extension { number: 0, rest: vec![0, 0xc2, 4, 0, 1, 0, 0] };
    let bytes = V6::new(6, &syn()).with(jumbo).bytes();
    assert_eq!(refused(&changed(bytes, 5, 0)), Reason::Jumbogram);
    assert_eq!(refused(&changed(V6::new(6, &syn()).bytes(), 5, 0)), Reason::Jumbogram);
}

#[test]
fn ipv6_headers_beyond_the_payload() {
    let bytes = V6::new(6, &syn()).with(options(60, 0)).bytes();
    assert_eq!(refused(&changed(bytes.clone(), 41, 9)), Reason::Truncated);
    // Padding of the link behind the packet is not read as a header.
    let padded = [changed(bytes, 5, 7), vec![0; 40]].concat();
    assert_eq!(refused(&padded), Reason::Truncated);
}

#[test]
fn ipv6_hop_by_hop_options_that_are_not_first() {
    let bytes = V6::new(6, &syn()).with(options(60, 0)).with(options(0, 0)).bytes();
    assert_eq!(refused(&bytes), Reason::Malformed);
}

#[test]
fn ipv6_routing_headers_with_waypoints() {
    let with = |kind, left| V6::new(6, &syn()).with(routing(kind, left)).bytes();
    assert_eq!(refused(&with(0, 0)), Reason::SourceRoute);
    assert_eq!(refused(&with(0, 1)), Reason::SourceRoute);
    assert_eq!(refused(&with(4, 1)), Reason::SourceRoute);
    assert!(parse_both(&with(4, 0)).is_ok());
}

#[test]
fn too_many_extension_headers() {
    let mut packet = V6::new(17, &build::udp(1, 2, 0));
    for _ in 0..ip::MAX_EXTENSION_HEADERS {
        packet = packet.with(options(60, 0));
    }
    assert!(parse_both(&packet.bytes()).is_ok());
    assert_eq!(refused(&packet.with(options(60, 0)).bytes()), Reason::TooManyHeaders);
}

#[test]
fn ipv4_authentication_in_authentication() {
    let (first, payload) = build::chain(&[authentication(1), authentication(1)], 6, &syn());
    assert_eq!(refused(&V4::new(first, &payload).bytes()), Reason::TooManyHeaders);
}

#[test]
fn authentication_headers_beyond_the_packet() {
    let (first, payload) = build::chain(&[authentication(1)], 6, &syn());
    let bytes = changed(V4::new(first, &payload).bytes(), 21, 255);
    assert_eq!(refused(&bytes), Reason::Truncated);
}

#[test]
fn authentication_headers_that_are_cut_with_nothing_behind_them() {
    let (first, payload) = build::chain(&[authentication(6)], 4, &[]);
    let bytes = V4::new(first, &payload).bytes();
    assert!(parse_both(&bytes).is_ok());
    assert_eq!(refused(&bytes[..24]), Reason::LengthBeyondPacket);
}

#[test]
fn tcp_data_offset_below_its_least() {
    for words in 0..5 {
        let segment = changed(syn(), 12, words << 4);
        assert_eq!(refused(&V4::new(6, &segment).bytes()), Reason::Malformed);
        assert_eq!(refused(&V6::new(6, &segment).bytes()), Reason::Malformed);
    }
}

#[test]
fn tcp_data_offset_beyond_the_packet() {
    let segment = changed(syn(), 12, 6 << 4);
    assert_eq!(refused(&V4::new(6, &segment).bytes()), Reason::LengthBeyondPacket);
    // Nor does padding of the link make it longer.
    let padded = [V6::new(6, &segment).bytes(), vec![0; 8]].concat();
    assert_eq!(refused(&padded), Reason::LengthBeyondPacket);
}

#[test]
fn udp_length_below_its_header() {
    for length in 0..8 {
        let datagram = changed(build::udp(1, 2, 4), 5, length);
        assert_eq!(refused(&V4::new(17, &datagram).bytes()), Reason::Malformed);
        assert_eq!(refused(&V6::new(17, &datagram).bytes()), Reason::Malformed);
    }
}

#[test]
fn udp_length_beyond_the_packet() {
    let datagram = changed(build::udp(1, 2, 4), 5, 13);
    assert_eq!(refused(&V4::new(17, &datagram).bytes()), Reason::LengthBeyondPacket);
    let padded = [V4::new(17, &datagram).bytes(), vec![0; 8]].concat();
    assert_eq!(refused(&padded), Reason::LengthBeyondPacket);
}

#[test]
fn sctp_without_a_chunk() {
    let packet = build::sctp(1, 2, 1, 0);
    assert_eq!(refused(&V4::new(132, &packet[..12]).bytes()), Reason::Truncated);
}

#[test]
fn sctp_chunk_length_below_its_header() {
    let packet = changed(build::sctp(1, 2, 1, 4), 15, 3);
    assert_eq!(refused(&V4::new(132, &packet).bytes()), Reason::Malformed);
}

#[test]
fn sctp_chunk_length_beyond_the_packet() {
    let packet = changed(build::sctp(1, 2, 1, 4), 15, 9);
    assert_eq!(refused(&V4::new(132, &packet).bytes()), Reason::LengthBeyondPacket);
}

#[test]
fn protocols_of_the_other_ip_version() {
    for protocol in [0, 43, 44, 58, 59, 60] {
        assert_eq!(refused(&V4::new(protocol, &[0; 8]).bytes()), Reason::UnknownProtocol);
    }
    for protocol in [1, 2] {
        assert_eq!(refused(&V6::new(protocol, &[0; 8]).bytes()), Reason::UnknownProtocol);
    }
}

#[test]
fn protocols_that_nobody_has_assigned() {
    for protocol in (148..=252).chain([255]) {
        assert_eq!(refused(&V4::new(protocol, &[0; 8]).bytes()), Reason::UnknownProtocol);
        assert_eq!(refused(&V6::new(protocol, &[0; 8]).bytes()), Reason::UnknownProtocol);
    }
}
