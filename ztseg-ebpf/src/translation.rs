//! What this host makes of a packet's ends: destination and source address translation by nftables
//! and iptables, as the kernel's connection tracking knows it.
//!
//! The egress hook runs behind all translation, the ingress hook behind that of what arrives. So
//! the ends that a packet has are
//!
//! | | at egress | at ingress |
//! |---|---|---|
//! | of who asks | the real ones | those that the socket knows |
//! | of who answers | those that the other end knows | the real ones |
//!
//! The rules are asked about the real ends, and the flow table has the flow under them. At egress
//! the packet's own tracking entry says what they are. At ingress it has none any more; so the
//! egress hook leaves behind where an answer belongs: of a datagram's flow that was judged and allowed
//! a [`Mapping`], and over loopback whose packet it is that arrives with ends that no socket has.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use ztseg_common::addr::{Addr, Port, proto};
use ztseg_common::key::{MAPPED_UDP, Place, SenderKey, WorkloadKey};
use ztseg_common::packet::Packet;
use ztseg_common::state::{FLOW_TRANSLATED, Mapping};

use crate::claim;
use crate::flow::Flow;
use crate::flows::{self, now, place};
use crate::maps::SENDERS;
use crate::peer::{Owner, TO_PEER, WITH_STATE};
use crate::skb::addr_of_words;

/// Offset of `_nfct` in `struct sk_buff`, set by the loader; zero: not known, and nothing is read.
#[unsafe(no_mangle)]
static NFCT: u32 = 0;

/// Offset in `struct sock` of its network namespace, and in that of the netfilter hooks of IPv4 and
/// IPv6 (`netns_nf`), set by the loader; zero: not known.
#[unsafe(no_mangle)]
static SOCK_NET: u32 = 0;
#[unsafe(no_mangle)]
static NET_HOOKS4: u32 = 0;
#[unsafe(no_mangle)]
static NET_HOOKS6: u32 = 0;
/// Functions of such hooks that leave addresses alone; zeros behind the last.
#[unsafe(no_mangle)]
static HARMLESS: [u64; HARMLESS_HOOKS] = [0; HARMLESS_HOOKS];
const HARMLESS_HOOKS: usize = 8;

/// The packet has the ends that its socket knows, or nothing better is known.
pub const AS_IT_IS: u32 = 0;
/// Its socket knows others: it is of who asks, and has the real ones.
pub const ASKS: u32 = 1;
/// It is an answer, and its real ends are in the flow now.
pub const ANSWERS: u32 = 2;

/// `struct nf_conntrack_tuple` (`include/net/netfilter/nf_conntrack_tuple.h`).
///
/// Aligned so that it is read in words.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Tuple {
    src: [u8; 16],
    src_port: Port,
    family: u16,
    dst: [u8; 16],
    dst_port: Port,
    protocol: u8,
    direction: u8,
}

/// Of `struct nf_conn`: where its two tuples are, each behind the node of a hash list. Before them
/// stand a count, a lock, a time and a zone of four bytes each; a kernel where that differs (it
/// debugs its locks) has other values in the tuples, and is known by them.
const ORIGINAL: usize = 32;
const REPLY: usize = ORIGINAL + 56;
const AF_INET: u16 = 2;
/// The low bits of `_nfct` (`NFCT_INFOMASK`); from `IP_CT_ESTABLISHED_REPLY` on it is an answer.
const INFO: u64 = 7;
const IS_REPLY: u64 = 3;

impl Tuple {
    #[inline(always)]
    fn addr(&self, octets: &[u8; 16]) -> Addr {
        let words = octets.as_chunks::<4>().0;
        let word = |i: usize| u32::from_ne_bytes(words[i]);
        addr_of_words(if self.family == AF_INET {
            [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), word(0)]
        } else {
            [word(0), word(1), word(2), word(3)]
        })
    }

    /// Whether an address of this tuple is `addr`; word by word, for the small stack.
    #[inline(always)]
    fn is(&self, octets: &[u8; 16], addr: &Addr) -> bool {
        let [ours, theirs] = [octets, &addr.octets].map(|octets| octets.as_chunks::<4>().0);
        let differs =
            |i: usize, j: usize| u32::from_ne_bytes(ours[i]) ^ u32::from_ne_bytes(theirs[j]);
        if self.family == AF_INET {
            addr.is_v4() && differs(0, 3) == 0
        } else {
            differs(0, 0) | differs(1, 1) | differs(2, 2) | differs(3, 3) == 0
        }
    }

    /// Whether a packet has these ends, its sender's first.
    #[inline(always)]
    fn goes(&self, packet: &Packet) -> bool {
        self.src_port == packet.src_port
            && self.dst_port == packet.dst_port
            && self.is(&self.src, &packet.src)
            && self.is(&self.dst, &packet.dst)
    }

    /// Whether a packet has these ends the other way round.
    #[inline(always)]
    fn comes(&self, packet: &Packet) -> bool {
        self.src_port == packet.dst_port
            && self.dst_port == packet.src_port
            && self.is(&self.src, &packet.dst)
            && self.is(&self.dst, &packet.src)
    }

    #[inline(always)]
    fn is_of(&self, packet: &Packet, direction: u8) -> bool {
        self.protocol == packet.protocol && self.direction == direction
    }
}

/// Reads kernel memory; the zeros that a failure leaves are no tuple.
#[inline(always)]
fn read<T>(to: &mut T, from: u64) -> bool {
    // SAFETY: the helper fills the buffer, or zeroes it and fails; it never faults.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(to).cast(),
            size_of::<T>() as u32,
            from as *const _,
        ) == 0
    }
}

#[inline(always)]
fn nfct_offset() -> u32 {
    // SAFETY: a plain read; volatile because the loader sets the value after compilation.
    unsafe { core::ptr::read_volatile(&raw const NFCT) }
}

/// Whether anything can be known of translation on this kernel.
#[inline(always)]
pub fn is_known() -> bool {
    nfct_offset() != 0
}

/// The word `_nfct`: a tracking entry and what the packet is to it; zero for none.
#[inline(always)]
fn tracking(skb: *mut __sk_buff) -> u64 {
    let offset = nfct_offset();
    if offset == 0 {
        return 0;
    }
    let mut nfct = 0u64;
    // The context is the kernel's own `struct sk_buff`.
    let at = skb as u64 + u64::from(offset);
    if read(&mut nfct, at) && nfct & !INFO != 0 { nfct } else { 0 }
}

const NOTHING: Tuple = Tuple {
    src: [0; 16],
    src_port: Port { octets: [0; 2] },
    family: 0,
    dst: [0; 16],
    dst_port: Port { octets: [0; 2] },
    protocol: 0,
    direction: 0,
};

/// What a packet at the egress hook is to a translation; of an answer, sets its real ends in the flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_translation(skb: *mut __sk_buff, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return AS_IT_IS };
    if !matches!(flow.packet.protocol, proto::TCP | proto::UDP) {
        return AS_IT_IS;
    }
    let nfct = tracking(skb);
    if nfct == 0 {
        return AS_IT_IS;
    }
    let entry = nfct & !INFO;
    let answers = nfct & INFO >= IS_REPLY;
    let packet = &mut flow.packet;
    // One after the other, for the small stack.
    let mut tuple = NOTHING;
    if !read(&mut tuple, entry + ORIGINAL as u64) || !tuple.is_of(packet, 0) {
        return AS_IT_IS;
    }
    let is_original = if answers { tuple.comes(packet) } else { tuple.goes(packet) };
    if !read(&mut tuple, entry + REPLY as u64) || !tuple.is_of(packet, 1) {
        return AS_IT_IS;
    }
    if !answers {
        return if !is_original && tuple.comes(packet) { ASKS } else { AS_IT_IS };
    }
    if !is_original || tuple.goes(packet) {
        return AS_IT_IS;
    }
    packet.src = tuple.addr(&tuple.src);
    packet.dst = tuple.addr(&tuple.dst);
    packet.src_port = tuple.src_port;
    packet.dst_port = tuple.dst_port;
    ANSWERS
}

/// Writes down whose packet it is that is allowed and goes over loopback, where its socket is `hidden`
/// from who looks for one with its ends: they are translated, or it is connected elsewhere. And where
/// another packet with these ends was somebody else's, who may be gone.
#[inline(always)]
pub fn note_sender(flow: &Flow, hidden: bool) {
    if !flow.is_loopback() || !flow.is_outbound() {
        return;
    }
    let is_anothers = || {
        let sender = ztseg_sender(flow, 0);
        sender != 0 && sender != flow.workload
    };
    if hidden || is_anothers() {
        ztseg_keep_sender(flow);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_keep_sender(flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let mut key = sender_key(&flow.packet, flow.netns);
    // Kernels before 6.2 take no map value from an argument's memory.
    let workload = flow.workload;
    let _ = SENDERS.insert(&key, &workload, 0);
    // For a receiver that is older than the agent, whose network namespace is not known.
    key.netns_protocol = sender_key(&flow.packet, 0).netns_protocol;
    u32::from(SENDERS.insert(&key, &workload, 0).is_ok())
}

/// Keeps what an answer needs to be known, of a datagram that [`ASKS`] and is allowed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_keep_mapping(skb: *mut __sk_buff, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    if let Some(state) = flows::again(flow) {
        state.flags |= FLOW_TRANSLATED;
    }
    let packet = &flow.packet;
    let mapping = Mapping::new((packet.src, packet.src_port), (packet.dst, packet.dst_port), now());
    if ztseg_original(skb, flow) == 0 {
        return 0;
    }
    // A flow of a time when nobody translated it; not that of another service's, which these ends
    // may be, too.
    if flows::again(flow).is_some_and(|state| state.flags & FLOW_TRANSLATED == 0) {
        flows::ztseg_remove(flow);
    }
    flow.packet.protocol = MAPPED_UDP;
    flows::keep(flow, mapping.as_entry());
    1
}

/// Sets the ends that the socket knows in the flow of a packet that [`ASKS`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_original(skb: *mut __sk_buff, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let mut original = NOTHING;
    if !read(&mut original, (tracking(skb) & !INFO) + ORIGINAL as u64) {
        return 0;
    }
    let packet = &mut flow.packet;
    packet.src = original.addr(&original.src);
    packet.dst = original.addr(&original.dst);
    packet.src_port = original.src_port;
    packet.dst_port = original.dst_port;
    1
}

/// Gives a datagram at the ingress hook the ends that its flow has in the table, where it answers one
/// that is translated.
#[inline(always)]
pub fn answered(skb: *mut __sk_buff, flow: &mut Flow) {
    if flow.packet.protocol == proto::UDP
        && is_known()
        && ztseg_is_mapped(flow) != 0
        // Over loopback, somebody here may have the address that was asked, and have sent this.
        && (!flow.is_loopback() || ztseg_is_of_a_socket(skb, flow) == 0)
    {
        ztseg_answered(flow);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_is_mapped(flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    // Who is asked directly answers directly.
    let is_mapped = !flows::has_fresh(flow, false, place(flow))
        && flows::has_fresh(flow, false, mapped(flow.workload, flow.netns));
    u32::from(is_mapped)
}

#[inline(always)]
fn mapped(workload: WorkloadKey, netns: u32) -> Place {
    Place::new(workload, netns, MAPPED_UDP)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_answered(flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let place = mapped(flow.workload, flow.netns);
    let Some(known) = flows::fresh(&flow.packet, false, place) else { return 0 };
    known.state.last_seen = now();
    let Some(&mapping) = Mapping::of(known.state) else { return 0 };
    let packet = &mut flow.packet;
    let (src, dst, ports) = (packet.src, packet.dst, (packet.src_port, packet.dst_port));
    packet.src = mapping.remote;
    packet.dst = mapping.local();
    (packet.src_port, packet.dst_port) = (mapping.remote_port, mapping.local_port);
    if flows::has_fresh(flow, false, Place::new(flow.workload, flow.netns, proto::UDP)) {
        return 1;
    }
    // The flow is no longer allowed, or was never answered: this is what it says it is.
    let packet = &mut flow.packet;
    packet.src = src;
    packet.dst = dst;
    (packet.src_port, packet.dst_port) = ports;
    0
}

/// Whether a datagram over loopback was sent by the socket at the address that it names.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_is_of_a_socket(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 1 };
    let Some(owner) = Owner::of(skb, flow, TO_PEER | WITH_STATE) else { return 0 };
    u32::from(owner.key != 0 && claim::has_sent(&owner, flow))
}

/// Whether a datagram that a raw socket sends over loopback would be taken for an answer to somebody
/// else's flow that is translated.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_answers_for_another(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 1 };
    if flow.packet.protocol != proto::UDP {
        return 0;
    }
    let Some(owner) = Owner::of(skb, flow, TO_PEER | WITH_STATE) else { return 0 };
    if owner.key == 0 || owner.key == flow.workload {
        return 0;
    }
    u32::from(flows::has_fresh(flow, false, mapped(owner.key, owner.netns)))
}

#[inline(always)]
fn sender_key(packet: &Packet, netns: u32) -> SenderKey {
    SenderKey {
        from: packet.src,
        to: packet.dst,
        from_port: packet.src_port,
        to_port: packet.dst_port,
        netns_protocol: Place::of(0, netns, packet.protocol).netns_protocol,
    }
}

/// Who sends what has these ends over loopback from a socket that is hidden ([`note_sender`]), or
/// receives its answers where `answers`; zero for nobody. A function of its own for its stack frame.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_sender(flow: *const Flow, answers: u32) -> WorkloadKey {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    if !is_known() {
        return 0;
    }
    let mut key = sender_key(&flow.packet, flow.netns);
    if answers != 0 {
        (key.from, key.to) = (flow.packet.dst, flow.packet.src);
        (key.from_port, key.to_port) = (flow.packet.dst_port, flow.packet.src_port);
    }
    SENDERS.get_ptr(&key).map_or(0, |workload| {
        // SAFETY: a valid pointer from the lookup, to one word.
        unsafe { core::ptr::read_volatile(workload) }
    })
}

/// `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING`: the hooks between a socket and its egress hook.
const HOOKS: [u64; 2] = [3, 4];
/// More at one hook are not looked through.
const MOST: u16 = 4;

macro_rules! offset {
    ($name:ident) => {
        // SAFETY: a plain read; volatile because the loader sets the value after compilation.
        unsafe { core::ptr::read_volatile(&raw const $name) }
    };
}

/// Whether what a socket is about to send may have another destination when its packet gets to the
/// egress hook: whether netfilter has anything between the two, in the socket's network namespace,
/// now. Only what is registered there can translate, however it got there: a chain of nftables, a
/// table of iptables, IPVS.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_may_be_rewritten(ctx: *mut bpf_sock_addr, v4: u32) -> u32 {
    let (sock_net, hooks) =
        (offset!(SOCK_NET), if v4 != 0 { offset!(NET_HOOKS4) } else { offset!(NET_HOOKS6) });
    if sock_net == 0 || hooks == 0 {
        return 1;
    }
    let (mut sk, mut net) = (0u64, 0u64);
    // The context is the kernel's own `struct bpf_sock_addr_kern`, whose first word is the socket.
    if !read(&mut sk, ctx as u64) || !read(&mut net, sk + u64::from(sock_net)) || net == 0 {
        return 1;
    }
    for hook in HOOKS {
        // `struct nf_hook_entries`: a count, then pairs of a function and what it is given.
        let mut entries = 0u64;
        if !read(&mut entries, net + u64::from(hooks) + hook * size_of::<u64>() as u64) {
            return 1;
        }
        if entries != 0 && !are_harmless(entries) {
            return 1;
        }
    }
    0
}

#[inline(always)]
fn are_harmless(entries: u64) -> bool {
    let mut count = 0u16;
    if !read(&mut count, entries) || count > MOST {
        return false;
    }
    for index in 0..MOST {
        if index < count {
            let mut function = 0u64;
            if !read(&mut function, entries + 8 + 16 * u64::from(index)) || !is_harmless(function) {
                return false;
            }
        }
    }
    true
}

#[inline(always)]
fn is_harmless(function: u64) -> bool {
    let mut known = false;
    for harmless in &HARMLESS {
        // SAFETY: as in `nfct_offset`.
        known |= unsafe { core::ptr::read_volatile(harmless) } == function;
    }
    known && function != 0
}
