//! A policy is put in force, or refused whole.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Core, Options, Running, full};
use crate::agent::enforcer::Enforcer;
use crate::agent::prepare::{self, Prepared};
use crate::agent::sources::PolicyFiles;
use crate::api::types::{Applied, Origin, Problem};
use crate::clocks::Clocks;
use crate::policy::source::Source;

impl<E: Enforcer> Core<E> {
    /// Puts a policy in force, or keeps the old one and says why.
    ///
    /// # Errors
    /// Text for people: what is wrong and where.
    pub fn apply(&mut self, files: &PolicyFiles, origin: Origin) -> Result<Applied, String> {
        let result = self.try_apply(files, origin);
        self.policy_error = match &result {
            Ok(applied) => {
                let Applied { generation, files, segments, rules, .. } = applied;
                tracing::info!(
                    "generation {generation} is in force: {files} files, {segments} segments, \
                     {rules} rules"
                );
                None
            }
            Err(text) => Some(self.refused(text)),
        };
        self.settle();
        result
    }

    /// Remembers and logs that a policy was refused.
    pub fn refuse(&mut self, text: &str) {
        self.policy_error = Some(self.refused(text));
    }

    fn refused(&self, text: &str) -> Problem {
        let generation = self.running.generation;
        tracing::error!("the policy was refused, generation {generation} stays in force:\n{text}");
        Problem { at: Timestamp::now(), message: text.to_owned() }
    }

    fn try_apply(&mut self, files: &PolicyFiles, origin: Origin) -> Result<Applied, String> {
        let Options { audit, capacity, failsafe, .. } = &self.options;
        let prepared =
            prepare::prepare(&files.sources, *audit, failsafe, &self.inventory, capacity)?;
        let clocks = Clocks::now();
        let committed = self.enforcer.commit(&prepared.image, &clocks).map_err(|e| full(&e))?;
        self.accept((committed.generation, clocks), prepared, origin, files);
        self.remember(&files.sources);
        let members = self.inventory.memberships();
        Ok(Applied {
            generation: committed.generation,
            files: files.sources.len(),
            segments: self.running.resolved.own_segments(),
            rules: self.running.resolved.own_rules(),
            workloads: members.filter(|m| self.running.resolved.has_own(&m.segments)).count(),
            warnings: files.warnings.clone(),
        })
    }

    /// Keeps what was committed as the last good policy.
    pub(super) fn remember(&mut self, sources: &[Source]) {
        let Some(file) = &mut self.last_good else { return };
        self.not_kept = file.save(sources, Timestamp::now()).err().map(|e| {
            let text = format!("the policy cannot be kept as the last good one: {e}");
            tracing::warn!("{text}");
            text
        });
    }

    /// Takes over what was committed.
    pub(super) fn accept(
        &mut self,
        (generation, clocks): (u32, Clocks),
        prepared: Prepared,
        origin: Origin,
        files: &PolicyFiles,
    ) {
        let Prepared { resolved, inventory, image } = prepared;
        let image = Arc::new(image);
        self.names.commit(generation, resolved.clone(), &image);
        // A workload that the new policy no longer knows as one loses its name, too.
        for key in self.running.image.workloads.keys() {
            if !image.workloads.contains_key(key) {
                self.names.remove(*key);
            }
        }
        self.inventory = inventory;
        self.running = Running {
            resolved,
            image,
            generation,
            clocks,
            applied_at: Timestamp::now(),
            origin,
            files: files.sources.clone(),
            warnings: files.warnings.clone(),
        };
        self.name_everything();
        self.dirty.clear();
        self.telling.commit(&self.running.image);
    }
}
