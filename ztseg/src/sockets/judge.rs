//! Which sockets belong to flows that are denied and whose denial is to be told. Pure.
//!
//! A socket is named only where that is certain. First comes what the kernel programs wrote down
//! under the policy in force; else the evaluator is asked about what they wrote down under an older
//! one: which end the socket is, and who its peer was. Where anything is missing, or may have changed
//! in a way that only a packet shows, the socket is left alone: its next packet is judged in the
//! kernel, and its denial leads here again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use ztseg_common::addr::{Addr, proto};
use ztseg_common::eval::{Query, decide};
use ztseg_common::key::{WorkloadKey, interface_of, port_slot};
use ztseg_common::state::{Role, SOCKET_LISTENED, SocketState};
use ztseg_common::value::{Peer, RULE_REJECT};
use ztseg_common::verdict::{Direction, Reason, Verdict};

use super::diag::{End, Phase, TcpSocket};
use crate::image::Image;

/// The policy in force, and what is known of this host.
#[derive(Clone, Debug)]
pub struct View {
    /// What the kernel programs stamp their verdicts with.
    pub stamp: u64,
    /// The policy.
    pub image: Arc<Image>,
    /// The workload that each cgroup belongs to.
    pub owners: Arc<HashMap<u64, WorkloadKey>>,
    /// Cookie of the agent's network namespace, where interfaces are workloads.
    pub netns: u64,
    /// By the time of day, for rules that end.
    pub now: Timestamp,
}

/// Whether a policy has any denial that is to be told.
pub fn tells(image: &Image) -> bool {
    image.rules.iter().any(|rule| rule.flags & RULE_REJECT != 0)
        || image.subjects.iter().any(|subject| subject.flags != 0)
}

/// The sockets of one network namespace whose flow is denied by a rule, or by an isolation, that
/// asks for an answer; both of a flow between two of them. As indexes into `sockets`.
pub(super) fn rejected(view: &View, sockets: &[TcpSocket]) -> BTreeSet<usize> {
    let place = Place::new(view, sockets);
    let mut found = BTreeSet::new();
    for (index, socket) in sockets.iter().enumerate() {
        if socket.phase == Phase::Listening {
            continue;
        }
        let other = place.connected.get(&(socket.remote, socket.local)).copied();
        let other = other.filter(|other| *other != index);
        if place.is_rejected(socket, other.map(|other| &sockets[other]))
            || (other.is_none() && place.is_turned_away(socket))
        {
            found.insert(index);
            found.extend(other);
        }
    }
    found
}

/// A network namespace.
struct Place<'a> {
    view: &'a View,
    /// By both ends, the socket's own first.
    connected: HashMap<(End, End), usize>,
    /// By port.
    listening: HashMap<[u8; 2], Vec<&'a TcpSocket>>,
    has_interfaces: bool,
}

impl<'a> Place<'a> {
    fn new(view: &'a View, sockets: &'a [TcpSocket]) -> Self {
        let mut connected = HashMap::new();
        let mut listening: HashMap<_, Vec<_>> = HashMap::new();
        for (index, socket) in sockets.iter().enumerate() {
            if socket.phase == Phase::Listening {
                listening.entry(socket.local.1.octets).or_default().push(socket);
            } else {
                connected.insert((socket.local, socket.remote), index);
            }
        }
        let has_interfaces = view.image.workloads.keys().any(|key| interface_of(*key).is_some());
        Self { view, connected, listening, has_interfaces }
    }

    /// Whether a socket's own workload may not have its flow, and is to be told so.
    fn is_rejected(&self, socket: &TcpSocket, other: Option<&TcpSocket>) -> bool {
        let image = &self.view.image;
        let Some(state) = &socket.state else { return false };
        let role = match Role::from_u8(state.role) {
            // What it was judged for, and not what it was in another life.
            Some(_) if (state.remote, state.remote_port) != socket.remote => return false,
            Some(role) => {
                if let Some(told) = self.kernels_word(state) {
                    return told;
                }
                role
            }
            // Accepted, and silent since: its handshake was its listener's.
            None if state.flags & SOCKET_LISTENED != 0 && other.is_some() => Role::Responder,
            None => return false,
        };
        let Some(workload) = self.workload(socket) else { return false };
        let Some(subject) = image.workloads.get(&workload).map(|w| w.subject) else { return false };
        // The peer's end as the packets carry it, and the port that was asked.
        let (address, port, direction) = match role {
            Role::Initiator => {
                let (address, port) = wire_remote(socket, state);
                (address, port.get(), Direction::Egress)
            }
            Role::Responder => (socket.remote.0, socket.local.1.get(), Direction::Ingress),
        };
        let Some(peer) = self.peer(state, address, other, workload) else { return false };
        self.denies(subject, peer, port, direction)
    }

    /// What the kernel programs said to the last packet, if that was under the policy in force: the
    /// workload is looked up anew before a socket is judged anew, and a verdict that must not be kept
    /// has no stamp.
    fn kernels_word(&self, state: &SocketState) -> Option<bool> {
        let stamp = self.view.stamp;
        if state.workload_stamp != stamp || (state.stamp != stamp && state.stamp != 0) {
            return None;
        }
        if Verdict::from_u8(state.verdict) == Verdict::Allow {
            return Some(false);
        }
        let image = &self.view.image;
        Some(match Reason::from_u8(state.reason) {
            Some(Reason::Rule) => {
                let rule = image.rules.get(state.rule as usize);
                rule.is_some_and(|rule| rule.flags & RULE_REJECT != 0)
            }
            Some(Reason::Isolation) => {
                let workload = image.workloads.get(&state.workload);
                let subject = workload.and_then(|w| image.subjects.get(w.subject as usize));
                let direction = match Role::from_u8(state.role) {
                    Some(Role::Responder) => Direction::Ingress,
                    _ => Direction::Egress,
                };
                subject.is_some_and(|subject| subject.rejects(direction))
            }
            _ => false,
        })
    }

    /// The classes of a peer; `None` where they are not certain, or it is the workload itself.
    fn peer(
        &self,
        state: &SocketState,
        address: Addr,
        other: Option<&TcpSocket>,
        own: WorkloadKey,
    ) -> Option<Peer> {
        let image = &self.view.image;
        let by_address = image.peer(&address);
        let key = match other {
            Some(other) => self.workload(other)?,
            // Who is behind an interface stays there; a socket that is gone may be anybody's next.
            None if interface_of(state.peer).is_some() => state.peer,
            None if state.peer != 0 || address.is_loopback() => return None,
            // Which interface the packets take may make the peer somebody.
            None if self.has_interfaces && state.netns == self.view.netns => return None,
            None => return Some(by_address),
        };
        let identity = image.workloads.get(&key)?.identity;
        (key != own).then_some(Peer { identity, ..by_address })
    }

    /// Whether a socket asks a local one in vain: the listener's workload denies it, and the one who
    /// asks is to be told so. Its packets leave, so only the listener's end knows.
    fn is_turned_away(&self, socket: &TcpSocket) -> bool {
        let Some(state) = &socket.state else { return false };
        if socket.phase != Phase::Asking || (state.remote, state.remote_port) != socket.remote {
            return false;
        }
        let to = wire_remote(socket, state);
        let Some(listener) = self.listener(to, socket.local.0) else { return false };
        let Some(own) = self.workload(socket).filter(|own| *own != listener) else { return false };
        let image = &self.view.image;
        let (Some(theirs), Some(ours)) =
            (image.workloads.get(&listener), image.workloads.get(&own))
        else {
            return false;
        };
        let peer = Peer { identity: ours.identity, ..image.peer(&socket.local.0) };
        self.denies(theirs.subject, peer, to.1.get(), Direction::Ingress)
    }

    /// The workload that is asked at a local end; `None` where it may be another, or the end is not
    /// local for certain: what listens on every address listens for this host's alone.
    fn listener(&self, (address, port): End, from: Addr) -> Option<WorkloadKey> {
        let is_any =
            |a: &Addr| *a == Addr::UNSPECIFIED || (address.is_v4() && *a == Addr::v4([0; 4]));
        let sockets = self.listening.get(&port.octets)?;
        let is_local = address.is_loopback()
            || address == from
            || sockets.iter().any(|socket| socket.local.0 == address);
        let mut asked = sockets
            .iter()
            .filter(|socket| socket.local.0 == address || is_any(&socket.local.0))
            .map(|socket| self.workload(socket));
        let first = asked.next()??;
        (is_local && asked.all(|other| other == Some(first))).then_some(first)
    }

    fn workload(&self, socket: &TcpSocket) -> Option<WorkloadKey> {
        self.view.owners.get(&socket.cgroup).copied()
    }

    fn denies(&self, subject: u32, peer: Peer, port: u16, direction: Direction) -> bool {
        let query = Query { subject, peer, port_slot: port_slot(proto::TCP, port), direction };
        let decision = decide(&self.view.image.at(self.view.now), &query);
        decision.verdict == Verdict::Deny && decision.reject
    }
}

/// Where a socket's packets go, which differs from where it is connected to behind a translation.
fn wire_remote(socket: &TcpSocket, state: &SocketState) -> End {
    if state.wire_remote == Addr::UNSPECIFIED {
        socket.remote
    } else {
        (state.wire_remote, state.wire_port)
    }
}

#[cfg(test)]
mod tests;
