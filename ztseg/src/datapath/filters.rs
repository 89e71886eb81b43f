//! Classic TC filters, below kernel 6.6: which program is in ours.

use std::io;

use aya::programs::TcAttachType;
use nix::sys::socket::SockProtocol;

use crate::discover::netlink::{attribute, change, dump, text, word};

// linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
/// `TC_H_CLSACT`, and the handle of the qdisc there.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
/// Length of `struct tcmsg`.
const TCMSG: usize = 20;

/// The id of the program in the filter of this priority and handle; zero where it does not say.
pub fn program_of(
    ifindex: u32,
    hook: TcAttachType,
    priority: u16,
    handle: u32,
) -> io::Result<Option<u32>> {
    let parent = if hook == TcAttachType::Ingress { CLSACT_INGRESS } else { CLSACT_EGRESS };
    let mut found = None;
    each(ifindex, parent, |p, h, program| {
        if (p, h) == (priority, handle) {
            found = Some(program);
        }
    })?;
    Ok(found)
}

/// Whether an interface has no filter at its clsact hooks.
pub fn has_none(ifindex: u32) -> io::Result<bool> {
    let mut any = false;
    for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
        each(ifindex, parent, |_, _, _| any = true)?;
    }
    Ok(!any)
}

/// Removes the clsact qdisc of an interface, with every filter in it.
pub fn remove_qdisc(ifindex: u32) -> io::Result<()> {
    let body = tcmsg(ifindex, CLSACT_HANDLE, CLSACT);
    change(SockProtocol::NetlinkRoute, RTM_DELQDISC, &body)
}

/// `struct tcmsg`: family and padding, index, handle, parent, info.
fn tcmsg(ifindex: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let mut body = [0u8; TCMSG];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body
}

/// Calls `each` with priority, handle and program of every filter.
fn each(ifindex: u32, parent: u32, mut each: impl FnMut(u16, u32, u32)) -> io::Result<()> {
    let body = tcmsg(ifindex, 0, parent);
    dump(SockProtocol::NetlinkRoute, RTM_GETTFILTER, &body, RTM_NEWTFILTER, |answer| {
        let (handle, info) = (word(answer, 8)?, word(answer, 16)?);
        let attributes = answer.get(TCMSG..)?;
        let is_bpf = attribute(attributes, TCA_KIND).is_some_and(|kind| text(kind) == "bpf");
        let options = attribute(attributes, TCA_OPTIONS);
        // A filter's first answer stands for the whole priority and has no options.
        if let Some(options) = options {
            let id = attribute(options, TCA_BPF_ID).filter(|_| is_bpf);
            let id = id.and_then(|id| word(id, 0)).unwrap_or(0);
            each(u16::try_from(info >> 16).unwrap_or(0), handle, id);
        }
        Some(())
    })
}
