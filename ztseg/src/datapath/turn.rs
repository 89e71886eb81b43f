//! Whose turn it is, while programs of two versions are attached.
//!
//! The map `DECIDES` is one for all versions: the number of the one that decides while the others stand
//! back, or zero, and then each decides. `PARTY` has a version's own number. One word says it for
//! everybody, so whenever an agent is killed, some version decides.
//!
//! Architecture invariant: both maps are one number of 32 bits in every ABI version, and their names
//! and those of the folders `maps` and `links` stay. That is what versions know of each other.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use super::control::random;
use super::detach::{entries, file_name};
use super::sys;

const DECIDES: &str = "DECIDES";
const PARTY: &str = "PARTY";
/// Each decides.
const EACH: u32 = 0;

/// The words of this version.
#[derive(Debug)]
pub struct Turn {
    decides: OwnedFd,
    party: OwnedFd,
    /// What this agent has written.
    written: [u32; 2],
}

impl Turn {
    /// Makes the word of another version (`root` is its folder) this one's, too, before the programs are
    /// loaded. Does nothing where this version has one, or the other has none.
    pub fn share(maps: &Path, root: &Path) -> io::Result<()> {
        let own = maps.join(DECIDES);
        if own.exists() {
            return Ok(());
        }
        match word(root, DECIDES)? {
            Some(map) => sys::pin(map.as_fd(), &own),
            None => Ok(()),
        }
    }

    /// Opens the words of the version whose folder this is. A number that it has stays.
    pub fn open(root: &Path) -> io::Result<Self> {
        let there = |name| word(root, name)?.ok_or_else(|| io::Error::other(format!("no {name}")));
        let (decides, party) = (there(DECIDES)?, there(PARTY)?);
        let written = [read(&decides)?, read(&party)?];
        let mut turn = Self { decides, party, written };
        if turn.own() == 0 {
            turn.written[1] = random();
            sys::map_update(turn.party.as_fd(), &0u32, &turn.own())?;
        }
        Ok(turn)
    }

    /// The number of this version.
    pub const fn own(&self) -> u32 {
        self.written[1]
    }

    /// Who decides; zero for each.
    pub const fn decides(&self) -> u32 {
        self.written[0]
    }

    /// Lets one version decide.
    pub fn give(&mut self, party: u32) -> io::Result<()> {
        self.written[0] = party;
        sys::map_update(self.decides.as_fd(), &0u32, &party)
    }

    /// Lets each version decide.
    pub fn give_to_each(&mut self) -> io::Result<()> {
        self.give(EACH)
    }

    /// The number of another version, where it heeds the same word and none of its programs at the cgroup
    /// root is missing.
    pub fn number_of(&self, root: &Path) -> io::Result<Option<u32>> {
        let (Some(decides), Some(party)) = (word(root, DECIDES)?, word(root, PARTY)?) else {
            return Ok(None);
        };
        let id = |map: &OwnedFd| Ok::<_, io::Error>(sys::map_info(map.as_fd())?.id);
        let number = read(&party)?;
        let is_one = id(&decides)? == id(&self.decides)? && number != EACH && number != self.own();
        Ok((is_one && is_attached(root)?).then_some(number))
    }

    /// Puts right what somebody else has written; gives the names of those maps.
    pub fn restore(&self) -> Vec<&'static str> {
        let words = [(DECIDES, &self.decides), (PARTY, &self.party)];
        let mut altered = Vec::new();
        for ((name, map), written) in words.into_iter().zip(self.written) {
            if read(map).ok() != Some(written)
                && sys::map_update(map.as_fd(), &0u32, &written).is_ok()
            {
                altered.push(name);
            }
        }
        altered
    }
}

/// Whether the programs of a version are attached to the cgroup root, each that is pinned.
pub fn is_attached(root: &Path) -> io::Result<bool> {
    let mut any = false;
    for link in entries(&root.join("links"))? {
        // Those of interfaces go with them.
        if !file_name(&link).contains('@') {
            any = true;
            if sys::link_info(sys::open_pinned(&link)?.as_fd())?.target == 0 {
                return Ok(false);
            }
        }
    }
    Ok(any)
}

/// A map of one word.
fn word(root: &Path, name: &str) -> io::Result<Option<OwnedFd>> {
    let map = match sys::open_pinned(&root.join("maps").join(name)) {
        Ok(map) => map,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let info = sys::map_info(map.as_fd())?;
    let is_one = (info.map_type, info.key_size, info.value_size, info.max_entries)
        == (sys::MapType::Array as u32, 4, 4, 1);
    Ok(is_one.then_some(map))
}

fn read(map: &OwnedFd) -> io::Result<u32> {
    let mut word = [0u32];
    sys::map_lookup(map.as_fd(), &0u32, &mut word)?;
    Ok(word[0])
}
