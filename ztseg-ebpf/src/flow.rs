//! One packet's flow, as its subject sees it.

use ztseg_common::addr::{Addr, Port, proto};
use ztseg_common::key::WorkloadKey;
use ztseg_common::packet::Packet;
use ztseg_common::state::Role;
use ztseg_common::value::Peer;
use ztseg_common::verdict::{Direction, Hook};

use crate::policy::Policy;

/// What a judgement and an event need to know. Addresses and ports are those on the wire.
///
/// It crosses the calls between subprograms by reference, so it is plain and without padding: the
/// verifier of older kernels wants every byte of it initialised.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow {
    pub stamp: u64,
    /// The subject; zero as long as it is not known.
    pub workload: WorkloadKey,
    /// The subject socket's cgroup; zero at TC.
    pub cgroup: u64,
    /// The peer's workload on this host, zero when not known (yet).
    pub peer: WorkloadKey,
    /// The packet, with the flow's ends.
    pub packet: Packet,
    /// Subject class; zero as long as it is not known.
    pub subject: u32,
    /// The low half of the network namespace cookie; zero at TC.
    pub netns: u32,
    /// The peer's classes; zeros as long as they are not known.
    pub identity: u32,
    pub address: u32,
    /// A [`Hook`].
    pub hook: u8,
    /// A [`Role`]: which end the subject is.
    pub role: u8,
    /// The packet leaves the subject.
    pub outbound: u8,
    /// Over the loopback device: the peer's socket is in this network namespace.
    pub loopback: u8,
    /// At a system call: the identity class of a workload that may be the peer instead.
    pub other_identity: u32,
}

const _: () = assert!(size_of::<Flow>() == 104);

impl Flow {
    /// Nothing known but the hook and the policy.
    #[inline(always)]
    pub fn new(stamp: u64, hook: Hook) -> Self {
        let outbound = !matches!(hook, Hook::CgroupIngress | Hook::TcToWorkload);
        Self {
            stamp,
            workload: 0,
            cgroup: 0,
            peer: 0,
            packet: Packet::default(),
            subject: 0,
            netns: 0,
            identity: 0,
            address: 0,
            hook: hook as u8,
            role: if outbound { Role::Initiator as u8 } else { Role::Responder as u8 },
            outbound: u8::from(outbound),
            loopback: 0,
            other_identity: 0,
        }
    }

    #[inline(always)]
    pub fn is_outbound(&self) -> bool {
        self.outbound != 0
    }

    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        self.loopback != 0
    }

    #[inline(always)]
    pub fn is_initiator(&self) -> bool {
        self.role == Role::Initiator as u8
    }

    /// Which rules decide.
    #[inline(always)]
    pub fn direction(&self) -> Direction {
        if self.is_initiator() { Direction::Egress } else { Direction::Ingress }
    }

    /// Takes the other end's role.
    #[inline(always)]
    pub fn swap_role(&mut self) {
        self.role = if self.is_initiator() { Role::Responder as u8 } else { Role::Initiator as u8 };
    }

    /// Takes a role that was kept; zero leaves it as it is.
    #[inline(always)]
    pub fn keep_role(&mut self, role: u8) {
        if role != 0 {
            self.role = role;
        }
    }

    #[inline(always)]
    pub fn policy(&self) -> Policy {
        Policy::of(self.stamp)
    }

    #[inline(always)]
    pub fn peer_classes(&self) -> Peer {
        Peer { identity: self.identity, address: self.address }
    }

    /// The subject's address.
    #[inline(always)]
    pub fn local(&self) -> &Addr {
        if self.is_outbound() { &self.packet.src } else { &self.packet.dst }
    }

    /// The subject's port.
    #[inline(always)]
    pub fn local_port(&self) -> Port {
        if self.is_outbound() { self.packet.src_port } else { self.packet.dst_port }
    }

    /// The peer's address.
    #[inline(always)]
    pub fn remote(&self) -> &Addr {
        if self.is_outbound() { &self.packet.dst } else { &self.packet.src }
    }

    /// The peer's port.
    #[inline(always)]
    pub fn remote_port(&self) -> Port {
        if self.is_outbound() { self.packet.dst_port } else { self.packet.src_port }
    }

    /// Replaces the subject's port.
    #[inline(always)]
    pub fn set_local_port(&mut self, port: Port) {
        if self.is_outbound() {
            self.packet.src_port = port;
        } else {
            self.packet.dst_port = port;
        }
    }

    /// Replaces the peer's end.
    #[inline(always)]
    pub fn set_remote(&mut self, addr: Addr, port: Port) {
        if self.is_outbound() {
            self.packet.dst = addr;
            self.packet.dst_port = port;
        } else {
            self.packet.src = addr;
            self.packet.src_port = port;
        }
    }

    /// The port or ICMP type that rules match: at the end that was asked. Of an echo it is the type
    /// of the message that opened the flow, whichever of the two this is.
    #[inline(always)]
    pub fn service(&self) -> u16 {
        match self.packet.protocol {
            proto::ICMP | proto::ICMPV6 => {
                let opens = self.is_outbound() == self.is_initiator();
                u16::from(self.packet.icmp_type_of_flow(opens))
            }
            _ if self.is_initiator() => self.remote_port().get(),
            _ => self.local_port().get(),
        }
    }
}
