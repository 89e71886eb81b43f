//! Port classes: a sweep over all (protocol, port) slots.

use rustc_hash::FxHashMap;
use ztseg_common::addr::proto;
use ztseg_common::key::{PORT_FIRST, PORT_SLOTS, PORT_UNNAMED, port_slot};

use super::sets::{SetId, SetPool};
use super::{CompileError, number};
use crate::policy::resolved::PortRange;

/// Port classes from [`PORT_UNNAMED`] up to the largest number that fits.
const MAX_CLASSES: u32 = u16::MAX as u32;

/// The port classes of a policy.
pub(super) struct Ports {
    /// By slot.
    pub(super) classes: Vec<u16>,
    /// By index into [`super::sides::Sides::ports`]: the classes in it.
    pub(super) matching: Vec<Vec<u16>>,
}

/// A list of ports begins or ends to cover slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    slot: u32,
    list: u32,
    begins: bool,
}

impl Ports {
    /// Groups the slots by the lists that hold them.
    pub(super) fn new(lists: &[&[PortRange]]) -> Result<Self, CompileError> {
        let mut edges: Vec<Edge> = Vec::new();
        for (list, ranges) in lists.iter().enumerate() {
            let list = number(list);
            for (first, last) in ranges.iter().copied().filter_map(slots) {
                edges.push(Edge { slot: first, list, begins: true });
                edges.push(Edge { slot: last + 1, list, begins: false });
            }
        }
        edges.sort_unstable();

        let mut pool = SetPool::new(lists.len());
        let mut numbers: FxHashMap<_, _> = [(SetId::EMPTY, PORT_UNNAMED)].into_iter().collect();
        let mut classes = vec![PORT_UNNAMED; PORT_SLOTS];
        let mut matching = vec![Vec::new(); lists.len()];
        let mut covering = vec![0u32; lists.len()];
        let mut set = SetId::EMPTY;
        let mut pairs = 0;
        for (i, edge) in edges.iter().enumerate() {
            let count = &mut covering[edge.list as usize];
            *count = if edge.begins { count.wrapping_add(1) } else { count.wrapping_sub(1) };
            set = match *count {
                0 => pool.remove(set, edge.list),
                _ => pool.insert(set, edge.list),
            };
            let Some(next) = edges.get(i + 1).filter(|next| next.slot != edge.slot) else {
                continue;
            };
            let class = if let Some(class) = numbers.get(&set) {
                *class
            } else {
                let class = u16::try_from(numbers.len() - 1 + usize::from(PORT_FIRST))
                    .map_err(|_| CompileError::PortClasses { limit: MAX_CLASSES })?;
                numbers.insert(set, class);
                pairs += pool.len(set);
                super::check_overlaps("ports", pairs as u64, super::MAX_PAIRS)?;
                pool.for_each(set, &mut |list| matching[list as usize].push(class));
                class
            };
            classes[edge.slot as usize..next.slot as usize].fill(class);
        }
        Ok(Self { classes, matching })
    }
}

/// The first and the last slot of a range; `None` for a range that holds nothing that a packet
/// can have.
fn slots(range: PortRange) -> Option<(u32, u32)> {
    let protocol = range.protocol?;
    let highest = match protocol {
        proto::TCP | proto::UDP | proto::SCTP => u16::MAX,
        proto::ICMP | proto::ICMPV6 => u16::from(u8::MAX),
        // No ports: every packet of such a protocol counts as port zero.
        _ => 0,
    };
    let last = range.last.min(highest);
    (range.first <= last).then(|| (port_slot(protocol, range.first), port_slot(protocol, last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(protocol: u8, first: u16, last: u16) -> PortRange {
        PortRange { protocol: Some(protocol), first, last }
    }

    #[test]
    fn slots_that_the_same_lists_hold_share_a_class() {
        let lists: [&[PortRange]; 3] = [
            &[range(proto::TCP, 80, 80), range(proto::TCP, 443, 443)],
            &[range(proto::TCP, 0, u16::MAX), range(proto::TCP, 70, 90)],
            &[range(proto::ICMP, 8, u16::MAX), range(47, 0, u16::MAX), range(50, 1, 2)],
        ];
        let ports = Ports::new(&lists).expect("few classes");
        let class = |p, port| ports.classes[port_slot(p, port) as usize];
        assert_eq!(class(proto::TCP, 80), class(proto::TCP, 443));
        assert_ne!(class(proto::TCP, 80), class(proto::TCP, 81));
        assert_eq!(class(proto::TCP, 0), class(proto::TCP, u16::MAX));
        assert_eq!(class(proto::UDP, 0), PORT_UNNAMED);
        assert_eq!(class(proto::ICMP, 7), PORT_UNNAMED);
        assert_eq!(class(proto::ICMP, 255), class(47, 0));
        assert_eq!(class(50, 0), PORT_UNNAMED, "a protocol without ports has no port 1");
        assert_eq!(class(proto::ICMPV6, 0), PORT_UNNAMED);
        assert_eq!(ports.matching.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 1]);
    }

    #[test]
    fn too_many_classes_are_refused() {
        let all: Vec<[PortRange; 1]> = [proto::TCP, proto::UDP]
            .iter()
            .flat_map(|p| (0..40_000).map(|port| [range(*p, port, port)]))
            .collect();
        let lists: Vec<&[PortRange]> = all.iter().map(<[_; 1]>::as_slice).collect();
        assert_eq!(
            Ports::new(&lists).map(|_| ()),
            Err(CompileError::PortClasses { limit: 65_535 })
        );
        assert!(Ports::new(&lists[..65_533]).is_ok());
    }
}
