//! Random policies as people write them: a model of its own, and the YAML text of it.
//!
//! The model says what was written and nothing of what that means; it shares no type with what
//! [`crate::policy::parse`] reads, so that a test can hold all that comes behind the text against
//! the model. Words are few, so that patterns, names and addresses overlap often.

mod match_entry;
mod policy;
mod print;
mod workload;
mod yaml;

use std::net::IpAddr;

use fastrand::Rng;
use jiff::Timestamp;

use super::pick;
use crate::policy::source::Source;

/// Labels with their values.
pub(crate) type Labels = Vec<(&'static str, &'static str)>;

/// All documents of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    /// In the order in which they are loaded.
    pub(crate) policies: Vec<Policy>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) workloads: Vec<Workload>,
}

/// A `SegmentPolicy`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) tier: Tier,
    pub(crate) priority: Option<u32>,
    pub(crate) audit: bool,
    pub(crate) reject: bool,
    pub(crate) segments: Vec<Segment>,
    pub(crate) groups: Vec<Group>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) allow: Vec<Rule>,
    pub(crate) pass: Vec<Rule>,
}

/// In the order in which they are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tier {
    Admin,
    #[default]
    Application,
    Baseline,
}

/// A segment of a policy.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) name: &'static str,
    /// Whether it is in audit mode; `None` is as its policy.
    pub(crate) audit: Option<bool>,
    /// Ingress, egress; `None` is not written.
    pub(crate) isolation: Option<[bool; 2]>,
    pub(crate) entries: Vec<Entry>,
}

/// A `match` entry.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Workloads(Match),
    Addresses(Vec<&'static str>),
}

/// What a `match` entry asks for, or, without patterns, what a workload is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Match {
    pub(crate) unit: Option<&'static str>,
    pub(crate) cgroup: Option<String>,
    pub(crate) container: Option<Container>,
    pub(crate) pod: Option<PodMatch>,
    pub(crate) interface: Option<&'static str>,
    pub(crate) user: Option<&'static str>,
    pub(crate) host: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Container {
    pub(crate) name: Option<&'static str>,
    pub(crate) image: Option<&'static str>,
    pub(crate) labels: Labels,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct PodMatch {
    pub(crate) namespace: Option<&'static str>,
    pub(crate) labels: Labels,
    pub(crate) service_account: Option<&'static str>,
}

/// An address group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) cidrs: Vec<&'static str>,
    pub(crate) except: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) name: Option<String>,
    pub(crate) from: Vec<Peer>,
    pub(crate) to: Vec<Peer>,
    /// Empty where the field is not written.
    pub(crate) ports: Vec<Port>,
    pub(crate) log: bool,
    /// `None` is not written.
    pub(crate) reject: Option<bool>,
    pub(crate) expires: Option<Timestamp>,
}

/// A part of a rule's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Any,
    /// A segment or an address group.
    Name(&'static str),
    /// An address or a CIDR.
    Network(&'static str),
}

/// An entry of `ports`; protocols are numbers.
#[derive(Clone, Debug)]
pub(crate) enum Port {
    Any,
    /// Every port or type of it.
    Protocol(u8),
    /// Both ends included.
    Range(u8, u16, u16),
    /// A type with the name that it has.
    Type(u8, u16, &'static str),
    Named(u8, &'static str),
}

/// A `kind: Workload` document.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) is: Match,
    pub(crate) addresses: Vec<IpAddr>,
}

/// A pod's manifest.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    /// `None` is not written.
    pub(crate) namespace: Option<&'static str>,
    pub(crate) labels: Labels,
    /// `None` is not written.
    pub(crate) service_account: Option<&'static str>,
    pub(crate) host_network: bool,
    /// Its `status.phase` says that it has ended.
    pub(crate) ended: bool,
    pub(crate) ports: Vec<ContainerPort>,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
pub(crate) struct ContainerPort {
    pub(crate) runs: Runs,
    pub(crate) name: Option<&'static str>,
    /// `None` is not written.
    pub(crate) protocol: Option<u8>,
    pub(crate) number: u16,
}

/// How long a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    WithPod,
    /// An init container with `restartPolicy: Always`.
    WithPodFromInit,
    BeforePod,
}

/// Networks that hold each other, and addresses at their bounds.
const NETWORKS: [&str; 13] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.1.2.129",
    "10.1.2.3/32",
    "192.0.2.0/29",
    "0.0.0.0/0",
    "2001:db8::/32",
    "2001:db8:1:2::/64",
    "2001:db8:1:2::3",
    "2001:db8:1:2::/127",
    "::/0",
];
const ADDRESSES: [&str; 12] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.2.128",
    "10.1.2.129",
    "10.1.3.0",
    "192.0.2.7",
    "192.0.2.8",
    "2001:db8:1:2::1",
    "2001:db8:1:2::3",
    "2001:db8:1:3::1",
    "2001:db9::1",
    "fd00::1",
];

/// Random documents.
pub(crate) fn written(rng: &mut Rng) -> Written {
    let pods = (0..rng.usize(0..5)).map(|i| workload::pod(rng, i)).collect();
    let workloads = (0..rng.usize(0..6)).map(|i| workload::workload(rng, i)).collect();
    Written { policies: policy::policies(rng), pods, workloads }
}

/// The documents as text, in one file or several.
pub(crate) fn sources(rng: &mut Rng, written: &Written) -> Vec<Source> {
    print::sources(rng, written)
}

/// One of the addresses that workloads have and flows use.
pub(crate) fn address(rng: &mut Rng) -> IpAddr {
    // The table is valid: `every_word_of_the_tables_is_read`.
    pick(rng, &ADDRESSES).parse().unwrap_or(IpAddr::from([0; 4]))
}

/// The path of a cgroup, or the name of an interface with `interface:` before it.
pub(crate) fn place(rng: &mut Rng) -> String {
    if rng.u8(0..4) == 0 {
        return format!("interface:{}", pick(rng, &workload::INTERFACES));
    }
    pick(rng, &workload::PATHS).to_owned()
}

/// A port that rules and pods have.
pub(crate) fn port(rng: &mut Rng) -> u16 {
    pick(rng, &policy::PORTS)
}

/// A type that rules have, or another.
pub(crate) fn icmp_type(rng: &mut Rng) -> u16 {
    pick(rng, &[0, 1, 8, 128, 129, 255])
}

impl Written {
    /// The names of all segments.
    pub(crate) fn segments(&self) -> Vec<&'static str> {
        self.policies.iter().flat_map(|policy| &policy.segments).map(|s| s.name).collect()
    }

    /// All but one thing that can be left out, by its number; `None` where there are no more.
    /// What `is_needed` stays.
    pub(crate) fn without(
        &self,
        mut number: usize,
        is_needed: impl Fn(&str) -> bool,
    ) -> Option<Self> {
        let mut less = self.clone();
        let mut keep = || {
            let kept = number != 0;
            number = number.wrapping_sub(1);
            kept
        };
        less.pods.retain(|pod| is_needed(&pod.name) || keep());
        less.workloads.retain(|workload| is_needed(&workload.name) || keep());
        for policy in &mut less.policies {
            for rules in [&mut policy.deny, &mut policy.allow, &mut policy.pass] {
                rules.retain(|_| keep());
            }
            policy.groups.retain(|_| keep());
            policy.segments.retain(|segment| is_needed(segment.name) || keep());
            for segment in &mut policy.segments {
                segment.entries.retain(|_| keep());
            }
        }
        less.policies.retain(|policy| !policy.segments.is_empty() || keep());
        (number > usize::MAX / 2).then_some(less)
    }
}

/// Some of a list, in its order.
fn some<T: Copy>(rng: &mut Rng, list: &[T]) -> Vec<T> {
    list.iter().copied().filter(|_| rng.bool()).collect()
}

/// One of a list, or nothing.
fn maybe<T: Copy>(rng: &mut Rng, list: &[T]) -> Option<T> {
    rng.bool().then(|| pick(rng, list))
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;

    #[test]
    fn every_word_of_the_tables_is_read() {
        let is_one = |text: &&str| text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok();
        assert!(NETWORKS.iter().all(is_one));
        assert!(ADDRESSES.iter().all(|text| text.parse::<IpAddr>().is_ok()));
    }
}
