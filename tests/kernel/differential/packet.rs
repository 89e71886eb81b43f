//! Packets of the flows, as the model knows them and as bytes.

use std::net::IpAddr;

use ztseg_common::addr::proto;
use ztseg_tests::actor::forge;

use super::connection::Segment;

/// An assigned protocol without ports.
const GRE: u8 = 47;
const ETHERNET: usize = 14;
/// Of a packet that an ICMP error quotes (RFC 792): its header, and so much behind it.
const QUOTED: usize = 8;

/// What follows the IP header.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Tcp {
        ports: [u16; 2],
        segment: Segment,
    },
    Udp {
        ports: [u16; 2],
    },
    Sctp {
        ports: [u16; 2],
        chunk: u8,
    },
    Echo {
        request: bool,
        identifier: u16,
    },
    /// Any other ICMP message that is neither an error nor discovery.
    Icmp {
        kind: u8,
    },
    /// An ICMP error, and the packet that it is about.
    Error {
        about: Box<Packet>,
    },
    /// Neighbour solicitation.
    Discovery,
    Gre,
    /// TCP that ends inside its header.
    Cut,
}

/// A packet, wherever it is.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) content: Content,
}

impl Packet {
    fn v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// Protocol number (IANA).
    pub(super) fn protocol(&self) -> u8 {
        match self.content {
            Content::Tcp { .. } | Content::Cut => proto::TCP,
            Content::Udp { .. } => proto::UDP,
            Content::Sctp { .. } => proto::SCTP,
            Content::Gre => GRE,
            _ if self.v6() => proto::ICMPV6,
            _ => proto::ICMP,
        }
    }

    /// Source and destination port; zeros where there are none.
    pub(super) fn ports(&self) -> [u16; 2] {
        match self.content {
            Content::Tcp { ports, .. } | Content::Udp { ports } | Content::Sctp { ports, .. } => {
                ports
            }
            _ => [0; 2],
        }
    }

    /// The ICMP type.
    pub(super) fn icmp_type(&self) -> u8 {
        match (&self.content, self.v6()) {
            (Content::Echo { request, .. }, v6) => echo_type(v6, *request),
            (Content::Icmp { kind }, _) => *kind,
            // Destination unreachable; packet too big (RFC 4443).
            (Content::Error { .. }, false) => 3,
            (Content::Error { .. }, true) => 2,
            (Content::Discovery, _) => 135,
            _ => 0,
        }
    }

    /// An Ethernet frame with it.
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET - 2];
        let ethertype: u16 = if self.v6() { 0x86dd } else { 0x0800 };
        frame.extend(ethertype.to_be_bytes());
        frame.extend(self.bytes());
        frame
    }

    fn bytes(&self) -> Vec<u8> {
        let payload = self.payload();
        let mut bytes = forge::ip(self.source, self.destination, self.protocol(), &payload);
        if matches!(self.content, Content::Discovery) {
            // Its hop limit shows that no router has passed it on (RFC 4861).
            bytes[7] = 255;
        }
        bytes
    }

    fn payload(&self) -> Vec<u8> {
        let [source, destination] = self.ports();
        let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let icmp = |rest: &[u8]| [&[self.icmp_type(), 0, 0, 0], rest].concat();
        match &self.content {
            Content::Tcp { segment, .. } => {
                let numbers =
                    [segment.sequence, segment.acknowledgement].map(u32::to_be_bytes).concat();
                [&ports[..], &numbers, &[0x50, segment.flags, 1, 0, 0, 0, 0, 0]].concat()
            }
            Content::Udp { .. } => [&ports[..], &[0, 12, 0, 0], b"data"].concat(),
            Content::Sctp { chunk, .. } => {
                [&ports[..], &[0; 8], &[*chunk, 0, 0, 8, 0, 0, 0, 0]].concat()
            }
            Content::Echo { identifier, .. } => {
                icmp(&[&identifier.to_be_bytes()[..], &[0, 1], b"data"].concat())
            }
            Content::Icmp { .. } => icmp(&[0; 12]),
            Content::Error { about } => {
                let mut quoted = about.bytes();
                quoted.truncate(if about.v6() { 40 } else { 20 } + QUOTED);
                icmp(&[&[0; 4][..], &quoted].concat())
            }
            // Who is asked for, RFC 4861 section 4.3.
            Content::Discovery => icmp(&[0; 20]),
            Content::Gre => vec![0; 8],
            Content::Cut => [&ports[..], &[0; 6]].concat(),
        }
    }
}

/// Type of an echo request or reply (RFC 792, RFC 4443).
pub(super) fn echo_type(v6: bool, request: bool) -> u8 {
    match (v6, request) {
        (false, false) => 0,
        (false, true) => 8,
        (true, true) => 128,
        (true, false) => 129,
    }
}
