//! Why a policy does not compile.

use std::fmt;

/// How much of something a policy needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// Exactly this much.
    Exactly(u64),
    /// More than the limit: counting stopped there. The upper bound does not know which rules
    /// overlap.
    MoreThanLimit {
        /// At most this much.
        at_most: u64,
    },
}

/// The rule that contributes the most entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Largest {
    /// Its name.
    pub rule: String,
    /// Its entries.
    pub entries: u64,
}

/// Why a policy does not compile. Nothing is ever compiled in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    /// It needs more than a ceiling allows.
    Capacity {
        /// What there is too much of.
        what: &'static str,
        /// How much of it the policy needs.
        needed: Needed,
        /// The ceiling.
        limit: u32,
        /// The key below `capacity` that raises it.
        option: &'static str,
        /// Where most of it comes from, for verdict entries.
        largest: Option<Largest>,
    },
    /// The rules tell too many ports apart for a port class to fit its 16 bits.
    PortClasses {
        /// How many classes there may be.
        limit: u32,
    },
    /// So many rules overlap in so many places that the compiler would work for minutes.
    Overlap {
        /// What overlaps.
        what: &'static str,
        /// How many overlaps there are; counting may have stopped early.
        overlaps: u64,
        /// How many there may be.
        limit: u64,
    },
    /// Too many rules that hold for the same flows end one after the other.
    Expiries {
        /// The first of them.
        first: String,
        /// The one that is too many.
        last: String,
        /// How many there may be.
        limit: usize,
    },
    /// A number that stands for no segment of this policy.
    UnknownSegment {
        /// Who names it: a rule or a workload.
        by: String,
        /// The number.
        segment: u32,
    },
}

impl std::error::Error for CompileError {}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity { what, needed, limit, option, largest } => {
                match needed {
                    Needed::Exactly(n) => write!(
                        f,
                        "the policy needs {n} {what}, but capacity.{option} is {limit}; raise \
                         capacity.{option} to at least {n}"
                    )?,
                    Needed::MoreThanLimit { at_most } => write!(
                        f,
                        "the policy needs more than {limit} {what} (at most {at_most}), which is \
                         the value of capacity.{option}; raise capacity.{option}"
                    )?,
                }
                if let Some(Largest { rule, entries }) = largest {
                    write!(
                        f,
                        ", or narrow the rules: the largest, \"{rule}\", needs {entries} (one for \
                         each local class × peer class × port class, counted at both ends)"
                    )?;
                }
                Ok(())
            }
            Self::PortClasses { limit } => write!(
                f,
                "the rules tell more than {limit} groups of ports apart, which is as many as one \
                 policy may have; write ranges instead of single ports"
            ),
            Self::Overlap { what, overlaps, limit } => write!(
                f,
                "the rules' {what} overlap in at least {overlaps} places, and one policy may have \
                 {limit}; merge rules that name the same {what}"
            ),
            Self::Expiries { first, last, limit } => write!(
                f,
                "more than {limit} rules that hold for the same flows end one after the other, \
                 from \"{first}\" to \"{last}\"; give some of them the same `expires`, or remove \
                 those that others cover"
            ),
            Self::UnknownSegment { by, segment } => write!(
                f,
                "{by} names segment number {segment}, which this policy does not define; this is \
                 an error in ztseg, please report it"
            ),
        }
    }
}
