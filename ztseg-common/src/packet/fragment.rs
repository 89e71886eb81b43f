//! Fragments.

use super::Packet;
use crate::addr::proto;
use crate::verdict::Reason;

/// A whole packet, also one in a single "atomic" fragment (RFC 6946).
pub const WHOLE: u16 = 0;
/// The first fragment, with all headers; more follow.
pub const FIRST: u16 = 1;
/// A later fragment: no transport header, no ports.
pub const LATER: u16 = 2;
/// Where one of these is in [`Packet::fragment`].
pub const KIND: u16 = 7;

/// What a header says of its fragment.
pub(super) struct Fragment {
    pub(super) id: u32,
    /// In bytes.
    pub(super) offset: u16,
    pub(super) more: bool,
    /// Bytes of the fragmented data in it.
    pub(super) data: u16,
    /// Bytes of headers that each fragment has before its data and that count towards the length
    /// of the whole.
    pub(super) before: u16,
}

impl Fragment {
    /// Checks the fragment and notes it in `packet`. `next` is the protocol that its data claims to
    /// be of.
    #[inline(always)]
    pub(super) fn apply(&self, next: u8, quoted: bool, packet: &mut Packet) -> Result<(), Reason> {
        if self.offset == 0 && !self.more {
            return Ok(());
        }
        #[expect(clippy::cast_possible_truncation, reason = "the upper half is folded in")]
        {
            packet.fragment_id = (self.id ^ self.id >> 16) as u16;
        }
        packet.fragment =
            if self.offset == 0 { FIRST | (self.data & !KIND) } else { LATER | self.offset };
        if quoted {
            return Ok(());
        }
        // All but the last end at a multiple of eight bytes (RFC 791, RFC 8200 section 4.5), none is
        // empty, and none reaches beyond the longest packet.
        let end = u32::from(self.before) + u32::from(self.offset) + u32::from(self.data);
        if self.data == 0 || (self.more && !self.data.is_multiple_of(8)) || end > 0xffff {
            return Err(Reason::BadFragment);
        }
        // RFC 3128: a first fragment has the whole transport header, so what begins before that
        // header's end is there to write over it.
        let header = match next {
            proto::TCP => 20,
            proto::SCTP => 12,
            _ => 0,
        };
        if self.offset != 0 && self.offset < header {
            return Err(Reason::OverlappingFragment);
        }
        Ok(())
    }
}
