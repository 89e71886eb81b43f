//! Commands of `bpf(2)` for a whole map.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use bytemuck::{NoUninit, Pod, Zeroable};

use super::sys::{Command, address, bpf, fd_u32};

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Sets many elements in one call.
pub fn map_update_batch<K: NoUninit, V: NoUninit>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = Attr::zeroed();
    attr.keys = address(keys);
    attr.values = address(values);
    attr.count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    attr.map_fd = fd_u32(map.as_raw_fd());
    bpf(Command::MapUpdateBatch, &mut attr).map(drop)
}

/// Elements of one call of [`map_dump`]; more where one bucket has more.
const CHUNK: usize = 4096;

/// Every element of a hash map. `K` and `V` must be its key and its value. One that is changed
/// meanwhile may be missing or come twice.
pub fn map_dump<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let (mut keys, mut values) = (vec![K::zeroed(); CHUNK], vec![V::zeroed(); CHUNK]);
    // Where the next call goes on: the number of a bucket.
    let mut position = [0u32];
    let mut begun = false;
    let mut all = Vec::new();
    loop {
        let mut next = [0u32];
        let mut attr = Attr::zeroed();
        attr.in_batch = if begun { address(&position) } else { 0 };
        attr.out_batch = address(next.as_mut_slice());
        attr.keys = address(keys.as_mut_slice());
        attr.values = address(values.as_mut_slice());
        attr.count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        attr.map_fd = fd_u32(map.as_raw_fd());
        let ended = match bpf(Command::MapLookupBatch, &mut attr) {
            Ok(_) => false,
            // That was all.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                keys.resize(keys.len() * 2, K::zeroed());
                values.resize(values.len() * 2, V::zeroed());
                continue;
            }
            Err(e) => return Err(e),
        };
        let count = usize::try_from(attr.count).unwrap_or(0).min(keys.len());
        all.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if ended {
            return Ok(all);
        }
        (position, begun) = (next, true);
    }
}

/// Lets nobody write into a map by a system call any more; programs still do.
pub fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [fd_u32(map.as_raw_fd())];
    bpf(Command::MapFreeze, &mut attr).map(drop)
}
