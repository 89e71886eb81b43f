//! The cgroup hooks. TCP and connected UDP keep their verdict in the socket.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_get_netns_cookie,
    bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use ztseg_common::addr::{Addr, proto};
use ztseg_common::eval::Decision;
use ztseg_common::event::Counter;
use ztseg_common::key::scope;
use ztseg_common::packet::tcp;
use ztseg_common::state::{
    Role, SOCKET_CREATED, SOCKET_EXPIRES, SOCKET_LISTENED, SOCKET_TCP, SocketState,
};
use ztseg_common::value::Control;
use ztseg_common::verdict::{Hook, Reason, Verdict};

use crate::flow::Flow;
use crate::judge::{Outcome, judge, report};
use crate::maps::{self, SOCKETS, count};
use crate::peer::ztseg_has_listener;
use crate::plain::{self, Answer, Sight};
use crate::policy::Policy;
use crate::skb::{LISTEN, SYN_SENT, Skb, Sock};
use crate::{claim, flows, fragments, skb, table, translation, workload};

/// Index of the loopback device in every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// `sock_create`: who makes this socket, and where.
#[inline(always)]
pub fn created(sk: *mut bpf_sock) {
    let Some(state) = SOCKETS.get(sk, true) else {
        count(Counter::SocketsWithoutState);
        return;
    };
    // SAFETY: plain helper calls; the socket is the context of this program.
    unsafe {
        state.cgroup = bpf_get_current_cgroup_id();
        state.netns = bpf_get_netns_cookie(sk.cast());
        {
            state.uid = bpf_get_current_uid_gid() as u32;
        }
    }
    let tcp = if (Sock { raw: sk }).is_tcp() { SOCKET_TCP } else { 0 };
    state.flags = SOCKET_CREATED | tcp;
    if let Some(control) = maps::control() {
        let stamp = maps::stamp(control);
        if let Some(found) = workload::of_task(control, Policy::of(stamp)) {
            state.workload = found.key;
            state.workload_stamp = stamp;
        }
    }
}

/// `connect`: whatever the socket was judged for is over. It may have been accepted, disconnected
/// (`AF_UNSPEC`) and be on its way to the one that it was accepted from.
#[inline(always)]
pub fn reconnected(sk: *mut bpf_sock) {
    if let Some(state) = SOCKETS.get(sk, false) {
        state.stamp = 0;
        state.role = 0;
        state.flags &= !SOCKET_LISTENED;
    }
}

/// Judges a packet that a socket sends or receives.
#[inline(always)]
pub fn packet(skb: &Skb, hook: Hook) -> Verdict {
    let Some(control) = maps::control() else { return Verdict::Deny };
    let stamp = maps::stamp(control);
    let outbound = matches!(hook, Hook::CgroupEgress);
    if let Some(sk) = skb.common_socket()
        && let Some(state) = SOCKETS.get(sk.raw, false)
    {
        let judged = is_judged(state, stamp) && state.verdict == Verdict::Allow as u8;
        if state.flags & SOCKET_TCP != 0 {
            if judged
                && state.remote_port == sk.remote_port()
                && sk.has_remote(&state.remote)
                && sk.state() != LISTEN
            {
                // All packets are of one flow, and the socket knows its ends: nothing to parse.
                account(state, skb.len(), outbound);
                return Verdict::Allow;
            }
        } else if state.workload_stamp == stamp
            && claim::needs_no_second_look(skb)
            && known_datagram(skb, state, judged, control, outbound)
        {
            return Verdict::Allow;
        }
    }
    long_way(skb, hook, stamp)
}

/// Whether the socket's verdict still holds.
#[inline(always)]
fn is_judged(state: &SocketState, stamp: u64) -> bool {
    state.stamp == stamp
        && (state.flags & SOCKET_EXPIRES == 0 || !Policy::of(stamp).is_over(state.rule))
}

/// Sets whether the socket's verdict ends with its rule.
#[inline(always)]
fn set_expiry(state: &mut SocketState, expires: bool) {
    let flag = if expires { SOCKET_EXPIRES } else { 0 };
    state.flags = state.flags & !SOCKET_EXPIRES | flag;
}

/// Whether the socket, which `judged` says has a valid verdict, or the table has a datagram's flow. A
/// function of its own for its stack frame.
#[inline(never)]
fn known_datagram(
    skb: &Skb,
    state: &mut SocketState,
    judged: bool,
    control: &Control,
    outbound: bool,
) -> bool {
    if judged {
        let bytes = plain::is_of_connection(skb, state, outbound);
        if bytes != 0 {
            account(state, u32::from(bytes), outbound);
            return true;
        }
    }
    let (stamp, scope, netns) = (state.workload_stamp, scope(state.workload), state.netns as u32);
    plain::answer(skb, 0, Sight { control, stamp, scope, netns, outbound }) == Answer::Allow
}

#[inline(always)]
fn long_way(skb: &Skb, hook: Hook, stamp: u64) -> Verdict {
    // The hook runs for full sockets only (kernel/bpf/cgroup.c, __cgroup_bpf_run_filter_skb).
    let Some(sk) = skb.socket() else { return Verdict::Deny };
    if sk.is_tcp() {
        return tcp_packet(skb, sk, hook, stamp);
    }
    let is_copy = matches!(hook, Hook::CgroupIngress) && skb.pkt_type() == skb::COPY;
    if is_copy && claim::is_denied_copy(skb, stamp) {
        return Verdict::Deny;
    }
    datagram(skb, sk, hook, stamp)
}

#[inline(always)]
fn account(state: &mut SocketState, bytes: u32, outbound: bool) {
    let bytes = u64::from(bytes);
    if outbound {
        state.traffic.tx_packets += 1;
        state.traffic.tx_bytes += bytes;
    } else {
        state.traffic.rx_packets += 1;
        state.traffic.rx_bytes += bytes;
    }
}

/// Sets the subject of a flow: the workload of the socket. False: the socket lies below no workload,
/// which cannot be, since the cgroup root is one.
#[inline(always)]
fn subject(skb: &Skb, sk: Sock, flow: &mut Flow) -> bool {
    flow.loopback = u8::from(skb.ifindex() == LOOPBACK);
    // SAFETY: a plain helper call on the context.
    flow.cgroup = unsafe { bpf_skb_cgroup_id(skb.raw) };
    if let Some(state) = SOCKETS.get(sk.raw, false) {
        {
            flow.netns = state.netns as u32;
        }
        if state.workload_stamp == flow.stamp {
            flow.workload = state.workload;
            return true;
        }
    }
    if workload::ztseg_workload(skb.raw, flow) == 0 {
        return false;
    }
    if let Some(state) = SOCKETS.get(sk.raw, false) {
        if state.workload_stamp != 0 && state.workload != flow.workload {
            state.former = state.workload;
        }
        state.workload = flow.workload;
        state.workload_stamp = flow.stamp;
    }
    true
}

/// Judges a TCP packet whose socket has no valid verdict.
#[inline(never)]
fn tcp_packet(skb: &Skb, sk: Sock, hook: Hook, stamp: u64) -> Verdict {
    let mut flow = Flow::new(stamp, hook);
    if !subject(skb, sk, &mut flow) {
        return Verdict::Deny;
    }
    if let Some(reason) =
        Reason::from_u8(skb::ztseg_parse_socket(skb.raw, &raw mut flow.packet) as u8)
    {
        return table::unreadable(skb, &mut flow, reason);
    }
    flow.packet.protocol = proto::TCP;
    let asks = flow.is_outbound()
        && translation::ztseg_translation(skb.raw, &raw mut flow) == translation::ASKS;
    let Some(state) = SOCKETS.get(sk.raw, true) else {
        // No memory for the state (a workload can use up its own): every packet is judged.
        count(Counter::SocketsWithoutState);
        flow.role = role_of_packet(sk, &flow) as u8;
        return judge::<false>(skb.raw, &mut flow).verdict();
    };
    let tcp_state = sk.state();
    if tcp_state == LISTEN {
        // A handshake: each of its packets is judged afresh. The child inherits the flag.
        state.flags |= SOCKET_LISTENED;
        state.stamp = 0;
        // What it was in another life is not what its children are.
        state.role = 0;
        flow.role = Role::Responder as u8;
        flow.set_local_port(sk.local_port());
        return judge::<false>(skb.raw, &mut flow).verdict();
    }
    let known = sk.has_remote(&state.remote) && state.remote_port == sk.remote_port();
    if known && is_judged(state, stamp) {
        // Denied before, by the policy that is still in force.
        flow.keep_role(state.role);
        flow.peer = state.peer;
        report(skb.raw, &flow, Outcome::denied(state.reason, state.rule));
        return Verdict::Deny;
    }
    if !known {
        state.wire_remote = Addr::UNSPECIFIED;
        state.peer = 0;
        state.role = 0;
    }
    let certain = settle_role(skb, state, tcp_state, &mut flow);
    flow.peer = state.peer;
    if !flow.is_initiator() {
        flow.set_local_port(sk.local_port());
        flow.set_remote(sk.remote(), sk.remote_port());
    } else if flow.is_outbound() {
        // Where this host translates after the socket, only the packets that leave show the real
        // peer; keep it for when the flow is judged again by a packet that arrives.
        state.wire_remote = flow.packet.dst;
        state.wire_port = flow.packet.dst_port;
    } else if state.wire_remote != Addr::UNSPECIFIED {
        flow.set_remote(state.wire_remote, state.wire_port);
    }
    let before = flow.peer;
    let mut outcome = judge::<false>(skb.raw, &mut flow);
    if !certain && outcome.verdict() == Verdict::Deny {
        flow.swap_role();
        flow.peer = before;
        outcome = judge::<false>(skb.raw, &mut flow);
    }
    if asks && outcome.verdict() == Verdict::Allow {
        translation::note_sender(&flow, true);
    }
    let Some(state) = SOCKETS.get(sk.raw, false) else { return outcome.verdict() };
    account(state, skb.len(), flow.is_outbound());
    state.role = flow.role;
    state.peer = flow.peer;
    state.remote = sk.remote();
    state.remote_port = sk.remote_port();
    state.local_port = sk.local_port();
    state.flags |= SOCKET_TCP;
    set_expiry(state, outcome.expires());
    state.verdict = outcome.verdict() as u8;
    state.reason = outcome.reason();
    state.rule = outcome.rule();
    state.stamp = if outcome.keep() { stamp } else { 0 };
    outcome.verdict()
}

/// Which end the socket is. False: not certain, because the socket is older than the agent and its
/// port has no listener (any more).
#[inline(always)]
fn settle_role(skb: &Skb, state: &mut SocketState, tcp_state: u32, flow: &mut Flow) -> bool {
    if tcp_state == SYN_SENT {
        // It may have been a listener once.
        state.flags &= !SOCKET_LISTENED;
        flow.role = Role::Initiator as u8;
        return true;
    }
    if state.role != 0 {
        flow.role = state.role;
        return true;
    }
    if state.flags & SOCKET_LISTENED != 0 {
        flow.role = Role::Responder as u8;
        return true;
    }
    // Made and connected under our eyes: what was accepted is marked as such.
    flow.role = Role::Initiator as u8;
    if state.flags & SOCKET_CREATED != 0 {
        return true;
    }
    // Older than the agent. A server's replies must never look like flows that it opens.
    if ztseg_has_listener(skb.raw, &raw const *flow) != 0 {
        flow.role = Role::Responder as u8;
        return true;
    }
    false
}

/// The role without a socket state: from the packet alone.
#[inline(always)]
fn role_of_packet(sk: Sock, flow: &Flow) -> Role {
    let syn = flow.packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    match sk.state() {
        LISTEN => Role::Responder,
        SYN_SENT => Role::Initiator,
        _ if syn && !flow.is_outbound() => Role::Responder,
        _ => Role::Initiator,
    }
}

/// Judges a packet of any socket but TCP, with the state in the flow table. Of a connected UDP socket
/// the verdict is kept in the socket, too.
#[inline(never)]
fn datagram(skb: &Skb, sk: Sock, hook: Hook, stamp: u64) -> Verdict {
    let mut flow = Flow::new(stamp, hook);
    let failure = skb::ztseg_parse_socket(skb.raw, &raw mut flow.packet) as u8;
    if kernel_made(skb, sk) {
        return Verdict::Allow;
    }
    if !subject(skb, sk, &mut flow) {
        return Verdict::Deny;
    }
    if let Some(reason) = Reason::from_u8(failure) {
        return table::unreadable(skb, &mut flow, reason);
    }
    if !claim::is_what_it_is_carried_as(skb, &flow.packet) {
        return table::unreadable(skb, &mut flow, Reason::Malformed);
    }
    // From here on, only a raw socket sends fragments: the kernel makes its own behind this hook.
    if flow.packet.is_later_fragment()
        && let Some(reason) = Reason::from_u8(fragments::follow(&mut flow))
    {
        return table::unreadable(skb, &mut flow, reason);
    }
    let mut asks = false;
    if flow.is_outbound() {
        let what = translation::ztseg_translation(skb.raw, &raw mut flow);
        asks = what == translation::ASKS;
    } else {
        translation::answered(skb.raw, &mut flow);
    }
    // Another source than the socket's is the translation's work.
    if (!asks || sk.is_raw()) && claim::has_borrowed_source(skb, sk, &flow) {
        let decision = Decision::fixed(Verdict::Deny, Reason::BorrowedSource);
        report(skb.raw, &flow, Outcome::new(&decision));
        return Verdict::Deny;
    }
    inherit(sk, &mut flow);
    let outcome = match table::special::<false>(skb.raw, &mut flow) {
        Some(verdict) => Outcome::once(verdict),
        None => table::packet::<false>(skb.raw, &mut flow, true),
    };
    if outcome.verdict() == Verdict::Deny {
        return Verdict::Deny;
    }
    fragments::ztseg_remember_fragment(&raw const flow);
    let hidden = asks || claim::is_connected_elsewhere(sk, &flow.packet);
    translation::note_sender(&flow, hidden);
    if asks {
        if flow.packet.protocol == proto::UDP {
            translation::ztseg_keep_mapping(skb.raw, &raw mut flow);
        }
        return Verdict::Allow;
    }
    if outcome.keep()
        && flow.packet.protocol == proto::UDP
        && sk.is_connected_udp()
        && let Some(state) = SOCKETS.get(sk.raw, false)
    {
        // The flow is in the table, with its role; this is the short way to the same verdict.
        state.remote = *flow.remote();
        state.remote_port = flow.remote_port();
        state.local_port = flow.local_port();
        state.verdict = Verdict::Allow as u8;
        state.role = flow.role;
        state.peer = flow.peer;
        state.rule = outcome.rule();
        set_expiry(state, outcome.expires());
        state.stamp = stamp;
    }
    Verdict::Allow
}

/// Takes over a flow that the table has under the workload that the socket belonged to before: who
/// opened it, and no verdict.
#[inline(always)]
fn inherit(sk: Sock, flow: &mut Flow) {
    let former = SOCKETS.get(sk.raw, false).map_or(0, |state| state.former);
    if former == 0 {
        return;
    }
    let role = flows::ztseg_former_role(flow, former) as u8;
    if role != 0 {
        flow.role = role;
        flows::ztseg_insert(flow, Outcome::once(Verdict::Allow).bits());
    }
}

/// Whether the kernel made this packet itself (a reset for a closed port, an echo reply): its
/// control sockets lie in the root cgroup and were never made by `socket(2)`.
#[inline(always)]
fn kernel_made(skb: &Skb, sk: Sock) -> bool {
    sk.is_idle_raw()
        && SOCKETS.get(sk.raw, false).is_none_or(|s| s.flags & SOCKET_CREATED == 0)
        // SAFETY: a plain helper call on the context.
        && unsafe { bpf_skb_ancestor_cgroup_id(skb.raw, 1) } == 0
}
