//! `cargo xtask setup`: what the other verbs need, installed once.

use std::process::ExitCode;

use anyhow::Result;

use crate::applications;
use crate::apt;
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

/// What the real-kernel tests call.
const TEST_TOOLS: [&str; 3] = ["iproute2", "nftables", "iptables"];

/// What the long run calls.
const SOAK_TOOLS: [&str; 2] = ["iproute2", "iperf3"];

/// What boots a virtual machine.
const VM_TOOLS: [&str; 5] = ["qemu-system-x86", "busybox-static", "cpio", "xz-utils", "iproute2"];

/// The verb: everything, with a word on what was there.
pub(crate) fn verb(workspace: &Workspace) -> Result<ExitCode> {
    let toolchain = kernel_toolchain(workspace)?;
    println!("setup: the kernel programs are built with {toolchain} and bpf-linker: there");
    test_tools(workspace)?;
    println!("setup: programs for the real-kernel tests ({}): there", TEST_TOOLS.join(" "));
    soak_tools(workspace)?;
    println!("setup: programs for the long run ({}): there", SOAK_TOOLS.join(" "));
    vm_tools(workspace)?;
    println!("setup: programs for virtual machines ({}): there", VM_TOOLS.join(" "));
    Ok(ExitCode::SUCCESS)
}

/// The compiler and linker for the kernel programs; silent when they are there.
pub(crate) fn kernel_toolchain(workspace: &Workspace) -> Result<Toolchain> {
    let toolchain = Toolchain::ready(workspace)?;
    toolchain::bpf_linker(workspace)?;
    Ok(toolchain)
}

/// What the real-kernel tests call; silent when it is there.
pub(crate) fn test_tools(workspace: &Workspace) -> Result<()> {
    apt::install(workspace, &TEST_TOOLS, "the real-kernel tests")?;
    applications::ready(workspace);
    Ok(())
}

/// What the long run calls; silent when it is there.
pub(crate) fn soak_tools(workspace: &Workspace) -> Result<()> {
    apt::install(workspace, &SOAK_TOOLS, "the long run")
}

/// What boots a virtual machine; silent when it is there.
pub(crate) fn vm_tools(workspace: &Workspace) -> Result<()> {
    apt::install(workspace, &VM_TOOLS, "virtual machines")
}
