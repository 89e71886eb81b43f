//! What a change of policy costs: compiling it, putting it in force, adding one workload.

use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Result, ensure};
use ztseg::clocks::Clocks;
use ztseg::datapath::TC_PROGRAMS;
use ztseg::datapath::sys::test_run;
use ztseg_common::key::{SUBJECT_UNMANAGED, workload_interface};
use ztseg_common::value::Workload;

use crate::Plan;
use crate::figures::{Figure, Target, median, milliseconds};
use crate::generator::DENIED;
use crate::policy::{Input, Shape};
use crate::stage::{Stage, go_on};
use crate::testrun::segment;

const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// Milliseconds of each, for each number of rules.
pub(crate) fn changes(stage: &mut Stage, plan: &Plan) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (i, rules) in plan.rules.iter().enumerate() {
        let shape = Shape::usual(*rules);
        let mut datapath = stage.datapath(&format!("c{i}"), shape)?;
        let input = Input::new(&stage.subjects, shape);
        let (mut compile, mut commit, mut add) = (Vec::new(), Vec::new(), Vec::new());
        let mut entries = 0;
        for _ in 0..plan.rounds.min(5) {
            go_on()?;
            let start = Instant::now();
            let image = input.compile()?;
            compile.push(milliseconds(start));
            entries = image.entries.len();
            let start = Instant::now();
            datapath.commit(&image, &Clocks::now())?;
            commit.push(milliseconds(start));
            let program = datapath.program_fd(TC_PROGRAMS[0])?;
            let packet = segment(stage.server_address, stage.client_address, DENIED, 2);
            let mut context = [0; 192];
            context[40..44].copy_from_slice(&stage.subjects.ifindex.to_ne_bytes());
            let verdict = || test_run(program.as_fd(), &packet, &context, 1).map(|run| run.value);
            let key = workload_interface(stage.subjects.ifindex);
            let isolated = image.workloads[&key];
            datapath.put_workload(
                key,
                None,
                Workload { subject: SUBJECT_UNMANAGED, ..isolated },
            )?;
            ensure!(verdict()? == PASS, "a workload that no segment knows is judged");
            let start = Instant::now();
            datapath.put_workload(key, None, isolated)?;
            let first = verdict()?;
            add.push(milliseconds(start));
            ensure!(first == DROP, "the first packet was not judged by the new workload");
        }
        let setup = format!("{rules} rules, {entries} entries");
        let figure = |what: &str, values: &[f64]| Figure::new(what, &setup, median(values), "ms");
        let largest = *rules >= 100_000;
        figures.push(figure("compile", &compile));
        let target = largest.then_some(Target::AtMost(150.0));
        figures.push(figure("fill and switch (commit)", &commit).target(target));
        let figure = figure("add a workload, to the first packet judged", &add);
        figures.push(figure.target(Some(Target::AtMost(1.0))));
    }
    Ok(figures)
}
