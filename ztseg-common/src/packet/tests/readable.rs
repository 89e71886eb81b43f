//! Packets that are as they should be.

use std::vec;
use std::vec::Vec;

use super::build::{self, V4, V6, authentication, options, routing, syn};
use super::*;

#[test]
fn reads_tcp_in_both_families() {
    for bytes in [V4::new(6, &syn()).bytes(), V6::new(6, &syn()).bytes()] {
        let p = parse_both(&bytes).expect("parses");
        assert_eq!((p.src_port.get(), p.dst_port.get()), (1234, 80));
        assert_eq!((p.protocol, p.tcp_flags), (proto::TCP, tcp::SYN));
        assert_eq!(usize::from(p.length), bytes.len());
        assert_eq!(p.fragment, fragment::WHOLE);
        // Padding of a short Ethernet frame is no part of it.
        let padded = [bytes, vec![0; 6]].concat();
        assert_eq!(parse_both(&padded), Ok(p));
    }
}

#[test]
fn a_plain_reader_agrees_or_gives_up() {
    let plain = [V4::new(6, &syn()).bytes(), V6::new(6, &syn()).bytes()];
    for bytes in plain {
        assert_eq!(parse(&Plain(&bytes), 0), parse(bytes.as_slice(), 0));
    }
    let other = [
        V4::new(6, &syn()).options(&[1, 1, 1, 0]).bytes(),
        V6::new(6, &syn()).with(options(60, 0)).bytes(),
        {
            let (first, payload) = build::chain(&[authentication(3)], 6, &syn());
            V4::new(first, &payload).bytes()
        },
    ];
    for bytes in other {
        assert!(parse(bytes.as_slice(), 0).is_ok());
        assert_eq!(parse(&Plain(&bytes), 0), Err(Reason::TooManyHeaders));
    }
}

#[test]
fn a_quoted_header_may_stop_after_the_ports() {
    for (protocol, l4) in
        [(6, syn()), (17, build::udp(1234, 80, 40)), (132, build::sctp(1234, 80, 0, 40))]
    {
        let whole = V4::new(protocol, &l4).bytes();
        assert!(parse(&whole[..28], 0).is_err());
        let mut p = Packet::default();
        parse_quoted(&whole[..28], 0, &mut p).expect("parses");
        assert_eq!((p.src_port.get(), p.dst_port.get()), (1234, 80));
        assert!(parse_quoted(&whole[..23], 0, &mut p).is_err());
    }
}

#[test]
fn ipv4_options_are_stepped_over() {
    let record_route = [7, 7, 4, 0, 0, 0, 0, 0];
    let bytes = V4::new(17, &build::udp(53, 99, 3)).options(&record_route).bytes();
    let p = parse_both(&bytes).expect("parses");
    assert_eq!((p.src_port.get(), p.l4_offset), (53, 28));
    // What stands behind the end of the list is no option.
    let ended = V4::new(17, &build::udp(53, 99, 3)).options(&[1, 0, 131, 200]).bytes();
    assert!(parse_both(&ended).is_ok());
    assert!(parse_both(&V4::new(17, &build::udp(53, 99, 3)).options(&[1; 40]).bytes()).is_ok());
}

#[test]
fn authentication_headers_are_walked_in_both_families() {
    let (first, payload) = build::chain(&[authentication(3)], 6, &syn());
    let v4 = parse_both(&V4::new(first, &payload).bytes()).expect("parses");
    assert_eq!((v4.protocol, v4.dst_port.get(), v4.l4_offset), (proto::TCP, 80, 44));
    let v6 = parse_both(&V6::new(6, &syn()).with(authentication(4)).bytes()).expect("parses");
    assert_eq!((v6.protocol, v6.dst_port.get(), v6.l4_offset), (proto::TCP, 80, 68));
}

#[test]
fn extension_headers_are_walked() {
    let bytes = V6::new(17, &build::udp(53, 99, 0))
        .with(options(0, 0))
        .with(options(60, 1))
        .with(routing(2, 0))
        .with(build::fragment(7, 0, build::LAST))
        .with(authentication(2))
        .with(options(60, 0))
        .bytes();
    let p = parse_both(&bytes).expect("parses");
    assert_eq!((p.protocol, p.src_port.get()), (17, 53));
    assert_eq!(usize::from(p.l4_offset), bytes.len() - 8);
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let atomic = build::fragment(7, 0, build::LAST);
    let p = parse_both(&V6::new(6, &syn()).with(atomic).bytes()).expect("parses");
    assert_eq!((p.fragment, p.fragment_id), (fragment::WHOLE, 0));
}

#[test]
fn sctp_says_what_its_first_chunk_is() {
    let chunks = [
        (0, SctpKind::Other),
        (1, SctpKind::Init),
        (2, SctpKind::InitAck),
        (3, SctpKind::Other),
        (6, SctpKind::Abort),
        (7, SctpKind::Shutdown),
        (8, SctpKind::ShutdownAck),
        (10, SctpKind::CookieEcho),
        (11, SctpKind::CookieAck),
        (14, SctpKind::ShutdownComplete),
        (255, SctpKind::Other),
    ];
    for (chunk, kind) in chunks {
        let p = parse_both(&V4::new(132, &build::sctp(1, 2, chunk, 4)).bytes()).expect("parses");
        assert!(p.is_sctp(kind), "chunk {chunk}");
    }
}

#[test]
fn an_echo_request_of_the_peer_is_not_an_answer() {
    let request = parse_both(&V4::new(1, &build::icmp(8, 0, 0x707, 0)).bytes()).expect("parses");
    let reply = parse_both(&V4::new(1, &build::icmp(0, 0, 0x707, 0)).bytes()).expect("parses");
    assert_eq!(request.flow_ports(true), reply.flow_ports(false));
    assert_ne!(request.flow_ports(true), request.flow_ports(false));
}

#[test]
fn a_datagram_may_end_before_its_packet() {
    // RFC 9868 puts options behind it.
    let surplus = [build::udp(53, 99, 4), vec![0; 8]].concat();
    let bytes = V4::new(17, &surplus).bytes();
    assert!(parse_both(&bytes).is_ok());
    // The kernel has cut them off when the cgroup hooks see the packet.
    assert!(parse_both(&bytes[..bytes.len() - 8]).is_ok());
    assert_eq!(parse_both(&bytes[..bytes.len() - 9]), Err(Reason::LengthBeyondPacket));
}

#[test]
fn the_kernels_own_giants_are_read() {
    // BIG TCP: above 64 KiB the length field is zero, in IPv6 with a jumbo option (RFC 2675) before
    // Linux 6.19.
    let jumbo = [0xc2, 4, 0, 1, 0x11, 0x70];
    let option = build::Extension { number: 0, rest: [&[0][..], &jumbo].concat() };
    let segment = build::tcp(1234, 80, 0x10, 5, 70_000 - 20);
    let giant = |mut header: Vec<u8>, length_at: usize| {
        header.truncate(header.len() - 20);
        header[length_at..length_at + 2].copy_from_slice(&[0, 0]);
        [header, segment.clone()].concat()
    };
    for bytes in [
        giant(V4::new(6, &syn()).bytes(), 2),
        giant(V6::new(6, &syn()).bytes(), 4),
        giant(V6::new(6, &syn()).with(option).bytes(), 4),
    ] {
        let p = parse_both(&bytes).expect("parses");
        assert_eq!((p.protocol, p.dst_port.get(), p.length), (proto::TCP, 80, u16::MAX));
    }
}

#[test]
fn protocols_without_ports_are_told_by_their_number() {
    for protocol in [2, 41, 47, 50, 89, 112, 136, 253] {
        let p = parse_both(&V4::new(protocol, &[0; 4]).bytes()).expect("parses");
        assert_eq!((p.protocol, p.src_port.get(), p.message), (protocol, 0, 0));
    }
    let nothing_follows = parse_both(&V6::new(59, &[]).bytes()).expect("parses");
    assert_eq!((nothing_follows.protocol, nothing_follows.length), (59, 40));
}
