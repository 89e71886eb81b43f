//! Fragments: which first one a later one follows, and the ways to hide something in them.

use std::vec;

use super::build::{self, LAST, MORE, V4, V6, authentication, options, routing, syn};
use super::*;

/// A whole IPv4 fragment whose data is of TCP or another protocol.
fn v4(protocol: u8, data: &[u8], offset: u16, more: bool) -> Result<Packet, Reason> {
    parse_both(&V4::new(protocol, data).fragment(0x1234, offset, more).bytes())
}

fn v6(protocol: u8, data: &[u8], offset: u16, more: bool) -> Result<Packet, Reason> {
    let header = build::fragment(0xdead_beef, offset, more);
    parse_both(&V6::new(protocol, data).with(header).bytes())
}

#[test]
fn a_first_fragment_has_ports_and_says_where_it_ends() {
    let datagram = build::udp(53, 99, 2000);
    let p = v4(17, &datagram[..1480], 0, MORE).expect("parses");
    assert!(p.is_first_fragment() && !p.is_later_fragment());
    assert_eq!((p.src_port.get(), p.dst_port.get()), (53, 99));
    assert_eq!((p.fragment_id, p.fragment_protocol(), p.fragment_edge()), (0x1234, 17, 1480));
    let p = v6(17, &datagram[..1448], 0, MORE).expect("parses");
    assert!(p.is_first_fragment());
    assert_eq!((p.src_port.get(), p.dst_port.get()), (53, 99));
    assert_eq!(
        (p.fragment_id, p.fragment_protocol(), p.fragment_edge()),
        (0xdead ^ 0xbeef, 44, 1448)
    );
}

#[test]
fn a_later_fragment_names_its_packet_and_has_no_ports() {
    // Its data would be ports of a forbidden flow, or of an allowed one.
    let p = v4(17, &build::udp(53, 99, 8), 185, LAST).expect("parses");
    assert!(p.is_later_fragment() && !p.is_first_fragment());
    assert_eq!((p.protocol, p.src_port.get(), p.dst_port.get()), (17, 0, 0));
    assert_eq!((p.fragment_id, p.fragment_protocol(), p.fragment_edge()), (0x1234, 17, 1480));
    // What an IPv6 one claims to be does not count.
    for next in [17, 6, 60, 200] {
        let p = v6(next, &build::udp(53, 99, 8), 181, MORE).expect("parses");
        assert!(p.is_later_fragment());
        assert_eq!((p.src_port.get(), p.dst_port.get(), p.message), (0, 0, 0));
        assert_eq!(
            (p.fragment_id, p.fragment_protocol(), p.fragment_edge()),
            (0xdead ^ 0xbeef, 44, 1448)
        );
    }
}

#[test]
fn fragments_of_one_packet_have_one_key() {
    let data = build::udp(53, 99, 80);
    let key = |p: &Packet| (p.src, p.dst, p.fragment_protocol(), p.fragment_id);
    let first = v4(17, &data[..48], 0, MORE).expect("parses");
    let later = v4(17, &data[48..], 6, LAST).expect("parses");
    assert_eq!(key(&first), key(&later));
    assert_eq!(first.fragment_edge(), later.fragment_edge());
    // The same numbers between the same ends, but of TCP.
    let other = v4(6, &data[48..], 6, LAST).expect("parses");
    assert_ne!(key(&first), key(&other));
}

#[test]
fn ipv4_fragments_of_authenticated_packets_follow_nothing() {
    // The first one's protocol is what is behind the header, the later one's is the header's: never
    // found, so denied.
    let (protocol, data) = build::chain(&[authentication(3)], 17, &build::udp(53, 99, 80));
    let first = v4(protocol, &data[..48], 0, MORE).expect("parses");
    let later = v4(protocol, &data[48..], 6, LAST).expect("parses");
    assert_eq!(first.protocol, proto::UDP);
    assert_ne!(first.fragment_protocol(), later.fragment_protocol());
}

#[test]
fn tiny_first_fragments() {
    assert_eq!(v4(6, &syn()[..8], 0, MORE), Err(Reason::TinyFragment));
    assert_eq!(v4(6, &syn()[..16], 0, MORE), Err(Reason::TinyFragment));
    assert_eq!(v6(6, &syn()[..16], 0, MORE), Err(Reason::TinyFragment));
    let sctp = build::sctp(1, 2, 1, 20);
    assert_eq!(v4(132, &sctp[..8], 0, MORE), Err(Reason::TinyFragment));
    // Options are a part of the TCP header.
    let segment = build::tcp(1, 2, 2, 10, 40);
    assert_eq!(v4(6, &segment[..24], 0, MORE), Err(Reason::TinyFragment));
    assert!(v4(6, &segment[..40], 0, MORE).is_ok());
    assert!(v4(17, &build::udp(1, 2, 40)[..8], 0, MORE).is_ok());
}

#[test]
fn first_fragments_without_the_whole_header_chain() {
    // RFC 7112: destination options that go on in the next fragment.
    let (next, data) = build::chain(&[options(60, 3)], 6, &syn());
    assert_eq!(v6(next, &data[..16], 0, MORE), Err(Reason::TinyFragment));
    assert_eq!(v6(next, &data[..32], 0, MORE), Err(Reason::TinyFragment));
    assert!(v6(next, &[data, vec![0; 4]].concat(), 0, MORE).is_ok());
    let (next, data) = build::chain(&[authentication(3)], 6, &syn());
    assert_eq!(v4(next, &data[..16], 0, MORE), Err(Reason::TinyFragment));
}

#[test]
fn later_fragments_over_the_transport_header() {
    for offset in [1, 2] {
        assert_eq!(v4(6, &[0; 16], offset, LAST), Err(Reason::OverlappingFragment));
        assert_eq!(v6(6, &[0; 16], offset, MORE), Err(Reason::OverlappingFragment));
    }
    assert!(v4(6, &[0; 16], 3, LAST).is_ok());
    assert_eq!(v4(132, &[0; 16], 1, LAST), Err(Reason::OverlappingFragment));
    assert!(v4(17, &[0; 16], 1, LAST).is_ok());
}

#[test]
fn fragments_that_are_not_a_multiple_of_eight() {
    for n in [17, 20, 23] {
        assert_eq!(v4(17, &vec![0; n], 4, MORE), Err(Reason::BadFragment));
        assert_eq!(v6(17, &vec![0; n], 4, MORE), Err(Reason::BadFragment));
        assert!(v4(17, &vec![0; n], 4, LAST).is_ok());
    }
    assert_eq!(v4(17, &build::udp(1, 2, 1), 0, MORE), Err(Reason::BadFragment));
}

#[test]
fn empty_fragments() {
    assert_eq!(v4(17, &[], 4, LAST), Err(Reason::BadFragment));
    assert_eq!(v6(17, &[], 4, MORE), Err(Reason::BadFragment));
}

#[test]
fn fragments_beyond_the_longest_packet() {
    // 20 + 8 × 8189 + 3 = 65535
    assert!(v4(17, &[0; 3], 8189, LAST).is_ok());
    assert_eq!(v4(17, &[0; 4], 8189, LAST), Err(Reason::BadFragment));
    assert!(v6(17, &[0; 7], 8191, LAST).is_ok());
    assert_eq!(v6(17, &[0; 8], 8191, LAST), Err(Reason::BadFragment));
}

#[test]
fn fragments_of_fragments() {
    let (next, data) = build::chain(&[build::fragment(1, 0, LAST)], 6, &syn());
    assert_eq!(v6(next, &data, 0, LAST), Err(Reason::BadFragment));
}

#[test]
fn fragments_with_waypoints() {
    let later = build::fragment(7, 4, LAST);
    let bytes = V6::new(17, &[0; 8]).with(routing(0, 1)).with(later).bytes();
    assert_eq!(parse_both(&bytes), Err(Reason::SourceRoute));
    let route = [131, 7, 4, 198, 51, 100, 9, 0];
    let bytes = V4::new(17, &[0; 8]).options(&route).fragment(7, 4, LAST).bytes();
    assert_eq!(parse_both(&bytes), Err(Reason::SourceRoute));
}

#[test]
fn fragments_longer_than_what_is_there() {
    let bytes = V4::new(17, &[0; 16]).fragment(7, 4, LAST).bytes();
    assert_eq!(parse_both(&bytes[..bytes.len() - 1]), Err(Reason::LengthBeyondPacket));
    let first = V4::new(17, &build::udp(1, 2, 8)).fragment(7, 0, MORE).bytes();
    assert_eq!(parse_both(&first[..first.len() - 1]), Err(Reason::LengthBeyondPacket));
}

#[test]
fn a_quoted_fragment_may_be_cut() {
    let bytes = V4::new(17, &build::udp(53, 99, 1472)).fragment(7, 0, MORE).bytes();
    let mut p = Packet::default();
    parse_quoted(&bytes[..28], 0, &mut p).expect("parses");
    assert!(p.src_port.get() == 53 && p.is_first_fragment());
}
