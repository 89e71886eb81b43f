//! A policy of the largest size that ztseg is built for, from its text to the kernel.
//!
//! Text, parsing, resolving and compiling run in a process of their own for each size, whose peak is
//! what they need of memory.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use ztseg::clocks::Clocks;
use ztseg::datapath::{AddressPut, Capacity, Datapath};
use ztseg::image::{Image, SegmentSet};
use ztseg::inventory::Membership;
use ztseg::policy::compile::compile;
use ztseg::policy::resolved::{Resolved, SegmentId};
use ztseg::policy::source::Source;
use ztseg::policy::{generate, parse, resolve};
use ztseg_common::addr::Addr;

use crate::Plan;
use crate::figures::{Figure, Target, median, milliseconds};
use crate::stage::{Stage, go_on};

/// The first argument that makes this program the process that compiles.
pub(crate) const ARGUMENT: &str = "--compile";

/// Room for the largest policy.
const CAPACITY: Capacity =
    Capacity { flows: 1 << 17, verdicts: 1 << 20, peers: 1 << 18, workloads: 1 << 14 };
/// Rules of the largest policy, and of two smaller ones that show how the time grows.
const SIZES: [u32; 3] = [1_000, 10_000, 100_000];

/// What one size costs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cost {
    text_mib: f64,
    parse_ms: f64,
    resolve_ms: f64,
    compile_ms: f64,
    peak_mib: f64,
    addresses: usize,
    entries: usize,
}

/// Compiles a policy of so many rules and says what that costs.
pub(crate) fn child(rules: &str) -> Result<()> {
    let rules: u32 = rules.parse().context("the number of rules")?;
    let sources = sources(rules);
    let text = sources.iter().map(|source| source.text.len()).sum();
    let mut found = Vec::new();
    let start = Instant::now();
    let parsed = parse::parse(&sources, &mut found);
    let parse_ms = milliseconds(start);
    let start = Instant::now();
    let resolved = resolve::resolve(&parsed, &sources, &mut found).resolved;
    let resolve_ms = milliseconds(start);
    ensure!(found.is_empty(), "{} errors, the first: {:?}", found.len(), found.first());
    let memberships = memberships(rules);
    let start = Instant::now();
    let image = compile(&resolved, &memberships, &CAPACITY)?;
    let compile_ms = milliseconds(start);
    let cost = Cost {
        text_mib: mib(text),
        parse_ms,
        resolve_ms,
        compile_ms,
        peak_mib: mib(peak()?),
        addresses: image.hosts.len() + image.prefixes.len(),
        entries: image.entries.len(),
    };
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

/// Milliseconds and MiB, for each number of rules; then what changes of the largest one cost.
pub(crate) fn scale(stage: &mut Stage, plan: &Plan) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut before: Option<(u32, f64)> = None;
    for rules in SIZES {
        let mut costs = Vec::new();
        for _ in 0..plan.rounds.min(3) {
            go_on()?;
            costs.push(compiled_elsewhere(rules)?);
        }
        let of = |field: fn(&Cost) -> f64| median(&costs.iter().map(field).collect::<Vec<_>>());
        let total = of(|c| c.parse_ms + c.resolve_ms + c.compile_ms);
        let first = costs[0];
        let setup = format!(
            "{rules} rules, {} segments, {} addresses, {} entries",
            rules / 10,
            first.addresses,
            first.entries
        );
        let largest = Some(rules) == SIZES.last().copied();
        let at_most = |limit| largest.then_some(Target::AtMost(limit));
        let figure = |what: &str, value, unit| Figure::new(what, &setup, value, unit);
        figures.push(figure("text", of(|c| c.text_mib), "MiB"));
        figures.push(figure("parse", of(|c| c.parse_ms), "ms"));
        figures.push(figure("resolve", of(|c| c.resolve_ms), "ms"));
        figures.push(figure("compile", of(|c| c.compile_ms), "ms"));
        figures.push(figure("from text to image", total, "ms").target(at_most(2000.0)));
        figures.push(figure("peak memory", of(|c| c.peak_mib), "MiB").target(at_most(512.0)));
        if let Some((fewer, less)) = before {
            // Of n log n, from the size before.
            let n_log_n = |n: u32| f64::from(n) * f64::from(n).log2();
            let allowed = n_log_n(rules) / n_log_n(fewer);
            let grown = figure("time, grown against n log n", total / less / allowed, "x");
            figures.push(grown.target(Some(Target::AtMost(1.0))));
        }
        before = Some((rules, total));
    }
    figures.extend(changes(stage, plan)?);
    Ok(figures)
}

fn compiled_elsewhere(rules: u32) -> Result<Cost> {
    let own = std::env::current_exe().context("this program's file is unknown")?;
    let output = Command::new(own).args([ARGUMENT, &rules.to_string()]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "compiling {rules} rules: {}: {error}", output.status);
    serde_json::from_slice(&output.stdout).context("what the process that compiles says")
}

/// What one change of the largest policy costs.
fn changes(stage: &mut Stage, plan: &Plan) -> Result<Vec<Figure>> {
    let rules = SIZES[SIZES.len() - 1];
    let sources = sources(rules);
    let loaded = ztseg::policy::load(&sources).map_err(|e| anyhow!("{}", e.render(false)))?;
    let mut resolved = loaded.resolved;
    let memberships = memberships(rules);
    let build =
        |resolved: &Resolved| -> Result<Image> { Ok(compile(resolved, &memberships, &CAPACITY)?) };
    let mut datapath = stage.empty_datapath("scale", CAPACITY)?;
    let start = Instant::now();
    let image = build(&resolved)?;
    let again = milliseconds(start);
    let whole = committed(&mut datapath, &image)?;
    let (mut another_port, mut one_less) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        go_on()?;
        let middle = resolved.rules.len() / 2;
        let port = 20_000 + round;
        let ports = &mut resolved.rules[middle].ports[0];
        (ports.first, ports.last) = (port, port);
        another_port.push(committed(&mut datapath, &build(&resolved)?)?);
        resolved.rules.remove(middle);
        one_less.push(committed(&mut datapath, &build(&resolved)?)?);
    }
    let bytes: u64 =
        datapath.maps()?.iter().filter(|m| m.name.contains('[')).map(|m| m.bytes).sum();
    let in_force = build(&resolved)?;
    committed(&mut datapath, &in_force)?;
    let setup = format!("{rules} rules, {} entries", image.entries.len());
    let figure = |what: &str, value, unit| Figure::new(what, &setup, value, unit);
    let limit = Some(Target::AtMost(250.0));
    let mut figures = vec![
        figure("compile again", again, "ms"),
        figure("commit, the first", whole, "ms"),
        figure("commit, another port in one rule", median(&another_port), "ms").target(limit),
        figure("commit, one rule less", median(&one_less), "ms").target(limit),
        figure("kernel memory (memlock), both generations", mib(usize::try_from(bytes)?), "MiB")
            .target(Some(Target::AtMost(256.0))),
    ];
    let changes = [
        ("workload", one_workload(&mut datapath, &in_force)?),
        ("address", one_address(&mut datapath, in_force)?),
    ];
    for (what, times) in changes {
        let most = times.iter().copied().fold(0.0, f64::max);
        let limit = Some(Target::AtMost(5.0));
        figures.push(figure(&format!("commit, one {what}"), median(&times), "ms").target(limit));
        let name = format!("commit, one {what}, most of {}", times.len());
        figures.push(figure(&name, most, "ms").target(limit));
    }
    Ok(figures)
}

/// Changes of one workload or address that are timed.
const CHANGES: u32 = 100;

/// Milliseconds of changes of one workload each: it comes, it goes.
fn one_workload(datapath: &mut Datapath, image: &Image) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for (key, workload) in image.workloads.iter().take(CHANGES as usize / 2) {
        go_on()?;
        let start = Instant::now();
        datapath.remove_workload(*key)?;
        times.push(milliseconds(start));
        let start = Instant::now();
        datapath.put_workload(*key, None, *workload)?;
        times.push(milliseconds(start));
    }
    Ok(times)
}

/// Milliseconds of changes of one address each: it joins a segment, is in another, leaves. From which
/// segments to the end of the call: its class is looked up, the map and the image are changed.
fn one_address(datapath: &mut Datapath, mut image: Image) -> Result<Vec<f64>> {
    let (mut times, clocks) = (Vec::new(), Clocks::now());
    for n in 0..CHANGES {
        go_on()?;
        // Of no segment yet, and in no network of a rule.
        let address = Addr::v4((0xc633_6400 + n / 3).to_be_bytes());
        let segments: SegmentSet = (n % 3 != 2).then_some(SegmentId(n)).into_iter().collect();
        let before = datapath.stamp().0;
        let start = Instant::now();
        let put = datapath.put_address(&mut image, address, &segments, &clocks)?;
        times.push(milliseconds(start));
        ensure!(put == AddressPut::InForce, "an address: {put:?}");
        ensure!(datapath.stamp().0 != before, "an address that changed nothing was timed");
    }
    Ok(times)
}

/// Milliseconds that a commit takes.
fn committed(datapath: &mut Datapath, image: &Image) -> Result<f64> {
    let start = Instant::now();
    datapath.commit(image, &Clocks::now())?;
    Ok(milliseconds(start))
}

/// Every tenth rule has another kind of peer. Two addresses for each rule: eight in ten of them in
/// segments and address groups. As teams write it: a file for each thousand rules.
fn sources(rules: u32) -> Vec<Source> {
    let mut rng = generate::seeded(1, rules.into());
    let segments = rules / 10;
    let files = (rules / 1000).max(1);
    // Private, then whatever comes after; /24 from another part.
    let mut host = (0x0a00_0000u32..).map(|n| Ipv4Addr::from(n).to_string());
    let mut network = (0u32..).map(|n| format!("{}/24", Ipv4Addr::from(0xac10_0000 + (n << 8))));
    let file = |file: u32| {
        let share = |all: u32| all / files * file..all / files * (file + 1);
        let mut text = format!(
            "apiVersion: ztseg.io/v1\nkind: SegmentPolicy\nmetadata: {{ name: scale-{file} }}\nspec:\n  segments:\n"
        );
        let mut line = |args: std::fmt::Arguments<'_>| {
            // A `String` takes everything.
            let _ = text.write_fmt(args);
        };
        for i in share(segments) {
            let own = host.by_ref().take(8).collect::<Vec<_>>().join(", ");
            line(format_args!(
                "    s{i}: {{ match: [{{ cgroup: /s{i} }}, {{ addresses: [{own}] }}] }}\n"
            ));
        }
        let mut own = host.by_ref().take(600).collect::<Vec<_>>();
        own.extend(network.by_ref().take(200));
        line(format_args!("  addressGroups:\n"));
        line(format_args!("    g{file}: {{ cidrs: [{}] }}\n", own.join(", ")));
        line(format_args!("  allow:\n"));
        for i in share(rules) {
            let mut segment = || format!("s{}", rng.u32(0..segments));
            let from = match i % 10 {
                0 => format!("[{}]", host.by_ref().take(4).collect::<Vec<_>>().join(", ")),
                1 => format!("g{}", (i / 10) % files),
                2 => format!("[{}, {}, {}]", segment(), segment(), segment()),
                3 => "any".to_owned(),
                _ => segment(),
            };
            let to = segment();
            let port = 1 + rng.u16(0..300);
            let ports = match i % 20 {
                4 => format!("tcp/{}-{}", port * 100, port * 100 + 99),
                5 => format!("tcp/{port}, udp/{port}"),
                _ => format!("tcp/{port}"),
            };
            line(format_args!(
                "    - {{ name: r{i}, from: {from}, to: {to}, ports: [{ports}] }}\n"
            ));
        }
        Source { name: format!("scale-{file}.yaml").into(), text: text.into() }
    };
    (0..files).map(file).collect()
}

/// A cgroup in each segment.
fn memberships(rules: u32) -> Vec<Membership> {
    let one = |i: u32| Membership {
        key: 1000 + u64::from(i),
        name: format!("/s{i}"),
        level: Some(1),
        segments: [SegmentId(i)].into(),
    };
    (0..rules / 10).map(one).collect()
}

/// The most memory that this process had at once, in bytes (`VmHWM`, `proc_pid_status(5)`).
fn peak() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmHWM")?;
    Ok(kib.trim().parse::<usize>()? * 1024)
}

#[expect(clippy::cast_precision_loss, reason = "a figure to read")]
fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
