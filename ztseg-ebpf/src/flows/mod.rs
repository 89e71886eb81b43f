//! The flow tables. [`ztseg_common::shares`] says how much of them a workload may have; what goes
//! beyond that is in the spill tables.

mod tables;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use ztseg_common::addr::proto;
use ztseg_common::event::Counter;
use ztseg_common::key::{Place, WorkloadKey};
use ztseg_common::packet::{Packet, SctpKind, tcp};
use ztseg_common::shares::{Credit, SWEEP, SWEEP_OPERAND, Sweep, Totals, Usage};
use ztseg_common::state::{FLOW_EXPIRES, FlowState, Phase, is_fresh, ticks, timeout_seconds};
use ztseg_common::value::Control;

use self::tables::{v4, v6};
use crate::flow::Flow;
use crate::judge::Outcome;
use crate::maps::{TOTALS, USAGE, add, control, count};
use crate::skb::Skb;

/// `BPF_NOEXIST`, `BPF_EXIST` (uapi/linux/bpf.h)
const NEW: u64 = 1;
const THERE: u64 = 2;
/// `EEXIST`
const EXISTS: i32 = -17;

/// The time in [`ticks`].
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: a plain helper call.
    ticks(unsafe { bpf_jiffies64() })
}

/// Whether a flow that the tables do not have may be in the spill tables.
#[inline(always)]
pub fn may_be_spilled() -> bool {
    TOTALS.get(0).is_none_or(|totals| totals.spilled != 0)
}

/// The state of a flow in the tables; null: there is none. (No `Option`: its type information would
/// be refused.)
#[inline(always)]
fn find(packet: &Packet, outbound: bool, place: Place, spilled: bool) -> *mut FlowState {
    if is_v4(packet) {
        v4::find(packet, outbound, place, spilled)
    } else {
        v6::find(packet, outbound, place, spilled)
    }
}

/// A flow that is known.
pub struct Known {
    pub state: &'static mut FlowState,
    /// It is in a spill table.
    pub spilled: bool,
}

/// As [`find`], and null where the flow has been silent for too long.
#[inline(never)]
fn find_fresh(packet: &Packet, outbound: bool, place: Place, spilled: bool) -> *mut FlowState {
    let found = find(packet, outbound, place, spilled);
    // SAFETY: null or a valid pointer from the lookup; words written by several CPUs are counts and
    // times.
    let Some(state) = (unsafe { found.as_ref() }) else { return found };
    if ztseg_is_stale(state.last_seen, packet.protocol.into(), state.phase.into()) == 0 {
        found
    } else {
        core::ptr::null_mut()
    }
}

/// Whether a flow of this protocol and phase has been silent for too long.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_is_stale(last_seen: u32, protocol: u32, phase: u32) -> u32 {
    let Some(control) = control() else { return 1 };
    let timeout = timeout_seconds(protocol as u8, phase as u8);
    u32::from(!is_fresh(last_seen, now(), timeout, control.hz))
}

/// Whether the tables have a flow between the ends of this one's packet, in this place, which has not
/// been silent for too long.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_has_fresh(
    flow: *const Flow,
    outbound: u32,
    scope: u32,
    netns_protocol: u32,
) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    u32::from(fresh(&flow.packet, outbound != 0, Place { scope, netns_protocol }).is_some())
}

/// As [`ztseg_has_fresh`].
#[inline(always)]
pub fn has_fresh(flow: &Flow, outbound: bool, place: Place) -> bool {
    ztseg_has_fresh(flow, u32::from(outbound), place.scope, place.netns_protocol) != 0
}

/// A flow's state, unless there is none or it has been silent for too long.
#[inline(always)]
pub fn fresh(packet: &Packet, outbound: bool, place: Place) -> Option<Known> {
    // SAFETY: as in `find_fresh`.
    if let Some(state) = unsafe { find_fresh(packet, outbound, place, false).as_mut() } {
        return Some(Known { state, spilled: false });
    }
    if !may_be_spilled() {
        return None;
    }
    // SAFETY: as above.
    let state = unsafe { find_fresh(packet, outbound, place, true).as_mut() }?;
    Some(Known { state, spilled: true })
}

/// The state of a flow that [`fresh`] has found, again.
#[inline(always)]
pub fn again(flow: &Flow) -> Option<&'static mut FlowState> {
    let found = find(&flow.packet, flow.is_outbound(), place(flow), false);
    let found = if found.is_null() && may_be_spilled() {
        find(&flow.packet, flow.is_outbound(), place(flow), true)
    } else {
        found
    };
    // SAFETY: as in `find_fresh`.
    unsafe { found.as_mut() }
}

/// The role of the subject in a flow that the tables have under the workload that it belonged to
/// before, and not under the one that it belongs to now. Zero: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_former_role(flow: *const Flow, former: WorkloadKey) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let outbound = flow.is_outbound();
    if has_fresh(flow, outbound, place(flow)) {
        return 0;
    }
    let place = Place::new(former, flow.netns, flow.packet.protocol);
    fresh(&flow.packet, outbound, place).map_or(0, |known| known.state.role.into())
}

/// Whether the tables have the flow of a packet that `place` has sent.
#[inline(always)]
pub fn has(packet: &Packet, place: Place) -> bool {
    !find(packet, true, place, false).is_null()
        || (may_be_spilled() && !find(packet, true, place, true).is_null())
}

/// Who pays for an entry.
struct Account {
    workload: *mut Usage,
    all: *mut Usage,
    v4: bool,
}

impl Account {
    /// `None`: so many workloads have entries that there is no account left.
    #[inline(always)]
    fn of(flow: &Flow) -> Option<Self> {
        let workload = usage(place(flow).scope)?;
        // SAFETY: only the field's address is taken.
        let all = unsafe { &raw mut (*TOTALS.get_ptr_mut(0)?).usage };
        Some(Self { workload, all, v4: is_v4(&flow.packet) })
    }

    /// Entries that the workload has, and that all have.
    #[inline(always)]
    fn used(&self) -> (i64, i64) {
        // SAFETY: valid pointers from their lookups, to words that others add to.
        let (own, all) = unsafe { (*self.workload, *self.all) };
        if self.v4 { (own.v4, all.v4) } else { (own.v6, all.v6) }
    }

    #[inline(always)]
    fn admits(&self, control: &Control, answered: bool) -> bool {
        let (own, all) = self.used();
        control.shares.admit(own, all, answered)
    }

    #[inline(always)]
    fn change(&self, by: i64) {
        change(self.workload, self.v4, by);
        change(self.all, self.v4, by);
    }
}

/// Adds a flow that is new, or replaces one between the same ends. `outcome` is its
/// [`Outcome::bits`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_insert(flow: *const Flow, outcome: u64) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(control) = control() else { return 0 };
    let (account, how) = place_for(control, flow);
    // The state is made where it is put in: it would not fit on the stack twice.
    let place = if is_v4(&flow.packet) {
        v4::ztseg_insert4(flow, outcome, how)
    } else {
        v6::ztseg_insert6(flow, outcome, how)
    };
    settle(account, how, place);
    1
}

/// The state of a flow that is new.
#[inline(always)]
fn new(flow: &Flow, outcome: Outcome) -> FlowState {
    let opens = match flow.packet.protocol {
        proto::TCP => flow.packet.tcp_flags & tcp::SYN != 0,
        _ => flow.packet.is_sctp(SctpKind::Init),
    };
    let mut state = FlowState {
        stamp: outcome.stamp(flow.stamp),
        peer: flow.peer,
        rule: outcome.rule(),
        last_seen: now(),
        role: flow.role,
        reason: outcome.reason(),
        phase: if opens { Phase::Opening } else { Phase::Established } as u8,
        flags: expiry(outcome),
        ..FlowState::default()
    };
    state.account(flow.is_outbound(), flow.packet.length);
    state
}

/// Adds a mapping of a flow, under the ends that `flow` has now, or replaces what is there.
#[inline(always)]
pub fn keep(flow: &Flow, mapping: &FlowState) {
    if let Some(control) = control() {
        let (account, how) = place_for(control, flow);
        let place = store(flow, mapping, how);
        settle(account, how, place);
    }
}

/// How a flow is put into the tables, and who pays for it when it is added.
#[inline(always)]
fn place_for(control: &Control, flow: &Flow) -> (Option<Account>, u32) {
    let account = Account::of(flow).filter(|account| account.admits(control, false));
    let how = if account.is_some() { put::ADD } else { put::REPLACE };
    (account, how)
}

/// Takes note of where a flow was put.
#[inline(always)]
fn settle(account: Option<Account>, how: u32, place: u32) {
    if place == put::ADDED
        && let Some(account) = account
    {
        account.change(1);
    }
    if place == put::NOWHERE && how != put::MOVE {
        count(Counter::FlowsNotStored);
    }
}

/// How a flow is put into the tables, and where it was put: numbers, since they cross calls.
mod put {
    /// As a new one, else in the place of what is there, else into the spill table.
    pub const ADD: u32 = 0;
    /// In the place of what is there, else into the spill table.
    pub const REPLACE: u32 = 1;
    /// As a new one or not at all.
    pub const MOVE: u32 = 2;
    /// Into the spill table.
    pub const SPILL: u32 = 3;

    pub const ADDED: u32 = 0;
    pub const REPLACED: u32 = 1;
    pub const SPILLED: u32 = 2;
    pub const NOWHERE: u32 = 3;
}

/// The flag of a flow whose verdict ends with its rule.
#[inline(always)]
pub fn expiry(outcome: Outcome) -> u8 {
    if outcome.expires() { FLOW_EXPIRES } else { 0 }
}

/// Takes note of what a packet has made of a flow: one that both ends have spoken in may be moved out
/// of the spill tables, and one that ends gives its entry back where its workload has many.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_rebalance(flow: *const Flow, spilled: u32) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    let Some(control) = control() else { return 0 };
    let Some(account) = Account::of(flow) else { return 0 };
    let found = find(&flow.packet, flow.is_outbound(), place(flow), spilled != 0);
    // SAFETY: as in `find_fresh`.
    let Some(state) = (unsafe { found.as_ref() }) else { return 0 };
    if spilled != 0 {
        if state.is_answered(flow.packet.protocol)
            && account.admits(control, true)
            && store(flow, state, put::MOVE) == put::ADDED
        {
            account.change(1);
            remove_from(flow, true);
        }
    } else if !control.shares.admit(account.used().0, 0, false) {
        settle(None, put::SPILL, store(flow, state, put::SPILL));
        if remove_from(flow, false) == 0 {
            account.change(-1);
        }
    }
    1
}

/// Counts a flow that is about to be put into a spill table: first, so that nobody who looks for it
/// misses it.
#[inline(always)]
fn note_spill() {
    if let Some(totals) = TOTALS.get_ptr_mut(0) {
        // SAFETY: only the field's address is taken.
        add(Some(unsafe { &raw mut (*totals).spilled }), 1);
    }
    count(Counter::FlowsSpilled);
}

/// Removes a flow from all tables.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_remove(flow: *const Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_ref() }) else { return 0 };
    if remove_from(flow, false) == 0 {
        release(place(flow).scope, is_v4(&flow.packet));
    }
    if may_be_spilled() {
        remove_from(flow, true);
    }
    1
}

/// Takes an entry off the accounts.
#[inline(never)]
fn release(scope: u32, v4: bool) {
    if let Some(usage) = USAGE.get_ptr_mut(&scope) {
        change(usage, v4, -1);
    }
    if let Some(totals) = TOTALS.get_ptr_mut(0) {
        // SAFETY: only the field's address is taken.
        change(unsafe { &raw mut (*totals).usage }, v4, -1);
    }
}

#[inline(always)]
fn change(usage: *mut Usage, v4: bool, by: i64) {
    // SAFETY: a valid pointer from a lookup; only the field's address is taken.
    let field = unsafe { if v4 { &raw mut (*usage).v4 } else { &raw mut (*usage).v6 } };
    add(Some(field.cast()), by.cast_unsigned());
}

/// What a workload has; made where it is not there yet.
#[inline(always)]
fn usage(scope: u32) -> Option<*mut Usage> {
    if let Some(usage) = USAGE.get_ptr_mut(&scope) {
        return Some(usage);
    }
    // Another CPU may have made it just now, which is as good.
    let _ = USAGE.insert(&scope, &Usage { v4: 0, v6: 0 }, NEW);
    USAGE.get_ptr_mut(&scope)
}

/// Puts a flow into the tables of its IP version.
#[inline(always)]
fn store(flow: &Flow, state: &FlowState, how: u32) -> u32 {
    if is_v4(&flow.packet) {
        v4::ztseg_put4(flow, state, how)
    } else {
        v6::ztseg_put6(flow, state, how)
    }
}

/// The kernel's answer to removing a flow from its table, or its spill table.
#[inline(always)]
fn remove_from(flow: &Flow, spilled: bool) -> i32 {
    if is_v4(&flow.packet) { v4::remove(flow, spilled) } else { v6::remove(flow, spilled) }
}

/// What the agent asks for in a packet that it makes; see [`Sweep`]. Gives how many flows were
/// removed.
#[inline(always)]
pub fn sweep(skb: *mut __sk_buff) -> i32 {
    const UNSPILL: u8 = Sweep::Unspill as u8;
    const CREDIT: u8 = Sweep::Credit as u8;
    const FLOWS4: u8 = Sweep::Flows4 as u8;
    const FLOWS6: u8 = Sweep::Flows6 as u8;
    let skb = Skb::new(skb);
    let Some(totals) = TOTALS.get_ptr_mut(0) else { return 0 };
    // SAFETY: a valid pointer from the lookup; only the agent reads this word.
    unsafe { (*totals).now = now() };
    let mut command = [0];
    if !skb.copy(0, &mut command) {
        return 0;
    }
    let mut removed = 0;
    match command[0] {
        UNSPILL => unspill(&skb, totals),
        CREDIT => credit(&skb, totals),
        FLOWS4 => {
            for index in 0..SWEEP as u32 {
                removed += v4::ztseg_sweep4(skb.raw, index);
            }
        }
        FLOWS6 => {
            for index in 0..SWEEP as u32 {
                removed += v6::ztseg_sweep6(skb.raw, index);
            }
        }
        _ => {}
    }
    removed as i32
}

#[inline(never)]
fn unspill(skb: &Skb, totals: *mut Totals) {
    let mut spilled = 0u64;
    if skb.copy(SWEEP_OPERAND as u32, bytemuck::bytes_of_mut(&mut spilled)) {
        // SAFETY: a valid pointer; only the field's address is taken.
        add(Some(unsafe { &raw mut (*totals).spilled }), spilled.wrapping_neg());
    }
}

#[inline(never)]
fn credit(skb: &Skb, totals: *mut Totals) {
    let mut credit = Credit::default();
    if !skb.copy(SWEEP_OPERAND as u32, bytemuck::bytes_of_mut(&mut credit)) {
        return;
    }
    // SAFETY: a valid pointer; only the field's address is taken.
    let all = unsafe { &raw mut (*totals).usage };
    for usage in [usage(credit.scope).unwrap_or(core::ptr::null_mut()), all] {
        if !usage.is_null() {
            change(usage, true, i64::from(credit.v4));
            change(usage, false, i64::from(credit.v6));
        }
    }
}

#[inline(always)]
fn is_stale(state: *mut FlowState, place: Place) -> bool {
    // SAFETY: a valid pointer from the lookup.
    let state = unsafe { &*state };
    control().is_some()
        && ztseg_is_stale(state.last_seen, place.protocol().into(), state.phase.into()) != 0
}

#[inline(always)]
pub fn place(flow: &Flow) -> Place {
    Place::new(flow.workload, flow.netns, flow.packet.protocol)
}

/// One comparison, not two: each way to it would be followed on its own.
#[inline(always)]
fn is_v4(packet: &Packet) -> bool {
    packet.src.is_v4() & packet.dst.is_v4()
}
