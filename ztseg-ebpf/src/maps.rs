//! The maps. Sizes here are the smallest; the agent sets the real ones when it creates them.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use ztseg_common::addr::Addr;
use ztseg_common::event::Counter;
use ztseg_common::fragments::{FragmentKey, FragmentState};
use ztseg_common::key::{EntryKey, FlowKey4, FlowKey6, PORT_CHUNKS, SenderKey, WorkloadKey};
use ztseg_common::shares::{Totals, Usage};
use ztseg_common::state::{FlowState, SocketState};
use ztseg_common::value::{Control, Entry, Fallback, Peer, PortChunk, Rule, Subject, Workload};

/// `BPF_F_NO_PREALLOC` (uapi/linux/bpf.h)
const NO_PREALLOC: usize = 1;
/// `BPF_F_CLONE`: a child socket inherits the storage of its listener.
const CLONE: usize = 1 << 9;
/// `BPF_F_INNER_MAP`: arrays of different sizes may take turns in one slot.
const INNER_MAP: usize = 1 << 12;
/// `BPF_F_MMAPABLE`: the agent stores single words, never half of one.
const MMAPABLE: usize = 1 << 10;
/// The active generation, the one being filled, and one that no program reads: the agent stores
/// into it to wait for a grace period.
const SLOTS: usize = 3;

#[btf_map]
pub static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();

/// The number in [`PARTY`] of the version that decides while two are attached, zero for each. One map
/// for all versions: see [`crate::turn`].
#[btf_map]
pub static DECIDES: Array<u32, 1> = Array::new();
/// The number of this version, never zero while it is attached.
#[btf_map]
pub static PARTY: Array<u32, 1> = Array::new();

/// The workloads of a generation by their keys.
pub type Workloads = HashMap<u64, Workload, 1, NO_PREALLOC>;

#[btf_map]
pub static WORKLOADS: ArrayOfMaps<Workloads, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static SUBJECTS: ArrayOfMaps<Array<Subject, 1, INNER_MAP>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static RULES: ArrayOfMaps<Array<Rule, 1, INNER_MAP>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static FALLBACKS: ArrayOfMaps<Array<Fallback, 1, INNER_MAP>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static PORTS: ArrayOfMaps<Array<PortChunk, PORT_CHUNKS, INNER_MAP>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static ENTRIES: ArrayOfMaps<HashMap<EntryKey, Entry, 1>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static HOSTS: ArrayOfMaps<HashMap<Addr, Peer, 1>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static PREFIXES: ArrayOfMaps<LpmTrie<Addr, Peer, 1>, SLOTS> = ArrayOfMaps::new();

/// The key type of [`PREFIXES`]; the same bytes as [`ztseg_common::key::PrefixKey`].
pub type TrieKey = Key<Addr>;

/// Nothing makes room in these but the agent's sweep.
#[btf_map]
pub static FLOWS4: HashMap<FlowKey4, FlowState, 131_072> = HashMap::new();
#[btf_map]
pub static FLOWS6: HashMap<FlowKey6, FlowState, 131_072> = HashMap::new();
/// For what goes beyond a workload's share.
#[btf_map]
pub static SPILL4: LruHashMap<FlowKey4, FlowState, 16_384> = LruHashMap::new();
#[btf_map]
pub static SPILL6: LruHashMap<FlowKey6, FlowState, 16_384> = LruHashMap::new();
/// By [`ztseg_common::key::scope`].
#[btf_map]
pub static USAGE: HashMap<u32, Usage, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static TOTALS: Array<Totals, 1> = Array::new();

/// Packets whose fragments are on their way.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentState, 8192> = LruHashMap::new();

/// The workloads whose packets are translated on their way over loopback, so that no socket has the
/// ends that they arrive with.
#[btf_map]
pub static SENDERS: LruHashMap<SenderKey, WorkloadKey, 8192> = LruHashMap::new();

#[btf_map]
pub static EVENTS: RingBuf<u8, { 1 << 20 }> = RingBuf::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// What [`crate::emit`] remembers of the events of this second, on one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Fold {
    /// Hash over workload, peer, port, reason and direction.
    pub hash: u64,
    /// The second.
    pub window: u32,
    /// Occurrences folded since the last record.
    pub folded: u32,
}

/// How many events one workload has sent this second, on one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Budget {
    /// The second.
    pub window: u32,
    /// Records written.
    pub used: u32,
}

/// Slots of [`FOLDS`] and [`BUDGETS`]; a power of two.
pub const FOLD_SLOTS: u32 = 1024;

#[btf_map]
pub static FOLDS: PerCpuArray<Fold, { FOLD_SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub static BUDGETS: PerCpuArray<Budget, { FOLD_SLOTS as usize }> = PerCpuArray::new();

/// A socket storage map with `BPF_F_CLONE`, which aya's own type cannot have.
///
/// The layout is that of a BTF map definition: pointers whose types carry the numbers
/// (`tools/lib/bpf/bpf_helpers.h`, `__uint` and `__type`).
#[repr(C)]
pub struct SocketStorage {
    r#type: *const [i32; 24],
    key: *const i32,
    value: *const SocketState,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; NO_PREALLOC | CLONE],
}

// SAFETY: the pointers are never followed; the loader reads their types only.
unsafe impl Sync for SocketStorage {}

#[btf_map]
pub static SOCKETS: SocketStorage = SocketStorage {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

impl SocketStorage {
    /// The state of a full socket; `create` makes a zeroed one where there is none.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock, create: bool) -> Option<&'static mut SocketState> {
        // SAFETY: the verifier checks the socket pointer and bounds every access to the value. The
        // value lives as long as the program runs (RCU). Programs on other CPUs may write it, too:
        // every field is a plain word, and a torn verdict cannot be: `stamp` is written last.
        unsafe {
            bpf_sk_storage_get(
                core::ptr::from_ref(self).cast_mut().cast(),
                sk.cast(),
                core::ptr::null_mut(),
                u64::from(create),
            )
            .cast::<SocketState>()
            .as_mut()
        }
    }
}

/// A denial that [`crate::denied`] remembers, on one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Denial {
    /// The flow.
    pub key: FlowKey4,
    /// When, in [`ztseg_common::state::ticks`].
    pub tick: u32,
    /// The stamp that judged it.
    pub stamp: u64,
    /// What makes its events equal; see [`Fold::hash`].
    pub fold: u64,
    /// Rank of the rule; zero for none.
    pub rule: u32,
    /// A [`ztseg_common::verdict::Direction`].
    pub direction: u16,
    /// Whether the packet left the subject, and whether it had a SYN.
    pub sender: u16,
}

/// Slots of [`DENIALS`]; a power of two.
pub const DENIAL_SLOTS: u32 = 4096;

#[btf_map]
pub static DENIALS: PerCpuArray<Denial, { DENIAL_SLOTS as usize }> = PerCpuArray::new();

/// The control word; `None` cannot happen, but the verifier wants it handled.
#[inline(always)]
pub fn control() -> Option<&'static Control> {
    CONTROL.get(0)
}

/// The stamp, read once: everything that a decision reads follows from this one number.
#[inline(always)]
pub fn stamp(control: &Control) -> u64 {
    // SAFETY: a plain aligned word; volatile so that it is read exactly once.
    unsafe { core::ptr::read_volatile(&raw const control.stamp) }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    add(COUNTERS.get_ptr_mut(counter as u32), 1);
}

/// Adds to a word that others may add to at the same time, here or in an interrupt.
#[inline(always)]
pub fn add(word: Option<*mut u64>, n: u64) {
    if let Some(word) = word {
        // SAFETY: the pointer comes from a map lookup, is not null and is aligned. The instruction
        // is BPF_ATOMIC | BPF_ADD (Documentation/bpf/standardization/instruction-set.rst); core's
        // atomics do not exist for this target.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({word} + 0) += {n}",
                word = in(reg) word,
                n = in(reg) n,
                options(nostack),
            );
        }
    }
}
