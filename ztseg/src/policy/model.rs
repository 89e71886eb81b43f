//! A policy as it is written: names unresolved, with the places that diagnostics need.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::diagnostic::Span;
use super::kubernetes::Objects;
use super::resolved::{Mode, PortRange, Selector, Tier};
use super::testcase::Expect;
use crate::inventory::facts::WorkloadFacts;

/// A value and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// A value at its place.
    pub const fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

/// All documents of all sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// In the order of the sources and of the documents in them.
    pub policies: Vec<Policy>,
    /// The Kubernetes documents.
    pub kubernetes: Objects,
    /// The workloads that documents describe.
    pub workloads: Vec<Workload>,
    /// What the agent cannot enforce.
    pub offline: Vec<Spanned<Offline>>,
    /// Whether every definition of a name was read. Where one was not, a name that seems unknown
    /// may be known.
    pub complete: bool,
}

/// What the offline verbs understand and the agent does not: this host's workloads are known to it by
/// their cgroups and interfaces alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offline {
    /// A document of this kind.
    Kind(&'static str),
    /// This field of a `match` entry.
    Match(&'static str),
    /// A port that pods have a name for.
    NamedPort,
}

/// A `Workload` document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name.
    pub name: Spanned<String>,
    /// What it says.
    pub facts: WorkloadFacts,
}

/// A `SegmentPolicy` document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `metadata.name`; `None` where it could not be read, which was reported.
    pub name: Option<Spanned<String>>,
    /// The tier that its rules are in.
    pub tier: Tier,
    /// Its place among the policies of its tier, lower first; of the admin and baseline tiers only.
    pub priority: Option<Spanned<u32>>,
    /// Its mode.
    pub mode: Mode,
    /// What it denies is told so, where a rule does not say otherwise.
    pub reject: bool,
    /// The segments that it defines.
    pub segments: Vec<Segment>,
    /// The address groups that it defines.
    pub groups: Vec<AddressGroup>,
    /// Its deny rules.
    pub deny: Vec<Rule>,
    /// Its allow rules.
    pub allow: Vec<Rule>,
    /// Its pass rules; of the admin and baseline tiers only.
    pub pass: Vec<Rule>,
    /// Its tests.
    pub tests: Vec<Test>,
}

/// A segment's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its name.
    pub name: Spanned<String>,
    /// What it is for, in the author's words.
    pub description: Option<String>,
    /// Its mode, where it differs from the policy's.
    pub mode: Option<Mode>,
    /// Directions with default deny.
    pub isolation: Directions,
    /// Whether it says so itself.
    pub says_isolation: bool,
    /// `match` entries that name workloads.
    pub selectors: Vec<Selector>,
    /// `match` entries that name addresses.
    pub addresses: Vec<IpNet>,
    /// Where its `match` entries ask for what the agent does not know.
    pub offline: Vec<Spanned<Offline>>,
}

/// A set of directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directions {
    /// Flows that peers open.
    pub ingress: bool,
    /// Flows that the workload opens.
    pub egress: bool,
}

/// An address group's definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressGroup {
    /// Its name.
    pub name: Spanned<String>,
    /// What is in it.
    pub cidrs: Vec<Spanned<IpNet>>,
    /// What is left out.
    pub except: Vec<Spanned<IpNet>>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, if it has one.
    pub name: Option<Spanned<String>>,
    /// Report what it allows, too.
    pub log: bool,
    /// Tell who is denied at once; without it, as the policy says.
    pub reject: Option<bool>,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// Who opens the flow.
    pub from: Side,
    /// Who is asked.
    pub to: Side,
    /// A union, never empty.
    pub ports: Vec<Spanned<Port>>,
    /// Where it stands.
    pub span: Span,
}

/// A port of the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// By number.
    Range(PortRange),
    /// By the name that the destination pod gives it.
    Named {
        /// The name.
        name: String,
        /// IP protocol number; `None` is whatever the pod says.
        protocol: Option<u8>,
    },
}

/// One side of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// A union.
    pub peers: Vec<Spanned<Peer>>,
    /// Whether all of it could be read; what could not was reported.
    pub complete: bool,
}

/// A part of a rule's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `any`
    Any,
    /// A segment or an address group.
    Name(String),
    /// A CIDR, or an address as a CIDR of full length.
    Network(IpNet),
}

/// A test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// What must happen.
    pub expect: Expect,
    /// Who opens the flow.
    pub from: Spanned<End>,
    /// Who is asked.
    pub to: Spanned<End>,
    /// IP protocol number.
    pub protocol: u8,
    /// Port, or ICMP type.
    pub port: u16,
    /// As it is written.
    pub text: Spanned<String>,
}

/// One end of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A segment.
    Name(String),
    /// An address.
    Address(IpAddr),
    /// A workload that a document describes.
    Workload(String),
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name there.
        name: String,
    },
}
