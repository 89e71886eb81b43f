//! When local applications are to be told that they are denied ([`crate::sockets`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use ztseg_common::addr::proto;
use ztseg_common::event::EventKind;
use ztseg_common::key::WorkloadKey;
use ztseg_common::value::RULE_REJECT;
use ztseg_common::verdict::{Hook, Reason};

use super::core::Core;
use super::enforcer::Enforcer;
use crate::events::decode::Record;
use crate::image::Image;
use crate::sockets::adopt::Owners;
use crate::sockets::{Facts, Teller, View, Why, tells};

/// What the owner of the state keeps for that.
#[derive(Debug, Default)]
pub(super) struct Telling {
    teller: Option<Teller>,
    /// Whether the policy in force has any denial that is to be told.
    tells: bool,
    /// The workload of each cgroup, until the next of either comes or goes.
    owners: Option<Arc<HashMap<u64, WorkloadKey>>>,
}

impl Telling {
    /// Another generation is in force.
    pub(super) fn commit(&mut self, image: &Image) {
        self.tells = tells(image);
        self.changed();
    }

    /// A workload came, went, or is of another class.
    pub(super) fn changed(&mut self) {
        self.owners = None;
        self.want(Why::Changed);
    }

    /// A cgroup came or went.
    pub(super) fn moved(&mut self) {
        self.owners = None;
    }

    /// Somebody was denied; `image` is that of the generation in force.
    pub(super) fn event(&mut self, record: &Record, generation: u32, image: &Image) {
        if self.tells && is_to_be_told(record, generation, image) {
            self.want(Why::Denied);
        }
    }

    pub(super) fn facts(&self) -> Option<&Facts> {
        self.teller.as_ref().map(|teller| &*teller.facts)
    }

    fn want(&self, why: Why) {
        if self.tells
            && let Some(teller) = &self.teller
        {
            teller.want(why);
        }
    }
}

/// Whether an event is a denial that a socket of this host waits at: TCP at a cgroup hook, by what
/// asks for an answer.
fn is_to_be_told(record: &Record, generation: u32, image: &Image) -> bool {
    let at_socket = matches!(record.hook, Hook::CgroupIngress | Hook::CgroupEgress);
    record.kind == EventKind::Dropped
        && at_socket
        && record.protocol == proto::TCP
        && record.generation == generation
        && match (record.rule, record.reason) {
            (Some(rank), _) => {
                image.rules.get(rank as usize).is_some_and(|r| r.flags & RULE_REJECT != 0)
            }
            (None, Reason::Isolation) => {
                let subject = image.subjects.get(record.subject as usize);
                subject.is_some_and(|subject| subject.rejects(record.direction))
            }
            (None, _) => false,
        }
}

impl<E: Enforcer> Core<E> {
    /// From now on they are told, by this thread.
    pub fn tell_by(&mut self, teller: Teller) {
        self.telling.teller = Some(teller);
        self.telling.want(Why::Changed);
    }

    /// What the thread has to know; nothing where no denial is to be told.
    pub fn view(&mut self) -> Option<View> {
        if !self.telling.tells {
            return None;
        }
        let owners = self.owners();
        let (stamp, netns) = self.enforcer.stamp();
        let (image, now) = (self.running.image.clone(), Timestamp::now());
        Some(View { stamp, image, owners, netns, now })
    }

    /// The workload of each cgroup.
    fn owners(&mut self) -> Arc<HashMap<u64, WorkloadKey>> {
        let Self { inventory, running, telling, .. } = self;
        let owners = telling.owners.get_or_insert_with(|| {
            Arc::new(inventory.owners(|key| running.image.workloads.contains_key(&key)))
        });
        owners.clone()
    }

    /// Lets whose the sockets are be written down that the programs know nothing of, and waits for
    /// that no longer than `patience`.
    pub(super) fn adopt_sockets(&mut self, patience: Duration) {
        if self.adopter.is_some() {
            let (stamp, owners) = (self.enforcer.stamp().0, self.owners());
            if let Some(adopter) = &self.adopter {
                adopter.adopt(Owners { stamp, owners }, patience);
            }
        }
    }
}
