//! What a TCP connection is to an enforcer in its middle, as the documents have it: ARCHITECTURE.md
//! ("Phases"), RFC 9293 for what a segment means, and the timeouts of Linux' conntrack
//! (Documentation/networking/nf_conntrack-sysctl.rst, `nf_conntrack_tcp_timeout_*`).

use ztseg_common::packet::tcp::{ACK, FIN, RST, SYN};

/// A reset counts so far beyond what the other end acknowledged last.
const RESET_WINDOW: u32 = 1 << 20;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;

/// One of the two ends: index zero opened the connection.
pub(super) type End = usize;
pub(super) const OPENER: End = 0;
pub(super) const OTHER: End = 1;

/// A segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The opener has spoken.
    Opening,
    /// The other end has answered.
    Answered,
    /// And the opener that.
    Established,
    /// Both ends said that they end it, or one broke it off.
    Ending,
}

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    stage: Stage,
    /// Who has said that it ends it.
    ends: [bool; 2],
    /// What each end acknowledged last.
    acknowledged: [Option<u32>; 2],
}

impl Connection {
    /// By the first segment that was seen, from `end`. Without a SYN it is one that stood before.
    pub(super) fn begin(end: End, segment: Segment) -> Self {
        let stage = if segment.flags & SYN != 0 { Stage::Opening } else { Stage::Established };
        let mut connection = Self { stage, ends: [false; 2], acknowledged: [None; 2] };
        connection.take(end, segment);
        connection
    }

    /// How long it may be silent, in seconds.
    pub(super) fn timeout(&self) -> u64 {
        match self.stage {
            Stage::Opening | Stage::Ending => 2 * MINUTE,
            Stage::Answered => MINUTE,
            Stage::Established => 5 * DAY,
        }
    }

    /// Whether a segment asks for a connection of its own between the same ends. While this one is
    /// being opened it is the same request again, or both ends open at once.
    pub(super) fn is_asked_anew(&self, segment: Segment) -> bool {
        let asks = segment.flags & (SYN | ACK | RST) == SYN;
        asks && self.stage != Stage::Opening
    }

    /// A segment of the connection from `end`.
    pub(super) fn take(&mut self, end: End, segment: Segment) {
        let other = 1 - end;
        if segment.flags & RST != 0 {
            // Whoever is not on the path cannot know what was acknowledged.
            let near = self.acknowledged[other]
                .is_some_and(|ack| segment.sequence.wrapping_sub(ack) <= RESET_WINDOW);
            if near || self.stage != Stage::Established {
                self.stage = Stage::Ending;
            }
            return;
        }
        if segment.flags & (SYN | ACK) == SYN {
            return;
        }
        if segment.flags & ACK != 0 {
            self.acknowledged[end] = Some(segment.acknowledgement);
        }
        if segment.flags & FIN != 0 {
            self.ends[end] = true;
            if self.ends == [true; 2] {
                self.stage = Stage::Ending;
            }
            return;
        }
        self.stage = match self.stage {
            Stage::Opening if end != OPENER => Stage::Answered,
            Stage::Answered if end == OPENER => Stage::Established,
            // It was not the end.
            Stage::Ending if self.ends != [true; 2] => Stage::Established,
            stage => stage,
        };
    }
}
