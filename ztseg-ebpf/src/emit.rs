//! Events and counters.
//!
//! Every denial is counted. Of equal ones (workload, peer, port, reason, direction) within a
//! second on a CPU one record is written and the others are folded into the next; what a
//! workload's budget or a full ring keeps back is counted, too. So at any time
//! `dropped + audited + logged = sent + folded + over budget + lost`.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
    bpf_ringbuf_query,
};
use ztseg_common::event::{Counter, EVENT_VERSION, Event, EventKind};
use ztseg_common::value::{Control, generation};
use ztseg_common::verdict::{Direction, Verdict};

use crate::flow::Flow;
use crate::judge::Outcome;
use crate::maps::{BUDGETS, EVENTS, FOLD_SLOTS, FOLDS, control, count};
use crate::turn;

/// A "second": 2^30 ns, so that no division is needed.
const WINDOW_SHIFT: u64 = 30;
/// `BPF_RB_NO_WAKEUP`, `BPF_RB_FORCE_WAKEUP`, `BPF_RB_AVAIL_DATA`
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const AVAIL_DATA: u64 = 0;
/// The reader polls; it is woken only when this much waits for it.
const WAKEUP_BYTES: u64 = 1 << 18;

/// Counts the outcome for a packet, and reports it where it is to be reported.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_report(flow: *const Flow, outcome: u64) -> u32 {
    count_and_report::<false>(flow, outcome)
}

/// As [`ztseg_report`], for a system call: the current process is the one that asks. (Programs that
/// see packets may not ask for its name before kernel 6.18, and it would be any process.)
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_report_call(flow: *const Flow, outcome: u64) -> u32 {
    count_and_report::<true>(flow, outcome)
}

#[inline(always)]
fn count_and_report<const CALL: bool>(flow: *const Flow, outcome: u64) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(control) = control() else { return 0 };
    if turn::stands_back_at(flow.hook) {
        return 0;
    }
    let outcome = Outcome::from_bits(outcome);
    if outcome.rule() != 0 {
        flow.policy().hit(outcome.rule());
    }
    let direction = flow.direction();
    let kind = match outcome.verdict() {
        Verdict::Deny => {
            count(match direction {
                Direction::Ingress => Counter::DroppedIngress,
                Direction::Egress => Counter::DroppedEgress,
            });
            EventKind::Dropped
        }
        Verdict::Allow => {
            count(match direction {
                Direction::Ingress => Counter::AllowedIngress,
                Direction::Egress => Counter::AllowedEgress,
            });
            if outcome.is_audit() {
                count(Counter::Audited);
                EventKind::Audit
            } else if outcome.is_logged() {
                EventKind::Forwarded
            } else {
                return 0;
            }
        }
    };
    report::<CALL>(control, flow, kind, outcome);
    1
}

/// Writes a record, or folds it.
#[inline(always)]
fn report<const CALL: bool>(control: &Control, flow: &Flow, kind: EventKind, outcome: Outcome) {
    let (reason, rule) = (outcome.reason(), outcome.rule());
    let window = window::<CALL>();
    let hash = fold_hash(flow, reason, rule);
    let Some(fold) = FOLDS.get_ptr_mut(hash as u32 & (FOLD_SLOTS - 1)) else { return };
    // SAFETY: this CPU's slot. An interrupt may change it in between; then an event's `count` is
    // off by the interrupted one, the counters are not.
    let fold = unsafe { &mut *fold };
    let same = fold.hash == hash;
    if same && fold.window == window {
        fold.folded = fold.folded.wrapping_add(1);
        count(Counter::EventsFolded);
        return;
    }
    let Some(budget) = BUDGETS.get_ptr_mut(flow.workload as u32 & (FOLD_SLOTS - 1)) else { return };
    // SAFETY: as above.
    let budget = unsafe { &mut *budget };
    if budget.window != window {
        budget.window = window;
        budget.used = 0;
    }
    if budget.used >= control.event_budget {
        count(Counter::EventsOverBudget);
        return;
    }
    let Some(mut record) = EVENTS.reserve_bytes(size_of::<Event>(), 0) else {
        count(Counter::EventsLost);
        return;
    };
    budget.used += 1;
    let folded = if same { fold.folded } else { 0 };
    fold.hash = hash;
    fold.window = window;
    fold.folded = 0;
    // SAFETY: the reservation has the size of an event and is 8-byte aligned. It is written field by
    // field, all of them, since an event on the stack would fill a quarter of it.
    #[expect(clippy::cast_ptr_alignment, reason = "the ring aligns its records to 8 bytes")]
    let event = unsafe { &mut *record.as_mut_ptr().cast::<Event>() };
    event.version = EVENT_VERSION;
    event.kind = kind as u8;
    event.reason = reason;
    event.hook = flow.hook;
    event.direction = flow.direction() as u8;
    event.protocol = flow.packet.protocol;
    event.tcp_flags = flow.packet.tcp_flags;
    event.icmp_type = flow.packet.icmp_type;
    event.count = folded.wrapping_add(1);
    event.generation = generation(flow.stamp);
    // SAFETY: a plain helper call.
    event.time = unsafe { bpf_ktime_get_boot_ns() };
    event.workload = flow.workload;
    event.cgroup = flow.cgroup;
    event.peer = flow.peer;
    event.rule = rule;
    event.pid = 0;
    event.comm = [0; 16];
    event.local = *flow.local();
    event.remote = *flow.remote();
    event.local_port = flow.local_port();
    event.remote_port = flow.remote_port();
    event.subject = flow.subject;
    if CALL {
        // SAFETY: the buffer has 16 bytes.
        unsafe {
            event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            bpf_get_current_comm(event.comm.as_mut_ptr().cast(), 16);
        }
    }
    // SAFETY: a plain helper call on the ring.
    let waiting = unsafe { bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast(), AVAIL_DATA) };
    record.submit(if waiting >= WAKEUP_BYTES { FORCE_WAKEUP } else { NO_WAKEUP });
    count(Counter::EventsSent);
}

/// Folds another occurrence into the record of this second. False: a new record is due.
#[inline(always)]
pub fn fold_again(hash: u64) -> bool {
    let Some(fold) = FOLDS.get_ptr_mut(hash as u32 & (FOLD_SLOTS - 1)) else { return false };
    // SAFETY: as in `report`.
    let fold = unsafe { &mut *fold };
    if fold.hash != hash || fold.window != window::<false>() {
        return false;
    }
    fold.folded = fold.folded.wrapping_add(1);
    count(Counter::EventsFolded);
    true
}

/// The "second" that it is. For packets by the clock that costs least, which programs of BPF LSM may
/// not read; the other is the same clock, exact to more than a tick.
#[inline(always)]
fn window<const CALL: bool>() -> u32 {
    // SAFETY: plain helper calls.
    let now = unsafe { if CALL { bpf_ktime_get_ns() } else { bpf_ktime_get_coarse_ns() } };
    (now >> WINDOW_SHIFT) as u32
}

/// Over what makes two occurrences equal; not the hook, since a handshake passes two. The local port
/// is left out for a flow that the subject opened, and the remote port for one that it was asked
/// for: clients take a new one each time.
#[inline(always)]
pub fn fold_hash(flow: &Flow, reason: u8, rule: u32) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let o = &flow.remote().octets;
    let high = u64::from_ne_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]);
    let low = u64::from_ne_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]);
    let what = u64::from(flow.service())
        | u64::from(flow.packet.protocol) << 16
        | u64::from(reason) << 24
        | u64::from(flow.direction() as u8) << 32;
    let mut hash = flow.workload.wrapping_mul(MULTIPLIER);
    hash = (hash ^ high).rotate_left(23).wrapping_mul(MULTIPLIER);
    hash = (hash ^ low).rotate_left(23).wrapping_mul(MULTIPLIER);
    hash = (hash ^ what).rotate_left(23).wrapping_mul(MULTIPLIER);
    hash = (hash ^ u64::from(rule)).rotate_left(23).wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 29)
}
