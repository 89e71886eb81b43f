//! The maps of one generation, as the evaluator reads them.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use ztseg_common::addr::Addr;
use ztseg_common::eval::{self, Best, Lookup, Outcome};
use ztseg_common::key::{EntryKey, PORTS_PER_CHUNK};
use ztseg_common::value::{Entry, Fallback, Peer, Rule, Subject, Workload};
use ztseg_common::verdict::{Reason, Verdict};

use crate::maps::{
    ENTRIES, FALLBACKS, HOSTS, PORTS, PREFIXES, RULES, SUBJECTS, TrieKey, WORKLOADS, Workloads, add,
};

/// One of the two slots.
#[derive(Clone, Copy)]
pub struct Policy {
    slot: u32,
}

impl Policy {
    /// The generation of a stamp.
    #[inline(always)]
    pub fn of(stamp: u64) -> Self {
        Self { slot: ztseg_common::value::slot(stamp) }
    }

    #[inline(always)]
    pub fn workload(self, key: u64) -> Option<Workload> {
        // SAFETY: a copy of plain words; the agent replaces values whole.
        unsafe { self.workloads()?.get(key).copied() }
    }

    /// The workloads by their keys.
    #[inline(always)]
    pub fn workloads(self) -> Option<&'static Workloads> {
        WORKLOADS.get(self.slot)
    }

    /// What the policy knows of an address: the exact host, else the longest prefix.
    #[inline(always)]
    pub fn peer(self, addr: &Addr) -> Peer {
        // A key must lie on the stack: kernels before 6.2 take none from a subprogram's argument.
        let key = TrieKey::new(128, *addr);
        if let Some(hosts) = HOSTS.get(self.slot) {
            // SAFETY: a copy of plain words; the agent replaces values whole.
            if let Some(peer) = unsafe { hosts.get(*addr) } {
                return *peer;
            }
        }
        let found = PREFIXES.get(self.slot).and_then(|trie| trie.get(&key));
        found.copied().unwrap_or(Peer::UNKNOWN)
    }

    /// Whether a rule that expires has ended; one that is not there has.
    #[inline(always)]
    pub fn is_over(self, rank: u32) -> bool {
        match RULES.get_value(self.slot, &rank) {
            Some(rule) => rule.is_over(self.now()),
            None => true,
        }
    }

    /// Counts a decision of a rule.
    #[inline(always)]
    pub fn hit(self, rank: u32) {
        if let Some(rule) = RULES.get_value_ptr_mut(self.slot, &rank) {
            // SAFETY: a valid pointer from the lookup; only the field's address is taken.
            add(Some(unsafe { &raw mut (*rule).hits }), 1);
        }
    }
}

impl Lookup for Policy {
    #[inline(always)]
    fn subject(&self, class: u32) -> Option<Subject> {
        SUBJECTS.get_value(self.slot, &class).copied()
    }

    #[inline(always)]
    fn port_class(&self, slot: u32) -> u16 {
        let chunk = slot / PORTS_PER_CHUNK as u32;
        match PORTS.get_value(self.slot, &chunk) {
            Some(chunk) => chunk.classes[slot as usize % PORTS_PER_CHUNK],
            None => 0,
        }
    }

    #[inline(always)]
    fn entry(&self, key: &EntryKey) -> Option<&Entry> {
        // SAFETY: entries of a generation never change while it is in force.
        unsafe { ENTRIES.get(self.slot)?.get(key) }
    }

    #[inline(always)]
    fn rule(&self, rank: u32) -> Option<&Rule> {
        RULES.get_value(self.slot, &rank)
    }

    #[inline(always)]
    fn fallback(&self, index: u32) -> Option<Fallback> {
        FALLBACKS.get_value(self.slot, &index).copied()
    }

    /// The clock that goes on while the machine sleeps, and that nobody sets.
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a plain helper call.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn alive(&self, rank: u32) -> u32 {
        ztseg_alive(self.slot, rank)
    }

    #[inline(always)]
    fn look(&self, best: &mut Best, shape: u32) {
        ztseg_look(self.slot, best, shape);
    }

    #[inline(always)]
    fn outcome(&self, best: &Best, shadow: bool, isolated: bool) -> Outcome {
        let mut end = 0;
        let bits = ztseg_outcome(self.slot, best, shadow.into(), isolated.into(), &raw mut end);
        let [_, _, _, _, reason, allow, ..] = bits.to_le_bytes();
        Outcome {
            verdict: if allow != 0 { Verdict::Allow } else { Verdict::Deny },
            reason: Reason::from_u8(reason).unwrap_or(Reason::NotInitialised),
            rank: bits as u32,
            end,
        }
    }
}

/// [`Lookup::alive`], verified once on its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_alive(slot: u32, rank: u32) -> u32 {
    eval::alive(&Policy { slot }, rank)
}

/// [`Lookup::look`], likewise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_look(slot: u32, best: *mut Best, shape: u32) -> u32 {
    // SAFETY: the verifier checks that the caller's ranks are memory of this size.
    let Some(best) = (unsafe { best.as_mut() }) else { return 0 };
    best.look(&Policy { slot }, shape);
    1
}

/// [`Lookup::outcome`], likewise: its end in `end`, the rest in one number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_outcome(
    slot: u32,
    best: *const Best,
    shadow: u32,
    isolated: u32,
    end: *mut u64,
) -> u64 {
    // SAFETY: the verifier checks that what the caller gives is memory of these sizes.
    let (Some(best), Some(end)) = (unsafe { (best.as_ref(), end.as_mut()) }) else { return 0 };
    let outcome = best.outcome(&Policy { slot }, shadow != 0, isolated != 0);
    *end = outcome.end;
    let allow = u64::from(outcome.verdict == Verdict::Allow);
    allow << 40 | u64::from(outcome.reason as u8) << 32 | u64::from(outcome.rank)
}
