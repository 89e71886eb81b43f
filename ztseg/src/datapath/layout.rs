//! Where the kernel has what no helper gives, by its own type information (BTF).

use std::fs;

/// The kernel's types (Documentation/bpf/btf.rst).
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

const SYMBOLS: &str = "/proc/kallsyms";
/// The modules for access control that are active.
const LSM: &str = "/sys/kernel/security/lsm";

/// Functions at netfilter's hooks of modules for access control, which never touch an address.
/// (Those of connection tracking are mostly in modules that come and go, and their addresses with
/// them.)
const HARMLESS: [&str; 7] = [
    "apparmor_ip_postroute",
    "selinux_ip_output",
    "selinux_ip_postroute",
    "selinux_ipv4_output",
    "selinux_ipv4_postroute",
    "smack_ip_output",
    "smack_ipv4_output",
];

/// What the kernel programs are told; zero where it is not known or may not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Offset of `_nfct` in `struct sk_buff`, in bytes.
    pub nfct: u32,
    /// Offset of the network namespace in `struct sock`.
    pub sock_net: u32,
    /// Offset of netfilter's hooks for IPv4 in `struct net`.
    pub net_hooks4: u32,
    /// Offset of those for IPv6.
    pub net_hooks6: u32,
    /// Addresses of functions that may be there and translate nothing.
    pub harmless: [u64; 8],
}

/// Looks it up.
pub fn kernel() -> Layout {
    // In this mode the programs would not load: it takes reading kernel memory away.
    let locked = fs::read_to_string(LOCKDOWN).is_ok_and(|mode| mode.contains("[confidentiality]"));
    let btf = if locked { None } else { fs::read(VMLINUX).ok() };
    let mut found = btf.as_deref().and_then(Btf::parse).map(|btf| btf.layout()).unwrap_or_default();
    if found.nfct == 0 {
        tracing::warn!(
            "this kernel does not say where it keeps address translation (no {VMLINUX}, no \
             connection tracking, or lockdown=confidentiality): what this host translates on \
             output is judged by its packets' addresses, and answers to it may be denied"
        );
    }
    // The list of symbols is long: not where it is known that it has none of them.
    let has_hooks = fs::read_to_string(LSM).map_or(true, |modules| {
        ["apparmor", "selinux", "smack"].iter().any(|module| modules.contains(module))
    });
    if found.sock_net != 0 && has_hooks {
        let symbols = fs::read_to_string(SYMBOLS).unwrap_or_default();
        for (to, address) in found.harmless.iter_mut().zip(harmless(&symbols)) {
            *to = address;
        }
    }
    found
}

/// The addresses of [`HARMLESS`]; none where this process may not know them.
fn harmless(symbols: &str) -> impl Iterator<Item = u64> + '_ {
    symbols.lines().filter_map(|line| {
        // The address, a letter, the name; a module's in brackets behind it.
        let mut words = line.split_ascii_whitespace();
        let (address, _, name) = (words.next()?, words.next()?, words.next()?);
        let is_one = HARMLESS.contains(&name) && words.next().is_none();
        let address = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0)?;
        is_one.then_some(address)
    })
}

struct Btf<'a> {
    strings: &'a [u8],
    types: Vec<Type<'a>>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    /// Of a structure or union: offsets are in bits, with a width above where it has bit fields.
    members: &'a [u8],
    has_bit_fields: bool,
}

/// Bytes of a member of a structure.
const MEMBER: usize = 12;
/// Structures within structures that have no name of their own.
const DEPTH: usize = 4;

impl<'a> Btf<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let magic = u16::from_ne_bytes(*data.first_chunk()?);
        let body = data.get(word(data, 4)? as usize..)?;
        let part = |at| {
            let (from, length) = (word(data, at)? as usize, word(data, at + 4)? as usize);
            body.get(from..from.checked_add(length)?)
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        let mut types = Vec::new();
        while magic == MAGIC && !rest.is_empty() {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let length = (info & 0xffff) as usize;
            // The kinds and what follows each, in their order (include/uapi/linux/btf.h).
            let kind = info >> 24 & 0x1f;
            let more = match kind {
                1 | 14 | 17 => 4,
                3 => MEMBER,
                4 | 5 | 15 | 19 => MEMBER * length,
                6 | 13 => 8 * length,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            let members = rest.get(12..12 + more)?;
            let is_structure = matches!(kind, 4 | 5);
            types.push(Type {
                name: if is_structure { name } else { 0 },
                members: if is_structure { members } else { &[] },
                has_bit_fields: info >> 31 != 0,
            });
            rest = &rest[12 + more..];
        }
        Some(Self { strings, types })
    }

    fn layout(&self) -> Layout {
        let member = |structure, member| self.member(structure, member);
        // `struct sock` begins with its `sock_common`, and a `possible_net_t` is one pointer. All or
        // nothing: a context that begins with something else is another kernel's.
        let hooks = (|| {
            let begins_with_socket = member("bpf_sock_addr_kern", "sk")? == 0
                && member("sock", "__sk_common")? == 0
                && member("nf_hook_entries", "num_hook_entries")? == 0
                && member("nf_hook_entries", "hooks")? == 8;
            let netfilter = member("net", "nf")?;
            begins_with_socket.then_some(())?;
            Some((
                member("sock_common", "skc_net")?,
                netfilter + member("netns_nf", "hooks_ipv4")?,
                member("netns_nf", "hooks_ipv6").map_or(0, |hooks| netfilter + hooks),
            ))
        })();
        let (sock_net, net_hooks4, net_hooks6) = hooks.unwrap_or_default();
        let nfct = member("sk_buff", "_nfct").unwrap_or_default();
        Layout { nfct, sock_net, net_hooks4, net_hooks6, harmless: [0; 8] }
    }

    /// Offset in bytes of a structure's member.
    fn member(&self, structure: &str, member: &str) -> Option<u32> {
        let found = self
            .types
            .iter()
            .find(|t| !t.members.is_empty() && self.is_named(t.name, structure))?;
        Some(self.bits(found, member, DEPTH)? / 8)
    }

    fn bits(&self, structure: &Type<'_>, member: &str, depth: usize) -> Option<u32> {
        structure.members.chunks_exact(MEMBER).find_map(|bytes| {
            let (name, kind, offset) = (word(bytes, 0)?, word(bytes, 4)?, word(bytes, 8)?);
            let offset = if structure.has_bit_fields { offset & 0x00ff_ffff } else { offset };
            if name != 0 {
                return self.is_named(name, member).then_some(offset);
            }
            // Types are counted from one: zero is `void`.
            let inner = self.types.get(kind.checked_sub(1)? as usize)?;
            Some(offset + self.bits(inner, member, depth.checked_sub(1)?)?)
        })
    }

    fn is_named(&self, name: u32, text: &str) -> bool {
        let string = self.strings.get(name as usize..).unwrap_or_default();
        string.strip_prefix(text.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// `int`; a structure without a name { int b }; `outer` { int a; <it> }.
    fn types() -> Vec<u8> {
        words(
            &[
                [1, 1 << 24, 4, 32].as_slice(),
                &[0, 4 << 24 | 1, 4, 7, 1, 0],
                &[9, 4 << 24 | 2, 12, 5, 1, 0, 0, 2, 64],
            ]
            .concat(),
        )
    }

    fn btf(types: &[u8]) -> Vec<u8> {
        let strings = b"\0int\0a\0b\0outer\0";
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("few");
        let head = [0x0001_eb9f, 24, 0, length(types), length(types), length(strings)];
        [words(&head).as_slice(), types, strings].concat()
    }

    #[test]
    fn finds_members_also_in_structures_without_a_name() {
        let data = btf(&types());
        let btf = Btf::parse(&data).expect("well-formed");
        assert_eq!(btf.member("outer", "a"), Some(0));
        assert_eq!(btf.member("outer", "b"), Some(8));
        assert_eq!(btf.member("outer", "c"), None);
        assert_eq!(btf.member("oute", "a"), None);
        assert_eq!(btf.member("int", "a"), None);
    }

    #[test]
    fn only_functions_of_the_kernel_itself_are_harmless() {
        let symbols = "ffffffff81000010 T selinux_ip_output\nffffffff81000020 t smack_ip_output\n\
                       0000000000000000 t apparmor_ip_postroute\nffffffff81000030 T selinux_ip\n\
                       ffffffffc0000040 t smack_ip_output\t[smack]\nrubbish\n";
        let found: Vec<_> = harmless(symbols).collect();
        assert_eq!(found, [0xffff_ffff_8100_0010, 0xffff_ffff_8100_0020]);
    }

    #[test]
    fn what_is_cut_is_not_understood() {
        let types = types();
        for length in 1..types.len() {
            let data = btf(&types[..length]);
            let found = Btf::parse(&data).and_then(|btf| btf.member("outer", "b"));
            assert_eq!(found, None, "{length}");
        }
        assert!(Btf::parse(&[]).is_none());
    }
}
