//! What `status` and `workloads` show.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::core::{Core, Running, kind_of};
use super::enforcer::Enforcer;
use super::handle::Understood;
use super::limits::limits;
use crate::api::types::{self, ApplyRequest, Fill, Map, PolicyFile, Program, Status, WorkloadInfo};
use crate::discover::cgroups::WatchMode;
use crate::explain::place::Places;
use crate::explain::{Asked, Question};
use crate::inventory::Membership;
use crate::policy::failsafe::{Failsafe, Opening};
use crate::policy::source::Source;
use crate::sockets::{Facts, adopt};

impl<E: Enforcer> Core<E> {
    /// The whole state.
    pub fn status(&self) -> Status {
        let running = &self.running;
        let mut warnings = running.warnings.clone();
        warnings.extend(self.not_kept.clone());
        let mut ask = |what: &str, error: &dyn std::fmt::Display| {
            warnings.push(format!("{what} cannot be read: {error}"));
        };
        let hooks = self.enforcer.programs().unwrap_or_else(|e| {
            ask("programs", &e);
            Vec::new()
        });
        let counters = self.enforcer.counters().unwrap_or_else(|e| {
            ask("counters", &e);
            BTreeMap::new()
        });
        let maps = self.enforcer.maps().unwrap_or_else(|e| {
            ask("maps", &e);
            Vec::new()
        });
        let mut by_segment: BTreeMap<String, usize> = running.resolved.segments
            [..running.resolved.own_segments()]
            .iter()
            .map(|s| (s.name.clone(), 0))
            .collect();
        for member in self.inventory.memberships() {
            for name in running.resolved.names(&member.segments) {
                *by_segment.entry(name).or_default() += 1;
            }
        }
        let (image, capacity) = (&running.image, &self.options.capacity);
        let older = self.adopter.as_ref().map(|adopter| &*adopter.facts);
        let fill = |option: &str, used, limit| Fill { option: option.into(), used, limit };
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            abi: ztseg_common::ABI_VERSION,
            pid: std::process::id(),
            kernel: kernel_release(),
            started_at: self.started_at,
            generation: running.generation,
            applied_at: running.applied_at,
            audit: self.options.audit,
            origin: running.origin,
            policies: running.files.iter().map(|file| file.name.to_string()).collect(),
            segments: running.resolved.own_segments(),
            rules: running.resolved.own_rules(),
            failsafe: self.failsafe(),
            tampering: self.security.counts(),
            security: self.security.last(),
            warnings,
            last_error: self.policy_error.clone().or_else(|| self.workload_error.clone()),
            workloads_by_segment: by_segment,
            workloads: self.inventory.memberships().count(),
            cgroups: self.inventory.cgroup_count(),
            cgroup_watch: match &self.watch {
                WatchMode::Notified => "inotify".into(),
                WatchMode::Scanned(why) => format!("scans ({why})"),
            },
            cgroup_root: self.options.cgroup_root.display().to_string(),
            bpffs: self.options.bpffs.display().to_string(),
            hooks: hooks
                .into_iter()
                .map(|p| Program {
                    name: p.name,
                    id: p.id,
                    attached: p.attached,
                    verified_instructions: p.verified_instructions,
                })
                .collect(),
            counters: counters.into_iter().map(|(c, n)| (c.name().to_owned(), n)).collect(),
            events_undecodable: self.undecodable,
            sockets_destroyed: self.telling.facts().map_or(0, Facts::destroyed),
            sockets_adopted: older.map_or(0, adopt::Facts::adopted),
            sockets_unknown: older.map_or(0, adopt::Facts::unknown),
            events_lost_by_readers: self.events.lost(),
            capacity: vec![
                fill("verdicts", image.entries.len(), capacity.verdicts),
                fill("peers", image.hosts.len() + image.prefixes.len(), capacity.peers),
                fill("workloads", image.workloads.len(), capacity.workloads),
            ],
            map_bytes: maps.iter().map(|m| m.bytes).sum(),
            maps: maps
                .into_iter()
                .map(|m| Map { name: m.name, max_entries: m.max_entries, bytes: m.bytes })
                .collect(),
            limits: limits(self.telling.facts(), older, self.enforcer.packet_sockets()),
        }
    }

    /// What stays open, and for which of this host's workloads.
    fn failsafe(&self) -> types::Failsafe {
        let Failsafe { inbound, outbound, units } = &self.options.failsafe;
        let texts = |list: &[Opening]| list.iter().map(ToString::to_string).collect();
        let id = self.running.resolved.failsafe;
        let has = |m: &&Membership| id.is_some_and(|id| m.segments.contains(&id));
        let mut workloads: Vec<_> =
            self.inventory.memberships().filter(has).map(|m| m.name.clone()).collect();
        workloads.sort();
        types::Failsafe {
            inbound: texts(inbound),
            outbound: texts(outbound),
            units: units.clone(),
            workloads,
        }
    }

    /// The files of the policy in force.
    pub fn policy(&self) -> ApplyRequest {
        let file =
            |file: &Source| PolicyFile { name: file.name.to_string(), text: file.text.to_string() };
        ApplyRequest { files: self.running.files.iter().map(file).collect() }
    }

    /// A question about a flow, with what answers it: answering may take longer than the loop has.
    ///
    /// # Errors
    /// What is wrong with the question.
    pub fn understand(&self, question: &Question) -> Result<Understood, String> {
        let Running { resolved, image, .. } = &self.running;
        let places = Places { resolved, inventory: &self.inventory, pods: &[], workloads: &[] };
        let asked = Asked::new(&places, question)?;
        Ok(Understood { asked, resolved: Arc::clone(resolved), image: Arc::clone(image) })
    }

    /// The workloads, sorted by name.
    pub fn workloads(&self) -> Vec<WorkloadInfo> {
        let info = |member: &Membership| {
            let (kind, id) = kind_of(member.key);
            WorkloadInfo {
                name: member.name.clone(),
                kind: kind.into(),
                id,
                segments: self.running.resolved.names(&member.segments),
            }
        };
        let mut list: Vec<_> = self.inventory.memberships().map(info).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
        list
    }
}

fn kernel_release() -> String {
    let name = nix::sys::utsname::uname();
    name.map_or_else(|_| "unknown".into(), |n| n.release().to_string_lossy().into_owned())
}
