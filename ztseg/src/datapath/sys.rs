//! The system calls that no crate offers: `bpf(2)` commands here; the mapped control page, and
//! questions to the network stack and other processes' descriptors, below. But for the reader of the
//! ring buffer (`agent/ring.rs`), all of the agent's `unsafe` is here.

mod control_page;
mod sockets;

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use bytemuck::{NoUninit, Pod, Zeroable};

pub use self::control_page::ControlPage;
pub use self::sockets::{duplicate_of, has_ethernet_header, netns_cookie, process, socket_cookie};
pub use super::batch::{Walk, map_dump, map_freeze, map_update_batch, map_update_batch_until_full};

/// Commands of `bpf(2)` (`enum bpf_cmd`, uapi/linux/bpf.h).
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    MapGetFdById = 14,
    ObjGetInfoByFd = 15,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    EnableStats = 32,
    LinkDetach = 34,
}

/// Map types (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum MapType {
    /// Hash.
    Hash = 1,
    /// Array.
    Array = 2,
    /// Programs for tail calls.
    ProgramArray = 3,
    /// Longest-prefix trie.
    LpmTrie = 11,
    /// Array of maps.
    ArrayOfMaps = 12,
}

/// Attach types (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `cgroup_skb/ingress`
    CgroupIngress = 0,
    /// `cgroup_skb/egress`
    CgroupEgress = 1,
    /// `cgroup/sock_create`
    SockCreate = 2,
    /// `cgroup/connect4`
    Connect4 = 10,
    /// `cgroup/connect6`
    Connect6 = 11,
    /// `cgroup/sendmsg4`
    Sendmsg4 = 14,
    /// `cgroup/sendmsg6`
    Sendmsg6 = 15,
    /// `lsm_cgroup`, kernel 6.0; which hook, the program knows
    LsmCgroup = 43,
    /// TCX ingress, kernel 6.6
    TcxIngress = 46,
    /// TCX egress, kernel 6.6
    TcxEgress = 47,
}

/// Calls `bpf(2)`.
pub(super) fn bpf<T: Pod>(command: Command, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is plain data of the length that is passed; pointers inside it are set by the
    // callers below, from slices that outlive the call. The kernel reads zeros beyond the length.
    let ret = unsafe {
        libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<T>())
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(ret).unwrap_or(0)) }
}

pub(super) fn bpf_fd<T: Pod>(command: Command, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn fd_u32(fd: RawFd) -> u32 {
    u32::try_from(fd).unwrap_or(u32::MAX)
}

/// Where the kernel reads from.
pub(super) fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

/// Where the kernel writes to. Its own function, since the compiler takes for granted that nothing is
/// written through a pointer that was made from a shared reference.
pub(super) fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr() as u64
}

/// What to create.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Type.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Entries.
    pub max_entries: u32,
    /// `BPF_F_*`
    pub flags: u32,
}

/// Creates a map, without BTF. A map of maps takes its inner maps' layout from `inner`.
pub fn map_create(
    name: &str,
    spec: &MapSpec,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Clone, Copy, Zeroable, Pod)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
    }
    let mut attr = Attr::zeroed();
    attr.map_type = spec.map_type as u32;
    attr.key_size = u32::try_from(spec.key_size).unwrap_or(u32::MAX);
    attr.value_size = u32::try_from(spec.value_size).unwrap_or(u32::MAX);
    attr.max_entries = spec.max_entries;
    attr.map_flags = spec.flags;
    attr.inner_map_fd = inner.map_or(0, |fd| fd_u32(fd.as_raw_fd()));
    for (to, from) in attr.map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bpf_fd(Command::MapCreate, &mut attr)
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct ElementAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Sets one element.
pub fn map_update<K: NoUninit, V: NoUninit>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    update(map, key, value, 0)
}

/// Sets the element of a socket in a socket storage map, unless it has one. False: it has.
pub fn socket_storage_insert<V: NoUninit>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    value: &V,
) -> io::Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    match update(map, &socket.as_raw_fd(), value, BPF_NOEXIST) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        other => other.map(|()| true),
    }
}

fn update<K: NoUninit, V: NoUninit>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: fd_u32(map.as_raw_fd()),
        zero: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags,
    };
    bpf(Command::MapUpdate, &mut attr).map(drop)
}

/// Removes one element; one that is not there is fine.
pub fn map_delete<K: NoUninit>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: fd_u32(map.as_raw_fd()),
        zero: 0,
        key: std::ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    match bpf(Command::MapDelete, &mut attr) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

/// Reads one element into `value`: its size must be the map's value size (for a per-CPU map times
/// the number of possible CPUs).
pub fn map_lookup<K: NoUninit, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut [V],
) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: fd_u32(map.as_raw_fd()),
        zero: 0,
        key: std::ptr::from_ref(key) as u64,
        value: address_mut(value),
        flags: 0,
    };
    bpf(Command::MapLookup, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Pins a map, program or link.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: fd_u32(object.as_raw_fd()),
        file_flags: 0,
    };
    bpf(Command::ObjPin, &mut attr).map(drop)
}

/// Opens what is pinned at `path`.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    bpf_fd(Command::ObjGet, &mut attr)
}

/// Attaches a program to a cgroup (by descriptor) or an interface (by index).
pub fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Clone, Copy, Zeroable, Pod)]
    struct Attr {
        prog_fd: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        extra: [u64; 4],
    }
    let mut attr = Attr {
        prog_fd: fd_u32(program.as_raw_fd()),
        target,
        attach_type: attach_type as u32,
        flags: 0,
        extra: [0; 4],
    };
    bpf_fd(Command::LinkCreate, &mut attr)
}

/// Replaces a link's program atomically.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [fd_u32(link.as_raw_fd()), fd_u32(program.as_raw_fd()), 0, 0];
    bpf(Command::LinkUpdate, &mut attr).map(drop)
}

/// Detaches a link at once, whoever else holds it.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [fd_u32(link.as_raw_fd())];
    bpf(Command::LinkDetach, &mut attr).map(drop)
}

/// `struct bpf_map_info`, the part that is read here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct MapInfo {
    /// `enum bpf_map_type`
    pub map_type: u32,
    /// Map id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// `BPF_F_*`
    pub map_flags: u32,
}

/// Opens a map by its id.
pub fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    bpf_fd(Command::MapGetFdById, &mut attr)
}

/// `struct bpf_link_info`, the part that is read here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
pub struct LinkInfo {
    /// `enum bpf_link_type`
    pub link_type: u32,
    /// Link id.
    pub id: u32,
    /// Id of its program.
    pub prog_id: u32,
    zero: u32,
    /// By link type: for a cgroup its id, for TCX the interface index (low half) and the attach
    /// type (high half). The part of what it is attached to is zero once it is detached.
    pub target: u64,
    /// For a cgroup, the attach type.
    pub attach_type: u32,
    zero_at_end: u32,
}

pub(super) fn info<T: Pod>(object: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    #[derive(Clone, Copy, Zeroable, Pod)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = T::zeroed();
    let mut attr = Attr {
        bpf_fd: fd_u32(object.as_raw_fd()),
        info_len: u32::try_from(size_of::<T>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(Command::ObjGetInfoByFd, &mut attr)?;
    Ok(info)
}

/// Asks the kernel about a map.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// Asks the kernel about a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// The result of a test run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// The program's return value.
    pub value: u32,
    /// Mean duration of one run in nanoseconds.
    pub nanoseconds: u32,
}

/// Runs a program on a packet (`BPF_PROG_TEST_RUN`). `context` is a `struct __sk_buff`, or empty.
pub fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    context: &[u8],
    repeat: u32,
) -> io::Result<TestRun> {
    #[repr(C)]
    #[derive(Clone, Copy, Zeroable, Pod)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
    }
    let mut attr = Attr::zeroed();
    attr.prog_fd = fd_u32(program.as_raw_fd());
    attr.data_size_in = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    attr.data_in = address(packet);
    attr.repeat = repeat;
    if !context.is_empty() {
        attr.ctx_size_in = u32::try_from(context.len()).unwrap_or(u32::MAX);
        attr.ctx_in = address(context);
    }
    bpf(Command::ProgTestRun, &mut attr)?;
    Ok(TestRun { value: attr.retval, nanoseconds: attr.duration })
}

/// Locks a folder against a second agent, until the descriptor is closed.
pub fn lock_folder(folder: &std::fs::File) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor that is open.
    let ret = unsafe { libc::flock(folder.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The numbers of the modules for access control that are active (`lsm_list_modules`, kernel 6.8;
/// uapi/linux/lsm.h has the numbers).
pub fn lsm_modules() -> io::Result<Vec<u64>> {
    /// The same on all architectures (scripts/syscall.tbl).
    const SYS_LSM_LIST_MODULES: libc::c_long = 461;
    let mut numbers = [0u64; 64];
    // Some kernels read 64 bits, some the lower 32.
    let mut size = size_of_val(&numbers) as u64;
    // SAFETY: the buffer has the size that is passed, and the kernel writes no more.
    let count =
        unsafe { libc::syscall(SYS_LSM_LIST_MODULES, numbers.as_mut_ptr(), &raw mut size, 0) };
    match usize::try_from(count) {
        Ok(count) => Ok(numbers.into_iter().take(count).collect()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Nanoseconds since boot, suspended time included (`CLOCK_BOOTTIME`).
pub fn boot_time_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the buffer is valid; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
