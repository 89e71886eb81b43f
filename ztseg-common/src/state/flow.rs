//! A flow in the flow table: how far it is, and what a packet makes of it.

use bytemuck::{Pod, Zeroable};

use super::Role;
use crate::key::WorkloadKey;
use crate::packet::SctpKind;

/// The state of a flow in the flow table.
///
/// 56 bytes: with an IPv4 key and the kernel's own 48 bytes, an element fills two cache lines.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowState {
    /// The stamp that judged the flow.
    pub stamp: u64,
    /// The peer's workload on this host; zero when it is not known.
    pub peer: WorkloadKey,
    /// Rank of the rule that decided; zero for none.
    pub rule: u32,
    /// When the last packet came, in [`super::ticks`].
    pub last_seen: u32,
    /// A [`Role`].
    pub role: u8,
    /// A [`crate::verdict::Reason`].
    pub reason: u8,
    /// A [`Phase`].
    pub phase: u8,
    /// [`FIN_LOCAL`], [`FIN_REMOTE`], [`FLOW_EXPIRES`], [`FLOW_TRANSLATED`], [`FLOW_MAPPING`].
    pub flags: u8,
    /// Upper half of the last TCP acknowledgement number that the subject sent, or of the SCTP
    /// verification tag.
    pub local_ack: u16,
    /// Upper half of the last one that the peer sent.
    pub remote_ack: u16,
    /// Bytes (of IP packets) that the subject sent.
    pub tx_bytes: u64,
    /// Bytes that it received.
    pub rx_bytes: u64,
    /// Packets that the subject sent; goes round.
    pub tx_packets: u32,
    /// Packets that it received; goes round.
    pub rx_packets: u32,
}

/// Flag of [`FlowState`]: the subject has sent a FIN.
pub const FIN_LOCAL: u8 = 1;
/// Flag of [`FlowState`]: the peer has sent one.
pub const FIN_REMOTE: u8 = 2;
const FINS: u8 = FIN_LOCAL | FIN_REMOTE;
/// Flag of [`FlowState`]: the rule that decided expires, and its verdict with it.
pub const FLOW_EXPIRES: u8 = 4;
/// Flag of [`FlowState`]: what the subject sends is translated on its way; its [`Mapping`] is in the
/// table, too.
pub const FLOW_TRANSLATED: u8 = 8;
/// Flag of [`FlowState`]: it is no flow, but a [`Mapping`].
pub const FLOW_MAPPING: u8 = 16;

/// How far a flow in the table is. What is neither TCP nor SCTP is [`Phase::Established`] from the
/// start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Only the initiator has spoken: a SYN, an INIT.
    Opening = 1,
    /// The responder has answered: a SYN with ACK, an INIT ACK.
    Answered = 2,
    /// The initiator has answered that.
    Established = 3,
    /// TCP: both ends have sent a FIN, or one a RST. SCTP: one has sent an ABORT or a SHUTDOWN
    /// COMPLETE.
    Closing = 4,
}

impl Phase {
    /// From its number in a state.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Opening),
            2 => Some(Self::Answered),
            3 => Some(Self::Established),
            4 => Some(Self::Closing),
            _ => None,
        }
    }
}

/// Seconds without a packet after which a flow of the table is a new flow.
///
/// TCP as Linux' conntrack has them (`tcp_timeouts`, `net/netfilter/nf_conntrack_proto_tcp.c`);
/// RFC 5382 REQ-5 asks for at least 2 h 4 min and 4 min. UDP: RFC 4787 REQ-5 asks for at least
/// 2 min. SCTP: as conntrack while the association stands (`sctp_timeouts`,
/// `net/netfilter/nf_conntrack_proto_sctp.c`), which heartbeats keep alive (RFC 9260 section 8.3),
/// and long enough for what is sent again while it opens and ends.
#[inline(always)]
pub const fn timeout_seconds(protocol: u8, phase: u8) -> u32 {
    match protocol {
        crate::addr::proto::TCP => match Phase::from_u8(phase) {
            Some(Phase::Established) => 5 * 24 * 3600,
            Some(Phase::Answered) => 60,
            Some(Phase::Opening | Phase::Closing) | None => 120,
        },
        crate::addr::proto::UDP | crate::key::MAPPED_UDP => 180,
        crate::addr::proto::SCTP => match Phase::from_u8(phase) {
            Some(Phase::Established) => 210,
            Some(Phase::Opening | Phase::Answered | Phase::Closing) | None => 60,
        },
        _ => 30,
    }
}

/// What a TCP segment of a known flow means for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// It belongs to the flow.
    Continue,
    /// It asks for a new flow between the same ends (RFC 9293 section 3.6.1): its sender is the
    /// initiator, and the flow is judged afresh.
    New,
}

/// What the step needs to know of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Flags, [`crate::packet::tcp`].
    pub flags: u8,
    /// The subject sent it.
    pub outbound: bool,
    /// Upper half of its sequence number.
    pub sequence: u16,
    /// Upper half of its acknowledgement number.
    pub acknowledgement: u16,
}

/// What the step needs to know of an SCTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What its first chunk is: a [`SctpKind`].
    pub kind: u8,
    /// The subject sent it.
    pub outbound: bool,
    /// Upper half of its verification tag (RFC 9260 section 8.5): one number for all packets of an
    /// end, which the other end has chosen.
    pub tag: u16,
}

/// How far, in steps of 64 KiB, a reset may lie beyond what was acknowledged last; as much data may
/// be on the way.
const RESET_WINDOW: u16 = 16;

impl FlowState {
    /// Takes a TCP segment in. The caller has seen that the flow is allowed and fresh.
    ///
    /// A reset or FIN from outside cannot end a flow: a FIN counts only with the other end's, a
    /// reset only near what the other end has acknowledged (RFC 5961 section 3.2, with a window),
    /// and any later segment of an ended flow brings it back to life.
    #[inline(always)]
    pub fn tcp(&mut self, segment: Segment) -> Step {
        use crate::packet::tcp;
        let by_initiator = segment.outbound == (self.role == Role::Initiator as u8);
        let opening = self.phase == Phase::Opening as u8;
        if tcp::is_request(segment.flags) {
            // The first one again; or both ends open at once.
            return if opening { Step::Continue } else { Step::New };
        }
        if segment.flags & tcp::RST != 0 {
            let acknowledged = if segment.outbound { self.remote_ack } else { self.local_ack };
            // Before it is established nothing was acknowledged, and there is little to lose.
            if self.phase != Phase::Established as u8
                || segment.sequence.wrapping_sub(acknowledged) <= RESET_WINDOW
            {
                self.phase = Phase::Closing as u8;
            }
            return Step::Continue;
        }
        if segment.flags & tcp::ACK != 0 {
            if segment.outbound {
                self.local_ack = segment.acknowledgement;
            } else {
                self.remote_ack = segment.acknowledgement;
            }
        }
        if segment.flags & tcp::FIN != 0 {
            self.flags |= if segment.outbound { FIN_LOCAL } else { FIN_REMOTE };
            if self.flags & FINS == FINS {
                self.phase = Phase::Closing as u8;
            }
        } else if opening {
            if !by_initiator {
                self.phase = Phase::Answered as u8;
            }
        } else if self.phase == Phase::Answered as u8 {
            if by_initiator {
                self.phase = Phase::Established as u8;
            }
        } else if self.flags & FINS != FINS {
            self.phase = Phase::Established as u8;
        }
        Step::Continue
    }

    /// Takes an SCTP packet in, by its first chunk. The caller has seen that the flow is allowed and
    /// fresh.
    ///
    /// As for TCP: only who knows the tag can end an association, and any later packet brings it
    /// back.
    #[inline(always)]
    pub fn sctp(&mut self, chunk: Chunk) -> Step {
        const INIT: u8 = SctpKind::Init as u8;
        const INIT_ACK: u8 = SctpKind::InitAck as u8;
        const ABORT: u8 = SctpKind::Abort as u8;
        const COOKIE_ECHO: u8 = SctpKind::CookieEcho as u8;
        const COMPLETE: u8 = SctpKind::ShutdownComplete as u8;
        let by_initiator = chunk.outbound == (self.role == Role::Initiator as u8);
        let opening = self.phase == Phase::Opening as u8;
        match chunk.kind {
            // Again, or both ends at once (RFC 9260 section 5.2.1); else it starts anew.
            INIT => return if opening { Step::Continue } else { Step::New },
            ABORT | COMPLETE => {
                // The end's own tag, or with the T bit the other's (RFC 9260 section 8.5.1).
                let knows =
                    chunk.tag != 0 && (chunk.tag == self.local_ack || chunk.tag == self.remote_ack);
                if self.phase != Phase::Established as u8 || knows {
                    self.phase = Phase::Closing as u8;
                }
                return Step::Continue;
            }
            INIT_ACK if opening && !by_initiator => self.phase = Phase::Answered as u8,
            COOKIE_ECHO if by_initiator && self.phase == Phase::Answered as u8 => {
                self.phase = Phase::Established as u8;
            }
            _ if self.phase == Phase::Closing as u8 => self.phase = Phase::Established as u8,
            _ => {}
        }
        if chunk.outbound {
            self.local_ack = chunk.tag;
        } else {
            self.remote_ack = chunk.tag;
        }
        Step::Continue
    }

    /// Whether both ends have spoken: of a TCP flow, whether the one that opened it has answered the
    /// answer, which no flood with borrowed sources does.
    #[inline(always)]
    pub const fn is_answered(&self, protocol: u8) -> bool {
        match protocol {
            crate::addr::proto::TCP | crate::addr::proto::SCTP => {
                self.phase == Phase::Established as u8
            }
            _ => self.tx_packets != 0 && self.rx_packets != 0,
        }
    }

    /// Adds a packet to the counts.
    #[inline(always)]
    pub fn account(&mut self, outbound: bool, bytes: u16) {
        if outbound {
            self.tx_packets = self.tx_packets.wrapping_add(1);
            self.tx_bytes = self.tx_bytes.wrapping_add(u64::from(bytes));
        } else {
            self.rx_packets = self.rx_packets.wrapping_add(1);
            self.rx_bytes = self.rx_bytes.wrapping_add(u64::from(bytes));
        }
    }
}

const _: () = assert!(size_of::<FlowState>() == 56);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tcp::{ACK, FIN, RST, SYN};

    fn segment(outbound: bool, flags: u8) -> Segment {
        Segment { flags, outbound, sequence: 7, acknowledgement: 7 }
    }

    /// The subject opened it.
    fn opening() -> FlowState {
        FlowState {
            role: Role::Initiator as u8,
            phase: Phase::Opening as u8,
            ..FlowState::default()
        }
    }

    fn established() -> FlowState {
        let mut flow = opening();
        for (outbound, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK)] {
            assert_eq!(flow.tcp(segment(outbound, flags)), Step::Continue);
        }
        assert_eq!(flow.phase, Phase::Established as u8);
        flow
    }

    #[test]
    fn a_handshake_establishes() {
        let mut flow = opening();
        flow.tcp(segment(true, SYN));
        assert_eq!(flow.phase, Phase::Opening as u8);
        flow.tcp(segment(false, SYN | ACK));
        assert_eq!(flow.phase, Phase::Answered as u8);
        flow.tcp(segment(false, SYN | ACK));
        assert_eq!(flow.phase, Phase::Answered as u8, "the responder alone establishes nothing");
        flow.tcp(segment(true, ACK));
        assert_eq!(flow.phase, Phase::Established as u8);
    }

    #[test]
    fn both_ends_may_open_at_once() {
        let mut flow = opening();
        for (outbound, flags) in [(true, SYN), (false, SYN), (true, SYN | ACK), (false, SYN | ACK)]
        {
            assert_eq!(flow.tcp(segment(outbound, flags)), Step::Continue);
        }
        flow.tcp(segment(true, ACK));
        assert_eq!(flow.phase, Phase::Established as u8);
    }

    #[test]
    fn a_syn_on_an_established_flow_asks_for_a_new_one_and_changes_nothing() {
        for outbound in [true, false] {
            let mut flow = established();
            let before = flow;
            assert_eq!(flow.tcp(segment(outbound, SYN)), Step::New);
            assert_eq!(flow, before);
        }
    }

    #[test]
    fn only_both_fins_close() {
        let mut flow = established();
        flow.tcp(segment(false, FIN | ACK));
        flow.tcp(segment(false, FIN | ACK));
        assert_eq!(flow.phase, Phase::Established as u8);
        flow.tcp(segment(true, FIN | ACK));
        assert_eq!(flow.phase, Phase::Closing as u8);
        flow.tcp(segment(false, ACK));
        assert_eq!(flow.phase, Phase::Closing as u8, "the last acknowledgement");
    }

    #[test]
    fn a_reset_counts_only_near_what_was_acknowledged() {
        for outbound in [true, false] {
            let mut flow = established();
            for sequence in [6, 7 + RESET_WINDOW + 1, 7 + 0x8000] {
                flow.tcp(Segment { sequence, ..segment(outbound, RST) });
                assert_eq!(flow.phase, Phase::Established as u8, "{sequence}");
            }
            flow.tcp(Segment { sequence: 8, ..segment(outbound, RST) });
            assert_eq!(flow.phase, Phase::Closing as u8);
            flow.tcp(segment(outbound, ACK));
            assert_eq!(flow.phase, Phase::Established as u8, "it was not the end");
        }
    }

    fn chunk(outbound: bool, kind: SctpKind) -> Chunk {
        Chunk { kind: kind as u8, outbound, tag: if outbound { 0x1111 } else { 0x2222 } }
    }

    fn associated() -> FlowState {
        let mut flow = opening();
        for (outbound, kind, phase) in [
            (true, SctpKind::Init, Phase::Opening),
            (false, SctpKind::InitAck, Phase::Answered),
            (true, SctpKind::CookieEcho, Phase::Established),
            (false, SctpKind::CookieAck, Phase::Established),
            (true, SctpKind::Other, Phase::Established),
        ] {
            assert_eq!(flow.sctp(chunk(outbound, kind)), Step::Continue);
            assert_eq!(flow.phase, phase as u8, "{kind:?}");
        }
        flow
    }

    #[test]
    fn an_association_opens_by_its_chunks() {
        associated();
        let mut flow = opening();
        flow.sctp(chunk(true, SctpKind::CookieEcho));
        assert_eq!(flow.phase, Phase::Opening as u8, "the responder has not answered");
        flow.sctp(chunk(true, SctpKind::InitAck));
        assert_eq!(flow.phase, Phase::Opening as u8, "that is no answer of the responder");
        assert_eq!(flow.sctp(chunk(false, SctpKind::Init)), Step::Continue, "both at once");
    }

    #[test]
    fn an_init_in_an_association_asks_for_a_new_one_and_changes_nothing() {
        for outbound in [true, false] {
            let mut flow = associated();
            let before = flow;
            assert_eq!(flow.sctp(Chunk { tag: 0, ..chunk(outbound, SctpKind::Init) }), Step::New);
            assert_eq!(flow, before);
        }
    }

    #[test]
    fn only_who_knows_a_tag_ends_an_association() {
        for kind in [SctpKind::Abort, SctpKind::ShutdownComplete] {
            for outbound in [true, false] {
                let mut flow = associated();
                flow.sctp(Chunk { tag: 0x3333, ..chunk(outbound, kind) });
                assert_eq!(flow.phase, Phase::Established as u8);
                flow.sctp(chunk(outbound, kind));
                assert_eq!(flow.phase, Phase::Closing as u8);
                flow.sctp(chunk(outbound, SctpKind::Other));
                assert_eq!(flow.phase, Phase::Established as u8, "it was not the end");
            }
        }
    }
}
