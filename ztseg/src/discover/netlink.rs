//! Asking the kernel over netlink(7): one dump request, all of its answers.
//!
//! Messages are read by hand and only for what is needed, so that an attribute of a newer kernel
//! cannot hide anything.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Without the flags "nested" and "network byte order".
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel makes no datagram of a dump larger than 32 KiB (`netlink_dump`,
/// `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 64 * 1024;

/// A netlink socket that hears `groups`.
pub(crate) fn open(protocol: SockProtocol, groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Asks for a dump and hands out the payload of every answer of the kind `answer`; those that
/// `each` cannot read are malformed.
pub(crate) fn dump(
    protocol: SockProtocol,
    kind: u16,
    body: &[u8],
    answer: u16,
    each: impl FnMut(&[u8]) -> Option<()>,
) -> io::Result<()> {
    dump_on(&open(protocol, 0)?, kind, body, answer, each)
}

/// As [`dump`], on a socket that is open: it is asked in the network namespace that it was made in.
pub(crate) fn dump_on(
    socket: &OwnedFd,
    kind: u16,
    body: &[u8],
    answer: u16,
    mut each: impl FnMut(&[u8]) -> Option<()>,
) -> io::Result<()> {
    send(socket.as_raw_fd(), &request(kind, NLM_F_REQUEST | NLM_F_DUMP, body), MsgFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if parse(&buffer[..length], answer, &mut each)? {
            return Ok(());
        }
    }
}

/// Asks for a change and waits for the kernel's answer.
pub(crate) fn change(protocol: SockProtocol, kind: u16, body: &[u8]) -> io::Result<()> {
    change_on(&open(protocol, 0)?, kind, body)
}

/// As [`change`], on a socket that is open.
pub(crate) fn change_on(socket: &OwnedFd, kind: u16, body: &[u8]) -> io::Result<()> {
    let message = request(kind, NLM_F_REQUEST | NLM_F_ACK, body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    // `struct nlmsgerr` begins with the error, zero for none.
    match word(&buffer[..length], HEADER).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw(code.saturating_neg()).into()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Reads the messages of one datagram; whether the dump ends with it.
pub(crate) fn parse(
    datagram: &[u8],
    answer: u16,
    each: &mut impl FnMut(&[u8]) -> Option<()>,
) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed netlink message");
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = word(rest, 0).ok_or_else(malformed)? as usize;
        let kind = half(rest, 4).ok_or_else(malformed)?;
        let payload = rest.get(HEADER..length).ok_or_else(malformed)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = word(payload, 0).ok_or_else(malformed)?.cast_signed();
                return Err(Errno::from_raw(code.saturating_neg()).into());
            }
            kind if kind == answer => each(payload).ok_or_else(malformed)?,
            _ => {}
        }
        // Messages are aligned to four bytes; the last one's padding may be missing.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The value of the first attribute (`struct nlattr`) of a kind.
pub(crate) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(half(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if half(attributes, 2)? & NLA_TYPE_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Four bytes in host order.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

/// A string that may end with a zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Messages as the kernel writes them, for tests.
#[cfg(test)]
pub(crate) mod write {
    use super::HEADER;

    pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut out = length.to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    pub(crate) fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).expect("short");
        let mut out = length.to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(payload);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_error_is_handed_on() {
        let refused = write::message(NLMSG_ERROR, &(-1i32).to_ne_bytes());
        let error = parse(&refused, 16, &mut |_| Some(())).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
    }

    #[test]
    fn the_end_of_a_dump_ends_it() {
        let done = write::message(NLMSG_DONE, &[0; 4]);
        assert!(parse(&done, 16, &mut |_| None).expect("well-formed"));
    }
}
