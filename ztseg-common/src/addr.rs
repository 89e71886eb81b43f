//! Addresses and ports as they stand on the wire.

use bytemuck::{Pod, Zeroable};

/// An IPv4 or IPv6 address: 16 bytes in network order.
///
/// IPv4 is kept as an IPv4-mapped address (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), so that an
/// IPv4 packet on an IPv6 socket and the same packet on an IPv4 socket have one representation.
/// Aligned to four bytes so that the BPF back end compares words, not bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Addr {
    /// The address, most significant byte first.
    pub octets: [u8; 16],
}

impl Addr {
    /// `::`, which also stands for "no address".
    pub const UNSPECIFIED: Self = Self { octets: [0; 16] };

    /// An IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn v4(o: [u8; 4]) -> Self {
        Self { octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, o[0], o[1], o[2], o[3]] }
    }

    /// An IPv6 address. An IPv4-mapped one is the same value as the IPv4 address that it maps.
    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// Whether this is an IPv4 address (in its mapped form).
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        // In words and in one comparison: of twelve, the verifier of the kernel would follow each.
        let [first, second, third, _]: &[u32; 4] = bytemuck::must_cast_ref(self);
        first | second | (third ^ u32::from_ne_bytes([0, 0, 0xff, 0xff])) == 0
    }

    /// The last four bytes: of an IPv4 address, the address.
    #[inline(always)]
    pub const fn last_octets(&self) -> [u8; 4] {
        let o = &self.octets;
        [o[12], o[13], o[14], o[15]]
    }

    /// Whether this is 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.octets[12] == 127
        } else {
            matches!(self.octets, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
        }
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(a: Addr) -> Self {
        core::net::Ipv6Addr::from(a.octets).to_canonical()
    }
}

/// A port in network order; for ICMP, see [`crate::packet::Packet`].
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Port {
    /// Most significant byte first.
    pub octets: [u8; 2],
}

impl Port {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self { octets: port.to_be_bytes() }
    }

    /// As a number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.octets)
    }
}

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod proto {
    /// ICMP for IPv4, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// SCTP, RFC 9260.
    pub const SCTP: u8 = 132;
}
