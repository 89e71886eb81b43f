//! Fragments at an interface: later ones follow their first one, and nothing else passes.

use anyhow::{Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::World;

use crate::Body;
use crate::environment::Environment;
use crate::sequences::{Line, NOTHING, ONE_WAY, frame, on_a_line, ports};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("fragments::later_ones_follow_their_first", follow),
    ("fragments::one_that_writes_over_the_first_ends_its_packet", overlap),
    ("fragments::a_change_of_policy_reaches_a_packet_half_way", change_of_policy),
    ("fragments::datagrams_larger_than_the_link_pass_where_they_may", large_datagrams),
];

/// IP protocol numbers (IANA).
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
/// Of the whole datagram in these tests.
const DATAGRAM: u16 = 48;

/// Eight bytes of the datagram between port 1000 of `app` and port 80 of the peer, from `at` in
/// eights on, as a frame.
fn piece(line: &Line, from_app: bool, id: u8, at: u8, words: u8) -> Vec<u8> {
    let mut data = ports(from_app, 1000);
    data.extend(DATAGRAM.to_be_bytes());
    data.extend([0; 2]);
    data.resize(DATAGRAM.into(), 0);
    let (begin, end) = (usize::from(at) * 8, usize::from(at + words) * 8);
    let more = end < data.len();
    let piece = &data[begin..end];
    if line.v6 {
        let field = u16::from(at) << 3 | u16::from(more);
        let [high, low] = field.to_be_bytes();
        let header = [UDP, 0, high, low, 0, 0, 0, id];
        return frame(true, from_app, FRAGMENT, &[&header, piece].concat());
    }
    let mut frame = frame(false, from_app, UDP, piece);
    frame[19] = id;
    frame[20] = if more { 0x20 } else { 0 };
    frame[21] = at;
    frame
}

impl Line {
    /// Whether a fragment passes; see [`piece`].
    fn piece(&self, from_app: bool, id: u8, at: u8, words: u8) -> Result<bool> {
        self.passes(from_app, &piece(self, from_app, id, at, words))
    }
}

fn follow(_: &Environment) -> Result<()> {
    on_a_line("fragments", |line| {
        line.policy(ONE_WAY)?;
        ensure!(!line.piece(true, 1, 2, 2)?, "a later fragment without its first passes");
        ensure!(line.piece(true, 1, 0, 2)?, "an allowed first fragment is denied");
        ensure!(line.piece(true, 1, 2, 2)?, "a later fragment is denied");
        ensure!(line.piece(true, 1, 4, 2)?, "the last fragment is denied");
        ensure!(line.piece(true, 1, 2, 2)?, "a later fragment that comes again is denied");
        ensure!(!line.piece(true, 2, 2, 2)?, "one of another packet passes");
        ensure!(!line.piece(false, 1, 2, 2)?, "one from the other end passes");
        // The answer, of the same flow.
        ensure!(line.piece(false, 7, 0, 3)?, "the first fragment of an answer is denied");
        ensure!(line.piece(false, 7, 3, 3)?, "a later fragment of an answer is denied");
        // And what the peer asks on its own is denied, later fragments included.
        line.policy(NOTHING)?;
        ensure!(!line.piece(false, 8, 0, 3)?, "a denied first fragment passes");
        ensure!(!line.piece(false, 8, 3, 3)?, "a later fragment of a denied packet passes");
        Ok(())
    })
}

fn overlap(_: &Environment) -> Result<()> {
    on_a_line("overlap", |line| {
        line.policy(ONE_WAY)?;
        ensure!(line.piece(true, 3, 0, 4)?, "an allowed first fragment is denied");
        ensure!(line.piece(true, 3, 4, 1)?, "a later fragment is denied");
        ensure!(!line.piece(true, 3, 3, 2)?, "a fragment that writes over the first passes");
        // RFC 5722: the whole packet is lost, so that its receiver never puts it together.
        ensure!(!line.piece(true, 3, 5, 1)?, "a fragment of a packet that overlaps passes");
        Ok(())
    })
}

fn change_of_policy(_: &Environment) -> Result<()> {
    on_a_line("half-way", |line| {
        line.policy(ONE_WAY)?;
        ensure!(line.piece(true, 4, 0, 2)?, "an allowed first fragment is denied");
        line.policy(ONE_WAY)?;
        ensure!(line.piece(true, 4, 2, 2)?, "a fragment of a flow that stays allowed is lost");
        line.policy(NOTHING)?;
        ensure!(!line.piece(true, 4, 4, 2)?, "a fragment of a revoked flow passes");
        Ok(())
    })
}

const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: fragments }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    vm: { match: [ { interface: zt-tap* } ] }
  allow:
    - { name: to-web, from: vm, to: web, ports: [udp/2000] }
    - { name: to-vm, from: web, to: vm, ports: [udp/2000] }
    - { name: out, from: vm, to: any, ports: [udp/2000, icmp, icmpv6] }
    - { name: in, from: any, to: vm, ports: [udp/2000] }
";

fn large_datagrams(_: &Environment) -> Result<()> {
    let world = World::new()?;
    let (web, vm, far) = (world.workload("/web")?, world.guest.place(), world.peer.place());
    let mut agent = Agent::start(&world, POLICY)?;
    let listen = ["0.0.0.0:2000", "[::]:2000", "0.0.0.0:2001", "[::]:2001"]
        .map(|address| Ok(Listen::Udp(address.parse()?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let _servers = [&web, &vm, &far].map(|place| Server::start(place, &listen));
    for v6 in [false, true] {
        let ways = [
            (&vm, world.tap.near(v6)),
            (&web, world.tap.far(v6)),
            (&vm, world.uplink.far(v6)),
            (&far, world.tap.far(v6)),
        ];
        for (from, to) in ways {
            for ask in [Ask::Udp, Ask::UdpConnected] {
                for bytes in [1_473, 4_000, 40_000] {
                    let probe = Probe::new(ask, (to, 2000).into()).bytes(bytes);
                    let report = probe.run(from)?;
                    ensure!(report.outcome == Outcome::Ok, "{bytes} bytes to {to}: {report:?}");
                }
            }
            let denied = Probe::new(Ask::Udp, (to, 2001).into()).bytes(4_000).run(from)?;
            ensure!(
                matches!(denied.outcome, Outcome::Timeout | Outcome::Eperm),
                "to {to}, denied: {denied:?}"
            );
        }
    }
    // Only the first fragments are asked about: the later ones have no port.
    let event = agent.wait_for_event(|e| e["reason"] == "fragment-without-first")?;
    ensure!(event["verdict"] == "DROPPED", "{event:#}");
    agent.stop()
}
