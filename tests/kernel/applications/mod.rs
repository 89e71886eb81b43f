//! Programs that others wrote, as clients and servers: each works where the policy allows it, and
//! only there.
//!
//! Every test first runs without an agent, so that a program that does not work is not read as one
//! that is denied.

mod dns;
mod iperf;
mod nginx;
mod path;
mod postgresql;
mod redis;
mod scene;
mod served;

use anyhow::Result;
use ztseg_tests::application::Application;

use crate::Body;
use crate::environment::Lacking;

/// The tests of this folder.
pub(crate) const TESTS: &[&[(&str, Body)]] =
    &[nginx::TESTS, postgresql::TESTS, redis::TESTS, iperf::TESTS, dns::TESTS, path::TESTS];

/// A program that `cargo xtask` unpacks from the package of Debian.
fn program(name: &str, package: &str) -> Result<Application> {
    let reason = || {
        let text =
            format!("{name} of Debian's package {package} is neither installed nor unpacked");
        Lacking(text).into()
    };
    Application::find(name).ok_or_else(reason)
}
