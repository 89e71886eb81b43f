//! Looks whether what was put into the kernel is still so, and puts it right.
//!
//! What somebody with root on this host can do is detach a link or swap its program, remove a pin
//! or put another in its place, write into the control word, store another inner map, and change
//! the workloads and the hosts. All other inner maps are frozen: nobody writes into them by a system call.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;

use ztseg_common::key::{WorkloadKey, interface_of};
use ztseg_common::value::{Workload, slot};

use super::generation::Slots;
use super::{Datapath, bpffs, programs, sys};

/// What was altered from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tampering {
    /// A program is no longer attached.
    LinkDetached,
    /// Another program is in a link or a filter of ours.
    ProgramReplaced,
    /// A pin was removed, or another is in its place.
    PinRemoved,
    /// The control word has other values.
    ControlAltered,
    /// Another map is in the place of one of ours.
    MapReplaced,
    /// The map of workloads has other entries.
    WorkloadsAltered,
    /// The map of hosts has other entries.
    AddressesAltered,
}

impl Tampering {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LinkDetached,
        Self::ProgramReplaced,
        Self::PinRemoved,
        Self::ControlAltered,
        Self::MapReplaced,
        Self::WorkloadsAltered,
        Self::AddressesAltered,
    ];

    /// A stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinkDetached => "link-detached",
            Self::ProgramReplaced => "program-replaced",
            Self::PinRemoved => "pin-removed",
            Self::ControlAltered => "control-altered",
            Self::MapReplaced => "map-replaced",
            Self::WorkloadsAltered => "workloads-altered",
            Self::AddressesAltered => "addresses-altered",
        }
    }
}

/// Something that was not as it was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub what: Tampering,
    /// What it concerns, for people: a program and where it was attached, a pin, a map.
    pub object: String,
    /// Whether it was put right, or why not.
    pub repaired: Result<(), String>,
}

impl Finding {
    pub(super) fn new(
        what: Tampering,
        object: impl Into<String>,
        repaired: Result<(), impl std::fmt::Display>,
    ) -> Self {
        // An error of anyhow says its causes with the alternate form.
        Self { what, object: object.into(), repaired: repaired.map_err(|e| format!("{e:#}")) }
    }
}

impl Datapath {
    /// Looks whether everything that this agent put into the kernel is still so; what is not is
    /// put right. Costs two system calls for each link, one for each pin, a copy of the map of
    /// workloads, and one of some thousand hosts.
    pub fn inspect(&mut self) -> Vec<Finding> {
        let mut found = Vec::new();
        let altered = self.control.restore();
        if !altered.is_empty() {
            self.next_epoch();
            let object = format!("CONTROL ({})", altered.join(", "));
            found.push(Finding::new(Tampering::ControlAltered, object, Ok::<(), String>(())));
        }
        for name in self.turn.restore() {
            found.push(Finding::new(Tampering::ControlAltered, name, Ok::<(), String>(())));
        }
        self.inspect_slots(&mut found);
        self.inspect_workloads(&mut found);
        self.inspect_hosts(&mut found);
        self.inspect_links(&mut found);
        self.inspect_filters(&mut found);
        self.inspect_maps(&mut found);
        if found.iter().any(|f| f.what == Tampering::PinRemoved) {
            self.lock_again();
        }
        found
    }

    fn inspect_slots(&mut self, found: &mut Vec<Finding>) {
        let Some(generation) = &self.generation else { return };
        let before = found.len();
        let at = Slots { outer: &self.outer, slot: slot(self.control.written().stamp) };
        for (name, repaired) in generation.restore(&at) {
            found.push(Finding::new(Tampering::MapReplaced, name, repaired));
        }
        if found.len() > before {
            self.next_epoch();
        }
    }

    fn inspect_workloads(&mut self, found: &mut Vec<Finding>) {
        let Some(generation) = &self.generation else { return };
        let map = generation.workloads();
        let repaired = sys::map_dump::<WorkloadKey, Workload>(map).and_then(|there| {
            let mut altered = Vec::new();
            for (key, value) in &there {
                if self.workloads.get(key) != Some(value) {
                    altered.push(*key);
                }
            }
            let there: std::collections::HashSet<_> = there.into_iter().map(|(k, _)| k).collect();
            altered.extend(self.workloads.keys().filter(|key| !there.contains(key)));
            for key in &altered {
                match self.workloads.get(key) {
                    Some(value) => sys::map_update(map, key, value)?,
                    None => sys::map_delete(map, key)?,
                }
            }
            Ok(altered)
        });
        let finding = match repaired {
            Ok(altered) if altered.is_empty() => return,
            Ok(altered) => {
                let name = |key: &WorkloadKey| match interface_of(*key) {
                    Some(index) => format!("interface {index}"),
                    None => format!("cgroup {key}"),
                };
                let mut names: Vec<_> = altered.iter().take(3).map(name).collect();
                if altered.len() > names.len() {
                    names.push(format!("{} more", altered.len() - names.len()));
                }
                let object = format!("WORKLOADS ({})", names.join(", "));
                Finding::new(Tampering::WorkloadsAltered, object, Ok::<(), String>(()))
            }
            Err(e) => Finding::new(Tampering::WorkloadsAltered, "WORKLOADS", Err(e)),
        };
        self.next_epoch();
        found.push(finding);
    }

    fn inspect_links(&mut self, found: &mut Vec<Finding>) {
        for link in self.links.values_mut() {
            let Ok(program) = programs::program_fd(&self.ebpf, link.program) else { continue };
            let id = self.program_ids.get(link.program).copied().unwrap_or(0);
            if let Some((what, repaired)) = link.inspect(program, id) {
                let object = format!("{} at {}", link.program, link.target);
                found.push(Finding::new(what, object, repaired));
            }
        }
    }

    fn inspect_filters(&mut self, found: &mut Vec<Finding>) {
        if programs::has_tcx() {
            return;
        }
        for (ifindex, interface) in &self.interfaces {
            for (program, hook) in interface.hooks {
                let name = &interface.name;
                // With an interface its filters go, and the watcher says so in a moment.
                if nix::net::if_::if_nametoindex(name.as_str()).ok() != Some(*ifindex) {
                    continue;
                }
                let id = self.program_ids.get(program).copied();
                let what = match programs::filter_program(*ifindex, hook) {
                    Ok(now) if now == id => continue,
                    Ok(Some(_)) => Tampering::ProgramReplaced,
                    Ok(None) | Err(_) => Tampering::LinkDetached,
                };
                let again = programs::attach_filter(
                    &mut self.ebpf,
                    &self.pins,
                    program,
                    (*ifindex, name),
                    hook,
                );
                let object = format!("{program} at {name}");
                found.push(Finding::new(what, object, again.map(drop)));
            }
        }
    }

    fn inspect_maps(&mut self, found: &mut Vec<Finding>) {
        for map in &mut self.maps {
            if map.pin.is_there() {
                continue;
            }
            let again = super::pin::Pin::make(map.map.as_fd(), map.pin.path());
            let object = map.pin.path().display().to_string();
            let repaired = again.map(|pin| map.pin = pin);
            found.push(Finding::new(Tampering::PinRemoved, object, repaired));
        }
    }

    /// Where the folder itself was removed, the lock went with it.
    fn lock_again(&mut self) {
        let inode = |path: &std::path::Path| std::fs::metadata(path).map(|m| m.ino()).ok();
        let ours =
            inode(&std::path::PathBuf::from(format!("/proc/self/fd/{}", self.lock.as_raw_fd())));
        if inode(&self.options.bpffs) != ours
            && let Ok(lock) = bpffs::lock(&self.options.bpffs)
        {
            self.lock = lock;
        }
    }
}
