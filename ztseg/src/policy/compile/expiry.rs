//! Rules that expire: who stands behind them.
//!
//! An entry names the best rule of each tier. Where that one expires, it names a [`Fallback`]
//! instead: the rule, and what holds afterwards, which may expire, too. A rule that ends no later
//! than one before it never decides, so ends grow along such a chain; a rule that does not end is
//! the last of it.

use ztseg_common::value::{Fallback, MAX_FALLBACKS, RANK_EXPIRES};

use super::error::CompileError;
use super::number;
use crate::image::nanoseconds;
use crate::policy::resolved::{Resolved, Rule};

/// The chains of all entries.
#[derive(Debug)]
pub(super) struct Fallbacks<'a> {
    resolved: &'a Resolved,
    /// Index zero is never used.
    pub(super) all: Vec<Fallback>,
}

impl<'a> Fallbacks<'a> {
    pub(super) fn new(resolved: &'a Resolved) -> Self {
        Self { resolved, all: vec![Fallback::default()] }
    }

    /// Puts a rule behind what `best` has. Rules come in the order of evaluation.
    pub(super) fn append(
        &mut self,
        best: &mut u32,
        rank: u32,
        rule: &Rule,
    ) -> Result<(), CompileError> {
        let mut end = 0;
        let mut last = None;
        let mut steps = 0;
        let mut at = *best;
        while at & RANK_EXPIRES != 0 {
            let index = (at & !RANK_EXPIRES) as usize;
            let Fallback { rank, next } = self.all[index];
            end = self.rule(rank).and_then(|rule| rule.expires).map_or(0, nanoseconds);
            last = Some(index);
            steps += 1;
            at = next;
        }
        if at != 0 {
            return Ok(()); // Behind a rule that does not end.
        }
        let next = match rule.expires {
            None => rank,
            Some(expires) if nanoseconds(expires) <= end => return Ok(()),
            Some(_) if steps == MAX_FALLBACKS => {
                let first = self.all[(*best & !RANK_EXPIRES) as usize].rank;
                return Err(CompileError::Expiries {
                    first: self.rule(first).map(|rule| rule.name.clone()).unwrap_or_default(),
                    last: rule.name.clone(),
                    limit: MAX_FALLBACKS,
                });
            }
            Some(_) => {
                self.all.push(Fallback { rank, next: 0 });
                RANK_EXPIRES | number(self.all.len() - 1)
            }
        };
        match last {
            Some(index) => self.all[index].next = next,
            None => *best = next,
        }
        Ok(())
    }

    fn rule(&self, rank: u32) -> Option<&'a Rule> {
        self.resolved.rules.get((rank as usize).checked_sub(1)?)
    }
}
