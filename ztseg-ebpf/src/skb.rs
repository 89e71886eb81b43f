//! The packet and its socket, as the programs read them.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_skb_load_bytes};
use ztseg_common::addr::{Addr, Port};
use ztseg_common::packet::{self, Packet, Payload, Reader};
use ztseg_common::verdict::Reason;

/// Offsets above this are never read; it lets the verifier bound every access.
const MAX_OFFSET: u32 = 0x7fff;

/// `PACKET_LOOPBACK`: the copy of a packet to many, for the receivers on this host.
pub const COPY: u32 = 5;

/// A packet.
pub struct Skb {
    pub raw: *mut __sk_buff,
}

macro_rules! field {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(&self) -> u32 {
            // SAFETY: the context is valid while the program runs. Volatile, so that the compiler
            // does not merge reads: the verifier rewrites each field access on its own.
            unsafe { core::ptr::read_volatile(&raw const (*self.raw).$name) }
        }
    };
}

impl Skb {
    #[inline(always)]
    pub fn new(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    field!(
        /// Length in bytes, from where the hook's data begins.
        len
    );
    field!(
        /// Index of the device that the packet is on.
        ifindex
    );
    field!(
        /// Index of the device that the packet came in by; zero where it was made here.
        ingress_ifindex
    );
    field!(
        /// Who it is for, `PACKET_HOST` and so on (`linux/if_packet.h`).
        pkt_type
    );
    field!(
        /// Ethernet type, network order in the low half.
        protocol
    );
    field!(
        /// What marks it for who comes later on this host.
        mark
    );
    field!(data);
    field!(data_end);

    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: the context is valid while the program runs, and the field may be written at TC.
        unsafe { core::ptr::write_volatile(&raw mut (*self.raw).mark, mark) };
    }

    /// Copies bytes of the packet from `offset` on; false where they are not all there.
    #[inline(always)]
    pub fn copy(&self, offset: u32, to: &mut [u8]) -> bool {
        // SAFETY: the helper fills the buffer, or fails.
        unsafe {
            let length = to.len() as u32;
            bpf_skb_load_bytes(self.raw.cast(), offset, to.as_mut_ptr().cast(), length) == 0
        }
    }

    /// The socket that the packet leaves from or arrives at. It may be less than a full one: of its
    /// fields, type and protocol are out of reach, and it may have no storage.
    #[inline(always)]
    pub fn common_socket(&self) -> Option<Sock> {
        // SAFETY: reads the context; the verifier knows the pointer may be null.
        let sk = unsafe { core::ptr::read_volatile(&raw const (*self.raw).__bindgen_anon_2.sk) };
        if sk.is_null() { None } else { Some(Sock { raw: sk }) }
    }

    /// The socket that the packet leaves from or arrives at, when it is a full one.
    #[inline(always)]
    pub fn socket(&self) -> Option<Sock> {
        let sk = self.common_socket()?;
        // SAFETY: a socket pointer of the context.
        let full = unsafe { bpf_sk_fullsock(sk.raw) };
        if full.is_null() { None } else { Some(Sock { raw: full }) }
    }
}

/// Copies what is asked for; reads every packet, wherever its bytes lie.
impl Reader for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let mut bytes = core::mem::MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the buffer has N bytes; the helper fills them all or fails.
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            if bpf_skb_load_bytes(self.raw.cast(), offset, to, N as u32) == 0 {
                Some(bytes.assume_init())
            } else {
                None
            }
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn option(&self, end: u16, packet: &mut Packet) -> Result<(), Reason> {
        as_result(ztseg_option(self.raw, u32::from(end), packet))
    }

    #[inline(always)]
    fn extension<const QUOTED: bool>(
        &self,
        start: u32,
        announced: u16,
        packet: &mut Packet,
    ) -> Result<(), Reason> {
        let announced = u32::from(announced);
        as_result(if QUOTED {
            ztseg_quoted_extension(self.raw, start, announced, packet)
        } else {
            ztseg_extension(self.raw, start, announced, packet)
        })
    }

    #[inline(always)]
    fn transport<const QUOTED: bool>(
        &self,
        payload: &Payload,
        packet: &mut Packet,
    ) -> Result<(), Reason> {
        as_result(if QUOTED {
            ztseg_quoted_transport(self.raw, payload.rest(), packet)
        } else {
            ztseg_transport(self.raw, payload.rest(), packet)
        })
    }
}

/// The transport header of a packet whose protocol and offset of that header were read; see
/// [`packet::Payload::rest`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_transport(skb: *mut __sk_buff, rest: u32, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    let payload = Payload::of(packet, rest);
    packet::transport::<Skb, false>(&Skb::new(skb), &payload, packet)
        .map_or_else(|reason| reason as u32, |()| 0)
}

/// As [`ztseg_transport`], in a packet that an ICMP error quotes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_quoted_transport(
    skb: *mut __sk_buff,
    rest: u32,
    packet: *mut Packet,
) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    let payload = Payload::of(packet, rest);
    packet::transport::<Skb, true>(&Skb::new(skb), &payload, packet)
        .map_or_else(|reason| reason as u32, |()| 0)
}

/// What a subprogram of the parser returned: zero, or the number of a reason.
#[inline(always)]
fn as_result(failure: u32) -> Result<(), Reason> {
    match failure as u8 {
        0 => Ok(()),
        failure => Err(Reason::from_u8(failure).unwrap_or(Reason::Malformed)),
    }
}

/// One option of an IPv4 header that ends at `end`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_option(skb: *mut __sk_buff, end: u32, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    packet::option(&Skb::new(skb), end as u16, packet).map_or_else(|reason| reason as u32, |()| 0)
}

/// One IPv6 extension header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_extension(
    skb: *mut __sk_buff,
    start: u32,
    announced: u32,
    packet: *mut Packet,
) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    packet::extension::<Skb, false>(&Skb::new(skb), start, announced as u16, packet)
        .map_or_else(|reason| reason as u32, |()| 0)
}

/// As [`ztseg_extension`], in a packet that an ICMP error quotes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_quoted_extension(
    skb: *mut __sk_buff,
    start: u32,
    announced: u32,
    packet: *mut Packet,
) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    packet::extension::<Skb, true>(&Skb::new(skb), start, announced as u16, packet)
        .map_or_else(|reason| reason as u32, |()| 0)
}

macro_rules! load {
    ($size:literal, $type:ty, $address:expr) => {
        load!($size, $type, $address, 0)
    };
    ($size:literal, $type:ty, $address:expr, $at:expr) => {{
        let value: u64;
        // SAFETY: the caller has compared the address with the end of the packet. Packets are not
        // aligned, and the compiler would read them byte by byte; the instruction is not, on every
        // architecture with efficient unaligned access (the verifier refuses it elsewhere).
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $size, " *)({address} + {at})"),
                address = in(reg) $address,
                at = const $at,
                value = lateout(reg) value,
                options(nostack, readonly),
            );
        }
        (value as $type).to_ne_bytes()
    }};
}

/// Reads plain headers in place, from the packet's linear part.
pub struct InPlace {
    data: usize,
    end: usize,
}

impl InPlace {
    #[inline(always)]
    pub fn new(skb: &Skb) -> Self {
        Self { data: skb.data() as usize, end: skb.data_end() as usize }
    }

    /// The bytes from `offset` on, if there are `length` of them: compared once, so that reading
    /// them needs no further comparison. Both are constants where this is inlined.
    #[inline(always)]
    pub fn header(&self, offset: u32, length: usize) -> Option<Header> {
        let start = self.data + offset as usize;
        if start + length > self.end {
            return None;
        }
        Some(Header { start })
    }
}

/// Bytes that are known to be there.
#[derive(Clone, Copy)]
pub struct Header {
    start: usize,
}

impl Header {
    #[inline(always)]
    pub fn byte<const AT: usize>(&self) -> u8 {
        load!("u8", u8, self.start, AT)[0]
    }

    #[inline(always)]
    pub fn half<const AT: usize>(&self) -> [u8; 2] {
        load!("u16", u16, self.start, AT)
    }

    #[inline(always)]
    pub fn word<const AT: usize>(&self) -> [u8; 4] {
        load!("u32", u32, self.start, AT)
    }

    /// An IPv6 address.
    #[inline(always)]
    pub fn addr6<const AT: usize>(&self) -> Addr {
        let mut octets = [0; 16];
        let (words, _) = octets.as_chunks_mut::<4>();
        words[0] = load!("u32", u32, self.start, AT);
        words[1] = load!("u32", u32, self.start, AT + 4);
        words[2] = load!("u32", u32, self.start, AT + 8);
        words[3] = load!("u32", u32, self.start, AT + 12);
        Addr { octets }
    }
}

/// The parser's reader of plain packets.
struct Plain<'a> {
    bytes: InPlace,
    skb: &'a Skb,
}

impl Reader for Plain<'_> {
    const PLAIN_ONLY: bool = true;

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = self.bytes.data + offset as usize;
        if start + N > self.bytes.end {
            return None;
        }
        const { assert!(N == 1 || N == 2 || N.is_multiple_of(4)) };
        let mut bytes = [0u8; N];
        match N {
            1 => bytes.copy_from_slice(&load!("u8", u8, start)),
            2 => bytes.copy_from_slice(&load!("u16", u16, start)),
            _ => {
                let (words, _) = bytes.as_chunks_mut::<4>();
                for (i, word) in words.iter_mut().enumerate() {
                    *word = load!("u32", u32, start + 4 * i);
                }
            }
        }
        Some(bytes)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.skb.len()
    }
}

/// Parses the IP packet at `offset`, which is a constant where this is inlined. Returns zero, or the
/// number of the reason why it cannot be read.
#[inline(always)]
pub fn parse(skb: &Skb, offset: u32, packet: &mut Packet) -> u8 {
    let in_place = InPlace::new(skb);
    // The shortest IP header, compared first: a comparison for a single byte at the very start gives
    // the verifier no range (`find_good_pkt_pointers`, kernel/bpf/verifier.c).
    let enough = in_place.data + offset as usize + 20 <= in_place.end;
    let plain = Plain { bytes: in_place, skb };
    if enough && packet::parse_into(&plain, offset, packet).is_ok() {
        return 0;
    }
    *packet = Packet::default();
    // Options, extension headers, headers outside the linear part, or not a packet at all.
    ztseg_parse(skb.raw, offset, packet) as u8
}

/// As [`parse`] at a cgroup hook, where the data begins with the IP header, with a stack frame of its
/// own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_parse_socket(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    u32::from(parse(&Skb::new(skb), 0, packet))
}

/// Parses any packet. A global subprogram: verified once, with a stack frame of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_parse(skb: *mut __sk_buff, offset: u32, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    packet::parse_into(&Skb::new(skb), offset, packet).map_or_else(|reason| reason as u32, |()| 0)
}

/// Parses the packet that an ICMP error quotes, as [`ztseg_parse`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_parse_quoted(skb: *mut __sk_buff, offset: u32, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier checks that the caller's packet is memory of this size.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Reason::Malformed as u32 };
    match packet::parse_quoted(&Skb::new(skb), offset, packet) {
        // Without ports it is of no flow.
        Ok(()) if packet.is_later_fragment() => Reason::FragmentWithoutFirst as u32,
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

/// A full socket.
#[derive(Clone, Copy)]
pub struct Sock {
    pub raw: *mut bpf_sock,
}

/// Socket states (`include/net/tcp_states.h`).
pub const ESTABLISHED: u32 = 1;
pub const SYN_SENT: u32 = 2;
pub const CLOSE: u32 = 7;
pub const LISTEN: u32 = 10;

/// Socket types (include/linux/net.h).
const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;
const RAW: u32 = 3;

const AF_INET: u32 = 2;

/// Reads a field of a socket with one instruction of its own: the verifier allows no arithmetic on a
/// socket pointer, which the compiler would use to merge neighbouring reads.
macro_rules! sock_field {
    ($sock:expr, $size:literal, $($field:tt)+) => {{
        sock_word!($sock, $size, core::mem::offset_of!(bpf_sock, $($field)+))
    }};
}

/// As [`sock_field`], for a word at an offset.
macro_rules! sock_word {
    ($sock:expr, $offset:expr) => {
        sock_word!($sock, "u32", $offset)
    };
    ($sock:expr, $size:literal, $offset:expr) => {{
        let value: u64;
        // SAFETY: a read of a field of a valid socket.
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $size, " *)({sk} + {offset})"),
                sk = in(reg) $sock.raw,
                offset = const $offset,
                value = lateout(reg) value,
                options(nostack, readonly),
            );
        }
        value as u32
    }};
}

impl Sock {
    #[inline(always)]
    fn family(&self) -> u32 {
        sock_field!(self, "u32", family)
    }

    #[inline(always)]
    fn type_(&self) -> u32 {
        sock_field!(self, "u32", type_)
    }

    #[inline(always)]
    fn protocol(&self) -> u32 {
        sock_field!(self, "u32", protocol)
    }

    #[inline(always)]
    pub fn state(&self) -> u32 {
        sock_field!(self, "u32", state)
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.type_() == STREAM && self.protocol() == u32::from(ztseg_common::addr::proto::TCP)
    }

    #[inline(always)]
    pub fn is_connected_udp(&self) -> bool {
        self.type_() == DATAGRAM
            && self.protocol() == u32::from(ztseg_common::addr::proto::UDP)
            && self.state() == ESTABLISHED
    }

    /// A raw socket without a connection: what the kernel's own control sockets look like.
    #[inline(always)]
    pub fn is_idle_raw(&self) -> bool {
        self.type_() == RAW && self.state() == CLOSE
    }

    /// A socket whose program writes the packets itself.
    #[inline(always)]
    pub fn is_raw(&self) -> bool {
        self.type_() == RAW
    }

    /// Whether packets have this source of their own accord: the socket is bound to it, or to none.
    #[inline(always)]
    pub fn may_send_from(&self, addr: &Addr) -> bool {
        let (bytes, _) = addr.octets.as_chunks::<4>();
        let word = |i: usize| u32::from_ne_bytes(bytes[i]);
        if addr.is_v4() {
            let own = sock_field!(self, "u32", src_ip4);
            own == 0 || own == word(3)
        } else {
            const IP6: usize = core::mem::offset_of!(bpf_sock, src_ip6);
            let own = [
                sock_word!(self, IP6),
                sock_word!(self, IP6 + 4),
                sock_word!(self, IP6 + 8),
                sock_word!(self, IP6 + 12),
            ];
            own == [0; 4] || own == [word(0), word(1), word(2), word(3)]
        }
    }

    /// The port that the socket is bound to.
    #[inline(always)]
    pub fn local_port(&self) -> Port {
        Port::new(sock_field!(self, "u32", src_port) as u16)
    }

    /// The peer's port as the socket knows it.
    #[inline(always)]
    pub fn remote_port(&self) -> Port {
        Port { octets: (sock_field!(self, "u16", dst_port) as u16).to_ne_bytes() }
    }

    /// The peer's address as the socket knows it: four words in network order.
    #[inline(always)]
    fn remote_words(&self) -> [u32; 4] {
        if self.family() == AF_INET {
            let mapped = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
            [0, 0, mapped, sock_field!(self, "u32", dst_ip4)]
        } else {
            const IP6: usize = core::mem::offset_of!(bpf_sock, dst_ip6);
            [
                sock_word!(self, IP6),
                sock_word!(self, IP6 + 4),
                sock_word!(self, IP6 + 8),
                sock_word!(self, IP6 + 12),
            ]
        }
    }

    /// Whether the socket's peer has this address.
    #[inline(always)]
    pub fn has_remote(&self, addr: &Addr) -> bool {
        let (bytes, _) = addr.octets.as_chunks::<4>();
        let theirs = self.remote_words();
        let differs = |i: usize| u32::from_ne_bytes(bytes[i]) ^ theirs[i];
        differs(3) | differs(2) | differs(1) | differs(0) == 0
    }

    /// The peer's address as the socket knows it.
    #[inline(always)]
    pub fn remote(&self) -> Addr {
        addr_of_words(self.remote_words())
    }
}

/// An address from four words in network order.
#[inline(always)]
pub fn addr_of_words(words: [u32; 4]) -> Addr {
    let mut octets = [0u8; 16];
    let mut i = 0;
    while i < 4 {
        let bytes = words[i].to_ne_bytes();
        octets[4 * i] = bytes[0];
        octets[4 * i + 1] = bytes[1];
        octets[4 * i + 2] = bytes[2];
        octets[4 * i + 3] = bytes[3];
        i += 1;
    }
    Addr { octets }
}
