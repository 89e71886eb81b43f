//! What measurements need of the kernel: programs of a few instructions, as a baseline or around
//! another program, and the kernel's own run-time statistics.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use bytemuck::{Pod, Zeroable};

use super::sys::{
    AttachType, Command, MapSpec, MapType, address, bpf_fd, fd_u32, info, map_create, map_update,
};

/// Program types (`enum bpf_prog_type`, uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramType {
    /// TC.
    Classifier = 3,
    /// `cgroup_skb`
    CgroupSkb = 8,
    /// `cgroup/sock_create` and its kind
    CgroupSock = 9,
    /// `cgroup/connect4` and its kind
    CgroupSockAddr = 18,
    /// BPF LSM
    Lsm = 29,
}

/// Loads a program from its instructions (`struct bpf_insn`). `attach_type` is where it is to be
/// attached; TC programs need none.
///
/// # Errors
/// The verifier's refusal.
pub fn load(
    program_type: ProgramType,
    attach_type: Option<AttachType>,
    instructions: &[u64],
) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Clone, Copy, Zeroable, Pod)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let mut attr = Attr::zeroed();
    attr.prog_type = program_type as u32;
    attr.insn_cnt = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
    attr.insns = address(instructions);
    attr.license = c"GPL".as_ptr() as u64;
    attr.expected_attach_type = attach_type.map_or(0, |t| t as u32);
    bpf_fd(Command::ProgLoad, &mut attr)
}

/// Makes the kernel keep run-time statistics of all programs until the descriptor is closed; what
/// `kernel.bpf_stats_enabled` says is left as it is (`BPF_ENABLE_STATS`, kernel 5.8).
///
/// # Errors
/// Without `CAP_SYS_ADMIN`.
pub fn enable_run_time_statistics() -> io::Result<OwnedFd> {
    const RUN_TIME: u32 = 0;
    bpf_fd(Command::EnableStats, &mut [RUN_TIME])
}

/// What the kernel counted of a program while statistics were on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Nanoseconds in the program, the cost of measuring included.
    pub nanoseconds: u64,
    /// How often it ran.
    pub runs: u64,
}

/// Asks the kernel what it counted of a program.
///
/// # Errors
/// When the descriptor is not a program's.
pub fn run_time(program: BorrowedFd<'_>) -> io::Result<RunTime> {
    /// `struct bpf_prog_info` up to what is read here.
    #[repr(C)]
    #[derive(Clone, Copy, Zeroable, Pod)]
    struct Info {
        before: [u64; 24],
        run_time_ns: u64,
        run_cnt: u64,
    }
    let info: Info = info(program)?;
    Ok(RunTime { nanoseconds: info.run_time_ns, runs: info.run_cnt })
}

/// Makes an array of programs that holds this one, for tail calls at index zero.
///
/// # Errors
/// When the program's type takes no part in tail calls.
pub fn tail_call_array(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let spec = MapSpec {
        map_type: MapType::ProgramArray,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
    };
    let array = map_create("ztseg_tail", &spec, None)?;
    map_update(array.as_fd(), &0u32, &fd_u32(program.as_raw_fd()))?;
    Ok(array)
}
