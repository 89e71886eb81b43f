//! The kernel programs as such: every one passes this kernel's verifier, and what the maps cost.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use ztseg::clocks::Clocks;
use ztseg::datapath::{Capacity, Datapath, Options};
use ztseg::inventory::{CgroupFacts, Inventory};
use ztseg::policy::compile::compile;
use ztseg::policy::resolved::Resolved;

use crate::Body;
use crate::environment::{Environment, has_bpf_lsm};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("programs::every_program_loads", every_program_loads),
    ("programs::maps_fit_into_64_mib", maps_fit_into_64_mib),
];

/// The programs attach to the whole cgroup tree, two hooks of an interface, and nowhere else; the agent
/// runs one itself. One more refuses packet sockets, where the kernel has BPF LSM.
const PROGRAMS: usize = 12;
/// What all maps may cost at default sizes.
const MEMORY: u64 = 64 << 20;
/// Where the verifier of every supported kernel gives up.
const INSTRUCTIONS: u32 = 1_000_000;

/// A datapath with pins of its own, which are removed with it. Nothing is attached.
pub(crate) struct Unattached {
    pub(crate) datapath: Option<Datapath>,
    options: Options,
}

impl Unattached {
    pub(crate) fn open(name: &str, capacity: Capacity) -> Result<Self> {
        // Tests run at the same time, and two may choose the same name.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("/sys/fs/bpf/ztseg-test-{}-{count}-{name}", std::process::id());
        let options = Options {
            bpffs: PathBuf::from(folder),
            cgroup_root: PathBuf::from("/nonexistent"),
            capacity,
            debug: false,
        };
        let datapath = Datapath::open(&options).context("opening the datapath")?;
        Ok(Self { datapath: Some(datapath), options })
    }

    /// The folder of its pinned maps.
    pub(crate) fn maps(&self) -> PathBuf {
        ztseg::datapath::map_pins(&self.options.bpffs)
    }

    pub(crate) fn get(&mut self) -> Result<&mut Datapath> {
        self.datapath.as_mut().context("the datapath is open")
    }
}

impl Drop for Unattached {
    fn drop(&mut self) {
        drop(self.datapath.take());
        if let Err(error) = Datapath::detach_all(&self.options) {
            eprintln!("{} is left: {error}", self.options.bpffs.display());
        }
    }
}

fn every_program_loads(_: &Environment) -> Result<()> {
    let mut unattached = Unattached::open("load", Capacity::default())?;
    unattached.get()?.load_rare_programs()?;
    let mut programs = unattached.get()?.programs()?;
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    for program in &programs {
        let (name, count) = (&program.name, program.verified_instructions);
        println!("verifier of {}: {name} {count} instructions", release.trim());
        ensure!(count > 0, "the kernel does not say what its verifier processed of {name}");
        ensure!(count < INSTRUCTIONS / 4, "{name} is near the verifier's limit: {count}");
    }
    let expected = PROGRAMS + usize::from(has_bpf_lsm());
    ensure!(programs.len() == expected, "{} programs, not {expected}", programs.len());
    Ok(())
}

fn maps_fit_into_64_mib(_: &Environment) -> Result<()> {
    let mut unattached = Unattached::open("memory", Capacity::default())?;
    let datapath = unattached.get()?;
    let mut inventory = Inventory::new();
    inventory.insert_cgroup(CgroupFacts { id: 1, path: "/".to_owned(), level: 0 });
    let policy = Resolved::default();
    inventory.set_policy(&policy);
    let members: Vec<_> = inventory.memberships().cloned().collect();
    let image = compile(&policy, &members, &Capacity::default())?;
    // Both slots are filled, as they are after the first change of a policy.
    datapath.commit(&image, &Clocks::now())?;
    datapath.commit(&image, &Clocks::now())?;
    let maps = datapath.maps()?;
    let total: u64 = maps.iter().map(|map| map.bytes).sum();
    for map in &maps {
        println!("{:>12} bytes in {} ({} entries)", map.bytes, map.name, map.max_entries);
    }
    println!("{total:>12} bytes in all maps");
    ensure!(maps.iter().any(|map| map.name == "WORKLOADS[1]"), "the inner maps are not counted");
    // What is as it was in the generation before is not made again.
    ensure!(maps.iter().any(|map| map.name == "HOSTS[0,1]"), "each slot has a map of hosts");
    ensure!(total <= MEMORY, "all maps take {total} bytes, more than {MEMORY}");
    Ok(())
}
