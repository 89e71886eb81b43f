//! Which flows change between two policies: exactly, from the classes of both, not by sampling.
//!
//! A flow is (who opens it, who is asked, protocol and port). Both policies divide workloads
//! ([`workloads`]), addresses ([`addresses`]) and ports ([`ports`]) into parts that they treat
//! alike; the evaluator that the kernel runs is asked once for each combination of parts that
//! something which changed can reach ([`changed`]), and what flips is put together ([`group`]).
//! Pure: the moment and the workloads are passed in.

mod addresses;
mod changed;
mod flows;
mod group;
mod ports;
#[cfg(test)]
mod tests;
pub mod workloads;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use self::changed::Changed;
use self::workloads::Workload;
use crate::explain::Answer;
use crate::image::Image;
use crate::policy::compile::{CompileError, for_questions};
use crate::policy::resolved::{PortRange, Resolved};

/// What changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Flows that are alike, together; what is denied from now on comes first.
    pub changes: Vec<Change>,
}

/// Flows whose verdict flips: each of `from` to each of `to` on each of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What the new policy says.
    pub now: Answer,
    /// Who opens them.
    pub from: Vec<End>,
    /// Who is asked.
    pub to: Vec<End>,
    /// `tcp/443`, `udp/8000-8099`; `any` where it is all of them.
    #[serde(serialize_with = "as_written")]
    pub ports: Vec<PortRange>,
    /// What decided under the old policy.
    pub before: String,
    /// What decides under the new one.
    pub after: String,
}

fn as_written<S: Serializer>(ports: &[PortRange], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(ports.iter().map(ToString::to_string))
}

/// One end of flows that change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// The workload's segments, with what becomes of them (`web`, `web+api`, `web (now front)`);
    /// none for an end that is no workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The addresses that the flow uses for it; none where they do not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
}

/// A part of the address space.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// In these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<IpNet>,
    /// And every IPv4 address that no rule of either policy holds by a CIDR.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub other_ipv4: bool,
    /// And every IPv6 address that no rule of either policy holds by a CIDR.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub other_ipv6: bool,
}

/// One of the two policies, compiled for the workloads that are compared.
#[derive(Debug)]
struct Side<'a> {
    resolved: &'a Resolved,
    image: Image,
}

/// Compares two policies at a moment, for these workloads ([`workloads::of`]).
///
/// # Errors
/// One of them does not compile.
pub fn diff(
    old: &Resolved,
    new: &Resolved,
    now: Timestamp,
    workloads: &[Workload],
) -> Result<Diff, CompileError> {
    let side = |resolved, index: usize| {
        let sets = workloads.iter().map(|workload| &workload.segments[index]);
        Ok::<_, CompileError>(Side { resolved, image: for_questions(resolved, sets)? })
    };
    let sides = [side(old, 0)?, side(new, 1)?];
    let scene = flows::Scene {
        addresses: addresses::partition(&sides),
        ports: ports::partition(&sides),
        changed: Changed::new(&sides, workloads),
        workloads,
        sides: &sides,
        now,
    };
    Ok(Diff { changes: group::group(scene.flips(), &scene) })
}
