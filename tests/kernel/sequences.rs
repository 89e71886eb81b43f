//! Sequences of packets of one flow, through the real TC programs by `BPF_PROG_TEST_RUN`: what a
//! packet means depends on those before it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use ztseg::clocks::Clocks;
use ztseg::datapath::sys::test_run;
use ztseg::datapath::{Capacity, Datapath};
use ztseg::inventory::{InterfaceFacts, Inventory};
use ztseg::policy::compile::compile;
use ztseg::policy::source::Source;
use ztseg_common::event::Counter;
use ztseg_common::packet::tcp::{ACK, FIN, RST, SYN};
use ztseg_tests::world::times;

use crate::Body;
use crate::differential::{DROPPED, PASSES, context, dummies};
use crate::environment::Environment;
use crate::programs::Unattached;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("sequences::only_the_end_that_may_opens_a_connection", opens),
    ("sequences::both_ends_may_open_at_once", opens_at_once),
    ("sequences::a_forged_reset_ends_nothing", forged_reset),
    ("sequences::ports_are_reused_in_either_direction", ports_reused),
    ("sequences::a_denial_takes_effect_within_a_live_connection", revoked),
    ("sequences::a_length_that_lies_is_denied_within_a_flow", lengths),
    ("sequences::an_association_is_its_openers", associations),
    ("sequences::a_remembered_denial_ends_with_its_policy", remembered_denial),
    ("sequences::every_denied_packet_is_counted_and_reported_or_folded", counted),
];

/// `app` may ask for tcp/80 and udp/80, and be asked for nothing.
pub(crate) const ONE_WAY: &str = "
  allow: [ { name: out, from: app, to: any, ports: [tcp/80, udp/80] } ]";
/// Whoever it is may ask for tcp/80 and udp/80, on either side.
const BOTH_WAYS: &str = "
  allow:
    - { name: out, from: app, to: any, ports: [tcp/80, udp/80] }
    - { name: in, from: any, to: app, ports: [tcp/40000] }";
pub(crate) const NOTHING: &str = "";

/// The interface workload `app` and the programs at its interface.
pub(crate) struct Line {
    unattached: Unattached,
    from_app: OwnedFd,
    to_app: OwnedFd,
    ifindex: u32,
    /// Which IP version the packets have.
    pub(crate) v6: bool,
}

impl Line {
    /// Puts rules in force.
    pub(crate) fn policy(&mut self, rules: &str) -> Result<()> {
        self.policy_at(rules, &Clocks::now())
    }

    /// As [`Self::policy`], with the clocks that say when rules end.
    pub(crate) fn policy_at(&mut self, rules: &str, clocks: &Clocks) -> Result<()> {
        let text = format!(
            "apiVersion: ztseg.io/v1\nkind: SegmentPolicy\nmetadata: {{ name: line }}\nspec:\n  \
             segments: {{ app: {{ match: [ {{ interface: zt-dummy0 }} ] }} }}{rules}\n"
        );
        let source = Source { name: "line.yaml".into(), text: text.into() };
        let loaded = ztseg::policy::load(&[source]).map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut inventory = Inventory::new();
        let name = "zt-dummy0".to_owned();
        inventory.set_interfaces([InterfaceFacts {
            ifindex: self.ifindex,
            name,
            host_side: false,
        }]);
        inventory.set_policy(&loaded.resolved);
        let members: Vec<_> = inventory.memberships().cloned().collect();
        let image = compile(&loaded.resolved, &members, &Capacity::default())?;
        self.datapath()?.commit(&image, clocks)?;
        Ok(())
    }

    fn datapath(&mut self) -> Result<&mut Datapath> {
        self.unattached.get()
    }

    /// Whether a packet passes. `app` has port 40000, the peer port 80.
    pub(crate) fn passes(&self, from_app: bool, packet: &[u8]) -> Result<bool> {
        let program = if from_app { &self.from_app } else { &self.to_app };
        let run = test_run(program.as_fd(), packet, &context(self.ifindex, 0), 1)?;
        match run.value {
            PASSES => Ok(true),
            DROPPED => Ok(false),
            other => bail!("the program returned {other:#x}"),
        }
    }

    fn tcp(&self, from_app: bool, flags: u8, sequence: u32) -> Result<bool> {
        let mut header = ports(from_app, 40_000);
        header.extend(sequence.to_be_bytes());
        header.extend(SEQUENCE.to_be_bytes());
        header.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        self.passes(from_app, &frame(self.v6, from_app, 6, &header))
    }

    /// Whether a datagram between port `app_port` and the peer's port 80 passes.
    pub(crate) fn udp(&self, from_app: bool, app_port: u16) -> Result<bool> {
        let mut header = ports(from_app, app_port);
        header.extend([0, 8, 0, 0]);
        self.passes(from_app, &frame(self.v6, from_app, 17, &header))
    }

    /// Whether each packet of a connection passes, or does not, as it should.
    pub(crate) fn expect(&self, steps: &[(Sender, u8, bool)]) -> Result<()> {
        for (number, (sender, flags, passes)) in steps.iter().enumerate() {
            let found = self.tcp(*sender == App, *flags, SEQUENCE)?;
            ensure!(
                found == *passes,
                "step {number}, {sender:?} sends flags {flags:#04x}: passes is {found} (v6: {})",
                self.v6
            );
        }
        Ok(())
    }
}

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    App,
    Peer,
}
pub(crate) use Sender::{App, Peer};

const SEQUENCE: u32 = 0x7000_0000;
const SYN_ACK: u8 = SYN | ACK;
/// Opens a connection.
pub(crate) const HANDSHAKE: [(Sender, u8, bool); 4] =
    [(App, SYN, true), (Peer, SYN_ACK, true), (App, ACK, true), (Peer, ACK, true)];

pub(crate) fn ports(from_app: bool, app_port: u16) -> Vec<u8> {
    let (source, destination) = if from_app { (app_port, 80) } else { (80, app_port) };
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// An Ethernet frame between `app` and the peer.
pub(crate) fn frame(v6: bool, from_app: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let ends: [IpAddr; 2] = if v6 {
        let address = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into();
        [address(1), address(2)]
    } else {
        [Ipv4Addr::new(198, 51, 100, 2).into(), Ipv4Addr::new(203, 0, 113, 5).into()]
    };
    let [source, destination] = if from_app { ends } else { [ends[1], ends[0]] };
    let length = u8::try_from(payload.len()).unwrap_or_default();
    let mut frame = vec![0; 12];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0, 0x45, 0, 0, 20 + length, 0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => {}
    }
    frame.extend(payload);
    frame
}

/// Runs `body` for IPv4 and for IPv6. The programs are loaded once, which takes a while in a virtual
/// machine; the flows of the two are apart.
pub(crate) fn on_a_line(name: &'static str, body: fn(&mut Line) -> Result<()>) -> Result<()> {
    // A namespace belongs to a thread; this one's ends with it.
    let run = thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        let ifindex = dummies()?[0];
        let mut unattached = Unattached::open(name, Capacity::default())?;
        let datapath = unattached.get()?;
        let from_app = datapath.program_fd("ztseg_tc_from")?;
        let to_app = datapath.program_fd("ztseg_tc_to")?;
        let mut line = Line { unattached, from_app, to_app, ifindex, v6: false };
        for v6 in [false, true] {
            line.v6 = v6;
            body(&mut line).with_context(|| format!("v6: {v6}"))?;
        }
        Ok(())
    });
    run.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

fn opens(_: &Environment) -> Result<()> {
    on_a_line("opens", |line| {
        line.policy(ONE_WAY)?;
        line.expect(&[(Peer, SYN, false), (Peer, ACK, false), (Peer, SYN_ACK, false)])?;
        line.expect(&HANDSHAKE)?;
        ensure!(line.udp(true, 1000)? && line.udp(false, 1000)?, "an answer is denied");
        ensure!(!line.udp(false, 1001)?, "what nobody asked for passes");
        Ok(())
    })
}

fn opens_at_once(_: &Environment) -> Result<()> {
    on_a_line("at-once", |line| {
        line.policy(ONE_WAY)?;
        line.expect(&[(App, SYN, true), (Peer, SYN, true), (App, SYN_ACK, true)])?;
        line.expect(&[(Peer, SYN_ACK, true), (App, ACK, true), (Peer, ACK, true)])
    })
}

fn forged_reset(_: &Environment) -> Result<()> {
    on_a_line("reset", |line| {
        line.policy(ONE_WAY)?;
        line.expect(&HANDSHAKE)?;
        // The peer's end forges; each packet of a known flow passes, and the flow stands.
        line.tcp(false, RST, SEQUENCE ^ 0x8000_0000)?;
        line.expect(&[(Peer, FIN | ACK, true), (Peer, ACK, true), (App, ACK, true)])?;
        // And a SYN into the connection is a new one, which the peer may not open.
        line.expect(&[(Peer, SYN, false), (Peer, ACK, true), (App, ACK, true)])
    })
}

fn ports_reused(_: &Environment) -> Result<()> {
    on_a_line("reuse", |line| {
        line.policy(BOTH_WAYS)?;
        line.expect(&HANDSHAKE)?;
        // The peer opens one between the same ports; then each end may answer.
        line.expect(&[(Peer, SYN, true), (App, SYN_ACK, true), (Peer, ACK, true)])?;
        // It is the peer's now: what allowed the first one does not hold it.
        line.policy(ONE_WAY)?;
        line.expect(&[(Peer, ACK, false), (App, SYN, true), (Peer, SYN_ACK, true)])
    })
}

fn revoked(_: &Environment) -> Result<()> {
    on_a_line("revoked", |line| {
        for first in [App, Peer] {
            line.policy(ONE_WAY)?;
            line.expect(&HANDSHAKE)?;
            line.policy(NOTHING)?;
            let second = if first == App { Peer } else { App };
            line.expect(&[(first, ACK, false), (second, ACK, false), (first, ACK, false)])?;
        }
        Ok(())
    })
}

/// SCTP: who opens an association is who may, whoever sends what within it.
fn associations(_: &Environment) -> Result<()> {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const COOKIE_ECHO: u8 = 10;
    const COOKIE_ACK: u8 = 11;
    const DATA: u8 = 0;
    on_a_line("sctp", |line| {
        let rules = ONE_WAY.replace("udp/80]", "sctp/80]");
        line.policy(&rules)?;
        let expect = |line: &Line, steps: &[(Sender, u8, u32, bool)]| -> Result<()> {
            for (number, (sender, chunk, tag, passes)) in steps.iter().enumerate() {
                let mut packet = ports(*sender == App, 40_000);
                packet.extend(tag.to_be_bytes());
                packet.extend([0, 0, 0, 0, *chunk, 0, 0, 8, 0, 0, 0, 0]);
                let frame = frame(line.v6, *sender == App, 132, &packet);
                let found = line.passes(*sender == App, &frame)?;
                ensure!(found == *passes, "step {number}, chunk {chunk}: passes is {found}");
            }
            Ok(())
        };
        let (to_peer, to_app) = (0x1111_0000, 0x2222_0000);
        expect(line, &[(Peer, INIT, 0, false), (Peer, DATA, to_app, false)])?;
        expect(
            line,
            &[
                (App, INIT, 0, true),
                (Peer, INIT_ACK, to_app, true),
                (App, COOKIE_ECHO, to_peer, true),
                (Peer, COOKIE_ACK, to_app, true),
                (Peer, DATA, to_app, true),
                (App, DATA, to_peer, true),
                // Not the peer's to start anew, and the association stands.
                (Peer, INIT, 0, false),
                (Peer, DATA, to_app, true),
                (Peer, ABORT, 0x3333_0000, true),
                (Peer, DATA, to_app, true),
            ],
        )?;
        line.policy(NOTHING)?;
        expect(line, &[(Peer, DATA, to_app, false), (App, DATA, to_peer, false)])
    })
}

/// The short way for packets of known flows reads no less than the parser does.
fn lengths(_: &Environment) -> Result<()> {
    on_a_line("lengths", |line| {
        line.policy(ONE_WAY)?;
        line.expect(&HANDSHAKE)?;
        ensure!(line.udp(true, 1000)? && line.udp(false, 1000)?, "an allowed datagram is denied");
        for from_app in [true, false] {
            for (length, passes) in [(8u8, true), (0, false), (7, false), (9, false), (200, false)]
            {
                let mut header = ports(from_app, 1000);
                header.extend([0, length, 0, 0]);
                let found = line.passes(from_app, &frame(line.v6, from_app, 17, &header))?;
                ensure!(found == passes, "a datagram of {length} bytes: passes is {found}");
            }
            // A segment whose IP header says more than there is.
            let mut header = ports(from_app, 40_000);
            header.extend([0x70, 0, 0, 0, 0x70, 0, 0, 0, 0x50, ACK, 0, 0, 0, 0, 0, 0]);
            let mut packet = frame(line.v6, from_app, 6, &header);
            let length_at = if line.v6 { 14 + 5 } else { 14 + 3 };
            ensure!(line.passes(from_app, &packet)?, "an allowed segment is denied");
            packet[length_at] += 1;
            ensure!(!line.passes(from_app, &packet)?, "a segment longer than its packet passes");
        }
        Ok(())
    })
}

fn remembered_denial(_: &Environment) -> Result<()> {
    on_a_line("remembered", |line| {
        for _ in 0..times(20) {
            line.policy(NOTHING)?;
            line.expect(&[(App, SYN, false), (App, SYN, false), (App, SYN, false)])?;
            ensure!(!line.udp(true, 1000)? && !line.udp(true, 1000)?, "a denied datagram passes");
            line.policy(ONE_WAY)?;
            line.expect(&[(App, SYN, true), (Peer, SYN_ACK, true)])?;
            ensure!(line.udp(true, 1000)?, "an allowed datagram is denied");
        }
        // It is the peer's SYN that was denied, not the flow.
        line.policy(ONE_WAY)?;
        let denied = [(Peer, SYN, false); 3];
        line.expect(&denied)?;
        line.expect(&[(App, SYN, true), (Peer, SYN_ACK, true)])
    })
}

fn counted(_: &Environment) -> Result<()> {
    const PACKETS: u64 = 4_000;
    on_a_line("counted", |line| {
        line.policy(ONE_WAY)?;
        let before = line.datapath()?.counters()?;
        for number in 0..PACKETS / 2 {
            // Folded and not, remembered and not.
            let port = if number % 4 == 0 { 2000 } else { 3000 + u16::try_from(number)? };
            ensure!(!line.udp(false, port)? && !line.tcp(false, SYN, SEQUENCE)?, "it passes");
        }
        let counters = line.datapath()?.counters()?;
        let count =
            |of: &BTreeMap<Counter, u64>, counter| of.get(&counter).copied().unwrap_or_default();
        let of = |counter| count(&counters, counter) - count(&before, counter);
        ensure!(of(Counter::DroppedIngress) == PACKETS, "{counters:?}");
        let said = of(Counter::EventsSent)
            + of(Counter::EventsFolded)
            + of(Counter::EventsOverBudget)
            + of(Counter::EventsLost);
        ensure!(said == PACKETS, "{said} of {PACKETS} accounted for: {counters:?}");
        // All segments and a quarter of the datagrams are alike, and there is a budget.
        ensure!(of(Counter::EventsSent) < PACKETS / 2, "a record of nearly all: {counters:?}");
        Ok(())
    })
}
