//! What an SCTP association is to an enforcer in its middle, as the documents have it: ARCHITECTURE.md
//! ("Phases") and RFC 9260 for what a chunk means.

use super::connection::{End, OPENER};

/// Chunk types (RFC 9260 section 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
const SHUTDOWN_COMPLETE: u8 = 14;

/// An SCTP packet: its first chunk, and the tag that the other end has chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) kind: u8,
    pub(super) tag: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Answered,
    Established,
    Ended,
}

/// An association.
#[derive(Clone, Debug)]
pub(super) struct Association {
    stage: Stage,
    /// The tag that each end's packets carry.
    tags: [Option<u32>; 2],
}

impl Association {
    /// By the first packet that was seen, of its opener.
    pub(super) fn begin(chunk: Chunk) -> Self {
        let stage = if chunk.kind == INIT { Stage::Opening } else { Stage::Established };
        let mut association = Self { stage, tags: [None; 2] };
        association.take(OPENER, chunk);
        association
    }

    /// How long it may be silent, in seconds.
    pub(super) fn timeout(&self) -> u64 {
        if self.stage == Stage::Established { 210 } else { 60 }
    }

    /// Whether a packet asks for another association between the same ends.
    pub(super) fn is_asked_anew(&self, chunk: Chunk) -> bool {
        chunk.kind == INIT && self.stage != Stage::Opening
    }

    /// A packet of the association from `end`.
    pub(super) fn take(&mut self, end: End, chunk: Chunk) {
        match (chunk.kind, self.stage) {
            (INIT, _) => return,
            (ABORT | SHUTDOWN_COMPLETE, stage) => {
                // Half of the tag is kept.
                let known = |tag: &Option<u32>| tag.is_some_and(|t| t >> 16 == chunk.tag >> 16);
                if stage != Stage::Established
                    || (chunk.tag >> 16 != 0 && self.tags.iter().any(known))
                {
                    self.stage = Stage::Ended;
                }
                return;
            }
            (INIT_ACK, Stage::Opening) if end != OPENER => self.stage = Stage::Answered,
            (COOKIE_ECHO, Stage::Answered) if end == OPENER => self.stage = Stage::Established,
            (_, Stage::Ended) => self.stage = Stage::Established,
            _ => {}
        }
        self.tags[end] = Some(chunk.tag);
    }
}
