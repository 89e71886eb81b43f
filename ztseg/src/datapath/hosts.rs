//! Single addresses, which change while a generation is in force: each by one map operation.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use ztseg_common::addr::Addr;
use ztseg_common::value::Peer;

use super::batch::Walk;
use super::generation::Generation;
use super::guard::{Finding, Tampering};
use super::programs::kernel;
use super::{Committed, Datapath, DatapathError, sys};
use crate::clocks::Clocks;
use crate::image::{Hosts, Image, SegmentSet};

/// What became of an address that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPut {
    /// It is in the generation in force, and in the image.
    InForce,
    /// The map had no room left, so that the image was committed whole, with the address in it.
    Committed(Committed),
    /// Nothing: no peer has its class yet, so that a new image must be compiled.
    NeedsCompile,
}

/// How many hosts a map has room for that begins with so many: an eighth more and some, as far as
/// `ceiling` goes.
pub(super) fn room(hosts: usize, ceiling: usize) -> usize {
    const SOME: usize = 1024;
    hosts.saturating_add(hosts / 8 + SOME).min(ceiling).max(hosts)
}

/// A look at the hosts in the kernel, some at a time: of a large policy there are too many for each time.
#[derive(Debug, Default)]
pub(super) struct Look {
    walk: Walk<Addr, Peer>,
    /// Entries of this round so far, and whether any was changed meanwhile.
    seen: usize,
    pub(super) changed: bool,
}

impl Look {
    /// The next addresses that are not as they were put.
    pub(super) fn step(&mut self, map: BorrowedFd<'_>, hosts: &Hosts) -> io::Result<Vec<Addr>> {
        let mut altered = Vec::new();
        for (address, peer) in self.walk.step(map)? {
            self.seen += 1;
            if hosts.get(address) != Some(*peer) {
                altered.push(*address);
            }
        }
        self.changed |= !altered.is_empty();
        if self.walk.is_over() {
            // Only then one is missing; to ask for each would take long.
            if self.seen != hosts.len() && !self.changed {
                for (address, _) in hosts.iter() {
                    if sys::map_lookup(map, &address, &mut [Peer::UNKNOWN]).is_err() {
                        altered.push(address);
                    }
                }
            }
            (self.seen, self.changed) = (0, false);
        }
        Ok(altered)
    }
}

impl Generation {
    /// Gives an address an entry in the kernel, or takes it away.
    fn write_host(&self, address: Addr, host: Option<Peer>) -> io::Result<()> {
        match host {
            Some(peer) => sys::map_update(self.hosts_map(), &address, &peer),
            None => sys::map_delete(self.hosts_map(), &address),
        }
    }
}

impl Datapath {
    /// Puts an address into these segments, beside those whose own `addresses` hold it; into none, it is
    /// what the policy alone says. One map operation in the generation in force, and the same in `image`,
    /// which is that generation's, so that a later commit of it has the address, too. Packets that come
    /// after it returns are judged by the new segments.
    ///
    /// A later image must be compiled with the address among its
    /// [`Members`](crate::policy::compile::Members). `clocks` is for a commit.
    ///
    /// # Errors
    /// Then nothing is changed.
    pub fn put_address(
        &mut self,
        image: &mut Image,
        address: Addr,
        segments: &SegmentSet,
        clocks: &Clocks,
    ) -> Result<AddressPut, DatapathError> {
        let Ok(host) = image.host_of(&address, segments) else {
            return Ok(AddressPut::NeedsCompile);
        };
        let Some(generation) = &mut self.generation else {
            image.hosts.set(address, host);
            return Ok(AddressPut::InForce);
        };
        let doing = |e: anyhow::Error| kernel("changing an address", e);
        if !generation.is_of(image) {
            let wrong = anyhow::anyhow!("the image is not that of the generation in force");
            return Err(doing(wrong));
        }
        let before = generation.hosts.get(&address);
        if before.is_none() && host.is_some() {
            let (needed, limit) =
                (image.hosts.len() + 1 + image.prefixes.len(), self.options.capacity.peers);
            if needed > limit as usize {
                let (what, option) = ("peer addresses", "peers");
                return Err(DatapathError::Capacity { what, needed, limit, option });
            }
        }
        if before != host {
            match generation.write_host(address, host) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::E2BIG) => {
                    return self.commit_with(image, address, host, clocks);
                }
                Err(e) => return Err(doing(e.into())),
            }
            generation.hosts.set(address, host);
            generation.look.changed = true;
            self.next_epoch();
        }
        image.hosts.set(address, host);
        Ok(AddressPut::InForce)
    }

    /// Commits the image with an address that the map in force has no room for.
    fn commit_with(
        &mut self,
        image: &mut Image,
        address: Addr,
        host: Option<Peer>,
        clocks: &Clocks,
    ) -> Result<AddressPut, DatapathError> {
        let (before, stamp) = (image.hosts.get(&address), self.control.written().stamp);
        image.hosts.set(address, host);
        let committed = self.commit(image, clocks);
        // The wait after the switch may be what failed.
        if committed.is_err() && self.control.written().stamp == stamp {
            image.hosts.set(address, before);
        }
        committed.map(AddressPut::Committed)
    }

    /// Looks at some of the hosts, and puts right those that somebody else has changed.
    pub(super) fn inspect_hosts(&mut self, found: &mut Vec<Finding>) {
        let Some(generation) = &mut self.generation else { return };
        let altered = generation.look_at_hosts();
        let generation = &*generation;
        let repaired = altered.and_then(|altered| {
            for address in &altered {
                generation.write_host(*address, generation.hosts.get(address))?;
            }
            Ok(altered)
        });
        let finding = match repaired {
            Ok(altered) if altered.is_empty() => return,
            Ok(altered) => {
                let mut names: Vec<_> =
                    altered.iter().take(3).map(|a| IpAddr::from(*a).to_string()).collect();
                if altered.len() > names.len() {
                    names.push(format!("{} more", altered.len() - names.len()));
                }
                let object = format!("HOSTS ({})", names.join(", "));
                Finding::new(Tampering::AddressesAltered, object, Ok::<(), String>(()))
            }
            Err(e) => Finding::new(Tampering::AddressesAltered, "HOSTS", Err(e)),
        };
        self.next_epoch();
        found.push(finding);
    }
}

#[cfg(test)]
mod tests {
    use super::room;

    #[test]
    fn there_is_room_up_to_the_ceiling_and_always_for_what_is_there() {
        assert_eq!(room(0, 1 << 18), 1024);
        assert_eq!(room(200_000, 1 << 18), 226_024);
        assert_eq!(room(200_000, 200_001), 200_001);
        assert_eq!(room(10, 4), 10);
    }
}
