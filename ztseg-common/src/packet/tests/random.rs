//! Random packets from a builder that knows what must be read from them.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::build::{self, Extension, LAST, V4, V6, authentication, options, routing};
use super::*;

/// A transport header and data, with what a reader must find in it.
#[derive(Clone, Debug)]
struct Upper {
    protocol: u8,
    bytes: Vec<u8>,
    /// How many of the bytes a first fragment must hold.
    header: usize,
    src_port: u16,
    dst_port: u16,
    tcp_flags: u8,
    icmp_type: u8,
    message: u8,
}

impl Upper {
    fn new(protocol: u8, bytes: Vec<u8>, header: usize) -> Self {
        let (src_port, dst_port, tcp_flags, icmp_type, message) = (0, 0, 0, 0, 0);
        Self { protocol, bytes, header, src_port, dst_port, tcp_flags, icmp_type, message }
    }
}

fn upper(v6: bool) -> impl Strategy<Value = Upper> {
    let ports = (any::<u16>(), any::<u16>());
    let tcp = (ports, any::<u8>(), 5..16u8, 0..200usize).prop_map(
        |((src_port, dst_port), tcp_flags, words, data)| {
            let bytes = build::tcp(src_port, dst_port, tcp_flags, words, data);
            let upper = Upper::new(6, bytes, 4 * usize::from(words));
            Upper { src_port, dst_port, tcp_flags, ..upper }
        },
    );
    let udp = (ports, 0..200usize, prop::option::of(1..30usize)).prop_map(
        |((src_port, dst_port), data, surplus)| {
            let mut bytes = build::udp(src_port, dst_port, data);
            bytes.extend(vec![0xee; surplus.unwrap_or(0)]);
            Upper { src_port, dst_port, ..Upper::new(17, bytes, 8) }
        },
    );
    let sctp = (ports, 0..20u8, 0..200usize).prop_map(|((src_port, dst_port), chunk, data)| {
        let message = match chunk {
            1 => SctpKind::Init,
            2 => SctpKind::InitAck,
            6 => SctpKind::Abort,
            7 => SctpKind::Shutdown,
            8 => SctpKind::ShutdownAck,
            10 => SctpKind::CookieEcho,
            11 => SctpKind::CookieAck,
            14 => SctpKind::ShutdownComplete,
            _ => SctpKind::Other,
        };
        let upper = Upper::new(132, build::sctp(src_port, dst_port, chunk, data), 16);
        Upper { src_port, dst_port, message: message as u8, ..upper }
    });
    let icmp = (any::<bool>(), any::<u16>(), 0..200usize).prop_map(move |(asks, id, data)| {
        let icmp_type = match (v6, asks) {
            (false, true) => 8,
            (false, false) => 0,
            (true, true) => 128,
            (true, false) => 129,
        };
        let message = if asks { IcmpKind::EchoRequest } else { IcmpKind::EchoReply } as u8;
        let bytes = build::icmp(icmp_type, 0, id, data);
        let upper = Upper::new(if v6 { 58 } else { 1 }, bytes, 8);
        Upper { src_port: id, icmp_type, message, ..upper }
    });
    let other = (prop::sample::select(vec![4, 41, 47, 50, 89, 112, 136]), 1..200usize)
        .prop_map(|(protocol, data)| Upper::new(protocol, vec![7; data], 0));
    prop_oneof![tcp, udp, sctp, icmp, other]
}

/// What stands between the IP header and the transport header, in an order that is allowed.
fn extensions(most: usize) -> impl Strategy<Value = Vec<Extension>> {
    let one = prop_oneof![
        (0..4u8).prop_map(|units| options(60, units)),
        (2..5u8).prop_map(|kind| routing(kind, 0)),
        (0..6u8).prop_map(authentication),
    ];
    (any::<bool>(), prop::collection::vec(one, 0..most)).prop_map(|(hop_by_hop, mut rest)| {
        if hop_by_hop {
            rest.insert(0, options(0, 0));
        }
        rest
    })
}

fn v4_options() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        Just(vec![1]),
        (prop::sample::select(vec![7u8, 68, 82, 130, 148]), 2..8u8).prop_map(|(kind, size)| {
            [vec![kind, size], vec![131; usize::from(size) - 2]].concat()
        }),
    ];
    prop::collection::vec(one, 0..6).prop_map(|options| {
        let mut bytes = options.concat();
        bytes.truncate(40);
        // A cut option would be malformed, so what does not fit is replaced.
        if bytes.len() == 40 {
            bytes = vec![1; 40];
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    })
}

/// A packet, and what must be read from it.
fn packet() -> impl Strategy<Value = (Vec<u8>, Packet, Upper)> {
    let v4 = (upper(false), v4_options(), any::<u16>(), prop::option::of(0..6u8)).prop_map(
        |(upper, options, id, words)| {
            let headers: Vec<_> = words.map(authentication).into_iter().collect();
            let (protocol, payload) = build::chain(&headers, upper.protocol, &upper.bytes);
            let mut v4 = V4::new(protocol, &payload).options(&options);
            v4.id = id;
            let bytes = v4.bytes();
            let ends = (Addr::v4(build::V4_SRC), Addr::v4(build::V4_DST));
            let expected = expected(&upper, ends, &bytes);
            (bytes, expected, upper)
        },
    );
    let v6 = (upper(true), extensions(6), prop::option::of(any::<u32>())).prop_map(
        |(upper, mut extensions, atomic)| {
            extensions.extend(atomic.map(|id| build::fragment(id, 0, LAST)));
            let mut v6 = V6::new(upper.protocol, &upper.bytes);
            v6.extensions = extensions;
            let bytes = v6.bytes();
            let ends = (Addr::v6(build::V6_SRC), Addr::v6(build::V6_DST));
            let expected = expected(&upper, ends, &bytes);
            (bytes, expected, upper)
        },
    );
    prop_oneof![v4, v6]
}

fn expected(upper: &Upper, (src, dst): (Addr, Addr), bytes: &[u8]) -> Packet {
    let short = |n: usize| u16::try_from(n).expect("short");
    Packet {
        src,
        dst,
        src_port: Port::new(upper.src_port),
        dst_port: Port::new(upper.dst_port),
        protocol: upper.protocol,
        tcp_flags: upper.tcp_flags,
        icmp_type: upper.icmp_type,
        message: upper.message,
        l4_offset: short(bytes.len() - upper.bytes.len()),
        length: short(bytes.len()),
        ..Packet::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_built_is_read((bytes, expected, _) in packet(), padding in 0..20usize) {
        prop_assert_eq!(parse_both(&bytes), Ok(expected));
        prop_assert_eq!(parse_both(&[bytes.clone(), vec![0xaa; padding]].concat()), Ok(expected));
        let framed = [vec![0xbb; 14], bytes].concat();
        let mut shifted = expected;
        shifted.l4_offset += 14;
        prop_assert_eq!(parse(framed.as_slice(), 14), Ok(shifted));
    }

    #[test]
    fn what_is_cut_is_refused((bytes, _, upper) in packet(), cut in any::<prop::sample::Index>()) {
        // Behind a datagram there may be options, which the kernel cuts off itself.
        let datagram = || usize::from(u16::from_be_bytes([upper.bytes[4], upper.bytes[5]]));
        let surplus = if upper.protocol == 17 { upper.bytes.len() - datagram() } else { 0 };
        let n = cut.index(bytes.len() - surplus);
        let reason = parse_both(&bytes[..n]).expect_err("cut");
        prop_assert!(matches!(reason, Reason::Truncated | Reason::LengthBeyondPacket));
        prop_assert_eq!(parse_both(&bytes[..bytes.len() - surplus]).is_ok(), true);
    }

    #[test]
    fn fragments_follow_their_first_one(
        upper in upper(true),
        before in extensions(3),
        behind in prop::collection::vec((0..3u8).prop_map(|units| options(60, units)), 0..3),
        id in any::<u32>(),
        first in 0..20usize,
        size in 1..10usize,
    ) {
        // Long enough for a second fragment, whatever the first holds.
        let bytes = [&upper.bytes[..], &[9; 200]].concat();
        let (next, data) = build::chain(&behind, upper.protocol, &bytes);
        let headers = data.len() - bytes.len() + upper.header;
        let first = (headers.next_multiple_of(8) + 8 * first).max(8);
        let piece = |from: usize, to: usize| {
            let to = to.min(data.len());
            let offset = u16::try_from(from / 8).expect("short");
            let mut v6 = V6::new(next, &data[from..to]);
            v6.extensions.clone_from(&before);
            v6.with(build::fragment(id, offset, to < data.len())).bytes()
        };
        let opener = parse_both(&piece(0, first)).expect("the first fragment");
        prop_assert!(opener.is_first_fragment());
        prop_assert_eq!(opener.protocol, upper.protocol);
        prop_assert_eq!(opener.src_port.get(), upper.src_port);
        prop_assert_eq!(opener.dst_port.get(), upper.dst_port);
        prop_assert_eq!(usize::from(opener.fragment_edge()), first);
        let mut from = first;
        while from < data.len() {
            let later = parse_both(&piece(from, from + 8 * size)).expect("a later fragment");
            prop_assert!(later.is_later_fragment());
            prop_assert_eq!((later.src_port, later.dst_port), (Port::default(), Port::default()));
            prop_assert_eq!((later.src, later.dst), (opener.src, opener.dst));
            prop_assert_eq!(later.fragment_protocol(), opener.fragment_protocol());
            prop_assert_eq!(later.fragment_id, opener.fragment_id);
            prop_assert_eq!(usize::from(later.fragment_edge()), from);
            from += 8 * size;
        }
    }

    #[test]
    fn the_readers_agree_on_any_bytes(
        (mut bytes, ..) in packet(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = parse_both(&bytes);
        let _ = parse_quoted(bytes.as_slice(), 0, &mut Packet::default());
    }
}
