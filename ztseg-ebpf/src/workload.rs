//! Which workload a socket belongs to: the nearest ancestor of its cgroup that is one.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_sk_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id,
};
use ztseg_common::key::{MAX_CGROUP_LEVEL, WorkloadKey};
use ztseg_common::value::{Control, Workload};

use crate::flow::Flow;
use crate::maps::control;
use crate::policy::Policy;
use crate::skb::Sock;

/// A workload and its key.
#[derive(Clone, Copy)]
pub struct Found {
    pub key: WorkloadKey,
    pub workload: Workload,
}

/// Walks from the deepest level at which there are workloads to the root. A cgroup made a
/// microsecond ago is found by its ancestors, so there is no window.
#[inline(always)]
fn nearest(control: &Control, policy: Policy, id_at: impl Fn(i32) -> u64) -> Option<Found> {
    let workloads = policy.workloads()?;
    let levels = control.levels;
    let mut level = MAX_CGROUP_LEVEL;
    loop {
        if levels & (1 << level) != 0 {
            let key = id_at(level as i32);
            if key != 0
                // SAFETY: a copy of plain words; the agent replaces values whole.
                && let Some(&workload) = unsafe { workloads.get(key) }
            {
                return Some(Found { key, workload });
            }
        }
        if level == 0 {
            return None;
        }
        level -= 1;
    }
}

/// Sets the subject of a flow to the workload of the packet's socket. Zero: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ztseg_workload(skb: *mut __sk_buff, flow: *mut Flow) -> u32 {
    // SAFETY: the verifier checks that the caller's flow is memory of this size.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let Some(control) = control() else { return 0 };
    // SAFETY: a plain helper call on the context.
    let id_at = |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) };
    let Some(found) = nearest(control, flow.policy(), id_at) else { return 0 };
    flow.workload = found.key;
    flow.subject = found.workload.subject;
    1
}

/// Of a socket that was looked up.
#[inline(always)]
pub fn of_socket(control: &Control, policy: Policy, sk: Sock) -> Option<Found> {
    // SAFETY: a plain helper call on a socket that is held.
    nearest(control, policy, |level| unsafe { bpf_sk_ancestor_cgroup_id(sk.raw.cast(), level) })
}

/// Of the calling task.
#[inline(always)]
pub fn of_task(control: &Control, policy: Policy) -> Option<Found> {
    // SAFETY: a plain helper call.
    nearest(control, policy, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}
