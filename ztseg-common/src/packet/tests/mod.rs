//! The parser against packets written by hand, case by case, and at random.

mod build;
mod discovery;
mod fragments;
mod malformed;
mod random;
mod readable;

use super::*;

/// A reader that gives up where the kernel's in-place one does.
struct Plain<'a>(&'a [u8]);

impl Reader for Plain<'_> {
    const PLAIN_ONLY: bool = true;

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        assert!(N <= 2 || N.is_multiple_of(4), "the kernel's reader cannot read {N} bytes");
        self.0.read(offset)
    }

    fn length(&self) -> u32 {
        self.0.length()
    }
}

/// Parses with both readers, which must agree wherever the plain one answers.
fn parse_both(bytes: &[u8]) -> Result<Packet, Reason> {
    let found = parse(bytes, 0);
    if let Ok(plain) = parse(&Plain(bytes), 0) {
        assert_eq!(found, Ok(plain));
    }
    found
}
