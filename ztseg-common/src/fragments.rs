//! What a first fragment leaves behind, so that the later ones of its packet can be judged.
//!
//! A later fragment has no ports (RFC 791, RFC 8200 section 4.5): it takes those of its first one and
//! is judged like any packet of that flow.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port};
use crate::key::{FlowKey6, Place};
use crate::packet::Packet;

/// Key of the table of fragmented packets: that of a flow, with the identification and the protocol
/// in the place of the ports.
pub type FragmentKey = FlowKey6;

/// Seconds after its last fragment when a packet is given up: the longer of Linux' two times for
/// reassembly (`net.ipv6.ip6frag_time`, and RFC 8200 section 4.5; `net.ipv4.ipfrag_time` is 30).
pub const FRAGMENT_TIMEOUT_SECONDS: u32 = 60;

/// What is kept of a first fragment that was let through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentState {
    /// The stamp that let it through ([`crate::value::Control::stamp`]).
    pub stamp: u64,
    /// When the last fragment came, in [`crate::state::ticks`].
    pub last_seen: u32,
    /// Where in the fragmented data, in bytes, the first fragment ends.
    pub edge: u16,
    /// As in [`Packet`].
    pub src_port: Port,
    /// As in [`Packet`].
    pub dst_port: Port,
    /// As in [`Packet`].
    pub protocol: u8,
    /// As in [`Packet`].
    pub icmp_type: u8,
    /// As in [`Packet`].
    pub message: u8,
    /// Zero.
    pub zero: [u8; 3],
}

impl FragmentState {
    /// Of a first fragment.
    #[inline(always)]
    pub fn of(packet: &Packet, stamp: u64, now: u32) -> Self {
        Self {
            stamp,
            last_seen: now,
            edge: packet.fragment_edge(),
            src_port: packet.src_port,
            dst_port: packet.dst_port,
            protocol: packet.protocol,
            icmp_type: packet.icmp_type,
            message: packet.message,
            zero: [0; 3],
        }
    }

    /// Gives a later fragment what its first one had. TCP flags stay zero: they are those of a
    /// segment that goes on.
    #[inline(always)]
    pub fn complete(&self, packet: &mut Packet) {
        packet.src_port = self.src_port;
        packet.dst_port = self.dst_port;
        packet.protocol = self.protocol;
        packet.icmp_type = self.icmp_type;
        packet.message = self.message;
    }

    /// Whether a later fragment begins inside the first one: it is there to write over it (RFC 1858,
    /// RFC 5722).
    #[inline(always)]
    pub const fn is_overlapped_by(&self, later: &Packet) -> bool {
        later.fragment_edge() < self.edge
    }
}

/// The key of a fragment's packet.
#[inline(always)]
pub fn fragment_key(packet: &Packet, place: Place) -> FragmentKey {
    let [high, low] = packet.fragment_id.to_be_bytes();
    FragmentKey {
        local: packet.src,
        remote: packet.dst,
        local_port: Port { octets: [high, low] },
        remote_port: Port { octets: [0, packet.fragment_protocol()] },
        place,
    }
}

/// The key needs no more: what tells two packets apart is in it.
const _: () = {
    assert!(size_of::<FragmentState>() == 24);
    assert!(size_of::<Addr>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use std::vec::Vec;

    /// An IPv4 fragment of a UDP datagram from port 1 to port 2: `words` of eight bytes at `at`.
    fn fragment(id: u8, at: u8, words: u8, more: bool) -> Packet {
        let total = 20 + 8 * words;
        let more = if more { 0x20 } else { 0 };
        let mut bytes: Vec<u8> = std::vec![0x45, 0, 0, total, 0, id, more, at, 64, 17, 0, 0];
        bytes.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        bytes.extend([0, 1, 0, 2, 0x10, 0, 0, 0].repeat(words.into()));
        parse(&bytes[..], 0).expect("a fragment")
    }

    fn place() -> Place {
        Place::new(7, 0, 17)
    }

    #[test]
    fn a_later_fragment_takes_the_ports_of_its_first() {
        let (first, mut later) = (fragment(9, 0, 2, true), fragment(9, 2, 1, false));
        assert_eq!(fragment_key(&first, place()), fragment_key(&later, place()));
        assert_eq!(later.dst_port, Port::default());
        let state = FragmentState::of(&first, 1, 0);
        state.complete(&mut later);
        assert_eq!((later.src_port, later.dst_port), (Port::new(1), Port::new(2)));
        assert!(!state.is_overlapped_by(&later));
    }

    #[test]
    fn packets_are_told_apart_by_identification_and_ends() {
        let first = fragment(9, 0, 2, true);
        assert_ne!(fragment_key(&first, place()), fragment_key(&fragment(8, 2, 1, true), place()));
        let back = Packet { src: first.dst, dst: first.src, ..first };
        assert_ne!(fragment_key(&first, place()), fragment_key(&back, place()));
    }

    #[test]
    fn one_that_begins_inside_the_first_overlaps() {
        let state = FragmentState::of(&fragment(9, 0, 4, true), 1, 0);
        assert!(state.is_overlapped_by(&fragment(9, 3, 1, false)));
        assert!(!state.is_overlapped_by(&fragment(9, 4, 1, false)));
    }
}
