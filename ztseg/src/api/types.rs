//! What the API's bodies look like. Names are in camel case and stable; fields are only added.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What an event reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventVerdict {
    /// Denied.
    Dropped,
    /// It passed, but would have been denied if every policy enforced.
    Audit,
    /// It passed, and its rule asks for a report.
    Forwarded,
}

/// One event; one JSON line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// When, UTC.
    pub time: Timestamp,
    /// What happened.
    pub verdict: EventVerdict,
    /// `ingress` or `egress`: of the flow, as its subject sees it.
    pub direction: String,
    /// The name of the reason ([`ztseg_common::verdict::Reason::name`]).
    pub reason: String,
    /// The deciding rule, `policy/name`.
    pub rule: Option<String>,
    /// With the reasons `isolation` and `packet-socket`: the segments whose isolation it met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated_by: Vec<String>,
    /// The generation that judged.
    pub generation: u32,
    /// The subject's name.
    pub workload: String,
    /// The subject's segments.
    pub segments: Vec<String>,
    /// The subject's end.
    pub local: End,
    /// The other end.
    pub peer: Peer,
    /// The protocol's name, or its number; at the hook `socket-create` the address family's name.
    pub proto: String,
    /// TCP flags as tcpdump writes them.
    pub tcp_flags: Option<String>,
    /// ICMP type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Which hook judged.
    pub hook: String,
    /// Process id, where one can be named.
    pub pid: Option<u32>,
    /// The process's command name.
    pub comm: Option<String>,
    /// How many packets this stands for.
    pub count: u32,
}

/// An end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// The other end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Its workload, where it is on this host and known.
    pub workload: Option<String>,
    /// Its segments, where they are known.
    pub segments: Vec<String>,
}

/// Says in JSON which kind of line a [`SecurityRecord`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityKind {
    /// `security`
    Security,
}

/// Somebody altered what the agent had put into the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityRecord {
    /// When it was noticed, UTC.
    pub time: Timestamp,
    /// `security`
    pub kind: SecurityKind,
    /// What kind of change ([`crate::datapath::Tampering::name`]).
    pub what: String,
    /// What it concerns: a program and where it was attached, a pin, a map.
    pub object: String,
    /// Whether it was put right.
    pub repaired: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One line of the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventLine {
    /// An event.
    Event(Box<EventRecord>),
    /// Something that somebody altered.
    Security(SecurityRecord),
    /// The reader was too slow for so many events, which it lost here.
    Lost {
        /// How many.
        lost: u64,
    },
}

impl From<EventRecord> for EventLine {
    fn from(event: EventRecord) -> Self {
        Self::Event(Box::new(event))
    }
}

impl From<SecurityRecord> for EventLine {
    fn from(record: SecurityRecord) -> Self {
        Self::Security(record)
    }
}

impl EventLine {
    /// The event, if it is one.
    pub fn event(&self) -> Option<&EventRecord> {
        match self {
            Self::Event(event) => Some(event),
            Self::Security(_) | Self::Lost { .. } => None,
        }
    }
}

/// An error, with what to do about it in its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: String,
}

/// Body of an apply, where without one what is configured is read again; and the policy in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The files of the whole policy: an apply keeps nothing of what runs now.
    pub files: Vec<PolicyFile>,
}

/// One policy file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// The name to show.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// What an apply did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The generation that is in force now.
    pub generation: u32,
    /// How many files were read.
    pub files: usize,
    /// Segments in the policy.
    pub segments: usize,
    /// Rules in the policy.
    pub rules: usize,
    /// Local workloads that some segment knows.
    pub workloads: usize,
    /// What should be looked at though it is no error.
    pub warnings: Vec<String>,
}

/// A local workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadInfo {
    /// Its name: path below the cgroup root, or interface.
    pub name: String,
    /// `cgroup` or `interface`.
    pub kind: String,
    /// cgroup id or interface index.
    pub id: u64,
    /// The names of its segments.
    pub segments: Vec<String>,
}

/// A moment and what went wrong then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// When.
    pub at: Timestamp,
    /// What, as text of one or more lines.
    pub message: String,
}

/// A program in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// Its name.
    pub name: String,
    /// The kernel's id.
    pub id: u32,
    /// Where it is attached.
    pub attached: Vec<String>,
    /// Instructions that the verifier processed.
    pub verified_instructions: u32,
}

/// A map in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Map {
    /// Its name.
    pub name: String,
    /// Entries that it may hold.
    pub max_entries: u32,
    /// Bytes of kernel memory.
    pub bytes: u64,
}

/// How much of a ceiling (configuration key `capacity`) is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// The key below `capacity`.
    pub option: String,
    /// Entries in use.
    pub used: usize,
    /// The ceiling.
    pub limit: u32,
}

/// Something that this kernel and these hooks cannot promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Stable name.
    pub id: String,
    /// What is not promised.
    pub what: String,
    /// What to do where it matters.
    pub instead: String,
}

/// Where the policy in force came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configured files.
    #[default]
    Configured,
    /// Files that `ztseg apply FILE` sent; the configured ones come back with the next reload.
    Sent,
    /// The last good policy: the configured files were broken when the agent started
    /// (`boot: closed`).
    #[serde(rename = "last-good")]
    LastGood,
    /// None could be loaded: all is closed but failsafe and loopback (`boot: closed`).
    Closed,
}

/// What stays open for the host itself whatever the policy says; nothing where a list is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failsafe {
    /// Ports that peers reach, as the configuration has them: `tcp:22`.
    pub inbound: Vec<String>,
    /// Ports of peers that are reached.
    pub outbound: Vec<String>,
    /// The units that have the same as the host.
    pub units: Vec<String>,
    /// The workloads that have it now: the host, units that are there, the host's side of
    /// interfaces.
    pub workloads: Vec<String>,
}

/// The agent's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Version of the kernel layouts, part of the pins' path.
    pub abi: u32,
    /// The agent's process id.
    pub pid: u32,
    /// The kernel's release.
    pub kernel: String,
    /// Since when the agent runs.
    pub started_at: Timestamp,
    /// The generation in force.
    pub generation: u32,
    /// When it was committed.
    pub applied_at: Timestamp,
    /// The whole agent only reports (`--audit`).
    pub audit: bool,
    /// Where the policy came from.
    pub origin: Origin,
    /// The files that it was read from.
    pub policies: Vec<String>,
    /// Segments in the policy.
    pub segments: usize,
    /// Rules in the policy.
    pub rules: usize,
    /// What stays open whatever the policy says.
    #[serde(default)]
    pub failsafe: Failsafe,
    /// What should be looked at though it is no error.
    pub warnings: Vec<String>,
    /// What went wrong last; gone when it went well again.
    pub last_error: Option<Problem>,
    /// Local workloads, by segment.
    pub workloads_by_segment: BTreeMap<String, usize>,
    /// Local workloads.
    pub workloads: usize,
    /// cgroups seen.
    pub cgroups: usize,
    /// How cgroups are watched: `inotify`, or why and how else.
    pub cgroup_watch: String,
    /// Where the cgroup programs are attached.
    pub cgroup_root: String,
    /// Where the pins are.
    pub bpffs: String,
    /// The programs and where they are attached.
    pub hooks: Vec<Program>,
    /// What somebody altered in the kernel, by kind: how often that was noticed.
    #[serde(default)]
    pub tampering: BTreeMap<String, u64>,
    /// The last of these, oldest first.
    #[serde(default)]
    pub security: Vec<SecurityRecord>,
    /// The kernel's counters, summed over CPUs.
    pub counters: BTreeMap<String, u64>,
    /// Records that could not be decoded.
    pub events_undecodable: u64,
    /// Local TCP sockets that were destroyed, to tell their applications that they are denied
    /// (`reject`).
    #[serde(default)]
    pub sockets_destroyed: u64,
    /// Sockets that are older than the programs, and whose that was found out.
    #[serde(default)]
    pub sockets_adopted: u64,
    /// Those whose it was not, at the last look.
    #[serde(default)]
    pub sockets_unknown: u64,
    /// Events that slow readers lost.
    pub events_lost_by_readers: u64,
    /// How full the ceilings are.
    pub capacity: Vec<Fill>,
    /// The maps.
    pub maps: Vec<Map>,
    /// Bytes of all maps together.
    pub map_bytes: u64,
    /// What cannot be promised here.
    pub limits: Vec<Limit>,
}
