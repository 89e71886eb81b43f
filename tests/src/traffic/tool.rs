//! The children's side: which tool runs with which arguments.

use std::fs;
use std::io::{Write as _, stdin, stdout};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::sys::prctl;
use serde::Serialize;

use crate::actor;
use crate::world::offload;

use super::{Probe, client, flood, hoard, newborn, server, stream};

/// Runs the tool `args[0]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let [name, ..] = args[..] {
        // What events give as the process's name.
        let name = std::ffi::CString::new(format!("zt-{name}"))?;
        prctl::set_name(&name).context("cannot set the process's name")?;
    }
    match args[..] {
        ["probe", probe] => {
            let probe: Probe = serde_json::from_str(probe)?;
            say(&client::probe(&probe))
        }
        ["serve", ref listen @ ..] => server::run(listen),
        ["stream", kind, to, interval, patience] => {
            let [interval, patience] = [interval.parse()?, patience.parse()?];
            stream::run(serde_json::from_str(kind)?, to.parse()?, interval, patience)
        }
        ["hoard", address, count] => hoard::run(address.parse()?, count.parse()?),
        ["flood", flood] => flood::run(&serde_json::from_str(flood)?),
        ["newborn", parent, count, first, second] => {
            newborn::run(Path::new(parent), count.parse()?, first.parse()?, second.parse()?)
        }
        ["sysctl", name, value] => {
            let file = Path::new("/proc/sys/net").join(name);
            fs::write(&file, value).with_context(|| format!("cannot set {}", file.display()))
        }
        ["read", file] => {
            print!("{}", fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?);
            Ok(())
        }
        ["without-checksums", interface] => offload::without_checksums(interface),
        ["actor"] => actor::run(),
        ["ear"] => actor::ear::run(),
        ["sleep"] => {
            say(&"ready")?;
            wait_for_the_end();
            Ok(())
        }
        _ => bail!("no such tool: {args:?}"),
    }
}

/// One line of JSON on standard output.
pub(crate) fn say(what: &impl Serialize) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

/// Until the parent closes the standard input.
pub(super) fn wait_for_the_end() {
    let _ = std::io::copy(&mut stdin().lock(), &mut std::io::sink());
}
