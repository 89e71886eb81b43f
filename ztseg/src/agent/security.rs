//! What somebody altered in the kernel: counted, kept for `status`, and told once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;

use crate::api::types::{SecurityKind, SecurityRecord};
use crate::datapath::{Finding, Tampering};

/// How many are kept for `status`.
const KEPT: usize = 10;

/// What was noticed so far.
#[derive(Debug, Default)]
pub struct Security {
    counts: BTreeMap<Tampering, u64>,
    last: VecDeque<SecurityRecord>,
    /// What could not be put right at the last look: told already.
    broken: BTreeSet<(Tampering, String)>,
}

impl Security {
    /// Takes in what one look found; gives what is new.
    pub fn note(&mut self, findings: Vec<Finding>, now: Timestamp) -> Vec<SecurityRecord> {
        let before = std::mem::take(&mut self.broken);
        let mut new = Vec::new();
        for Finding { what, object, repaired } in findings {
            if repaired.is_err() {
                self.broken.insert((what, object.clone()));
                if before.contains(&(what, object.clone())) {
                    continue;
                }
            }
            *self.counts.entry(what).or_default() += 1;
            let record = SecurityRecord {
                time: now,
                kind: SecurityKind::Security,
                what: what.name().into(),
                object,
                repaired: repaired.is_ok(),
                error: repaired.err(),
            };
            self.last.push_back(record.clone());
            new.push(record);
        }
        let old = self.last.len().saturating_sub(KEPT);
        self.last.drain(..old);
        new
    }

    /// How often each kind was noticed, all kinds named.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let count = |what: &Tampering| self.counts.get(what).copied().unwrap_or(0);
        Tampering::ALL.iter().map(|what| (what.name().to_owned(), count(what))).collect()
    }

    /// The last ones, oldest first.
    pub fn last(&self) -> Vec<SecurityRecord> {
        self.last.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(object: &str, repaired: Result<(), String>) -> Finding {
        Finding { what: Tampering::LinkDetached, object: object.into(), repaired }
    }

    #[test]
    fn each_is_counted_and_what_stays_broken_once() {
        let (mut security, now) = (Security::default(), Timestamp::UNIX_EPOCH);
        let broken = || finding("x", Err("no".into()));
        assert_eq!(security.note(vec![broken(), finding("y", Ok(()))], now).len(), 2);
        assert_eq!(security.note(vec![broken()], now), []);
        assert_eq!(security.note(vec![broken(), finding("y", Ok(()))], now).len(), 1);
        assert_eq!(security.note(vec![], now), []);
        // It was right in between.
        let again = security.note(vec![broken()], now);
        assert_eq!(again[0].error.as_deref(), Some("no"));
        assert_eq!(security.counts()["link-detached"], 4);
        assert_eq!(security.counts().len(), Tampering::ALL.len());
        security.note((0..20).map(|n| finding(&n.to_string(), Ok(()))).collect(), now);
        assert_eq!((security.last().len(), security.last()[9].object.as_str()), (KEPT, "19"));
    }
}
