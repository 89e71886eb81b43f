//! Who is at the other end: its socket on this host, else its address.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as bpf_fib_lookup_helper, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release,
};
use ztseg_common::addr::{Addr, Port, proto};
use ztseg_common::key::{IDENTITY_NOBODY, WorkloadKey, workload_interface};
use ztseg_common::packet::tcp;
use ztseg_common::value::WORKLOAD_HOST_SIDE;

use crate::flow::Flow;
use crate::maps::{SOCKETS, control};
use crate::skb::{LISTEN, Skb, Sock};
use crate::translation::ztseg_sender;
use crate::{claim, workload};

/// `BPF_F_CURRENT_NETNS`
const CURRENT_NETNS: u64 = u64::MAX;

/// Sets the peer's classes by its address. The first step; what is known better then replaces them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_by_address(flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let peer = flow.policy().peer(flow.remote());
    flow.address = peer.address;
    flow.identity = peer.identity;
    1
}

/// Finds the peer's workload, on this host or behind one of its interfaces, and sets it and its
/// identity class in the flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_peer(skb: *mut __sk_buff, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let Some(control) = control() else { return 0 };
    let policy = flow.policy();
    let before = flow.peer;
    flow.peer = 0;
    // Packets between local addresses always travel on the loopback device, and the kernel drops
    // what arrives elsewhere with a local source: only here can the peer's socket be trusted.
    if flow.is_loopback() && matches!(flow.packet.protocol, proto::TCP | proto::UDP) {
        let mut local = local_socket(skb, flow);
        // Who asked may have been translated on its way, so that its socket has other ends.
        // And who sent this may have a socket that is connected elsewhere.
        let may_be_noted = if flow.is_outbound() {
            !flow.is_initiator()
        } else {
            !matches!(local, Local::Workload(_))
        };
        if may_be_noted {
            let sender = ztseg_sender(flow, u32::from(flow.is_outbound()));
            if sender != 0 {
                local = Local::Workload(sender);
            }
        }
        match local {
            Local::Workload(key) => {
                if let Some(workload) = policy.workload(key) {
                    flow.peer = key;
                    flow.identity = workload.identity;
                }
            }
            Local::Nobody if flow.is_outbound() && (flow.is_initiator() || before == 0) => {
                flow.identity = IDENTITY_NOBODY;
            }
            // The peer's socket is gone (its last packets are still on the way): it is who it was.
            Local::Nobody if before != 0 => {
                if let Some(w) = policy.workload(before) {
                    flow.peer = before;
                    flow.identity = w.identity;
                }
            }
            // The kernel's answer where nobody listens, to a SYN that was judged as to nobody.
            Local::Nobody if flow.is_initiator() && flow.packet.tcp_flags & tcp::RST != 0 => {
                flow.identity = IDENTITY_NOBODY;
            }
            Local::Nobody | Local::Stranger => {}
        }
    } else if flow.netns != 0 && flow.netns == control.netns as u32 {
        // The device says more than an address can. Its index means something in the agent's
        // network namespace only, where the interface workloads are.
        let key = workload_interface(Skb::new(skb).ifindex());
        if let Some(workload) = policy.workload(key)
            && workload.flags & WORKLOAD_HOST_SIDE == 0
        {
            flow.peer = key;
            flow.identity = workload.identity;
        }
    }
    1
}

/// As [`ztseg_peer`], for interface workloads.
///
/// Towards the workload, the sender is a socket of this host or came in by another workload's
/// interface. From it, the routing table says where the packet goes: to a socket of this host, or
/// out of another workload's interface. Neither can be forged by an address.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_interface_peer(skb: *mut __sk_buff, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let policy = flow.policy();
    flow.peer = 0;
    let key = if flow.is_outbound() { receiver(skb, flow) } else { sender(skb, flow) };
    // What comes in by a network card, or leaves by it, is not the card's workload, which is this
    // host's side.
    if key != 0
        && let Some(workload) = policy.workload(key)
        && workload.flags & WORKLOAD_HOST_SIDE == 0
    {
        flow.peer = key;
        flow.identity = workload.identity;
    }
    1
}

/// The workload that sends this packet to an interface workload; zero: not known.
#[inline(always)]
fn sender(skb: *mut __sk_buff, flow: &Flow) -> WorkloadKey {
    let skb = Skb::new(skb);
    match skb.ingress_ifindex() {
        // Made on this host.
        0 => skb.socket().map_or(0, |sk| owner(sk, flow)),
        ifindex => workload_interface(ifindex),
    }
}

/// Where the routing table takes a packet.
pub enum Route {
    /// Out by this interface.
    Forwarded(u32),
    /// To this host, or to many.
    NotForwarded,
    /// Not known: no route, or the interface does not forward.
    Unknown,
}

/// Where the routing table takes a packet that comes in by the interface that `skb` is on.
#[inline(always)]
pub fn route(skb: *mut __sk_buff, from: &Addr, to: &Addr) -> Route {
    look_up_route(skb, from, to, 0)
}

/// Whether an address that is [`Route::NotForwarded`] is one of this host. The kernel says the same of
/// an address that no route leads to, as all those of machines behind a bridge on a host that has no
/// default route.
#[inline(always)]
pub fn is_of_this_host(skb: *mut __sk_buff, address: &Addr) -> bool {
    /// `BPF_FIB_LOOKUP_DIRECT`: in the main table alone.
    const MAIN_TABLE: u32 = 1;
    /// Nobody's and routed nowhere (RFC 7600 section 4.8): only a default route leads to it.
    const NOBODY: Addr = Addr::v4([192, 0, 0, 8]);
    // The main table has the link of this host's address, and not the address: that is in the local
    // table. IPv4 has both in one as long as there are no rules (`fib_trie_table`, net/ipv4). There a
    // default route says that all addresses have a route; without one it is left to the kernel, which
    // takes no packet with a source of its own (`fib_validate_source`, net/ipv4/fib_frontend.c).
    let (to, flags) = if address.is_v4() { (NOBODY, 0) } else { (*address, MAIN_TABLE) };
    let from = if address.is_v4() { Addr::v4([0; 4]) } else { Addr::UNSPECIFIED };
    matches!(look_up_route(skb, &from, &to, flags), Route::Forwarded(_))
}

#[inline(always)]
fn look_up_route(skb: *mut __sk_buff, from: &Addr, to: &Addr, flags: u32) -> Route {
    /// `BPF_FIB_LKUP_RET_SUCCESS`, `BPF_FIB_LKUP_RET_NOT_FWDED`
    const FORWARDED: i64 = 0;
    const NOT_FORWARDED: i64 = 4;
    /// `BPF_FIB_LKUP_RET_NO_NEIGH`: forwarded, but the neighbour is not resolved yet.
    const NO_NEIGHBOUR: i64 = 7;
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;

    // SAFETY: an all-zero struct of integers.
    let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    route.ifindex = Skb::new(skb).ifindex();
    if to.is_v4() {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = last_word(from);
        route.__bindgen_anon_4.ipv4_dst = last_word(to);
    } else {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = words(from);
        route.__bindgen_anon_4.ipv6_dst = words(to);
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the struct is initialised and its size is passed.
    match unsafe { bpf_fib_lookup_helper(skb.cast(), &raw mut route, size, flags) } {
        FORWARDED | NO_NEIGHBOUR => Route::Forwarded(route.ifindex),
        NOT_FORWARDED => Route::NotForwarded,
        _ => Route::Unknown,
    }
}

/// The workload that a packet of an interface workload goes to; zero: not known.
#[inline(always)]
fn receiver(skb: *mut __sk_buff, flow: &Flow) -> WorkloadKey {
    match route(skb, flow.local(), flow.remote()) {
        Route::Forwarded(ifindex) => workload_interface(ifindex),
        Route::NotForwarded if matches!(flow.packet.protocol, proto::TCP | proto::UDP) => {
            let from = (flow.local(), flow.local_port());
            let to = (flow.remote(), flow.remote_port());
            let Some(held) = Held::lookup(skb.cast(), flow.packet.protocol, from, to) else {
                return 0;
            };
            is_of_this_network(held.sock());
            let key = owner(held.sock(), flow);
            held.release();
            key
        }
        Route::NotForwarded | Route::Unknown => 0,
    }
}

/// Writes down where a socket is that is older than the agent: it was found from an interface, so in
/// the agent's network namespace. Its own hook sees the packet next, and can then tell by the
/// interface who it comes from.
#[inline(always)]
fn is_of_this_network(sk: Sock) {
    if let Some(state) = SOCKETS.get(sk.raw, true)
        && state.netns == 0
        && let Some(control) = control()
    {
        state.netns = control.netns;
        state.stamp = 0;
    }
}

/// The workload of a socket, as the cgroup programs wrote it down; zero: not known. (The ancestors
/// of a socket's cgroup cannot be asked for at TC.)
#[inline(always)]
fn owner(sk: Sock, flow: &Flow) -> WorkloadKey {
    let Some(state) = SOCKETS.get(sk.raw, false) else { return 0 };
    let own = state.cgroup;
    if own != 0 && flow.policy().workload(own).is_some() { own } else { state.workload }
}

/// Whether a socket listens at the subject's end of a TCP flow now. On the port of a connection that
/// was opened from here none can: the kernel gives such a port to one side only, unless both ask for
/// sharing it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_has_listener(skb: *mut __sk_buff, flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let nobody = if flow.local().is_v4() { Addr::v4([0; 4]) } else { Addr::UNSPECIFIED };
    let to = (flow.local(), flow.local_port());
    let Some(held) = Held::lookup(skb.cast(), proto::TCP, (&nobody, Port::default()), to) else {
        return 0;
    };
    let listens = held.sock().state() == LISTEN;
    held.release();
    u32::from(listens)
}

enum Local {
    Workload(WorkloadKey),
    /// A socket outside the cgroup root, or one that did not send this.
    Stranger,
    Nobody,
}

#[inline(always)]
fn local_socket(skb: *mut __sk_buff, flow: &Flow) -> Local {
    // The tuple is a packet that goes to the socket: from our end to the peer's.
    let Some(owner) = Owner::of(skb, flow, TO_PEER | WITH_STATE) else { return Local::Nobody };
    // The sender of a TCP segment is a connected socket; a listener on its port is somebody else.
    if !flow.is_outbound() && flow.packet.protocol == proto::TCP && owner.flags & LISTENS != 0 {
        return Local::Nobody;
    }
    if owner.key != 0 && claim::has_sent(&owner, flow) {
        Local::Workload(owner.key)
    } else {
        Local::Stranger
    }
}

/// Whose socket was found, and what it knows of itself.
#[repr(C)]
#[derive(Default)]
pub struct Owner {
    /// The socket's workload; zero: it lies below none.
    pub key: WorkloadKey,
    /// The low half of the network namespace cookie, where it was asked for and is known.
    pub netns: u32,
    /// [`LISTENS`], [`HAS_FLOW`]
    pub flags: u32,
}

/// The socket listens.
const LISTENS: u32 = 1;
/// The socket has judged the flow at its egress hook.
pub const HAS_FLOW: u32 = 2;

/// The socket that a packet from the subject to its peer arrives at, or the other way round; with what
/// its state says.
pub const TO_PEER: u32 = 0;
pub const TO_SUBJECT: u32 = 1;
pub const WITH_STATE: u32 = 2;

impl Owner {
    /// `None`: there is no such socket in this network namespace. `which` is [`TO_PEER`] or
    /// [`TO_SUBJECT`], and [`WITH_STATE`].
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff, flow: &Flow, which: u32) -> Option<Self> {
        let mut owner = Self::default();
        (ztseg_owner(skb, flow, which, &raw mut owner) != 0).then_some(owner)
    }
}

/// [`Owner::of`]; zero for `None`. Verified once for all who ask: the way through a socket's cgroups is
/// long, and the verifier follows it for all that is known before.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_owner(
    skb: *mut __sk_buff,
    flow: *const Flow,
    which: u32,
    owner: *mut Owner,
) -> u32 {
    // SAFETY: the verifier checks that the caller's flow and owner are memory of these sizes.
    let (Some(flow), Some(owner)) = (unsafe { (flow.as_ref(), owner.as_mut()) }) else { return 0 };
    let Some(control) = control() else { return 0 };
    let (ours, theirs) = ((flow.local(), flow.local_port()), (flow.remote(), flow.remote_port()));
    let (from, to) = if which & TO_SUBJECT == 0 { (ours, theirs) } else { (theirs, ours) };
    let Some(held) = Held::lookup(skb.cast(), flow.packet.protocol, from, to) else { return 0 };
    if held.sock().state() == LISTEN {
        owner.flags = LISTENS;
    }
    if which & WITH_STATE != 0
        && let Some(state) = SOCKETS.get(held.sock().raw, false)
    {
        owner.netns = state.netns as u32;
        if state.stamp == flow.stamp
            && state.remote_port == flow.local_port()
            && state.remote == *flow.local()
        {
            owner.flags |= HAS_FLOW;
        }
    }
    if let Some(found) = workload::of_socket(control, flow.policy(), held.sock()) {
        owner.key = found.key;
    }
    held.release();
    1
}

/// A socket that a lookup took a reference on.
#[must_use = "the verifier refuses a program that does not release it"]
pub struct Held {
    sock: Sock,
}

impl Held {
    /// The socket that a packet between these ends would arrive at, in this network namespace.
    #[inline(always)]
    pub fn lookup(
        ctx: *mut core::ffi::c_void,
        protocol: u8,
        from: (&Addr, Port),
        to: (&Addr, Port),
    ) -> Option<Self> {
        // SAFETY: an all-zero union of integers.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let size = if to.0.is_v4() {
            let v4 = &mut tuple.__bindgen_anon_1;
            v4.ipv4.saddr = last_word(from.0);
            v4.ipv4.daddr = last_word(to.0);
            v4.ipv4.sport = u16::from_ne_bytes(from.1.octets);
            v4.ipv4.dport = u16::from_ne_bytes(to.1.octets);
            12
        } else {
            let v6 = &mut tuple.__bindgen_anon_1;
            v6.ipv6.saddr = words(from.0);
            v6.ipv6.daddr = words(to.0);
            v6.ipv6.sport = u16::from_ne_bytes(from.1.octets);
            v6.ipv6.dport = u16::from_ne_bytes(to.1.octets);
            36
        };
        let tuple = &raw mut tuple;
        // SAFETY: the tuple is initialised and `size` is that of its family.
        let sk = unsafe {
            if protocol == proto::TCP {
                bpf_sk_lookup_tcp(ctx, tuple, size, CURRENT_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(ctx, tuple, size, CURRENT_NETNS, 0)
            }
        };
        if sk.is_null() { None } else { Some(Self { sock: Sock { raw: sk } }) }
    }

    #[inline(always)]
    pub fn sock(&self) -> Sock {
        self.sock
    }

    #[inline(always)]
    pub fn release(self) {
        // SAFETY: the reference that `lookup` took; `self` is gone afterwards.
        unsafe { bpf_sk_release(self.sock.raw.cast()) };
    }
}

#[inline(always)]
fn words(addr: &Addr) -> [u32; 4] {
    let o = &addr.octets;
    [
        u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
        u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
        u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
        u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
    ]
}

#[inline(always)]
fn last_word(addr: &Addr) -> u32 {
    words(addr)[3]
}
