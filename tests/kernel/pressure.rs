//! Floods: whatever one workload opens or is denied, another's flows go on, memory stays what it is,
//! and everything is counted. Packets go through the real TC programs by `BPF_PROG_TEST_RUN`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use ztseg::clocks::Clocks;
use ztseg::datapath::sys::{map_dump, map_update, open_pinned, test_run};
use ztseg::datapath::{Capacity, Datapath};
use ztseg::inventory::{InterfaceFacts, Inventory};
use ztseg::policy::compile::compile;
use ztseg::policy::source::Source;
use ztseg_common::event::Counter;
use ztseg_common::key::{FlowKey4, FlowKey6, workload_interface};
use ztseg_common::packet::tcp::{ACK, SYN};
use ztseg_common::state::FlowState;
use ztseg_tests::world::{patient, times};

use crate::Body;
use crate::differential::{DROPPED, PASSES, context, dummies};
use crate::environment::Environment;
use crate::programs::Unattached;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("pressure::a_million_allowed_flows_take_none_from_another_workload", allowed_flows),
    ("pressure::half_open_connections_keep_nobody_out", half_open),
    ("pressure::a_million_denied_packets_are_all_counted", denied_packets),
    ("pressure::what_a_full_ring_loses_is_counted", full_ring),
    ("pressure::dead_flows_give_their_entries_back", dead_flows),
    ("pressure::ends_of_many_connections_are_no_flood", ended_connections),
];

/// The flooder and somebody else, who may ask for and be asked for everything but port 9.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: pressure }
spec:
  segments:
    flooder: { match: [ { interface: zt-dummy0 } ] }
    other: { match: [ { interface: zt-dummy1 } ] }
    everyone: { isolation: [], match: [ { interface: zt-dummy* } ] }
  deny:
    - { name: no, from: everyone, to: any, ports: [udp/9, tcp/9] }
    - { name: no-in, from: any, to: everyone, ports: [udp/1024-65535] }
  allow:
    - { name: out, from: [flooder, other], to: any }
    - { name: in, from: any, to: flooder, ports: [tcp/80] }
";

/// A workload, by the number of its interface.
type Who = usize;
const FLOODER: Who = 0;
const OTHER: Who = 1;

/// The datapath with two interface workloads.
struct Scene {
    unattached: Unattached,
    programs: [OwnedFd; 2],
    interfaces: Vec<u32>,
    v6: bool,
}

impl Scene {
    fn datapath(&mut self) -> Result<&mut Datapath> {
        self.unattached.get()
    }

    fn counters(&mut self) -> Result<impl Fn(Counter) -> u64 + use<>> {
        let counters = self.datapath()?.counters()?;
        Ok(move |counter| counters.get(&counter).copied().unwrap_or_default())
    }

    /// Whether a packet of the `n`th flow passes, from the workload or to it.
    fn udp(&self, who: Who, from: bool, n: u32) -> Result<bool> {
        self.udp_to(who, from, n, 53)
    }

    fn udp_to(&self, who: Who, from: bool, n: u32, port: u16) -> Result<bool> {
        let own = u16::try_from(1024 + n % 60_000)?;
        let mut header = ports(from, own, port);
        header.extend([0, 8, 0, 0]);
        self.passes(who, from, n / 60_000, 17, &header)
    }

    /// A TCP segment between the workload's port `own` and the peer's.
    fn tcp(&self, who: Who, from: bool, (own, peer): (u16, u16), flags: u8) -> Result<bool> {
        let mut header = ports(from, own, peer);
        header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        self.passes(who, from, 0, 6, &header)
    }

    /// `peer` is the number of the other end's address.
    fn passes(&self, who: Who, from: bool, peer: u32, protocol: u8, l4: &[u8]) -> Result<bool> {
        let (own, peer): (IpAddr, IpAddr) = if self.v6 {
            let [.., a, b] = peer.to_be_bytes();
            let address =
                |x: u8, y: u8| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, x.into(), u16::from(y) + 1);
            (address(0, u8::try_from(who)?).into(), address(a + 1, b).into())
        } else {
            let [.., a, b] = peer.to_be_bytes();
            (
                Ipv4Addr::new(192, 0, 2, u8::try_from(who)? + 1).into(),
                Ipv4Addr::new(198, 18, a, b).into(),
            )
        };
        let (source, destination) = if from { (own, peer) } else { (peer, own) };
        let packet = frame(source, destination, protocol, l4);
        let context = context(self.interfaces[who], 0);
        let run = test_run(self.programs[usize::from(from)].as_fd(), &packet, &context, 1)?;
        match run.value {
            PASSES => Ok(true),
            DROPPED => Ok(false),
            other => bail!("the program returned {other:#x}"),
        }
    }

    /// How many entries the tables have, and how many the workloads' accounts say.
    fn entries(&mut self) -> Result<(usize, i64)> {
        let maps = self.unattached.maps();
        let v4 = map_dump::<FlowKey4, FlowState>(open_pinned(&maps.join("FLOWS4"))?.as_fd())?.len();
        let v6 = map_dump::<FlowKey6, FlowState>(open_pinned(&maps.join("FLOWS6"))?.as_fd())?.len();
        let mut accounts = 0;
        for who in [FLOODER, OTHER] {
            let key = workload_interface(self.interfaces[who]);
            let usage = self.datapath()?.flows_of(key)?;
            accounts += usage.v4 + usage.v6;
        }
        Ok((v4 + v6, accounts))
    }

    fn ensure_accounts_are_right(&mut self) -> Result<()> {
        let (entries, accounts) = self.entries()?;
        ensure!(i64::try_from(entries)? == accounts, "{entries} entries, {accounts} on accounts");
        Ok(())
    }
}

fn ports(from: bool, own: u16, peer: u16) -> Vec<u8> {
    let (source, destination) = if from { (own, peer) } else { (peer, own) };
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn frame(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
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

fn scene(
    name: &'static str,
    flows: u32,
    body: impl FnOnce(&mut Scene) -> Result<()> + Send + 'static,
) -> Result<()> {
    // A namespace belongs to a thread; this one's ends with it.
    let run = thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        let interfaces = dummies()?;
        let capacity = Capacity { flows, ..Capacity::default() };
        let mut unattached = Unattached::open(name, capacity)?;
        let datapath = unattached.get()?;
        let programs = [datapath.program_fd("ztseg_tc_to")?, datapath.program_fd("ztseg_tc_from")?];
        let source = Source { name: "pressure.yaml".into(), text: POLICY.into() };
        let loaded = ztseg::policy::load(&[source]).map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut inventory = Inventory::new();
        inventory.set_interfaces(interfaces.iter().enumerate().map(|(n, ifindex)| {
            InterfaceFacts { ifindex: *ifindex, name: format!("zt-dummy{n}"), host_side: false }
        }));
        inventory.set_policy(&loaded.resolved);
        let members: Vec<_> = inventory.memberships().cloned().collect();
        datapath.commit(&compile(&loaded.resolved, &members, &capacity)?, &Clocks::now())?;
        body(&mut Scene { unattached, programs, interfaces, v6: false })
    });
    run.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

fn allowed_flows(_: &Environment) -> Result<()> {
    const FLOWS: u32 = 1_000_000;
    const EVERY: u32 = 10_000;
    scene("flows", Capacity::default().flows, |scene| {
        for v6 in [false, true] {
            scene.v6 = v6;
            // Of both, from before: silent until the end.
            for n in 0..100 {
                for who in [FLOODER, OTHER] {
                    ensure!(scene.udp(who, true, n)? && scene.udp(who, false, n)?, "denied");
                }
            }
            ensure!(scene.tcp(OTHER, true, (40_000, 80), SYN)?, "a connection is denied");
            ensure!(scene.tcp(OTHER, false, (40_000, 80), SYN | ACK)?, "its answer is denied");
            let mut others = 100;
            for n in 100..100 + times(FLOWS) / 2 {
                ensure!(scene.udp(FLOODER, true, n)?, "an allowed packet is denied");
                if n % EVERY == 0 {
                    // One from the middle of it, whose answer comes late.
                    ensure!(scene.udp(OTHER, true, others)?, "an allowed packet is denied");
                    others += 1;
                }
            }
            for n in 0..others {
                ensure!(scene.udp(OTHER, false, n)?, "the answer to flow {n} is lost (v6: {v6})");
            }
            for n in 0..100 {
                ensure!(scene.udp(FLOODER, false, n)?, "a flow of the flooder itself is lost");
            }
            ensure!(scene.tcp(OTHER, true, (40_000, 80), ACK)?, "the connection is lost");
            ensure!(!scene.udp(OTHER, false, others)?, "what nobody asked for passes");
            scene.ensure_accounts_are_right()?;
        }
        let of = scene.counters()?;
        let (entries, _) = scene.entries()?;
        println!(
            "{} flows: {entries} entries, {} spilled, {} not stored",
            times(FLOWS),
            of(Counter::FlowsSpilled),
            of(Counter::FlowsNotStored)
        );
        ensure!(of(Counter::FlowsSpilled) > 0 && of(Counter::FlowsNotStored) == 0, "not stored");
        Ok(())
    })
}

/// From outside, to a port that is open: the workload answers, and nobody answers that.
fn half_open(_: &Environment) -> Result<()> {
    scene("half-open", 4096, |scene| {
        let established = (80, 50_000);
        let open = |scene: &Scene, (own, peer): (u16, u16)| -> Result<bool> {
            let mut passes = scene.tcp(FLOODER, false, (own, peer), SYN)?;
            passes &= scene.tcp(FLOODER, true, (own, peer), SYN | ACK)?;
            passes &= scene.tcp(FLOODER, false, (own, peer), ACK)?;
            Ok(passes && scene.tcp(FLOODER, true, (own, peer), ACK)?)
        };
        for v6 in [false, true] {
            scene.v6 = v6;
            ensure!(open(scene, established)?, "a connection before the flood is denied");
            for n in 1..times(40_000) {
                let peer = u16::try_from(1024 + n)?;
                ensure!(scene.tcp(FLOODER, false, (80, peer), SYN)?, "an allowed SYN is denied");
                ensure!(scene.tcp(FLOODER, true, (80, peer), SYN | ACK)?, "its answer is denied");
                if n % 1000 == 0 {
                    let new = u16::try_from(51_000 + n / 1000)?;
                    ensure!(open(scene, (80, new))?, "a connection within the flood is denied");
                    // It stands, and lasts.
                    let old = new.saturating_sub(5).max(51_001);
                    let goes_on = scene.tcp(FLOODER, true, (80, old), ACK)?;
                    ensure!(goes_on || n == 1000, "a connection of the flood's time is lost");
                }
            }
            ensure!(scene.tcp(FLOODER, true, established, ACK)?, "the connection is lost");
            ensure!(scene.udp(OTHER, true, 1)? && scene.udp(OTHER, false, 1)?, "another's is lost");
        }
        scene.ensure_accounts_are_right()
    })
}

/// With random ports and addresses, and nobody who reads the events.
fn denied_packets(_: &Environment) -> Result<()> {
    const PACKETS: u32 = 1_000_000;
    scene("denied", 4096, |scene| {
        let before = scene.counters()?;
        let mut random = fastrand::Rng::with_seed(7);
        ensure!(scene.udp(OTHER, true, 1)?, "an allowed packet is denied");
        let packets = times(PACKETS);
        for _ in 0..packets {
            let from = random.bool();
            // Asked for by the flooder: port 9. Of the flooder: a datagram.
            let port = if from { 9 } else { random.u16(1..) };
            let n = random.u32(..) % 15_000_000;
            ensure!(!scene.udp_to(FLOODER, from, n, port)?, "a denied packet passes");
        }
        ensure!(scene.udp(OTHER, false, 1)?, "another's answer is lost");
        let after = scene.counters()?;
        let of = |counter| after(counter) - before(counter);
        let dropped = of(Counter::DroppedEgress) + of(Counter::DroppedIngress);
        ensure!(dropped == u64::from(packets), "{dropped} of {packets} denied packets are counted");
        let [sent, folded, over, lost] = [
            Counter::EventsSent,
            Counter::EventsFolded,
            Counter::EventsOverBudget,
            Counter::EventsLost,
        ]
        .map(of);
        println!("{packets} denied: {sent} sent, {folded} folded, {over} over budget, {lost} lost");
        ensure!(sent + folded + over + lost == dropped, "not all is accounted for");
        let mut read = 0;
        scene.datapath()?.drain_events(&mut |_| read += 1);
        ensure!(read == sent, "{read} events read, {sent} sent");
        scene.ensure_accounts_are_right()
    })
}

/// More than one workload's budget can fill.
fn full_ring(_: &Environment) -> Result<()> {
    scene("ring", 4096, |scene| {
        let before = scene.counters()?;
        let start = Instant::now();
        let mut packets = 0u64;
        loop {
            for who in 0..scene.interfaces.len() {
                for _ in 0..100 {
                    let n = u32::try_from(packets % 10_000_000)?;
                    // Each for another port, so that nothing is folded.
                    ensure!(!scene.udp(who, false, n)?, "a denied packet passes");
                    packets += 1;
                }
            }
            let after = scene.counters()?;
            let of = |counter| after(counter) - before(counter);
            let sent = of(Counter::EventsSent);
            if of(Counter::EventsLost) > 0 {
                ensure!(of(Counter::DroppedIngress) == packets, "not all is counted");
                let kept_back = of(Counter::EventsFolded) + of(Counter::EventsOverBudget);
                let lost = of(Counter::EventsLost);
                ensure!(sent + kept_back + lost == packets, "not all is accounted for");
                println!("{packets} denied: {sent} sent, {kept_back} kept back, {lost} lost");
                break;
            }
            ensure!(start.elapsed() < patient(Duration::from_secs(20)), "the ring is never full");
        }
        ensure!(scene.udp(OTHER, true, 1)? && scene.udp(OTHER, false, 1)?, "a flow is lost");
        Ok(())
    })
}

fn dead_flows(_: &Environment) -> Result<()> {
    scene("dead", 32_768, |scene| {
        for v6 in [false, true] {
            scene.v6 = v6;
            for n in 0..1_000 {
                ensure!(scene.udp(FLOODER, true, n)?, "an allowed packet is denied");
            }
            ensure!(scene.udp(OTHER, true, 1)? && scene.udp(OTHER, false, 1)?, "denied");
        }
        scene.ensure_accounts_are_right()?;
        let sweep = |scene: &mut Scene| -> Result<u64> {
            let mut removed = 0;
            for _ in 0..4 {
                removed += scene.datapath()?.sweep()?.removed;
            }
            Ok(removed)
        };
        ensure!(sweep(scene)? == 0, "living flows are swept away");
        // As if the flooder's had been silent for a long time.
        let flooder = workload_interface(scene.interfaces[FLOODER]);
        let flooder = ztseg_common::key::scope(flooder);
        let maps = scene.unattached.maps();
        let age = |state: FlowState| FlowState {
            last_seen: state.last_seen.wrapping_sub(1 << 24),
            ..state
        };
        let v4 = open_pinned(&maps.join("FLOWS4"))?;
        for (key, state) in map_dump::<FlowKey4, FlowState>(v4.as_fd())? {
            if key.place.scope == flooder {
                map_update(v4.as_fd(), &key, &age(state))?;
            }
        }
        let v6 = open_pinned(&maps.join("FLOWS6"))?;
        for (key, state) in map_dump::<FlowKey6, FlowState>(v6.as_fd())? {
            if key.place.scope == flooder {
                map_update(v6.as_fd(), &key, &age(state))?;
            }
        }
        // One comes back to life: it is a new flow, and stays.
        scene.v6 = false;
        ensure!(!scene.udp(FLOODER, false, 5)?, "an answer to a dead flow passes");
        ensure!(scene.udp(FLOODER, true, 5)?, "an allowed packet is denied");
        let removed = sweep(scene)?;
        ensure!(removed == 2 * 1_000 - 1, "{removed} flows were swept away");
        ensure!(scene.udp(FLOODER, false, 5)?, "the flow that came back is lost");
        let (entries, accounts) = scene.entries()?;
        ensure!((entries, accounts) == (3, 3), "{entries} entries, {accounts} on accounts");
        for v6 in [false, true] {
            scene.v6 = v6;
            ensure!(scene.udp(OTHER, false, 1)?, "a living flow is lost");
        }
        Ok(())
    })
}

/// A connection that has ended needs its entry for a while; thousands a second must not use up the
/// share of those that stand.
fn ended_connections(_: &Environment) -> Result<()> {
    const FIN: u8 = 1;
    scene("ended", 4096, |scene| {
        for v6 in [false, true] {
            scene.v6 = v6;
            for n in 0..20_000u16 {
                let ends = (1024 + n, 80);
                for (from, flags) in [
                    (true, SYN),
                    (false, SYN | ACK),
                    (true, ACK),
                    (true, FIN | ACK),
                    (false, FIN | ACK),
                    (true, ACK),
                ] {
                    ensure!(scene.tcp(OTHER, from, ends, flags)?, "connection {n}: denied");
                }
            }
            // What stands from now on is within the share.
            ensure!(scene.udp(OTHER, true, 7)? && scene.udp(OTHER, false, 7)?, "denied");
        }
        let key = workload_interface(scene.interfaces[OTHER]);
        let usage = scene.datapath()?.flows_of(key)?;
        println!("20,000 connections ended: {usage:?}");
        ensure!(usage.v4 <= 1025 && usage.v6 <= 1025, "the ended ones have it all: {usage:?}");
        scene.ensure_accounts_are_right()
    })
}
