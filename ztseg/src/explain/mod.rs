//! "Why may this end open that flow, or why may it not?"
//!
//! Both ends' decisions come from the evaluator that the kernel runs ([`crate::judge`]); beside
//! them stands each rule that was asked, with what it said and why ([`trace`]), and for a denial
//! the shortest rule that would change it ([`proposal`]). Pure: the moment and everything that is
//! known of workloads is passed in.

pub mod place;
mod proposal;
#[cfg(test)]
mod tests;
mod trace;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ztseg_common::verdict::{Direction, Verdict};

use self::place::{Place, Places};
pub use self::trace::{Considered, Outcome};
use crate::image::Image;
use crate::judge::{EndJudgement, Flow, judge};
use crate::policy::parse::port;
use crate::policy::resolved::{PortRange, Resolved};

/// A question as people write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Who opens the flow; see [`Places::find`] for what it may be.
    pub from: String,
    /// Who is asked.
    pub to: String,
    /// `tcp/443`, `icmp/echo-request`.
    pub service: String,
}

/// A question that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    from: Place,
    to: Place,
    protocol: u8,
    port: u16,
}

impl Asked {
    /// Understands a question.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead.
    pub fn new(places: &Places<'_>, question: &Question) -> Result<Self, String> {
        let (protocol, port) = port::one(&question.service)?;
        let (from, to) = (places.find(&question.from)?, places.find(&question.to)?);
        if from.is_elsewhere() && to.is_elsewhere() {
            return Err(format!(
                "neither `{}` nor `{}` is a workload, so no policy holds for the flow; write a \
                 segment, a workload or a pod for one of them",
                question.from, question.to
            ));
        }
        let families = [from.is_v4(), to.is_v4(), port::is_v4(protocol)];
        if families.contains(&Some(true)) && families.contains(&Some(false)) {
            return Err(format!(
                "`{}`, `{}` and `{}` mix IPv4 and IPv6; no such flow can be (`icmp` is IPv4, \
                 `icmpv6` is IPv6)",
                question.from, question.to, question.service
            ));
        }
        // A pod has addresses of both families; the flow has one.
        let v4 = families.into_iter().flatten().next();
        Ok(Self { from: from.of_family(v4), to: to.of_family(v4), protocol, port })
    }

    /// The sets of segments that an image must have classes for.
    pub fn sets(&self) -> impl Iterator<Item = &crate::image::SegmentSet> {
        [&self.from, &self.to].into_iter().filter_map(|place| place.end.workload.as_ref())
    }

    fn service(&self) -> PortRange {
        PortRange::one(self.protocol, self.port)
    }

    fn flow(&self) -> Flow {
        Flow {
            from: self.from.end.clone(),
            to: self.to.end.clone(),
            protocol: self.protocol,
            port: self.port,
        }
    }
}

/// The answer: what `ztseg explain -o json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who opens the flow.
    pub from: EndInfo,
    /// Who is asked.
    pub to: EndInfo,
    /// `tcp/443`
    pub service: String,
    /// Over both ends.
    pub verdict: Answer,
    /// It passes, and would be denied if every policy enforced.
    pub audit: bool,
    /// What the opener's end says; absent where it is not a workload.
    pub egress: Option<EndExplanation>,
    /// What the other end says.
    pub ingress: Option<EndExplanation>,
    /// For what is denied: the rule, as an entry of `spec.allow` of a `SegmentPolicy`, that would
    /// allow it. Absent where no rule could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposal: Option<String>,
    /// What the answer rests on that may be otherwise for a real packet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One end of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndInfo {
    /// As it was asked for.
    pub name: String,
    /// What it is: `segment`, `cgroup`, `host`, `interface`, `pod` or `address`.
    pub kind: place::Kind,
    /// The workload that it belongs to, where that has another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its segments.
    pub segments: Vec<String>,
    /// Its address, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
}

/// A verdict, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Deny,
        }
    }
}

/// What one end says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndExplanation {
    /// Its verdict.
    pub verdict: Answer,
    /// It passes here, and would be denied if every policy enforced.
    pub audit: bool,
    /// The rule that allows it asks for a report of that.
    #[serde(default)]
    pub log: bool,
    /// The rule or the isolation that denies it asks for an answer to that.
    #[serde(default)]
    pub reject: bool,
    /// The name of the reason ([`ztseg_common::verdict::Reason::name`]).
    pub reason: String,
    /// The rule that decided; with `audit` the one that would deny.
    pub rule: Option<String>,
    /// Where that rule stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Where isolation decided: the segments whose it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated_by: Vec<String>,
    /// All this in a sentence.
    pub summary: String,
    /// Each rule that holds for this end in this direction, in the order of evaluation.
    pub rules: Vec<Considered>,
    /// How many rules are about other workloads or the other direction.
    pub others: usize,
}

/// Answers a question at a moment. `image` must be compiled from `resolved`.
///
/// `None` when the image has no classes for a set of [`Asked::sets`].
pub fn explain(
    resolved: &Resolved,
    image: &Image,
    now: Timestamp,
    asked: &Asked,
) -> Option<Explanation> {
    let judgement = judge(resolved, image, now, &asked.flow())?;
    let end = |judged: &Option<EndJudgement<'_>>| {
        let judged = judged.as_ref()?;
        let (subject, peer) = match judged.direction {
            Direction::Egress => (&asked.from, &asked.to),
            Direction::Ingress => (&asked.to, &asked.from),
        };
        let ends = trace::Ends { subject, peer, direction: judged.direction };
        let (rules, others) = trace::trace(resolved, now, &ends, asked.service());
        Some(EndExplanation {
            verdict: judged.decision.verdict.into(),
            audit: judged.decision.audit,
            log: judged.decision.log,
            reject: judged.decision.reject,
            reason: judged.decision.reason.name().into(),
            rule: judged.rule.map(|rule| rule.name.clone()),
            position: judged.rule.map(|rule| rule.position.to_string()),
            isolated_by: judged.isolating.iter().map(|s| s.name.clone()).collect(),
            summary: judged.to_string(),
            rules,
            others,
        })
    };
    let (egress, ingress) = (end(&judgement.egress), end(&judgement.ingress));
    let audit = judgement.ends().any(|end| end.decision.audit);
    let verdict = judgement.verdict();
    let denied = verdict == Verdict::Deny || audit;
    let proposal = denied.then(|| proposal::proposal(resolved, now, asked)).flatten();
    Some(Explanation {
        from: info(resolved, &asked.from),
        to: info(resolved, &asked.to),
        service: asked.service().to_string(),
        verdict: verdict.into(),
        audit: verdict == Verdict::Allow && audit,
        notes: trace::notes(resolved, asked),
        egress,
        ingress,
        proposal,
    })
}

fn info(resolved: &Resolved, place: &Place) -> EndInfo {
    EndInfo {
        name: place.name.clone(),
        kind: place.kind,
        workload: place.workload.clone(),
        segments: place.end.workload.as_ref().map(|set| resolved.names(set)).unwrap_or_default(),
        address: place.end.address,
    }
}
