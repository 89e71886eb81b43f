//! Upgrades: what an agent of another ABI version left in force.
//!
//! [`super::takeover`] says when what happens. Who opened a flow is carried over from the other's flow
//! table, so that a reply is not taken for a new flow; verdicts are not.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::Hash;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use ztseg_common::key::{FlowKey4, FlowKey6, Place};
use ztseg_common::shares::Credit;
use ztseg_common::state::FlowState;

use super::programs::{FLOW_TABLES, Pins, SPILL_TABLES, remove_link};
use super::sweep::Key;
use super::{detach, sys};

/// The folders of other versions.
pub fn others(bpffs: &Path, pins: &Pins) -> io::Result<Vec<PathBuf>> {
    let mut found = versions(bpffs)?;
    found.retain(|folder| *folder != pins.root);
    Ok(found)
}

/// The folders of all versions, sorted.
pub fn versions(bpffs: &Path) -> io::Result<Vec<PathBuf>> {
    let number = |folder: &PathBuf| -> Option<u32> {
        folder.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
    };
    let mut found = detach::entries(bpffs)?;
    found.retain(|folder| number(folder).is_some() && folder.is_dir());
    found.sort();
    Ok(found)
}

/// Copies the flows that are missing here, without their verdicts, so that each is judged again
/// with its role. With `trust`, also those that are here with another role. Gives how many each
/// workload has got, by [`Place::scope`]; none where the other version's tables are of another layout,
/// and as many as there is room for.
///
/// Each is copied once more without its network namespace: what the other version wrote down of a
/// socket is not known here, so its packets come without.
pub fn carry_flows(other: &Path, pins: &Pins, trust: bool) -> io::Result<BTreeMap<u32, Credit>> {
    let anywhere4 = |key: FlowKey4| FlowKey4 { place: key.place.anywhere(), ..key };
    let anywhere6 = |key: FlowKey6| FlowKey6 { place: key.place.anywhere(), ..key };
    let mut credits = BTreeMap::new();
    let [to4, to6] = FLOW_TABLES;
    // First those within the shares, should there not be room for all.
    for [v4, v6] in [FLOW_TABLES, SPILL_TABLES] {
        for place in carry(other, pins, (v4, to4), anywhere4, trust)? {
            let credit = credits.entry(place.scope).or_insert(Credit::default());
            (credit.scope, credit.v4) = (place.scope, credit.v4 + 1);
        }
        for place in carry(other, pins, (v6, to6), anywhere6, trust)? {
            let credit = credits.entry(place.scope).or_insert(Credit::default());
            (credit.scope, credit.v6) = (place.scope, credit.v6 + 1);
        }
    }
    Ok(credits)
}

/// Gives the places of those that are new here.
fn carry<K: Key + Eq + Hash>(
    other: &Path,
    pins: &Pins,
    (from, to): (&str, &str),
    anywhere: impl Fn(K) -> K,
    trust: bool,
) -> io::Result<Vec<Place>> {
    let old = match sys::open_pinned(&other.join("maps").join(from)) {
        Ok(old) => old,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let info = sys::map_info(old.as_fd())?;
    if (info.key_size as usize, info.value_size as usize)
        != (size_of::<K>(), size_of::<FlowState>())
    {
        return Ok(Vec::new());
    }
    let new = sys::open_pinned(&pins.maps().join(to))?;
    let known: HashMap<K, u8> = sys::map_dump::<K, FlowState>(new.as_fd())?
        .into_iter()
        .map(|(key, state)| (key, state.role))
        .collect();
    let (mut differing, mut missing) = (Vec::new(), Vec::new());
    for (key, state) in sys::map_dump::<K, FlowState>(old.as_fd())? {
        for key in [key, anywhere(key)] {
            match known.get(&key) {
                None => missing.push((key, FlowState { stamp: 0, ..state })),
                Some(role) if trust && *role != state.role => {
                    differing.push((key, FlowState { stamp: 0, ..state }));
                }
                Some(_) => {}
            }
        }
    }
    let (keys, values): (Vec<K>, Vec<_>) = differing.into_iter().unzip();
    sys::map_update_batch_until_full(new.as_fd(), &keys, &values)?;
    let (mut keys, values): (Vec<K>, Vec<_>) = missing.into_iter().unzip();
    let copied = sys::map_update_batch_until_full(new.as_fd(), &keys, &values)?;
    keys.truncate(copied);
    Ok(keys.iter().map(Key::place).collect())
}

/// Detaches what another version left, and removes its pins. Says what it removed, one line each.
pub fn retire(other: &Path, pins: &Pins) -> io::Result<Vec<String>> {
    let mut done = Vec::new();
    let version = detach::file_name(other);
    for link in detach::entries(&other.join("links"))? {
        let name = detach::file_name(&link);
        if remove_link(&link)? {
            done.push(format!("detached {name} of layouts {version}"));
        }
    }
    for map in detach::entries(&other.join("maps"))? {
        fs::remove_file(&map)?;
    }
    // The qdiscs that it made are this agent's to remove now.
    for note in detach::entries(&other.join("clsact"))? {
        fs::create_dir_all(pins.clsact().join(detach::file_name(&note)))?;
        fs::remove_dir(note)?;
    }
    detach::remove_folders(other)?;
    done.push(format!("removed the maps of layouts {version}"));
    Ok(done)
}
