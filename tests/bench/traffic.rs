//! What programs add to traffic, and what the kernel counts in them meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ztseg::datapath::measure::{RunTime, enable_run_time_statistics};
use ztseg_common::event::Counter;

use crate::Plan;
use crate::figures::{Figure, Target, median, paired};
use crate::generator::Work;
use crate::policy::Shape;
use crate::setups::{Path, Setups, What};
use crate::stage::Stage;

/// Values of all rounds, by what was measured and configuration.
type Series = BTreeMap<(Kind, usize), Vec<f64>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Request,
    Connect,
    Bulk,
    Frames,
    Datagram,
}

const KINDS: [(Kind, Work); 5] = [
    (Kind::Request, Work::Request),
    (Kind::Connect, Work::Connect),
    (Kind::Datagram, Work::Datagram),
    (Kind::Bulk, Work::Bulk),
    (Kind::Frames, Work::Bulk),
];

/// Throughput, latency and rates, side by side.
pub(crate) fn traffic(stage: &mut Stage, plan: &Plan) -> Result<Vec<Figure>> {
    let mut shapes: Vec<(String, Shape)> =
        plan.rules.iter().map(|n| (format!("{n} rules"), Shape::usual(*n))).collect();
    let log = Shape { log: true, ..Shape::usual(plan.middle()) };
    shapes.push((format!("{} rules, each flow logged", plan.middle()), log));
    let shapes: Vec<_> = shapes.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
    let mut setups = Setups::new(stage, &shapes, false, "t")?;
    check(stage, &mut setups)?;
    let mut series = Series::new();
    for round in 0..plan.rounds {
        for (kind, work) in KINDS {
            // One change of the link a round, not one a configuration.
            stage.segmentation_offload(kind != Kind::Frames)?;
            for number in 0..setups.list.len() {
                let logged = setups.list[number].datapath() == Some(shapes.len() - 1);
                if logged && kind != Kind::Connect {
                    continue;
                }
                let value = once(stage, &mut setups, number, work, plan.time, round)?;
                series.entry((kind, number)).or_default().push(value);
            }
        }
    }
    stage.segmentation_offload(true)?;
    Ok(KINDS.iter().flat_map(|(kind, _)| figures(*kind, &setups, &series, plan)).collect())
}

/// Attaches, measures, detaches. Whoever has a datapath has its reader running.
fn once(
    stage: &mut Stage,
    setups: &mut Setups,
    number: usize,
    work: Work,
    time: Duration,
    round: u16,
) -> Result<f64> {
    let setup = &setups.list[number];
    let attached = setup.attach(stage)?;
    let reader = setup.datapath().and_then(|i| setups.datapaths.get_mut(i));
    let done = stage.measure(work, time, round, reader)?;
    drop(attached);
    Ok(done.nanoseconds)
}

/// That what is measured is what it is called: allowed flows are judged and pass, the others are
/// judged and dropped.
fn check(stage: &mut Stage, setups: &mut Setups) -> Result<()> {
    const SHORT: Duration = Duration::from_millis(20);
    for number in 0..setups.list.len() {
        let Some(at) = setups.list[number].datapath() else { continue };
        let name = setups.list[number].name.clone();
        let counted = |setups: &Setups, counters: [Counter; 2]| -> Result<u64> {
            let all = setups.datapaths[at].counters()?;
            Ok(counters.iter().filter_map(|c| all.get(c)).sum())
        };
        let allowed = [Counter::AllowedIngress, Counter::AllowedEgress];
        let dropped = [Counter::DroppedIngress, Counter::DroppedEgress];
        let before = counted(setups, allowed)?;
        let none = counted(setups, dropped)?;
        once(stage, setups, number, Work::Request, SHORT, 0)?;
        ensure!(counted(setups, allowed)? > before, "{name} did not judge an allowed flow");
        ensure!(counted(setups, dropped)? == none, "{name} dropped what it is to allow");
        once(stage, setups, number, Work::DeniedDatagram, SHORT, 0)?;
        ensure!(counted(setups, dropped)? > none, "{name} did not drop a denied flow");
    }
    Ok(())
}

fn figures(kind: Kind, setups: &Setups, series: &Series, plan: &Plan) -> Vec<Figure> {
    let values = |number: usize| series.get(&(kind, number));
    let nothing = setups.position(What::Nothing).and_then(values);
    let mut figures = Vec::new();
    for (number, setup) in setups.list.iter().enumerate() {
        let Some(all) = values(number) else { continue };
        let empty = setup.what.path().and_then(|path| setups.position(What::Empty(path)));
        let ztseg = matches!(setup.what, What::Ztseg(..));
        let (what, scale, unit): (_, fn(f64) -> f64, _) = match kind {
            Kind::Request => ("TCP request/response, p50", |ns| ns, "ns"),
            Kind::Connect => ("TCP connect and close", |ns| 1e9 / ns, "/s"),
            Kind::Bulk => ("TCP bulk, GSO, per CPU", |ns| f64::from(1 << 20) * 8.0 / ns, "Gbit/s"),
            Kind::Frames => {
                ("TCP bulk, MTU frames, per CPU", |ns| f64::from(1 << 20) * 8.0 / ns, "Gbit/s")
            }
            Kind::Datagram => ("UDP, 64 bytes", |ns| 1e9 / ns, "/s"),
        };
        let slowdown = nothing.and_then(|nothing| paired(nothing, all, |a, b| a / b));
        let mut figure = Figure::new(what, &setup.name, scale(median(all)), unit).ratio(slowdown);
        if kind == Kind::Request && setup.what.path().is_some() {
            let baseline = if ztseg { empty.and_then(values) } else { nothing };
            figure = figure.added(baseline.and_then(|b| paired(all, b, |a, b| a - b)));
        }
        let target = match (kind, setup.what.path()) {
            _ if !ztseg => None,
            (Kind::Request, Some(Path::Cgroup)) => Some(Target::AddedAtMost(100.0)),
            (Kind::Request, _) => Some(Target::AddedAtMost(190.0)),
            (Kind::Connect | Kind::Frames, _) => Some(Target::RatioAtLeast(0.95)),
            (Kind::Bulk, _) => Some(Target::RatioAtLeast(0.96)),
            (Kind::Datagram, _) => None,
        };
        figures.push(figure.target(target));
    }
    figures.extend(growth(kind, setups, series, plan));
    figures
}

/// The most rules against the fewest.
fn growth(kind: Kind, setups: &Setups, series: &Series, plan: &Plan) -> Vec<Figure> {
    let last = plan.rules.len() - 1;
    let of = |path| {
        let values = |i| series.get(&(kind, setups.position(What::Ztseg(path, i))?));
        let ratio = paired(values(last)?, values(0)?, |a, b| a / b)?;
        let setup =
            format!("{}, {} against {} rules", path.name(), plan.rules[last], plan.rules[0]);
        let what = format!("time of {kind:?}").to_lowercase();
        let figure = Figure::new(&what, &setup, ratio, "").ratio(Some(ratio));
        Some(figure.target(Some(Target::RatioAtMost(1.03))))
    };
    if last == 0 {
        Vec::new()
    } else {
        [Path::Cgroup, Path::Tc].into_iter().filter_map(of).collect()
    }
}

/// Nanoseconds in each program, from the kernel's run-time statistics.
pub(crate) fn in_place(stage: &mut Stage, plan: &Plan) -> Result<Vec<Figure>> {
    let shapes: Vec<(String, Shape)> =
        plan.rules.iter().map(|n| (format!("{n} rules"), Shape::usual(*n))).collect();
    let shapes: Vec<_> = shapes.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
    let mut setups = Setups::new(stage, &shapes, false, "p")?;
    let works = [
        ("established TCP", Work::Request),
        ("all of a connection", Work::Connect),
        ("established UDP", Work::Datagram),
        ("new UDP flow", Work::NewDatagram),
    ];
    // By work, configuration and program.
    let mut series: BTreeMap<(usize, usize, &'static str), Vec<f64>> = BTreeMap::new();
    let _statistics = enable_run_time_statistics().context("turning run-time statistics on")?;
    for round in 0..plan.rounds {
        for (i, (_, work)) in works.iter().enumerate() {
            for number in 0..setups.list.len() {
                if setups.list[number].what == What::Nothing {
                    continue;
                }
                let before = setups.list[number].run_times()?;
                once(stage, &mut setups, number, *work, plan.time / 2, round)?;
                let after = setups.list[number].run_times()?;
                for ((name, a), (_, b)) in before.iter().zip(&after) {
                    if let Some(value) = per_run(*a, *b) {
                        series.entry((i, number, *name)).or_default().push(value);
                    }
                }
            }
        }
    }
    let mut figures = Vec::new();
    for ((i, number, program), values) in &series {
        let setup = &setups.list[*number];
        let (what, work) = works[*i];
        let name = format!("{what}: {program}");
        let mut figure = Figure::new(&name, &setup.name, median(values), "ns");
        if let (What::Ztseg(path, _), Some(empty)) =
            (setup.what, setup.what.path().and_then(|path| setups.position(What::Empty(path))))
        {
            let empty = series.get(&(*i, empty, *program));
            let added = empty.and_then(|empty| paired(values, empty, |a, b| a - b));
            let target = (work == Work::Request && path == Path::Cgroup && is_packet(program))
                .then_some(Target::AddedAtMost(50.0));
            figure = figure.added(added).target(target);
        }
        figures.push(figure);
    }
    Ok(figures)
}

fn is_packet(program: &str) -> bool {
    matches!(program, "ztseg_ingress" | "ztseg_egress")
}

/// Mean of the runs in between; a handful of runs says nothing.
fn per_run(before: RunTime, after: RunTime) -> Option<f64> {
    let runs = after.runs.checked_sub(before.runs).filter(|runs| *runs >= 100)?;
    let nanoseconds = after.nanoseconds.checked_sub(before.nanoseconds)?;
    #[expect(clippy::cast_precision_loss, reason = "durations of a second")]
    Some(nanoseconds as f64 / runs as f64)
}

/// What a denied packet costs its sender, with events on and read, against a silent drop.
pub(crate) fn denied(stage: &mut Stage, plan: &Plan) -> Result<Vec<Figure>> {
    let name = format!("{} rules, events read", plan.middle());
    let mut setups =
        Setups::new(stage, &[(name.as_str(), Shape::usual(plan.middle()))], true, "d")?;
    let mut series: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for round in 0..plan.rounds {
        for number in 0..setups.list.len() {
            let value = once(stage, &mut setups, number, Work::DeniedDatagram, plan.time, round)?;
            series.entry(number).or_default().push(value);
        }
    }
    let mut figures = Vec::new();
    for (number, setup) in setups.list.iter().enumerate() {
        let (Some(path), Some(all)) = (setup.what.path(), series.get(&number)) else { continue };
        if matches!(setup.what, What::Empty(_)) {
            continue;
        }
        let silent = setups.position(What::Drop(path)).and_then(|n| series.get(&n));
        let ratio = silent.and_then(|silent| paired(all, silent, |a, b| a / b));
        let target = matches!(setup.what, What::Ztseg(..)).then_some(Target::RatioAtMost(1.1));
        let figure =
            Figure::new("sender's time of a denied datagram", &setup.name, median(all), "ns");
        figures.push(figure.ratio(ratio).target(target));
    }
    Ok(figures)
}
