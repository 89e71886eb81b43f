//! Peers known by a whole address: what the policy says of them, and members elsewhere, who come and
//! go while a generation is in force.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use ztseg_common::addr::Addr;
use ztseg_common::value::Peer;

/// The exact hosts of an image.
///
/// In three layers, so that a copy costs little and what the policy alone says of an address is never
/// forgotten. In the upper two, `None` is an address without an entry: its longest prefix answers.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    policy: Arc<FxHashMap<Addr, Peer>>,
    members: Arc<FxHashMap<Addr, Option<Peer>>>,
    changed: FxHashMap<Addr, Option<Peer>>,
    len: usize,
}

impl Hosts {
    /// Those of the policy alone, and the members that have other entries, or none.
    pub fn new(policy: FxHashMap<Addr, Peer>, members: FxHashMap<Addr, Option<Peer>>) -> Self {
        let added = members.iter().filter(|(a, now)| now.is_some() && !policy.contains_key(*a));
        let removed = members.iter().filter(|(a, now)| now.is_none() && policy.contains_key(*a));
        let len = policy.len() + added.count() - removed.count();
        Self { policy: policy.into(), members: members.into(), changed: FxHashMap::default(), len }
    }

    /// The entry of an address.
    pub fn get(&self, address: &Addr) -> Option<Peer> {
        let above = self.changed.get(address).or_else(|| self.members.get(address));
        above.copied().unwrap_or_else(|| self.of_policy(address))
    }

    /// The entry that the policy alone gives an address.
    pub fn of_policy(&self, address: &Addr) -> Option<Peer> {
        self.policy.get(address).copied()
    }

    /// Gives an address an entry, or takes it away.
    pub fn set(&mut self, address: Addr, host: Option<Peer>) {
        let before = self.get(&address);
        self.len = self.len + usize::from(host.is_some()) - usize::from(before.is_some());
        let below = self.members.get(&address).copied();
        if below.unwrap_or_else(|| self.of_policy(&address)) == host {
            self.changed.remove(&address);
        } else {
            self.changed.insert(address, host);
        }
    }

    /// How many entries there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every entry, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Addr, Peer)> {
        let policy = self.policy.iter().map(|(address, peer)| (*address, Some(*peer)));
        let policy = policy.filter(|(address, _)| !self.members.contains_key(address));
        let members = self.members.iter().map(|(address, now)| (*address, *now));
        let below = policy.chain(members).filter(|(a, _)| !self.changed.contains_key(a));
        let changed = self.changed.iter().map(|(address, now)| (*address, *now));
        below.chain(changed).filter_map(|(address, now)| Some((address, now?)))
    }
}

/// The same entries, in whatever layers.
impl PartialEq for Hosts {
    fn eq(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.policy, &other.policy) && Arc::ptr_eq(&self.members, &other.members) {
            let both = self.changed.keys().chain(other.changed.keys());
            return both.into_iter().all(|address| self.get(address) == other.get(address));
        }
        self.len == other.len && self.iter().all(|(a, peer)| other.get(&a) == Some(peer))
    }
}

impl Eq for Hosts {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn random_layers(rng: &mut fastrand::Rng) -> (Hosts, BTreeMap<Addr, Peer>) {
        let address = |n: u8| Addr::v4([192, 0, 2, n]);
        let peer = |rng: &mut fastrand::Rng| Peer { identity: rng.u32(1..4), address: 1 };
        let policy: FxHashMap<_, _> =
            (0..rng.u8(0..8)).map(|_| (address(rng.u8(0..8)), peer(rng))).collect();
        let members: FxHashMap<_, _> = (0..rng.u8(0..8))
            .map(|_| (address(rng.u8(0..8)), rng.bool().then(|| peer(rng))))
            .collect();
        let mut model: BTreeMap<_, _> = policy.clone().into_iter().collect();
        let set = |model: &mut BTreeMap<_, _>, a, now| match now {
            Some(peer) => drop(model.insert(a, peer)),
            None => drop(model.remove(&a)),
        };
        for (address, now) in &members {
            set(&mut model, *address, *now);
        }
        let mut hosts = Hosts::new(policy, members);
        for _ in 0..rng.u8(0..8) {
            let (a, now) = (address(rng.u8(0..8)), rng.bool().then(|| peer(rng)));
            hosts.set(a, now);
            set(&mut model, a, now);
        }
        (hosts, model)
    }

    #[test]
    fn layers_are_one_map() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut alike, mut other) = (0, 0);
        for _ in 0..3000 {
            let ((a, of_a), (b, of_b)) = (random_layers(&mut rng), random_layers(&mut rng));
            assert_eq!(a.iter().collect::<BTreeMap<_, _>>(), of_a);
            assert_eq!(a.iter().count(), a.len());
            assert_eq!((a.len(), a.is_empty()), (of_a.len(), of_a.is_empty()));
            assert_eq!(a == b, of_a == of_b);
            // As many copies of one as differ in what was changed.
            let mut copy = a.clone();
            let (address, now) =
                (Addr::v4([192, 0, 2, rng.u8(0..8)]), a.get(&Addr::v4([192, 0, 2, 1])));
            copy.set(address, now);
            assert_eq!(copy == a, of_a.get(&address).copied() == now);
            if copy == a { alike += 1 } else { other += 1 }
        }
        assert!(alike > 100 && other > 100, "{alike} {other}");
    }
}
