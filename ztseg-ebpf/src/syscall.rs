//! Early answers at `connect` and `sendmsg`: the application gets EPERM at once instead of a
//! timeout, and the event names the process.
//!
//! They are given only where the packet hook would deny, too: in the agent's own network namespace
//! while nothing there can touch what is sent, for sockets whose maker is known, that are
//! still used in the cgroup they were made in, and that cannot be answering. Everything else is left
//! to the packet.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie};
use ztseg_common::addr::{Addr, Port, proto};
use ztseg_common::key::IDENTITY_NOBODY;
use ztseg_common::state::SOCKET_CREATED;
use ztseg_common::value::CONTROL_FAR_INTERFACES;
use ztseg_common::verdict::{Hook, Verdict};

use crate::emit::ztseg_report_call;
use crate::flow::Flow;
use crate::judge::{Outcome, ztseg_decide};
use crate::maps::{self, SOCKETS};
use crate::peer::{Held, ztseg_by_address};
use crate::policy::Policy;
use crate::skb::{Sock, addr_of_words};
use crate::{socket, translation, workload};

macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: a field of the context, valid while the program runs; volatile so that the
        // compiler does not merge reads, which the verifier would refuse.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx).$($field)+) }
    };
}

/// At `connect`.
#[inline(always)]
pub fn connect(ctx: *mut bpf_sock_addr, hook: Hook) -> Verdict {
    let sk = read!(ctx, __bindgen_anon_1.sk);
    if !sk.is_null() {
        socket::reconnected(sk);
    }
    sendmsg(ctx, hook)
}

/// At `sendmsg`.
#[inline(always)]
pub fn sendmsg(ctx: *mut bpf_sock_addr, hook: Hook) -> Verdict {
    note_place(ctx);
    early_answer(ctx, hook)
}

/// Writes down where a socket is that nothing is known of. Such a one is older than the agent, and has
/// had neither a port nor a peer by which the agent could have found it: it has no flow yet. Its packet
/// needs to know whether the interface that it leaves by is one of the agent's.
#[inline(always)]
fn note_place(ctx: *mut bpf_sock_addr) {
    let sk = read!(ctx, __bindgen_anon_1.sk);
    if sk.is_null() || SOCKETS.get(sk, false).is_some() {
        return;
    }
    if let Some(state) = SOCKETS.get(sk, true) {
        // SAFETY: a plain helper call on the context.
        state.netns = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    }
}

/// Denies what the packet hook would deny for certain.
#[inline(always)]
fn early_answer(ctx: *mut bpf_sock_addr, hook: Hook) -> Verdict {
    let Some(control) = maps::control() else { return Verdict::Allow };
    let protocol = read!(ctx, protocol) as u8;
    if !matches!(protocol, proto::TCP | proto::UDP) {
        return Verdict::Allow;
    }
    let remote = if matches!(hook, Hook::Connect4 | Hook::Sendmsg4) {
        Addr::v4(read!(ctx, user_ip4).to_ne_bytes())
    } else {
        addr_of_words([
            read!(ctx, user_ip6[0]),
            read!(ctx, user_ip6[1]),
            read!(ctx, user_ip6[2]),
            read!(ctx, user_ip6[3]),
        ])
    };
    let remote_port = Port { octets: (read!(ctx, user_port) as u16).to_ne_bytes() };
    // The wildcard address means this host; which of its addresses is not known yet.
    if remote == Addr::UNSPECIFIED || remote == Addr::v4([0; 4]) {
        return Verdict::Allow;
    }
    let sk = read!(ctx, __bindgen_anon_1.sk);
    if sk.is_null() {
        return Verdict::Allow;
    }
    let Some(state) = SOCKETS.get(sk, false) else { return Verdict::Allow };
    // SAFETY: a plain helper call.
    let here = unsafe { bpf_get_current_cgroup_id() };
    if state.flags & SOCKET_CREATED == 0 || state.netns != control.netns || state.cgroup != here {
        return Verdict::Allow;
    }
    let stamp = maps::stamp(control);
    // A bound UDP socket may be answering; who opened the flow is in the flow table, under a local
    // address that only the packet has. TCP connects to open.
    if protocol == proto::UDP && (Sock { raw: sk }).local_port() != Port::default() {
        return Verdict::Allow;
    }
    let Some(found) = workload::of_task(control, Policy::of(stamp)) else {
        return Verdict::Allow;
    };
    let mut flow = Flow::new(stamp, hook);
    flow.workload = found.key;
    flow.cgroup = here;
    flow.packet.dst = remote;
    flow.packet.dst_port = remote_port;
    flow.packet.protocol = protocol;
    flow.subject = found.workload.subject;
    flow.loopback = u8::from(remote.is_loopback());
    if !flow.is_loopback() && control.flags & CONTROL_FAR_INTERFACES != 0 {
        return Verdict::Allow;
    }
    let denial = certain_denial(ctx, &mut flow);
    // Last, since it is denied only then.
    if denial != 0 && translation::ztseg_may_be_rewritten(ctx, u32::from(remote.is_v4())) == 0 {
        ztseg_report_call(&raw const flow, denial);
        return Verdict::Deny;
    }
    Verdict::Allow
}

/// The denial that the packet hook would give for certain ([`Outcome::bits`]); zero for none.
#[inline(always)]
fn certain_denial(ctx: *mut bpf_sock_addr, flow: &mut Flow) -> u64 {
    let asked = ztseg_asked(ctx, flow);
    if asked == UNKNOWN {
        return 0;
    }
    let denial = ztseg_decide(flow);
    if Outcome::from_bits(denial).verdict() == Verdict::Allow {
        return 0;
    }
    // An address that is not on the loopback device may still be one of this host's own: where
    // nobody listens, or the socket that was found. Then that must be denied, too.
    if !flow.is_loopback() {
        let by_address = flow.identity;
        flow.identity = if asked == NOBODY { IDENTITY_NOBODY } else { flow.other_identity };
        if Outcome::from_bits(ztseg_decide(flow)).verdict() == Verdict::Allow {
            return 0;
        }
        flow.identity = by_address;
    }
    denial
}

/// Results of [`ztseg_asked`].
const UNKNOWN: u32 = 0;
const SOMEBODY: u32 = 1;
const NOBODY: u32 = 2;

/// Finds out who would be asked, and sets the peer's classes: [`UNKNOWN`] where only the packet
/// will show.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_asked(ctx: *mut bpf_sock_addr, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return UNKNOWN };
    ztseg_by_address(flow);
    let policy = flow.policy();
    let from = if flow.remote().is_v4() { Addr::v4([0; 4]) } else { Addr::UNSPECIFIED };
    let to = (flow.remote(), flow.remote_port());
    let Some(held) = Held::lookup(ctx.cast(), flow.packet.protocol, (&from, Port::default()), to)
    else {
        if flow.is_loopback() {
            flow.identity = IDENTITY_NOBODY;
        }
        return NOBODY;
    };
    let mut workload = 0;
    if let Some(theirs) = SOCKETS.get(held.sock().raw, false)
        && theirs.workload_stamp == flow.stamp
    {
        workload = theirs.workload;
    }
    held.release();
    // A socket whose workload is not known without the packet.
    if workload == 0 {
        return UNKNOWN;
    }
    let Some(theirs) = policy.workload(workload) else { return UNKNOWN };
    if flow.is_loopback() {
        flow.peer = workload;
        flow.identity = theirs.identity;
    } else {
        // It may listen on every address, while this is not one of ours at all. A workload always
        // reaches itself.
        if workload == flow.workload {
            return UNKNOWN;
        }
        flow.other_identity = theirs.identity;
    }
    SOMEBODY
}
