//! Oracle = kernel: random policies, workloads and packets, judged by the real programs in the real
//! kernel (`BPF_PROG_TEST_RUN`). That the evaluator agrees with the oracle, too, is a unit test of
//! `ztseg::policy::compile`.
//!
//! The workloads are interfaces of a network namespace of this test's own, since a test run can say
//! which device a packet is on and which it came in by, but has no socket.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use nix::sched::{CloneFlags, unshare};
use ztseg::clocks::Clocks;
use ztseg::datapath::sys::test_run;
use ztseg::datapath::{Capacity, Datapath};
use ztseg::policy::compile::compile;
use ztseg::policy::generate::{Question, World, moment, question, seed, seeded, world};
use ztseg::policy::oracle;
use ztseg_common::addr::proto;
use ztseg_common::key::workload_interface;
use ztseg_common::packet::{IcmpKind, parse};
use ztseg_common::verdict::Direction;

use super::decisions;
use crate::environment::Environment;
use crate::programs::Unattached;

/// Decisions a run.
const DECISIONS: u32 = 20_000;
/// Questions for each policy: a commit waits for a grace period, a question takes microseconds.
const QUESTIONS: u64 = 400;
/// The generator makes at most this many workloads.
const INTERFACES: usize = 8;
/// `TC_ACT_UNSPEC` and `TC_ACT_SHOT`, as a test run returns them.
pub(crate) const PASSES: u32 = u32::MAX;
pub(crate) const DROPPED: u32 = 2;
/// `TC_ACT_REDIRECT`: it goes back as the answer to itself.
pub(crate) const ANSWERED: u32 = 7;

pub(super) fn oracle_equals_kernel(_: &Environment) -> Result<()> {
    let wanted = decisions(DECISIONS);
    let seed = seed();
    // A namespace belongs to a thread; this one's ends with it.
    let run = std::thread::spawn(move || -> Result<usize> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        let interfaces = dummies()?;
        let mut unattached = Unattached::open("differential", Capacity::default())?;
        let mut decisions = 0;
        let mut case = 0;
        while decisions < wanted {
            decisions += judge_world(unattached.get()?, &interfaces, seed, case)
                .with_context(|| format!("with ZTSEG_SEED={seed}, policy {case}"))?;
            case += 1;
        }
        println!("{decisions} decisions over {case} policies, ZTSEG_SEED={seed}");
        Ok(decisions)
    });
    let decisions = run.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    ensure!(decisions >= wanted, "only {decisions} decisions");
    Ok(())
}

pub(crate) fn dummies() -> Result<Vec<u32>> {
    for i in 0..INTERFACES {
        let name = format!("zt-dummy{i}");
        let made = Command::new("ip").args(["link", "add", &name, "type", "veth"]).status()?;
        ensure!(made.success(), "cannot make the interface {name}");
    }
    let names = (0..INTERFACES).map(|i| format!("zt-dummy{i}"));
    names.map(|name| Ok(nix::net::if_::if_nametoindex(name.as_str())?)).collect()
}

/// Asks one random policy many questions; how many decisions were compared.
fn judge_world(datapath: &mut Datapath, interfaces: &[u32], seed: u64, case: u64) -> Result<usize> {
    let mut rng = seeded(seed, case);
    let mut world = world(&mut rng);
    for (workload, ifindex) in world.workloads.iter_mut().zip(interfaces) {
        workload.key = workload_interface(*ifindex);
    }
    let capacity = Capacity { verdicts: 1 << 20, ..Capacity::default() };
    let image = compile(&world.resolved, &world.workloads, &capacity)?;
    // What the time of day is taken for, which decides which rules have ended.
    let now = moment(&mut rng);
    datapath.commit(&image, &Clocks { wall: now, ..Clocks::now() })?;
    let programs = [datapath.program_fd("ztseg_tc_to")?, datapath.program_fd("ztseg_tc_from")?];

    let mut decisions = 0;
    let mut hits = vec![0; world.resolved.rules.len() + 1];
    for number in 0..QUESTIONS {
        let question = observable(question(&mut rng, &world));
        let Some(packet) = frame(&question, case * QUESTIONS + number) else { continue };
        if question.peer == Some(question.subject) {
            continue; // Traffic of a workload with itself is no question of policy.
        }
        let subject = &world.workloads[question.subject];
        // What the flow table knows of earlier questions must not answer this one.
        let again = image.workloads[&subject.key];
        datapath.put_workload(subject.key, None, again)?;

        let came_in = question.peer.map_or(0, |peer| interfaces[peer]);
        let context = context(interfaces[question.subject], came_in);
        let program = &programs[usize::from(question.direction == Direction::Egress)];
        let verdict = test_run(program.as_fd(), &packet, &context, 1).context("test run")?;
        let expected = expected(&world, &question, now);
        let allowed = match verdict.value {
            PASSES => true,
            DROPPED => false,
            ANSWERED if expected.reject => false,
            other => bail!("the program returned {other:#x}, the oracle says {expected:?}"),
        };
        if allowed != expected.allow {
            let mut events = Vec::new();
            datapath.drain_events(&mut |event| events.push(*event));
            let last = events.last();
            bail!("kernel: {allowed}, oracle: {expected:?}\n{question:?}\n{last:?}\n{world:#?}");
        }
        if let Some(rule) = expected.rule {
            hits[rule + 1] += 1;
        }
        decisions += 1;
    }
    // Which rule decided, for all of them.
    let counted = datapath.rule_hits()?;
    ensure!(counted == hits, "hits of rules\nkernel: {counted:?}\noracle: {hits:?}\n{world:#?}");
    Ok(decisions)
}

/// What TC can see: a peer's workload by the interface that it came in by, an address otherwise.
fn observable(mut question: Question) -> Question {
    question.nobody = false;
    if question.direction == Direction::Egress {
        question.peer = None;
    }
    question
}

fn expected(world: &World, question: &Question, now: Timestamp) -> oracle::OracleDecision {
    // The commit took a moment, and no rule ends within an hour of another.
    oracle::decide_at(
        now,
        &world.resolved,
        &world.workloads[question.subject].segments,
        &question.peer_facts(world),
        question.direction,
        (question.protocol, question.port),
    )
}

/// `struct __sk_buff` (uapi/linux/bpf.h): the device, and the one that the packet came in by.
pub(crate) fn context(ifindex: u32, came_in: u32) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[INGRESS_IFINDEX..][..4].copy_from_slice(&came_in.to_ne_bytes());
    context[IFINDEX..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// The Ethernet frame that opens the flow, or nothing where no such packet asks a rule: errors,
/// neighbour discovery, and IPv6 extension headers that look like protocols.
///
/// `unique` makes it a flow of its own: the flow table keeps who opened a flow, also for protocols
/// without ports.
fn frame(question: &Question, unique: u64) -> Option<Vec<u8>> {
    const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];
    let v6 = question.address.is_ipv6();
    if v6 && EXTENSIONS.contains(&question.protocol) {
        return None;
    }
    let payload = transport(question, unique);
    let ethertype: u16 = if v6 { 0x86dd } else { 0x0800 };
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(network(question, unique, u16::try_from(payload.len()).ok()?));
    frame.extend(payload);
    let parsed = parse(&frame[14..], 0).ok()?;
    let special = parsed.is_icmp(IcmpKind::Error) || parsed.is_icmp(IcmpKind::Discovery);
    (!special).then_some(frame)
}

fn network(question: &Question, unique: u64, length: u16) -> Vec<u8> {
    let [.., a, b, c] = unique.to_be_bytes();
    let local = if question.address.is_ipv6() {
        IpAddr::from([0x2001, 0xdb8, 0xffff, 0, 0, 0, a.into(), u16::from_be_bytes([b, c])])
    } else {
        IpAddr::from([198, a, b, c])
    };
    let (from, to) = match question.direction {
        Direction::Ingress => (question.address, local),
        Direction::Egress => (local, question.address),
    };
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = (length + 20).to_be_bytes();
            let fixed = [0x45, 0, high, low, 0, 0, 0, 0, 64, question.protocol, 0, 0];
            [&fixed[..], &from.octets(), &to.octets()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = length.to_be_bytes();
            let fixed = [0x60, 0, 0, 0, high, low, question.protocol, 64];
            [&fixed[..], &from.octets(), &to.octets()].concat()
        }
        _ => Vec::new(),
    }
}

fn transport(question: &Question, unique: u64) -> Vec<u8> {
    let [.., high, low] = unique.to_be_bytes();
    let mut bytes = vec![0; 20];
    match question.protocol {
        proto::ICMP | proto::ICMPV6 => {
            bytes[0] = u8::try_from(question.port).unwrap_or_default();
            bytes[4..6].copy_from_slice(&[high, low]);
        }
        _ => {
            bytes[0..2].copy_from_slice(&[high, low]);
            bytes[2..4].copy_from_slice(&question.port.to_be_bytes());
            match question.protocol {
                proto::TCP => bytes[12..14].copy_from_slice(&[0x50, 0x02]), // 20 bytes, SYN
                proto::UDP => bytes[5] = 20,
                proto::SCTP => bytes[12..16].copy_from_slice(&[1, 0, 0, 8]), // INIT, 8 bytes
                _ => {}
            }
        }
    }
    bytes
}
