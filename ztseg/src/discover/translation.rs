//! Whether this network namespace translates destinations of what its own sockets send.
//!
//! `connect` and `sendmsg` see the address before a translation, the packet hook the one after it.
//! An early answer must never deny what the packet hook would allow, so there is none where
//! anything may translate.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::netlink::{self, attribute, text};

// linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netfilter.h
const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
const NFT_MSG_NEWCHAIN: u16 = NFNL_SUBSYS_NFTABLES | 3;
const NFT_MSG_GETCHAIN: u16 = NFNL_SUBSYS_NFTABLES | 4;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_INET_LOCAL_OUT: u32 = 3;
/// Length of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// Whether nftables, iptables or IPVS may translate what local sockets send. Where it cannot be
/// told, it is taken to be so.
pub fn translates_output() -> bool {
    nat_tables() || virtual_servers() || nat_chains().unwrap_or(true)
}

/// iptables-legacy: the table is there once somebody has listed or used it.
fn nat_tables() -> bool {
    ["/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"]
        .into_iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .any(|names| names.lines().any(|name| name == "nat"))
}

/// IPVS, which also answers for local sockets: any service below the three lines of the head.
fn virtual_servers() -> bool {
    const HEAD: usize = 3;
    fs::read_to_string("/proc/self/net/ip_vs").is_ok_and(|text| text.lines().count() > HEAD)
}

/// nftables, and iptables on top of it: a chain of the type `nat` at the hook `output`.
fn nat_chains() -> io::Result<bool> {
    let mut found = false;
    let result = netlink::dump(
        SockProtocol::NetlinkNetFilter,
        NFT_MSG_GETCHAIN,
        &[0; NFGENMSG],
        NFT_MSG_NEWCHAIN,
        |payload| {
            found |= is_output_nat(payload)?;
            Some(())
        },
    );
    match result {
        Ok(()) => Ok(found),
        // A kernel without nf_tables, or where nobody has loaded it.
        Err(e) if unknown_to_kernel(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn unknown_to_kernel(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EPROTONOSUPPORT | Errno::EINVAL | Errno::EOPNOTSUPP))
}

fn is_output_nat(payload: &[u8]) -> Option<bool> {
    let attributes = payload.get(NFGENMSG..)?;
    let nat = attribute(attributes, NFTA_CHAIN_TYPE).is_some_and(|kind| text(kind) == "nat");
    let hook = attribute(attributes, NFTA_CHAIN_HOOK)
        .and_then(|hook| attribute(hook, NFTA_HOOK_HOOKNUM))
        .and_then(|number| number.first_chunk())
        .map(|number| u32::from_be_bytes(*number));
    Some(nat && hook == Some(NF_INET_LOCAL_OUT))
}

#[cfg(test)]
mod tests {
    use super::super::netlink::write;
    use super::*;

    fn chain(kind: &str, hook: u32) -> Vec<u8> {
        let number = write::attribute(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
        let mut payload = vec![0; NFGENMSG];
        payload.extend(write::attribute(1, b"filter\0"));
        payload.extend(write::attribute(NFTA_CHAIN_HOOK | 0x8000, &number));
        payload.extend(write::attribute(NFTA_CHAIN_TYPE, format!("{kind}\0").as_bytes()));
        payload
    }

    #[test]
    fn only_nat_chains_at_output_count() {
        assert_eq!(is_output_nat(&chain("nat", NF_INET_LOCAL_OUT)), Some(true));
        assert_eq!(is_output_nat(&chain("filter", NF_INET_LOCAL_OUT)), Some(false));
        assert_eq!(is_output_nat(&chain("nat", 0)), Some(false));
        // A chain without a hook is reached by jumps from one that has.
        assert_eq!(is_output_nat(&[0; NFGENMSG]), Some(false));
        assert_eq!(is_output_nat(&[]), None);
    }
}
