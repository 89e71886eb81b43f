//! Programs of a few instructions: baselines, and a wrapper that makes each run another flow.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use ztseg::datapath::measure::{self, ProgramType};
use ztseg::datapath::sys::AttachType;

/// `struct bpf_insn` (uapi/linux/bpf.h), little-endian.
const fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

const fn set(dst: u8, immediate: i32) -> u64 {
    instruction(0xb7, dst, 0, 0, immediate)
}

const fn copy(dst: u8, src: u8) -> u64 {
    instruction(0xbf, dst, src, 0, 0)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

const EXIT: u64 = 0x95;

/// The program types of the hooks in `ztseg::datapath::programs`.
pub(crate) const fn type_of(hook: AttachType) -> ProgramType {
    match hook {
        AttachType::CgroupIngress | AttachType::CgroupEgress => ProgramType::CgroupSkb,
        AttachType::SockCreate => ProgramType::CgroupSock,
        AttachType::TcxIngress | AttachType::TcxEgress => ProgramType::Classifier,
        AttachType::Connect4
        | AttachType::Connect6
        | AttachType::Sendmsg4
        | AttachType::Sendmsg6 => ProgramType::CgroupSockAddr,
        AttachType::LsmCgroup => ProgramType::Lsm,
    }
}

/// A program that returns one value.
pub(crate) fn returning(value: i32, hook: AttachType) -> io::Result<OwnedFd> {
    let program_type = type_of(hook);
    let attach_type = (program_type != ProgramType::Classifier).then_some(hook);
    measure::load(program_type, attach_type, &[set(0, value), EXIT])
}

/// Offsets in an Ethernet frame with an IPv4 packet without options.
pub(crate) const SOURCE: i32 = 14 + 12;
pub(crate) const DESTINATION: i32 = 14 + 16;
const SOURCE_PORT: i32 = 14 + 20;

/// Which flows a wrapped program sees.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flows {
    /// One of so many, a power of two up to 65,536, by the source port.
    OneOf(i32),
    /// One of 2^32, by the source port and the lower half of the address at this offset.
    New(i32),
}

/// A classifier that changes the packet and goes on with another.
#[derive(Debug)]
pub(crate) struct Wrapper {
    program: OwnedFd,
    // The wrapper holds it, too; kept for clarity of who owns what.
    _array: OwnedFd,
}

impl Wrapper {
    pub(crate) fn new(inner: BorrowedFd<'_>, flows: Flows) -> io::Result<Self> {
        const PRANDOM: i32 = 7;
        const STORE_BYTES: i32 = 9;
        const TAIL_CALL: i32 = 12;
        let array = measure::tail_call_array(inner)?;
        let random_to = |mask: i32, offset: i32| {
            [
                call(PRANDOM),
                instruction(0x57, 0, 0, 0, mask),
                instruction(0x6b, 10, 0, -8, 0),
                copy(1, 6),
                set(2, offset),
                copy(3, 10),
                instruction(0x07, 3, 0, 0, -8),
                set(4, 2),
                set(5, 0),
                call(STORE_BYTES),
            ]
        };
        let mut code = vec![copy(6, 1)];
        match flows {
            Flows::OneOf(n) => code.extend(random_to(n - 1, SOURCE_PORT)),
            Flows::New(address) => {
                code.extend(random_to(0xffff, SOURCE_PORT));
                code.extend(random_to(0xffff, address + 2));
            }
        }
        // BPF_LD_IMM64 with BPF_PSEUDO_MAP_FD, in two.
        code.extend([instruction(0x18, 2, 1, 0, array.as_raw_fd()), 0]);
        code.extend([copy(1, 6), set(3, 0), call(TAIL_CALL), set(0, 0), EXIT]);
        let program = measure::load(ProgramType::Classifier, None, &code)?;
        Ok(Self { program, _array: array })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}
