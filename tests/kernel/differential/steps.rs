//! Makes up what happens: a few conversations that go on, mostly plausibly, while policies,
//! workloads and clocks change.

use std::net::IpAddr;

use fastrand::Rng;
use ztseg_common::packet::tcp::{ACK, FIN, RST, SYN};

use super::connection::Segment;
use super::line::{ADDRESSES, WORKLOADS};
use super::packet::{Content, Packet};

/// Conversations at a time; few, so that there are packets enough for each.
const CONVERSATIONS: usize = 8;
/// Addresses that no workload has, with and without rules that name them.
const ELSEWHERE: [[&str; 2]; 3] = [
    ["192.0.2.8", "2001:db8:1:2::9"],
    ["10.255.255.255", "2001:db8:ff::1"],
    ["128.0.0.1", "fd00::2"],
];
/// Who is behind a workload's interface, and nobody knows.
const BEHIND: [&str; 2] = ["198.18.0.1", "2001:db8:77::1"];
/// What rules name, and what they do not.
const PORTS: [u16; 6] = [80, 443, 8080, 81, 1, 40_000];
/// The last two bytes of all sequence numbers: only the others are kept with a flow.
const LOW: u32 = 0x1234;
const STEP: u32 = 1 << 16;

/// What happens next.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A packet goes from a workload or from elsewhere to a workload or elsewhere.
    Packet { from: Option<usize>, to: Option<usize>, packet: Packet },
    /// The policy with this number is put in force, with its workloads; `soon`: shortly before the
    /// end of one of its rules.
    Commit { number: u64, soon: bool },
    /// The policy that is in force is put in force.
    Again,
    /// A workload is made, or gets the segments that another one had at the last commit.
    Put { workload: usize, like: usize },
    /// A workload goes.
    Remove { workload: usize },
    /// The time of day is set.
    Set { number: u64 },
    /// So many seconds pass.
    Pass { seconds: u64 },
    /// Time passes to just before a flow has been silent for too long (`early`), or beyond; the
    /// number chooses one.
    Silence { flow: usize, early: bool },
    /// The end of a rule that is near is waited for.
    Wait,
}

#[derive(Clone, Debug)]
struct End {
    workload: Option<usize>,
    address: IpAddr,
    port: u16,
    /// The next sequence number.
    sequence: u32,
}

/// What two ends have to say to each other.
#[derive(Clone, Debug)]
struct Talk {
    /// The first one begins.
    ends: [End; 2],
    kind: Kind,
    /// How far it is.
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Sctp,
    Echo,
    Icmp,
    Gre,
}

/// Makes steps.
#[derive(Debug)]
pub(super) struct Steps {
    rng: Rng,
    talks: Vec<Talk>,
}

impl Steps {
    pub(super) fn new(mut rng: Rng) -> Self {
        let talks = (0..CONVERSATIONS).map(|_| talk(&mut rng)).collect();
        Self { rng, talks }
    }

    pub(super) fn next(&mut self) -> Step {
        let rng = &mut self.rng;
        match rng.u32(0..1000) {
            // These wait for the kernel, all others take microseconds.
            0..4 => Step::Commit { number: rng.u64(..), soon: rng.bool() },
            4..6 => Step::Again,
            6..8 => Step::Set { number: rng.u64(..) },
            8..30 => Step::Put { workload: rng.usize(0..WORKLOADS), like: rng.usize(0..WORKLOADS) },
            30..40 => Step::Remove { workload: rng.usize(0..WORKLOADS) },
            40..50 => Step::Pass { seconds: rng.u64(1..400) },
            50..75 => Step::Silence { flow: rng.usize(..), early: rng.bool() },
            75..95 => Step::Wait,
            95..110 => self.error(),
            110..120 => self.stray(),
            _ => self.talk(),
        }
    }

    /// The next packet of a conversation.
    fn talk(&mut self) -> Step {
        let rng = &mut self.rng;
        let number = rng.usize(0..self.talks.len());
        if rng.u8(0..60) == 0 {
            // Others begin; sometimes between the same ends, the other way round.
            let mut new = talk(rng);
            if rng.bool() {
                new = self.talks[number].clone();
                new.ends.reverse();
                new.at = 0;
            }
            self.talks[number] = new;
        }
        let talk = &mut self.talks[number];
        let (end, content) = talk.say(rng);
        Step::Packet {
            from: talk.ends[end].workload,
            to: talk.ends[1 - end].workload,
            packet: talk.packet(end, content),
        }
    }

    /// An ICMP error about a packet of a conversation, from its receiver or from somebody between.
    fn error(&mut self) -> Step {
        let rng = &mut self.rng;
        let talk = &self.talks[rng.usize(0..self.talks.len())];
        let end = rng.usize(0..2);
        let about = talk.packet(end, talk.clone().say(rng).1);
        let (mut from, mut source) = (talk.ends[1 - end].workload, about.destination);
        if rng.bool() {
            (from, source) = (None, parse(&ELSEWHERE[0], about.source.is_ipv6()));
        }
        let (mut to, mut destination) = (talk.ends[end].workload, about.source);
        if rng.u8(0..6) == 0 {
            // To the wrong one.
            let other = rng.usize(0..WORKLOADS);
            (to, destination) = (Some(other), parse(&ADDRESSES[other], about.source.is_ipv6()));
        }
        let content = Content::Error { about: Box::new(about) };
        Step::Packet { from, to, packet: Packet { source, destination, content } }
    }

    /// What belongs to no conversation.
    fn stray(&mut self) -> Step {
        let rng = &mut self.rng;
        let talk = talk(rng);
        let end = rng.usize(0..2);
        let mut packet = talk.packet(end, talk.clone().say(rng).1);
        let v6 = packet.source.is_ipv6();
        let (from, mut to) = (talk.ends[end].workload, talk.ends[1 - end].workload);
        match rng.u8(0..3) {
            0 if from.is_some() => {
                // A source that is somebody else's.
                let loopback = ["127.0.0.1", "::1"];
                let others = [loopback, ADDRESSES[rng.usize(0..WORKLOADS)]];
                packet.source = parse(&others[rng.usize(0..2)], v6);
                if packet.source.is_loopback() {
                    to = None;
                }
            }
            1 if v6 => {
                packet.source = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 7]);
                packet.destination = IpAddr::from([0xff02, 0, 0, 0, 0, 1, 0xff00, 7]);
                packet.content = Content::Discovery;
            }
            _ => packet.content = Content::Cut,
        }
        Step::Packet { from, to, packet }
    }
}

impl Talk {
    fn packet(&self, end: usize, content: Content) -> Packet {
        let (from, to) = (&self.ends[end], &self.ends[1 - end]);
        Packet { source: from.address, destination: to.address, content }
    }

    /// Who says what.
    fn say(&mut self, rng: &mut Rng) -> (usize, Content) {
        let at = self.at;
        self.at += 1;
        let end = if at == 0 { 0 } else { rng.usize(0..2) };
        let ports = [self.ends[end].port, self.ends[1 - end].port];
        match self.kind {
            Kind::Tcp => self.say_tcp(rng, at),
            Kind::Udp => (end, Content::Udp { ports }),
            Kind::Sctp => {
                let chunk = [1, 2, 10, 11, 0, 3, 6, 7, 8, 14][(at + rng.usize(0..3)) % 10];
                (end, Content::Sctp { ports, chunk })
            }
            Kind::Echo => {
                // The first one asks, with few exceptions.
                let request = (end == 0) != (rng.u8(0..8) == 0);
                (end, Content::Echo { request, identifier: self.ends[0].port })
            }
            Kind::Icmp => {
                let v6 = self.ends[0].address.is_ipv6();
                // A timestamp's request and its answer; numbers for experiments.
                let kinds = if v6 { [200, 201] } else { [13, 14] };
                (end, Content::Icmp { kind: kinds[rng.usize(0..2)] })
            }
            Kind::Gre => (end, Content::Gre),
        }
    }

    /// A handshake, data, and an end; with whatever in between.
    fn say_tcp(&mut self, rng: &mut Rng, at: usize) -> (usize, Content) {
        const ODD: [u8; 8] = [SYN, SYN | ACK, ACK, RST, FIN | ACK, 0, SYN | FIN, SYN | RST];
        let (mut end, mut flags) = match at {
            0 => (0, SYN),
            1 => (1, SYN | ACK),
            2 => (0, ACK),
            3..12 => (rng.usize(0..2), ACK | [0, 0x08][rng.usize(0..2)]),
            12 => (0, if rng.bool() { FIN | ACK } else { RST | ACK }),
            13 => (1, FIN | ACK),
            14..17 => (rng.usize(0..2), ACK),
            _ => {
                self.at = rng.usize(0..2);
                (0, if self.at == 0 { ACK } else { SYN })
            }
        };
        if rng.u8(0..5) == 0 {
            end = rng.usize(0..2);
            flags = if rng.u8(0..6) == 0 { rng.u8(..) } else { ODD[rng.usize(0..ODD.len())] };
            self.at -= rng.usize(0..2).min(self.at);
        }
        let mut sequence = self.ends[end].sequence;
        if flags & RST != 0 {
            // Where it is exact, and on both sides of where it still counts.
            let offsets =
                [0, STEP, 16 * STEP, 17 * STEP, 17 * STEP, 0u32.wrapping_sub(STEP), 1 << 31];
            sequence = sequence.wrapping_add(offsets[rng.usize(0..offsets.len())]);
        } else if rng.u8(0..3) == 0 {
            self.ends[end].sequence = sequence.wrapping_add(STEP * rng.u32(0..40));
        }
        let acknowledgement = self.ends[1 - end].sequence;
        let ports = [self.ends[end].port, self.ends[1 - end].port];
        let segment = Segment { flags, sequence, acknowledgement };
        (end, Content::Tcp { ports, segment })
    }
}

/// A conversation; one of its ends is a workload.
fn talk(rng: &mut Rng) -> Talk {
    let v6 = rng.bool();
    let workload = rng.usize(0..WORKLOADS);
    let mut ends = [end(rng, Some(workload), v6), end(rng, None, v6)];
    match rng.u8(0..10) {
        // Another workload, or the same.
        0..5 => {
            let other = rng.usize(0..WORKLOADS);
            ends[1] = end(rng, Some(other), v6);
        }
        5 => ends[0].address = parse(&BEHIND, v6),
        _ => {}
    }
    if rng.bool() {
        ends.reverse();
    }
    ends[0].port = [40_000, 40_001, ends[0].port][rng.usize(0..3)];
    let kinds =
        [Kind::Tcp, Kind::Tcp, Kind::Tcp, Kind::Udp, Kind::Sctp, Kind::Echo, Kind::Icmp, Kind::Gre];
    Talk { ends, kind: kinds[rng.usize(0..kinds.len())], at: 0 }
}

fn end(rng: &mut Rng, workload: Option<usize>, v6: bool) -> End {
    let addresses = match workload {
        Some(workload) => ADDRESSES[workload],
        None => ELSEWHERE[rng.usize(0..ELSEWHERE.len())],
    };
    let address = parse(&addresses, v6);
    let port = PORTS[rng.usize(0..PORTS.len())];
    let sequence = rng.u32(0x1000..0xf000) << 16 | LOW;
    End { workload, address, port, sequence }
}

/// One of a pair of addresses.
fn parse(addresses: &[&str; 2], v6: bool) -> IpAddr {
    // The tables are valid; a wrong line would stand for nobody's address.
    addresses[usize::from(v6)].parse().unwrap_or(IpAddr::from([0; 4]))
}
