//! What an attempt should come to, and whether it did.

use ztseg::api::types::{EventRecord, EventVerdict};
use ztseg::present::compact::because;
use ztseg_tests::traffic::Outcome;

/// Who decides.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// A rule, without the policy's name.
    Rule(&'static str),
    /// The default deny of a segment.
    Isolation(&'static str),
}

/// What an attempt should come to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    /// It gets through, by this rule.
    Allowed(&'static str),
    /// It gets through, and would not if every segment enforced.
    Audited(By),
    /// It gets no answer, because of what is leaving (egress) or arriving (ingress).
    Denied(&'static str, By),
}

impl Expected {
    /// Whether the client saw what it should.
    pub(crate) fn fits_outcome(self, outcome: Outcome) -> bool {
        match self {
            Self::Allowed(_) | Self::Audited(_) => outcome == Outcome::Ok,
            // A refusal would be somebody's answer.
            Self::Denied(..) => matches!(outcome, Outcome::Eperm | Outcome::Timeout),
        }
    }

    /// Whether an event says what it should.
    pub(crate) fn fits_event(self, event: &EventRecord) -> bool {
        let (verdict, direction, by) = match self {
            Self::Allowed(rule) => (EventVerdict::Forwarded, None, By::Rule(rule)),
            Self::Audited(by) => (EventVerdict::Audit, None, by),
            Self::Denied(direction, by) => (EventVerdict::Dropped, Some(direction), by),
        };
        let by_fits = match by {
            By::Rule(rule) => event.rule.as_deref() == Some(&*format!("demo/{rule}")),
            By::Isolation(segment) => event.reason == "isolation" && event.isolated_by == [segment],
        };
        event.verdict == verdict && direction.is_none_or(|d| d == event.direction) && by_fits
    }

    /// In words, for a message.
    pub(crate) fn describe(self) -> String {
        let by = |by| match by {
            By::Rule(rule) => format!("by rule demo/{rule}"),
            By::Isolation(segment) => format!("by isolation of segment {segment}"),
        };
        match self {
            Self::Allowed(rule) => format!("allowed {}", by(By::Rule(rule))),
            Self::Audited(who) => format!("allowed, and audited {}", by(who)),
            Self::Denied(direction, who) => format!("denied on {direction} {}", by(who)),
        }
    }
}

/// What the client saw, in words.
pub(crate) fn seen(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "allowed",
        Outcome::Eperm => "denied (EPERM)",
        Outcome::Timeout => "denied (timeout)",
        Outcome::Refused => "refused",
        Outcome::Reset => "reset",
        Outcome::Other => "failed",
    }
}

/// What the agent says, in words.
pub(crate) fn said(event: &EventRecord) -> String {
    match event.verdict {
        EventVerdict::Forwarded => because(event),
        EventVerdict::Audit => format!("audit: {} {}", event.direction, because(event)),
        EventVerdict::Dropped => format!("{} {}", event.direction, because(event)),
    }
}
