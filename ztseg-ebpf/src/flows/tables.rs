//! What is done with the tables of one IP version. Each is a function of its own: the keys of both
//! versions would not fit on the stack side by side.

use ztseg_common::addr::{Addr, Port};
use ztseg_common::key::{FlowKey4, FlowKey6, Place};

use crate::flow::Flow;

#[inline(always)]
fn key4(local: &Addr, remote: &Addr, ports: (Port, Port), place: Place) -> FlowKey4 {
    let (local, remote) = (local.last_octets(), remote.last_octets());
    FlowKey4 { local, remote, local_port: ports.0, remote_port: ports.1, place }
}

#[inline(always)]
fn key6(local: &Addr, remote: &Addr, ports: (Port, Port), place: Place) -> FlowKey6 {
    FlowKey6 { local: *local, remote: *remote, local_port: ports.0, remote_port: ports.1, place }
}

/// The key of a packet's flow. The macro's, since a function would give it to the caller by way of a
/// copy.
macro_rules! key {
    ($make:ident, $packet:expr, $outbound:expr, $place:expr) => {{
        let packet = $packet;
        let ports = packet.flow_ports($outbound);
        let (local, remote) =
            if $outbound { (&packet.src, &packet.dst) } else { (&packet.dst, &packet.src) };
        $make(local, remote, ports, $place)
    }};
}

macro_rules! tables {
    (
        $version:ident, $key:ident, $make:ident, $flows:ident, $spill:ident,
        $put:ident, $insert:ident, $remove:ident, $sweep:ident
    ) => {
        pub mod $version {
            use aya_ebpf::bindings::__sk_buff;
            use ztseg_common::key::{Place, $key};
            use ztseg_common::packet::Packet;
            use ztseg_common::shares::{SWEEP, SWEEP_OPERAND};
            use ztseg_common::state::FlowState;

            use super::{Flow, $make};
            use crate::flows::{
                EXISTS, NEW, THERE, is_stale, new, note_spill, place, put, release,
            };
            use crate::judge::Outcome;
            use crate::maps::{$flows, $spill};
            use crate::skb::Skb;

            #[inline(never)]
            pub fn find(
                packet: &Packet,
                outbound: bool,
                place: Place,
                spilled: bool,
            ) -> *mut FlowState {
                let key = key!($make, packet, outbound, place);
                if spilled { $spill.get_ptr_mut(&key) } else { $flows.get_ptr_mut(&key) }
                    .unwrap_or(core::ptr::null_mut())
            }

            /// Puts a flow into the tables: `how`, and what it gives, are of [`crate::flows::put`].
            #[inline(always)]
            fn put_inline(flow: &Flow, state: &FlowState, how: u32) -> u32 {
                let key = key!($make, &flow.packet, flow.is_outbound(), place(flow));
                let mut is_there = how == put::REPLACE;
                if how == put::ADD || how == put::MOVE {
                    match $flows.insert(&key, state, NEW) {
                        Ok(()) => return put::ADDED,
                        Err(_) if how == put::MOVE => return put::NOWHERE,
                        Err(error) => is_there = error == EXISTS,
                    }
                }
                if is_there && $flows.insert(&key, state, THERE).is_ok() {
                    return put::REPLACED;
                }
                note_spill();
                if $spill.insert(&key, state, 0).is_ok() { put::SPILLED } else { put::NOWHERE }
            }

            /// As [`put_inline`], of a state that lies elsewhere.
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $put(flow: *const Flow, state: *const FlowState, how: u32) -> u32 {
                // SAFETY: the verifier checks that the caller's flow and state are memory of these
                // sizes.
                let (Some(flow), Some(state)) = (unsafe { (flow.as_ref(), state.as_ref()) }) else {
                    return put::NOWHERE;
                };
                // Kernels before 6.2 take no map value from an argument's memory.
                let state = *state;
                put_inline(flow, &state, how)
            }

            /// As [`put_inline`], of a flow that is new; `outcome` is its [`Outcome::bits`].
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $insert(flow: *const Flow, outcome: u64, how: u32) -> u32 {
                // SAFETY: the verifier checks that the caller's flow is memory of this size.
                let Some(flow) = (unsafe { flow.as_ref() }) else { return put::NOWHERE };
                put_inline(flow, &new(flow, Outcome::from_bits(outcome)), how)
            }

            #[inline(always)]
            pub fn remove(flow: &Flow, spilled: bool) -> i32 {
                $remove(flow, u32::from(spilled)).cast_signed()
            }

            /// [`remove`], verified once.
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $remove(flow: *const Flow, spilled: u32) -> u32 {
                // SAFETY: the verifier checks that the caller's flow is memory of this size.
                let Some(flow) = (unsafe { flow.as_ref() }) else { return 1 };
                let key = key!($make, &flow.packet, flow.is_outbound(), place(flow));
                let removed = if spilled != 0 { $spill.remove(&key) } else { $flows.remove(&key) };
                removed.err().unwrap_or(0).cast_unsigned()
            }

            /// Removes one of the flows that the agent has seen silent for too long, unless it has
            /// come back to life since; how many were removed. The verifier follows it once, not for
            /// each of them.
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $sweep(skb: *mut __sk_buff, index: u32) -> u32 {
                let skb = Skb::new(skb);
                let mut key = $key::default();
                let at = SWEEP_OPERAND as u32 + index * size_of::<$key>() as u32;
                if index >= SWEEP as u32 || !skb.copy(at, bytemuck::bytes_of_mut(&mut key)) {
                    return 0;
                }
                let is_stale =
                    $flows.get_ptr_mut(&key).is_some_and(|state| is_stale(state, key.place));
                if !is_stale || $flows.remove(&key).is_err() {
                    return 0;
                }
                release(key.place.scope, size_of::<$key>() == size_of::<super::FlowKey4>());
                1
            }
        }
    };
}

tables!(v4, FlowKey4, key4, FLOWS4, SPILL4, ztseg_put4, ztseg_insert4, ztseg_remove4, ztseg_sweep4);
tables!(v6, FlowKey6, key6, FLOWS6, SPILL6, ztseg_put6, ztseg_insert6, ztseg_remove6, ztseg_sweep6);
