//! Packets byte by byte, from the RFCs' drawings. Shares nothing with the parser.

use std::vec;
use std::vec::Vec;

pub(super) const V4_SRC: [u8; 4] = [192, 0, 2, 1];
pub(super) const V4_DST: [u8; 4] = [192, 0, 2, 2];
pub(super) const V6_SRC: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(super) const V6_DST: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

pub(super) const MORE: bool = true;
pub(super) const LAST: bool = false;

/// An IPv4 packet, to be changed before it is written.
#[derive(Clone, Debug)]
pub(super) struct V4 {
    pub(super) protocol: u8,
    pub(super) id: u16,
    /// In units of eight bytes.
    pub(super) offset: u16,
    pub(super) more: bool,
    /// A multiple of four bytes.
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl V4 {
    pub(super) fn new(protocol: u8, payload: &[u8]) -> Self {
        let payload = payload.to_vec();
        Self { protocol, id: 0, offset: 0, more: false, options: Vec::new(), payload }
    }

    pub(super) fn fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        (self.id, self.offset, self.more) = (id, offset, more);
        self
    }

    pub(super) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let total = 4 * words + self.payload.len();
        let mut out = vec![0x40 + u8::try_from(words).expect("at most 15"), 0];
        out.extend(u16::try_from(total).expect("short").to_be_bytes());
        out.extend(self.id.to_be_bytes());
        out.extend((self.offset + if self.more { 0x2000 } else { 0 }).to_be_bytes());
        out.extend([64, self.protocol, 0, 0]);
        out.extend(V4_SRC);
        out.extend(V4_DST);
        out.extend(&self.options);
        out.extend(&self.payload);
        out
    }
}

/// An IPv6 extension header, without its next header.
#[derive(Clone, Debug)]
pub(super) struct Extension {
    pub(super) number: u8,
    /// Everything behind the next header field.
    pub(super) rest: Vec<u8>,
}

/// Hop-by-hop (0) or destination (60) options, all padding: `units` times eight bytes, and eight.
pub(super) fn options(number: u8, units: u8) -> Extension {
    let mut rest = vec![units];
    let padding = 6 + 8 * usize::from(units);
    rest.extend([1, u8::try_from(padding - 2).unwrap_or(0)]);
    rest.resize(1 + padding, 0);
    Extension { number, rest }
}

/// A routing header without addresses.
pub(super) fn routing(kind: u8, segments_left: u8) -> Extension {
    Extension { number: 43, rest: vec![0, kind, segments_left, 0, 0, 0, 0] }
}

/// An authentication header with a check value of `words` times four bytes.
pub(super) fn authentication(words: u8) -> Extension {
    let mut rest = vec![words + 1, 0, 0];
    rest.resize(11 + 4 * usize::from(words), 0x5a);
    Extension { number: 51, rest }
}

/// A fragment header; `offset` in units of eight bytes.
pub(super) fn fragment(id: u32, offset: u16, more: bool) -> Extension {
    let mut rest = vec![0];
    rest.extend((offset << 3 | u16::from(more)).to_be_bytes());
    rest.extend(id.to_be_bytes());
    Extension { number: 44, rest }
}

/// Chains headers in front of a payload. Gives the number of the first, and the bytes.
pub(super) fn chain(extensions: &[Extension], protocol: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut bytes = payload.to_vec();
    let mut next = protocol;
    for extension in extensions.iter().rev() {
        let mut header = vec![next];
        header.extend(&extension.rest);
        header.extend(bytes);
        bytes = header;
        next = extension.number;
    }
    (next, bytes)
}

/// An IPv6 packet, to be changed before it is written.
#[derive(Clone, Debug)]
pub(super) struct V6 {
    pub(super) protocol: u8,
    pub(super) hop_limit: u8,
    pub(super) src: [u8; 16],
    pub(super) extensions: Vec<Extension>,
    pub(super) payload: Vec<u8>,
}

impl V6 {
    pub(super) fn new(protocol: u8, payload: &[u8]) -> Self {
        let (src, payload) = (V6_SRC, payload.to_vec());
        Self { protocol, hop_limit: 64, src, extensions: Vec::new(), payload }
    }

    pub(super) fn with(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    pub(super) fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    pub(super) fn from(mut self, src: [u8; 16]) -> Self {
        self.src = src;
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let (next, behind) = chain(&self.extensions, self.protocol, &self.payload);
        let mut out = vec![0x60, 0, 0, 0];
        out.extend(u16::try_from(behind.len()).expect("short").to_be_bytes());
        out.extend([next, self.hop_limit]);
        out.extend(self.src);
        out.extend(V6_DST);
        out.extend(behind);
        out
    }
}

/// A TCP segment with a header of `words` times four bytes and `data` bytes behind.
pub(super) fn tcp(from: u16, to: u16, flags: u8, words: u8, data: usize) -> Vec<u8> {
    let mut out = ports(from, to);
    out.extend([0, 0, 0, 1, 0, 0, 0, 2, words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.resize(4 * usize::from(words) + data, 1);
    out
}

/// A TCP segment without options and data, from port 1234 to 80.
pub(super) fn syn() -> Vec<u8> {
    tcp(1234, 80, 2, 5, 0)
}

/// A UDP datagram with `data` bytes.
pub(super) fn udp(from: u16, to: u16, data: usize) -> Vec<u8> {
    let mut out = ports(from, to);
    out.extend(u16::try_from(8 + data).expect("short").to_be_bytes());
    out.resize(8 + data, 0);
    out
}

/// An SCTP packet with one chunk that has `data` bytes.
pub(super) fn sctp(from: u16, to: u16, chunk: u8, data: usize) -> Vec<u8> {
    let mut out = ports(from, to);
    out.extend([0; 8]);
    out.extend([chunk, 0]);
    out.extend(u16::try_from(4 + data).expect("short").to_be_bytes());
    out.resize(16 + data, 0);
    out
}

/// An ICMP or `ICMPv6` message with `data` bytes behind its first eight.
pub(super) fn icmp(kind: u8, code: u8, identifier: u16, data: usize) -> Vec<u8> {
    let mut out = vec![kind, code, 0, 0];
    out.extend(identifier.to_be_bytes());
    out.resize(8 + data, 0);
    out
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes()].concat()
}
