//! Nanoseconds in the TC programs by `BPF_PROG_TEST_RUN`, above an empty program that is run the
//! same way: behind a wrapper that makes each run another flow.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use ztseg::datapath::sys::{AttachType, test_run};
use ztseg::datapath::{Datapath, TC_PROGRAMS};

use crate::Plan;
use crate::figures::{Figure, Target, median, paired};
use crate::generator::DENIED;
use crate::policy::Shape;
use crate::programs::{DESTINATION, Flows, SOURCE, Wrapper, returning};
use crate::stage::{Stage, go_on};

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
/// Runs of one sample.
const HOT: u32 = 200_000;
/// Inserts of one sample: over all rounds, less than the table holds beside the known flows.
const INSERTS: u32 = 3_000;
/// `TC_ACT_UNSPEC` and `TC_ACT_SHOT`
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// One thing that is measured of one program.
#[derive(Clone, Copy)]
struct Case {
    what: &'static str,
    program: &'static str,
    flows: Flows,
    flags: u8,
    port: u16,
    repeat: u32,
    verdict: u32,
    target: Option<Target>,
}

fn cases() -> Vec<Case> {
    let from = Case {
        what: "established, 1,024 flows",
        program: TC_PROGRAMS[0],
        flows: Flows::OneOf(1024),
        flags: ACK,
        port: 7001,
        repeat: HOT,
        verdict: PASS,
        target: Some(Target::AddedAtMost(42.0)),
    };
    let random = Case {
        what: "established, 65,536 random flows",
        flows: Flows::OneOf(65_536),
        target: Some(Target::AddedAtMost(100.0)),
        ..from
    };
    let new = Case {
        what: "new flow",
        flows: Flows::New(SOURCE),
        flags: SYN,
        repeat: INSERTS,
        target: Some(Target::AtMost(380.0)),
        ..from
    };
    let denied = Case {
        what: "denied, events read",
        port: DENIED,
        flags: SYN,
        verdict: DROP,
        target: Some(Target::AtMost(115.0)),
        ..from
    };
    let mut cases = Vec::new();
    for case in [from, random, new, denied] {
        let flows = match case.flows {
            // The workload's own address: the peer's decides.
            Flows::New(_) => Flows::New(DESTINATION),
            one @ Flows::OneOf(_) => one,
        };
        cases.extend([case, Case { program: TC_PROGRAMS[1], flows, ..case }]);
    }
    cases
}

/// A program behind a wrapper, and what it is given.
struct Run {
    case: Case,
    wrapper: Wrapper,
    packet: Vec<u8>,
}

impl Run {
    fn nanoseconds(&self, ifindex: u32, repeat: u32) -> Result<f64> {
        // struct __sk_buff (uapi/linux/bpf.h): ifindex is its eleventh word.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        let run = test_run(self.wrapper.fd(), &self.packet, &context, repeat)
            .with_context(|| format!("running {}", self.case.program))?;
        ensure!(
            run.value == self.case.verdict,
            "{} of {}: verdict {:#x}, expected {:#x}",
            self.case.what,
            self.case.program,
            run.value,
            self.case.verdict
        );
        Ok(f64::from(run.nanoseconds))
    }
}

/// One datapath and its runs.
struct Subject {
    name: String,
    datapath: Datapath,
    runs: Vec<Run>,
}

/// Established and new flows, in tables of all sizes.
pub(crate) fn programs(stage: &mut Stage, plan: &Plan) -> Result<Vec<Figure>> {
    let mut shapes: Vec<(String, Shape)> =
        plan.rules.iter().map(|n| (format!("{n} rules"), Shape::usual(*n))).collect();
    let all = Shape { all_lookups: true, ..Shape::usual(plan.middle()) };
    shapes.push((format!("{} rules, all 12 lookups", plan.middle()), all));
    let mut subjects = Vec::new();
    for (i, (name, shape)) in shapes.into_iter().enumerate() {
        let datapath = stage.datapath(&format!("r{i}"), shape)?;
        let runs = cases()
            .into_iter()
            .map(|case| {
                let program = datapath.program_fd(case.program)?;
                Run::new(stage, case, program.as_fd())
            })
            .collect::<Result<Vec<_>>>()?;
        subjects.push(Subject { name, datapath, runs });
    }
    let empty = |verdict: u32| returning(verdict.cast_signed(), AttachType::TcxIngress);
    let (pass, drop) = (empty(PASS)?, empty(DROP)?);
    let baseline = |case: Case| -> Result<Run> {
        let program: &OwnedFd = if case.verdict == PASS { &pass } else { &drop };
        Run::new(stage, case, program.as_fd())
    };
    let baselines: Vec<Run> = cases().into_iter().map(baseline).collect::<Result<_>>()?;
    let ifindex = stage.subjects.ifindex;
    // Known flows first, all of them: as many draws as there are numbers leave a third out.
    for subject in &subjects {
        for run in subject.runs.iter().filter(|run| matches!(run.case.flows, Flows::OneOf(_))) {
            run.nanoseconds(ifindex, if run.case.verdict == PASS { 3 * HOT } else { HOT })?;
        }
    }
    let mut figures = rounds(&mut subjects, &baselines, ifindex, plan, |_| true)?;
    // Now with a table that is full: twice what it holds.
    for subject in &subjects {
        for run in subject.runs.iter().filter(|run| is_new(run.case)).take(1) {
            run.nanoseconds(ifindex, 2 * crate::policy::CAPACITY.flows)?;
        }
    }
    let full = rounds(&mut subjects, &baselines, ifindex, plan, is_new)?;
    figures.extend(full.into_iter().map(|mut figure| {
        figure.what += ", table full";
        let target = figure.target.map(|_| Target::AtMost(600.0));
        figure.target(target)
    }));
    Ok(figures)
}

fn is_new(case: Case) -> bool {
    matches!(case.flows, Flows::New(_))
}

fn rounds(
    subjects: &mut [Subject],
    baselines: &[Run],
    ifindex: u32,
    plan: &Plan,
    wanted: fn(Case) -> bool,
) -> Result<Vec<Figure>> {
    let mut series = vec![vec![Vec::new(); baselines.len()]; subjects.len() + 1];
    for _ in 0..plan.rounds {
        for (at, baseline) in baselines.iter().enumerate() {
            if !wanted(baseline.case) {
                continue;
            }
            go_on()?;
            // The same number of runs, warm: the wrapper and an empty program.
            baseline.nanoseconds(ifindex, 1000)?;
            let empty = baseline.nanoseconds(ifindex, baseline.case.repeat)?;
            series[subjects.len()][at].push(empty);
            for (number, subject) in subjects.iter_mut().enumerate() {
                subject.datapath.drain_events(&mut |_| ());
                let run = &subject.runs[at];
                series[number][at].push(run.nanoseconds(ifindex, run.case.repeat)?);
            }
        }
    }
    let unwrapped = unwrapped(plan)?;
    let mut figures = Vec::new();
    for (at, baseline) in baselines.iter().enumerate().filter(|(_, b)| wanted(b.case)) {
        let empty = &series[subjects.len()][at];
        for (number, subject) in subjects.iter().enumerate() {
            let all = &series[number][at];
            let added = paired(all, empty, |a, b| a - b);
            let what = format!("{}: {}", baseline.case.what, baseline.case.program);
            // All in: what an empty program takes by itself, without the wrapper, and what is added.
            let value = added.unwrap_or(median(all)) + unwrapped;
            let figure = Figure::new(&what, &subject.name, value, "ns").added(added);
            figures.push(figure.target(baseline.case.target));
        }
    }
    Ok(figures)
}

/// An empty program without a wrapper.
fn unwrapped(plan: &Plan) -> Result<f64> {
    let program = returning(-1, AttachType::TcxIngress)?;
    let one = || Ok(f64::from(test_run(program.as_fd(), &[0; 64], &[], HOT)?.nanoseconds));
    Ok(median(&(0..plan.rounds).map(|_| one()).collect::<Result<Vec<_>>>()?))
}

impl Run {
    fn new(stage: &Stage, case: Case, program: std::os::fd::BorrowedFd<'_>) -> Result<Self> {
        let (near, far) = (stage.client_address, stage.server_address);
        let (source, destination) =
            if case.program == TC_PROGRAMS[0] { (far, near) } else { (near, far) };
        let wrapper = Wrapper::new(program, case.flows)
            .with_context(|| format!("wrapping {}", case.program))?;
        Ok(Self { case, wrapper, packet: segment(source, destination, case.port, case.flags) })
    }
}

/// A TCP segment without data in an Ethernet frame. Checksums are nobody's business here.
pub(crate) fn segment(source: Ipv4Addr, destination: Ipv4Addr, port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame
}
