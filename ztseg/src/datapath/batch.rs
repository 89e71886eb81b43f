//! Commands of `bpf(2)` for a whole map.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use bytemuck::{NoUninit, Pod, Zeroable};

use super::sys::{Command, address, address_mut, bpf, fd_u32};

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
    let (_, result) = update(map, keys, values);
    result
}

/// As [`map_update_batch`], as long as there is room; how many were set.
pub fn map_update_batch_until_full<K: NoUninit, V: NoUninit>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<usize> {
    match update(map, keys, values) {
        (set, Ok(())) => Ok(set),
        (set, Err(e)) if e.raw_os_error() == Some(libc::E2BIG) => Ok(set),
        (_, Err(e)) => Err(e),
    }
}

fn update<K: NoUninit, V: NoUninit>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> (usize, io::Result<()>) {
    let length = keys.len().min(values.len());
    if length == 0 {
        return (0, Ok(()));
    }
    let mut attr = Attr::zeroed();
    attr.keys = address(keys);
    attr.values = address(values);
    attr.count = u32::try_from(length).unwrap_or(u32::MAX);
    attr.map_fd = fd_u32(map.as_raw_fd());
    let result = bpf(Command::MapUpdateBatch, &mut attr).map(drop);
    // The kernel writes how many it has set, also where it fails (generic_map_update_batch,
    // kernel/bpf/syscall.c).
    (usize::try_from(attr.count).unwrap_or(0).min(length), result)
}

/// Elements of one step of a [`Walk`]; more where one bucket has more.
const CHUNK: usize = 4096;

/// A walk over a hash map, some elements at a time. `K` and `V` must be its key and its value. One
/// that is changed meanwhile may be missing or come twice.
#[derive(Debug)]
pub struct Walk<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    /// Where the next step goes on: the number of a bucket. None: at the beginning.
    position: Option<u32>,
}

impl<K: Pod, V: Pod> Default for Walk<K, V> {
    fn default() -> Self {
        Self { keys: vec![K::zeroed(); CHUNK], values: vec![V::zeroed(); CHUNK], position: None }
    }
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// The next elements. After the last ones it is at the beginning again ([`Self::is_over`]).
    pub fn step(
        &mut self,
        map: BorrowedFd<'_>,
    ) -> io::Result<impl Iterator<Item = (&K, &V)> + use<'_, K, V>> {
        let count = loop {
            let position = self.position.map(|position| [position]);
            let mut next = [0u32];
            let mut attr = Attr::zeroed();
            attr.in_batch = position.as_ref().map_or(0, |position| address(position));
            attr.out_batch = address_mut(&mut next);
            attr.keys = address_mut(&mut self.keys);
            attr.values = address_mut(&mut self.values);
            attr.count = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
            attr.map_fd = fd_u32(map.as_raw_fd());
            match bpf(Command::MapLookupBatch, &mut attr) {
                Ok(_) => self.position = Some(next[0]),
                // That was all.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.position = None,
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    self.keys.resize(self.keys.len() * 2, K::zeroed());
                    self.values.resize(self.values.len() * 2, V::zeroed());
                    continue;
                }
                Err(e) => return Err(e),
            }
            break usize::try_from(attr.count).unwrap_or(0).min(self.keys.len());
        };
        Ok(self.keys.iter().zip(&self.values).take(count))
    }

    /// Whether the whole map was walked over, or no step was taken yet.
    pub fn is_over(&self) -> bool {
        self.position.is_none()
    }
}

/// Every element of a hash map; see [`Walk`].
pub fn map_dump<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut walk = Walk::default();
    let mut all = Vec::new();
    loop {
        all.extend(walk.step(map)?.map(|(key, value)| (*key, *value)));
        if walk.is_over() {
            return Ok(all);
        }
    }
}

/// Lets nobody write into a map by a system call any more; programs still do.
pub fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [fd_u32(map.as_raw_fd())];
    bpf(Command::MapFreeze, &mut attr).map(drop)
}
