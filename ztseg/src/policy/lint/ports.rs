//! Which ports lists of ranges leave over.

use crate::policy::resolved::PortRange;

/// What is left of `ports` without those in `taken`.
pub(super) fn without(ports: &mut Vec<PortRange>, taken: &[PortRange]) {
    for taken in taken {
        if taken.protocol.is_none() {
            ports.clear();
        }
        if !ports.iter().any(|range| overlap(*range, *taken)) {
            continue;
        }
        let mut left = Vec::with_capacity(ports.len() + 1);
        for range in ports.drain(..) {
            // One protocol takes nothing of all protocols that could be told.
            if range.protocol != taken.protocol || !overlap(range, *taken) {
                left.push(range);
                continue;
            }
            if let Some(last) = taken.first.checked_sub(1).filter(|last| *last >= range.first) {
                left.push(PortRange { last, ..range });
            }
            if let Some(first) = taken.last.checked_add(1).filter(|first| *first <= range.last) {
                left.push(PortRange { first, ..range });
            }
        }
        *ports = left;
    }
}

/// Whether `wide` has all of `narrow`.
pub(super) fn cover(wide: &[PortRange], narrow: &[PortRange]) -> bool {
    let mut left = narrow.to_vec();
    without(&mut left, wide);
    left.is_empty()
}

/// Whether a protocol and port is in both lists.
pub(super) fn meet(one: &[PortRange], other: &[PortRange]) -> bool {
    one.iter().any(|a| other.iter().any(|b| overlap(*a, *b)))
}

fn overlap(a: PortRange, b: PortRange) -> bool {
    match (a.protocol, b.protocol) {
        (Some(p), Some(q)) => p == q && a.first <= b.last && b.first <= a.last,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(first: u16, last: u16) -> PortRange {
        PortRange { protocol: Some(6), first, last }
    }

    #[test]
    fn a_range_is_taken_out_of_the_middle_and_at_the_ends() {
        for (range, taken, left) in [
            (tcp(10, 20), tcp(12, 13), vec![tcp(10, 11), tcp(14, 20)]),
            (tcp(10, 20), tcp(0, 10), vec![tcp(11, 20)]),
            (tcp(10, 20), tcp(20, u16::MAX), vec![tcp(10, 19)]),
            (tcp(10, 20), tcp(21, 30), vec![tcp(10, 20)]),
            (tcp(0, u16::MAX), tcp(0, u16::MAX), vec![]),
            (PortRange::ANY, tcp(0, u16::MAX), vec![PortRange::ANY]),
            (tcp(10, 20), PortRange { protocol: Some(17), ..tcp(0, 99) }, vec![tcp(10, 20)]),
            (tcp(10, 20), PortRange::ANY, vec![]),
        ] {
            let mut ports = vec![range];
            without(&mut ports, &[taken]);
            assert_eq!(ports, left, "{range:?} without {taken:?}");
        }
    }

    #[test]
    fn several_ranges_cover_together() {
        assert!(cover(&[tcp(15, 20), tcp(10, 15)], &[tcp(10, 20)]));
        assert!(!cover(&[tcp(16, 20), tcp(10, 14)], &[tcp(10, 20)]));
        assert!(meet(&[tcp(1, 2), tcp(9, 10)], &[tcp(10, 20)]));
        assert!(!meet(&[tcp(1, 2), tcp(9, 9)], &[tcp(10, 20)]));
    }
}
