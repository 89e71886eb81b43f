//! Oracle = kernel: random policies and packets, judged by the real programs in the real kernel
//! (`BPF_PROG_TEST_RUN`), and the naive way.
//!
//! * [`single`]: one packet a flow, so that a policy is asked; which rule decided, too
//! * [`flows`]: packets of flows, policies, workloads and clocks that change, in random order.
//!   [`steps`] makes them up, [`model`] says what has to become of each [`packet`], with
//!   [`connection`] for TCP and [`association`] for SCTP, and [`line`] asks the kernel.
//!
//! That the evaluator agrees with the oracle, too, is a unit test of `ztseg::policy::compile`.

mod association;
mod connection;
mod flows;
mod line;
mod model;
mod packet;
mod single;
mod steps;

use crate::Body;

pub(crate) use self::single::{DROPPED, PASSES, context, dummies};

/// The tests of this folder.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("differential::oracle_equals_kernel", single::oracle_equals_kernel),
    ("differential::flows_are_what_the_model_says", flows::flows_are_what_the_model_says),
];

/// How many decisions a test makes: `ZTSEG_DECISIONS`, or `usually`.
fn decisions(usually: u32) -> usize {
    let wanted = std::env::var("ZTSEG_DECISIONS").ok().and_then(|n| n.parse().ok());
    wanted.unwrap_or(ztseg_tests::world::times(usually) as usize)
}
