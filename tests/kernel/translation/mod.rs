//! Address translation by nftables and iptables on the host, as kube-proxy and Docker set it up.
//!
//! Each rule set is loaded by the tool that it is written for: `nft`, `iptables-nft` or
//! `iptables-legacy`. Where a tool or the kernel's side of it is missing, the test is skipped with
//! that reason.

mod early;
mod flows;
mod forged;
mod interfaces;
mod published;
mod rules;
mod services;
mod translator;

use crate::Body;
use crate::environment::Environment;

use self::translator::Translator;

const TESTS: &[&[(&str, Body)]] = &[early::TESTS, flows::TESTS, forged::TESTS, interfaces::TESTS];

/// The body of a test that is done by each tool.
type ByTool = fn(Translator) -> anyhow::Result<()>;
/// The body of a test, with its tool in it.
type Bound = Box<dyn FnOnce(&Environment) -> anyhow::Result<()> + Send>;

/// The tests of this folder: some once, the others once for each tool.
pub(crate) fn tests() -> Vec<(String, Bound)> {
    let mut tests: Vec<(String, Bound)> = Vec::new();
    for (name, body) in TESTS.iter().copied().flatten().copied() {
        tests.push((name.to_owned(), Box::new(body)));
    }
    for (name, body) in services::TESTS.iter().chain(published::TESTS).copied() {
        for translator in Translator::ALL {
            let name = format!("{name}_by_{}", translator.name());
            tests.push((name, Box::new(move |_: &Environment| body(translator))));
        }
    }
    tests
}
