//! Packet sockets (`AF_PACKET`, `AF_XDP`): what they send passes no inet hook of a cgroup, so an
//! isolated workload gets none. BPF LSM is asked when a socket is made; who asks is the calling task.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::programs::LsmContext;
use ztseg_common::eval::{self, Lookup as _};
use ztseg_common::state::Role;
use ztseg_common::verdict::{Direction, Hook, Verdict};

use crate::emit::ztseg_report_call;
use crate::flow::Flow;
use crate::judge::Outcome;
use crate::policy::Policy;
use crate::{maps, workload};

/// Address families (linux/socket.h). The obsolete `SOCK_PACKET` of `AF_INET` is `AF_PACKET` by the
/// time the hook sees it (`__sock_create`, net/socket.c).
const AF_PACKET: u32 = 17;
const AF_XDP: u32 = 44;

/// `int socket_create(int family, int type, int protocol, int kern)` (`linux/lsm_hook_defs.h`)
#[inline(always)]
pub fn create(ctx: &LsmContext) -> Verdict {
    // Each argument is eight bytes wide, whatever its type.
    let (family, kernels_own): (u32, u32) = (ctx.arg(0), ctx.arg(3));
    if !matches!(family, AF_PACKET | AF_XDP) || kernels_own != 0 {
        return Verdict::Allow;
    }
    let Some(control) = maps::control() else { return Verdict::Allow };
    let stamp = maps::stamp(control);
    let policy = Policy::of(stamp);
    let Some(found) = workload::of_task(control, policy) else { return Verdict::Allow };
    let subject = policy.subject(found.workload.subject);
    let Some((decision, direction)) = eval::packet_socket(&found.workload, subject) else {
        return Verdict::Allow;
    };
    let mut flow = Flow::new(stamp, Hook::SocketCreate);
    flow.workload = found.key;
    flow.subject = found.workload.subject;
    // SAFETY: a plain helper call.
    flow.cgroup = unsafe { bpf_get_current_cgroup_id() };
    flow.packet.protocol = family as u8;
    if matches!(direction, Direction::Ingress) {
        flow.role = Role::Responder as u8;
    }
    ztseg_report_call(&raw const flow, Outcome::new(&decision).bits());
    decision.verdict
}
