//! What the maps cost.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::MapStatus;
use super::programs::Pins;
use super::sys;

/// Every pinned map and, through the outer ones, the inner maps of both slots.
pub fn maps(pins: &Pins) -> io::Result<Vec<MapStatus>> {
    const ARRAY_OF_MAPS: u32 = 12;
    let mut rows = Vec::new();
    for entry in fs::read_dir(pins.maps())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let map = sys::open_pinned(&entry.path())?;
        let info = sys::map_info(map.as_fd())?;
        if info.map_type == ARRAY_OF_MAPS {
            // Two generations may have one map.
            let mut inner = BTreeMap::<u32, Vec<String>>::new();
            for slot in 0..2u32 {
                let mut id = [0u32];
                if sys::map_lookup(map.as_fd(), &slot, &mut id).is_ok() {
                    inner.entry(id[0]).or_default().push(slot.to_string());
                }
            }
            for (id, slots) in inner {
                let map = sys::map_by_id(id)?;
                rows.push(status(format!("{name}[{}]", slots.join(",")), &map)?);
            }
        } else {
            rows.push(status(name, &map)?);
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn status(name: String, map: &OwnedFd) -> io::Result<MapStatus> {
    let info = sys::map_info(map.as_fd())?;
    // `bpf_map_show_fdinfo`, kernel/bpf/syscall.c
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = text
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0);
    Ok(MapStatus { name, max_entries: info.max_entries, bytes })
}
