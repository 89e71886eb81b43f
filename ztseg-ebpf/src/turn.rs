//! Two versions of the programs at once, during an upgrade: one decides, the other stands back. Who
//! stands back does all it does otherwise (it judges, and keeps flows), so that it knows every flow
//! when its turn comes; but it drops, answers, counts and reports nothing.
//!
//! Whose turn it is, is one word for both versions, so that there is always one who decides. The maps
//! [`DECIDES`] and [`PARTY`] have the same layout in every version: a number of 32 bits.

use ztseg_common::verdict::Hook;

use crate::maps::{DECIDES, PARTY};

/// Whether another version decides at the cgroup hooks. A function of its own for its stack frame; not a
/// global one, since an entry point returns what it says, and the verifier wants to see that number.
#[inline(never)]
pub fn stands_back() -> bool {
    is_anothers()
}

/// As [`stands_back`], at interfaces. There is never another version beside this one where filters are
/// replaced in place, below kernel 6.6.
#[inline(always)]
pub fn stands_back_at_interface() -> bool {
    crate::is_beside() && stands_back()
}

/// As [`stands_back`], for a number of a [`Hook`]; for where there is no room for another frame.
#[inline(always)]
pub fn stands_back_at(hook: u8) -> bool {
    let interface = hook == Hook::TcFromWorkload as u8 || hook == Hook::TcToWorkload as u8;
    (!interface || crate::is_beside()) && is_anothers()
}

#[inline(always)]
fn is_anothers() -> bool {
    let (Some(decides), Some(own)) = (DECIDES.get(0), PARTY.get(0)) else { return false };
    // SAFETY: plain aligned words that the agent stores whole; volatile so that each is read once.
    let (decides, own) = unsafe {
        (core::ptr::read_volatile(&raw const *decides), core::ptr::read_volatile(&raw const *own))
    };
    decides != 0 && own != 0 && decides != own
}
