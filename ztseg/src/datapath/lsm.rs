//! Packet sockets of isolated workloads: refused by BPF LSM, where it is active.
//!
//! The program loads and attaches wherever the kernel has BPF LSM (`CONFIG_BPF_LSM`). It is called only
//! where the kernel was booted with `bpf` among its modules for access control; so what is promised
//! depends on that list, and where it cannot be read nothing is.

use std::{fs, io};

use super::sys;

/// The active modules, by name (Documentation/security/lsm.rst), where securityfs is mounted.
const LISTED: &str = "/sys/kernel/security/lsm";
/// `LSM_ID_BPF` (uapi/linux/lsm.h)
const LSM_ID_BPF: u64 = 109;

/// What becomes of the packet sockets that isolated workloads make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PacketSockets {
    /// They are refused.
    Refused,
    /// They are not: BPF LSM is not active.
    NotActive,
    /// They are not: whether BPF LSM is active could not be found out.
    NotKnown,
    /// They are not: the kernel does not take the program, for this reason.
    NotSupported(String),
}

/// Whether the kernel calls programs of BPF LSM; an answer other than `Refused` says why not.
pub fn activity() -> PacketSockets {
    judge(fs::read_to_string(LISTED), sys::lsm_modules)
}

/// By the modules' names, and where those cannot be read, by their numbers.
fn judge(
    names: io::Result<String>,
    numbers: impl FnOnce() -> io::Result<Vec<u64>>,
) -> PacketSockets {
    let is_active = match names {
        Ok(names) => Ok(names.trim_end().split(',').any(|name| name == "bpf")),
        Err(_) => numbers().map(|numbers| numbers.contains(&LSM_ID_BPF)),
    };
    match is_active {
        Ok(true) => PacketSockets::Refused,
        Ok(false) => PacketSockets::NotActive,
        Err(_) => PacketSockets::NotKnown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable<T>() -> io::Result<T> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn names_decide_where_they_can_be_read() {
        for (names, expected) in [
            ("lockdown,capability,landlock,bpf", PacketSockets::Refused),
            ("bpf\n", PacketSockets::Refused),
            ("capability,bpf,apparmor", PacketSockets::Refused),
            ("lockdown,capability,yama,apparmor", PacketSockets::NotActive),
            ("capability,bpfilter", PacketSockets::NotActive),
            ("", PacketSockets::NotActive),
        ] {
            let never = || panic!("the names were there");
            assert_eq!(judge(Ok(names.to_owned()), never), expected, "{names}");
        }
    }

    #[test]
    fn numbers_decide_where_names_cannot_be_read() {
        for (numbers, expected) in [
            (vec![100, 107, 110, LSM_ID_BPF], PacketSockets::Refused),
            (vec![100, 107], PacketSockets::NotActive),
            (vec![], PacketSockets::NotActive),
        ] {
            assert_eq!(judge(unreadable(), || Ok(numbers)), expected);
        }
    }

    #[test]
    fn what_cannot_be_found_out_is_not_taken_for_active() {
        assert_eq!(judge(unreadable(), unreadable), PacketSockets::NotKnown);
    }
}
