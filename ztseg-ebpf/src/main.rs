//! The kernel programs: entry points only. Each turns a verdict into its hook's return code.
//!
//! * [`socket`] judges TCP and connected UDP at the cgroup hooks, with the state in the socket
//! * [`table`] judges everything else, with the state in the flow table
//! * [`fragments`] lets later fragments follow their first one
//! * [`flows`] are the tables, with each workload's share of them
//! * [`judge`] decides for a flow that has no valid verdict yet
//! * [`claim`] holds what packets say of themselves against what the kernel knows
//! * [`translation`] tells the real ends of what this host translates
//! * [`syscall`] gives early answers at `connect` and `sendmsg`
//! * [`packet_socket`] refuses packet sockets, which no other hook sees
//! * [`reject`] answers at TC where a rule asks for it
//! * [`interface`] is TC; [`plain`] is the short way for packets of known flows
//! * [`turn`] says whether another version of these programs decides meanwhile
//! * [`skb`], [`maps`], [`workload`], [`peer`] and [`emit`] are what they stand on
#![allow(missing_docs, reason = "the program macros make public functions without documentation")]
#![no_std]
#![no_main]
// The only way to an atomic addition on this target; see `maps::add`.
#![feature(asm_experimental_arch)]
#![expect(
    clippy::inline_always,
    reason = "each entry point is one program; the seams are the functions marked inline(never)"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the kernel hands over small numbers in wide registers"
)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key that is passed by value is copied on the stack, which is small"
)]
#![expect(
    clippy::needless_pass_by_value,
    clippy::trivially_copy_pass_by_ref,
    reason = "contexts come by value; the verifier follows a reference to the stack best as it is"
)]

mod claim;
mod denied;
mod emit;
mod flow;
mod flows;
mod fragments;
mod interface;
mod judge;
mod maps;
mod packet_socket;
mod peer;
mod plain;
mod policy;
mod reject;
mod skb;
mod socket;
mod syscall;
mod table;
mod translation;
mod turn;
mod workload;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier, lsm_cgroup};
use aya_ebpf::programs::{LsmContext, SkBuffContext, SockAddrContext, SockContext, TcContext};
use ztseg_common::verdict::{Hook, Verdict};

use crate::interface::{ETHERNET, Fate, RAW_IP};
use crate::skb::Skb;

const CGROUP_DENY: i32 = 0;
const CGROUP_ALLOW: i32 = 1;
/// `TC_ACT_UNSPEC`: go on with the next program of the hook.
const TC_NEXT: i32 = -1;
/// `TC_ACT_SHOT`
const TC_DROP: i32 = 2;
/// `TC_ACT_REDIRECT`
const TC_REDIRECT: i32 = 7;

#[inline(always)]
fn cgroup(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allow => CGROUP_ALLOW,
        Verdict::Deny if turn::stands_back() => CGROUP_ALLOW,
        Verdict::Deny => CGROUP_DENY,
    }
}

#[inline(always)]
fn tc(fate: Fate) -> i32 {
    match fate {
        Fate::Passes => TC_NEXT,
        Fate::Dropped if turn::stands_back_at_interface() => TC_NEXT,
        Fate::Dropped => TC_DROP,
        Fate::AnsweredOut | Fate::AnsweredIn => TC_REDIRECT,
    }
}

#[cgroup_sock(sock_create)]
fn ztseg_create(ctx: SockContext) -> i32 {
    socket::created(ctx.sock);
    CGROUP_ALLOW
}

#[cgroup_sock_addr(connect4)]
fn ztseg_connect4(ctx: SockAddrContext) -> i32 {
    cgroup(syscall::connect(ctx.sock_addr, Hook::Connect4))
}

#[cgroup_sock_addr(connect6)]
fn ztseg_connect6(ctx: SockAddrContext) -> i32 {
    cgroup(syscall::connect(ctx.sock_addr, Hook::Connect6))
}

#[cgroup_sock_addr(sendmsg4)]
fn ztseg_sendmsg4(ctx: SockAddrContext) -> i32 {
    cgroup(syscall::sendmsg(ctx.sock_addr, Hook::Sendmsg4))
}

#[cgroup_sock_addr(sendmsg6)]
fn ztseg_sendmsg6(ctx: SockAddrContext) -> i32 {
    cgroup(syscall::sendmsg(ctx.sock_addr, Hook::Sendmsg6))
}

#[cgroup_skb(ingress)]
fn ztseg_ingress(ctx: SkBuffContext) -> i32 {
    cgroup(socket::packet(&Skb::new(ctx.skb.skb), Hook::CgroupIngress))
}

#[cgroup_skb(egress)]
fn ztseg_egress(ctx: SkBuffContext) -> i32 {
    cgroup(socket::packet(&Skb::new(ctx.skb.skb), Hook::CgroupEgress))
}

/// Zero is EPERM to the caller here, too (`__cgroup_bpf_run_lsm_current`, kernel/bpf/cgroup.c).
#[lsm_cgroup(hook = "socket_create")]
fn ztseg_packet(ctx: LsmContext) -> i32 {
    cgroup(packet_socket::create(&ctx))
}

#[classifier]
fn ztseg_tc_from(ctx: TcContext) -> i32 {
    tc(interface::packet::<ETHERNET>(&Skb::new(ctx.skb.skb), Hook::TcFromWorkload))
}

#[classifier]
fn ztseg_tc_to(ctx: TcContext) -> i32 {
    tc(interface::packet::<ETHERNET>(&Skb::new(ctx.skb.skb), Hook::TcToWorkload))
}

#[classifier]
fn ztseg_ip_from(ctx: TcContext) -> i32 {
    tc(interface::packet::<RAW_IP>(&Skb::new(ctx.skb.skb), Hook::TcFromWorkload))
}

#[classifier]
fn ztseg_ip_to(ctx: TcContext) -> i32 {
    tc(interface::packet::<RAW_IP>(&Skb::new(ctx.skb.skb), Hook::TcToWorkload))
}

/// Run by the agent, attached nowhere.
#[classifier]
fn ztseg_sweep(ctx: TcContext) -> i32 {
    flows::sweep(ctx.skb.skb)
}

/// Set by the loader to write debug lines; a constant in the kernel, so that the verifier removes
/// them where it is zero.
#[unsafe(no_mangle)]
static DEBUG: u8 = 0;

/// Whether debug lines are asked for.
#[inline(always)]
fn debug() -> bool {
    // SAFETY: a plain read; volatile because the loader sets the value after compilation.
    unsafe { core::ptr::read_volatile(&raw const DEBUG) != 0 }
}

/// Set by the loader where programs of several versions can be at one hook of an interface (TCX); a
/// constant in the kernel, too.
#[unsafe(no_mangle)]
static BESIDE: u8 = 0;

/// Whether another version may be at the same hook of an interface.
#[inline(always)]
fn is_beside() -> bool {
    // SAFETY: as in `debug`.
    unsafe { core::ptr::read_volatile(&raw const BESIDE) != 0 }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
