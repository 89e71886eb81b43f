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
    ($version:ident, $key:ident, $make:ident, $flows:ident, $spill:ident) => {
        pub mod $version {
            use ztseg_common::key::{Place, $key};
            use ztseg_common::packet::Packet;
            use ztseg_common::shares::{SWEEP, SWEEP_OPERAND};
            use ztseg_common::state::FlowState;

            use super::{Flow, $make};
            use crate::flows::{is_stale, place, release};
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

            #[inline(never)]
            pub fn store(flow: &Flow, state: &FlowState, flags: u64) -> i32 {
                let key = key!($make, &flow.packet, flow.is_outbound(), place(flow));
                $flows.insert(&key, state, flags).err().unwrap_or(0)
            }

            #[inline(never)]
            pub fn store_spilled(flow: &Flow, state: &FlowState) -> i32 {
                let key = key!($make, &flow.packet, flow.is_outbound(), place(flow));
                $spill.insert(&key, state, 0).err().unwrap_or(0)
            }

            #[inline(never)]
            pub fn remove(flow: &Flow, spilled: bool) -> i32 {
                let key = key!($make, &flow.packet, flow.is_outbound(), place(flow));
                let removed = if spilled { $spill.remove(&key) } else { $flows.remove(&key) };
                removed.err().unwrap_or(0)
            }

            /// Removes one of the flows that the agent has seen silent for too long, unless it has
            /// come back to life since; how many were removed.
            #[inline(never)]
            pub fn sweep(skb: &Skb, index: u32) -> u32 {
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

tables!(v4, FlowKey4, key4, FLOWS4, SPILL4);
tables!(v6, FlowKey6, key6, FLOWS6, SPILL6);
