//! An IP packet, as it comes.

use ztseg_common::addr::Port;
use ztseg_common::packet::{Packet, Reader, fragment, parse, parse_quoted};

/// Gives up where the kernel's in-place reader does.
struct Plain<'a>(&'a [u8]);

impl Reader for Plain<'_> {
    const PLAIN_ONLY: bool = true;

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        assert!(N <= 2 || N.is_multiple_of(4), "the kernel's reader cannot read {N} bytes");
        self.0.read(offset)
    }

    fn length(&self) -> u32 {
        self.0.length()
    }
}

const ETHERNET: u16 = 14;

/// Parses it in every way in which the programs do.
pub fn check(bytes: &[u8]) {
    let found = parse(bytes, 0);
    if let Ok(plain) = parse(&Plain(bytes), 0) {
        assert_eq!(found, Ok(plain), "the readers disagree");
    }
    let mut quoted = Packet::default();
    let as_quoted = parse_quoted(bytes, 0, &mut quoted).map(|()| quoted);
    let Ok(packet) = found else { return };

    consistent(&packet, bytes.len());
    let quoted = as_quoted.expect("a quoted packet is asked for less");
    let ends = |p: &Packet| (p.src, p.dst, p.protocol, p.src_port, p.dst_port, p.message & 0x0f);
    if packet.message < 16 {
        assert_eq!(ends(&quoted), ends(&packet));
    }
    // Where it stands in its frame, and what the link pads it with, makes no difference.
    let framed = [&[0xff; ETHERNET as usize], bytes, &[0xff; 9]].concat();
    if framed.len() < 0xffff {
        let l4_offset = packet.l4_offset + ETHERNET;
        let moved = parse(framed.as_slice(), ETHERNET.into());
        assert_eq!(moved, Ok(Packet { l4_offset, ..packet }));
    }
}

fn consistent(packet: &Packet, length: usize) {
    assert!(usize::from(packet.l4_offset) <= length);
    let no_ports = packet.src_port == Port::default() && packet.dst_port == Port::default();
    match packet.fragment & fragment::KIND {
        fragment::WHOLE => {
            assert_eq!((packet.fragment_id, packet.fragment), (0, 0));
        }
        fragment::FIRST => assert!(packet.fragment_edge() > 0),
        fragment::LATER => {
            assert!(packet.fragment_edge() > 0 && no_ports);
            assert_eq!((packet.tcp_flags, packet.icmp_type, packet.message), (0, 0, 0));
        }
        other => panic!("fragment {other}"),
    }
}
