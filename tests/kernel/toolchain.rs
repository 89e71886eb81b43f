//! Whether what was built, and where it runs, is what the other tests take for granted.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::Body;
use crate::environment::Environment;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("toolchain::kernel_object_is_embedded", kernel_object_is_embedded),
    ("toolchain::network_namespaces_and_veth_work", network_namespaces_and_veth_work),
];

/// An object without BTF loads, but its BTF maps do not.
fn kernel_object_is_embedded(_: &Environment) -> Result<()> {
    let object = ztseg::datapath::object::bytes();
    ensure!(!object.is_empty(), "the tests were built without the kernel object");
    ensure!(object.starts_with(b"\x7fELF"), "the kernel object is no ELF file");
    ensure!(
        object.windows(5).any(|window| window == b".BTF\0"),
        "the kernel object has no section .BTF; was it linked with --btf?"
    );
    Ok(())
}

/// The two ends of a veth pair, one of them in a namespace, reach each other.
fn network_namespaces_and_veth_work(_: &Environment) -> Result<()> {
    let namespace = format!("ztseg-toolchain-{}", std::process::id());
    ip(&["netns", "add", &namespace])?;
    let result = veth_in(&namespace);
    ip(&["netns", "delete", &namespace])?;
    result
}

fn veth_in(namespace: &str) -> Result<()> {
    ip(&["-n", namespace, "link", "add", "left", "type", "veth", "peer", "name", "right"])?;
    ip(&["-n", namespace, "link", "set", "left", "up"])?;
    ip(&["-n", namespace, "link", "set", "right", "up"])?;
    let links = ip(&["-n", namespace, "-o", "link", "show", "left"])?;
    ensure!(links.contains("LOWER_UP"), "the veth pair has no carrier: {links}");
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output().context("cannot start ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
