//! Answers to what is denied at an interface, where the rule asks for it: the denied packet is made
//! into its answer and goes back where it came from.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_store_bytes,
};
use ztseg_common::addr::proto;
use ztseg_common::packet::{IcmpKind, Packet, Reader, tcp};
use ztseg_common::reject::{
    Checksum, ERROR4, ERROR6, IPV4_HEADER, IPV6_HEADER, QUOTE4_AT, QUOTE6_AT, RESET4, RESET6,
    Segment, error4, error6, is_answered, reset4, reset6,
};

use crate::interface::ETHERNET;
use crate::maps::control;
use crate::skb::{Skb, ztseg_parse};

/// `PACKET_BROADCAST`, `PACKET_MULTICAST` (`linux/if_packet.h`)
const TO_ALL: u32 = 1;
const TO_MANY: u32 = 2;
/// `BPF_F_INGRESS`
const INGRESS: u64 = 1;
/// Bytes of the two link addresses of an Ethernet header.
const LINK_ADDRESSES: usize = 12;

/// Whether this is an answer of ours on its way back, which the other hook of the interface sees; it
/// is no longer marked as one then.
///
/// The mark is a random number, and none crosses into another network namespace or machine
/// (`skb_scrub_packet`, net/core/skbuff.c).
#[inline(never)]
pub fn is_answer(skb: &Skb, packet: &Packet) -> bool {
    let Some(control) = control() else { return false };
    let looks_like_one = packet.is_icmp(IcmpKind::Error)
        || (packet.protocol == proto::TCP && packet.tcp_flags & tcp::RST != 0);
    if !looks_like_one || control.answer_mark == 0 || skb.mark() != control.answer_mark {
        return false;
    }
    skb.set_mark(0);
    true
}

/// Makes a denied packet into its answer, and sends that back by the interface that the packet is on:
/// into this host or out of it. The network header begins at `at`. Returns 1, or zero where there is
/// no answer and the packet is to be dropped.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_reject(skb: *mut __sk_buff, at: u32, into_host: u32) -> u32 {
    let Some(control) = control() else { return 0 };
    let mut packet = Packet::default();
    if at > ETHERNET || ztseg_parse(skb, at, &raw mut packet) != 0 {
        return 0;
    }
    let (skb, packet) = (Skb::new(skb), &packet);
    let to = skb.pkt_type();
    if !is_answered(packet) || to == TO_ALL || to == TO_MANY {
        return 0;
    }
    let v4 = packet.src.is_v4();
    // Options and extension headers, and tags in the packet, are not worth an answer.
    let header = if v4 { IPV4_HEADER } else { IPV6_HEADER } as u32;
    if u32::from(packet.l4_offset) != at + header {
        return 0;
    }
    let made = match (packet.protocol == proto::TCP, v4) {
        (true, true) => reset_v4(&skb, packet, at),
        (true, false) => reset_v6(&skb, packet, at),
        (false, true) => error_v4(&skb, packet, at),
        (false, false) => error_v6(&skb, packet, at),
    };
    if !made || (at == ETHERNET && !swap_link_addresses(&skb)) {
        return 0;
    }
    skb.set_mark(control.answer_mark);
    // SAFETY: a plain helper call. It takes effect when the program returns `TC_ACT_REDIRECT`.
    unsafe { bpf_redirect(skb.ifindex(), if into_host != 0 { INGRESS } else { 0 }) };
    1
}

#[inline(never)]
fn reset_v4(skb: &Skb, packet: &Packet, at: u32) -> bool {
    let Some((segment, checksum)) = segment(skb, packet, at) else { return false };
    let mut bytes = [0; RESET4];
    reset4(&mut bytes, packet, &segment, checksum);
    replace(skb, at, &bytes)
}

#[inline(never)]
fn reset_v6(skb: &Skb, packet: &Packet, at: u32) -> bool {
    let Some((segment, checksum)) = segment(skb, packet, at) else { return false };
    let mut bytes = [0; RESET6];
    reset6(&mut bytes, packet, &segment, checksum);
    replace(skb, at, &bytes)
}

#[inline(never)]
fn error_v4(skb: &Skb, packet: &Packet, at: u32) -> bool {
    let mut bytes = [0; ERROR4];
    if !skb.copy(at, &mut bytes[QUOTE4_AT..]) {
        return false;
    }
    let Some(checksum) = checksum_of(skb, packet) else { return false };
    error4(&mut bytes, packet, checksum);
    replace(skb, at, &bytes)
}

#[inline(never)]
fn error_v6(skb: &Skb, packet: &Packet, at: u32) -> bool {
    let mut bytes = [0; ERROR6];
    if !skb.copy(at, &mut bytes[QUOTE6_AT..]) {
        return false;
    }
    let Some(checksum) = checksum_of(skb, packet) else { return false };
    error6(&mut bytes, packet, checksum);
    replace(skb, at, &bytes)
}

#[inline(always)]
fn segment(skb: &Skb, packet: &Packet, at: u32) -> Option<(Segment, Checksum)> {
    let header = skb.read::<16>(u32::from(packet.l4_offset))?;
    let checksum = checksum_of(skb, packet)?;
    let headers = u32::from(packet.l4_offset) - at + u32::from(header[12] >> 4) * 4;
    let payload = u32::from(packet.length).saturating_sub(headers);
    Some((Segment { header, payload }, checksum))
}

/// Who writes the checksum of the transport header. No field says it; but an update for a changed
/// byte leaves the checksum alone where it is offloaded (`inet_proto_csum_replace4`,
/// net/core/utils.c). It is tried on the ports, which are written anew.
#[inline(always)]
fn checksum_of(skb: &Skb, packet: &Packet) -> Option<Checksum> {
    const TWO_BYTES: u64 = 2;
    let at = u32::from(packet.l4_offset);
    let before = skb.read::<2>(at)?;
    // SAFETY: a plain helper call on the context.
    if unsafe { bpf_l4_csum_replace(skb.raw, at, 0, 0x0101, TWO_BYTES) } != 0 {
        return None;
    }
    if skb.read::<2>(at)? != before {
        return Some(Checksum::Whole);
    }
    // What a device writes for SCTP would spoil an error.
    matches!(packet.protocol, proto::TCP | proto::UDP).then_some(Checksum::Offloaded)
}

/// Puts other bytes behind the link header, and cuts off or adds what they differ in length.
#[inline(always)]
fn replace<const N: usize>(skb: &Skb, at: u32, bytes: &[u8; N]) -> bool {
    // SAFETY: plain helper calls on the context; the buffer has N bytes.
    unsafe {
        bpf_skb_change_tail(skb.raw, at + N as u32, 0) == 0
            && bpf_skb_store_bytes(skb.raw, at, bytes.as_ptr().cast(), N as u32, 0) == 0
    }
}

/// A function of its own for its stack frame.
#[inline(never)]
fn swap_link_addresses(skb: &Skb) -> bool {
    let Some(read) = skb.read::<LINK_ADDRESSES>(0) else { return false };
    let [to @ .., _, _, _, _, _, _] = read;
    let [_, _, _, _, _, _, from @ ..] = read;
    let mut addresses = [0; LINK_ADDRESSES];
    addresses[..LINK_ADDRESSES / 2].copy_from_slice(&from);
    addresses[LINK_ADDRESSES / 2..].copy_from_slice(&to);
    let length = LINK_ADDRESSES as u32;
    // SAFETY: a plain helper call on the context; the buffer has that many bytes.
    unsafe { bpf_skb_store_bytes(skb.raw, 0, addresses.as_ptr().cast(), length, 0) == 0 }
}
