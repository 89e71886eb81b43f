//! The kernel programs of ztseg.
#![allow(missing_docs, reason = "the program macros make public functions without documentation")]
#![no_std]
#![no_main]

use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

/// Lets every packet out; the smallest program that proves the toolchain.
#[cgroup_skb]
fn ztseg_egress(_ctx: SkBuffContext) -> i32 {
    1
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
