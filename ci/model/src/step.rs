//! What may happen, one thing at a time.

use std::fmt;

use crate::state::{ENGINES, REPLICAS};
use crate::values::Value;

/// `e` is an engine, `r` a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Submit { e: usize },
    Acknowledge { e: usize },
    Flush { e: usize },
    Clear { e: usize },
    Fetch { e: usize, r: usize },
    AnswerRead,
    AbandonRead,
    Perform { e: usize, r: usize },
    PerformOld { e: usize, r: usize, value: Value },
    Hello { e: usize, r: usize },
    Disconnect { e: usize, r: usize },
    Restart { r: usize },
    PowerCut { r: usize, lost: bool },
    Reformat { r: usize },
    Copy { e: usize, r: usize },
    Ready { e: usize, r: usize },
    ProposeRemoval { e: usize, kept: u8 },
    ProposeAddition { e: usize, r: usize },
    GiveUp { e: usize },
    ArbiterApplies { e: usize },
    Learn { e: usize },
    Advance { e: usize, r: usize },
    Grant,
    DecideWhoStays,
    Settle { e: usize, r: usize },
    Crash { e: usize },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = |e: usize| ["E1", "E2"][e];
        let replica = |r: usize| ["A", "B", "C"][r];
        match *self {
            Self::Submit { e } => write!(f, "a client sends {} a write", engine(e)),
            Self::Acknowledge { e } => write!(f, "{} acknowledges the write", engine(e)),
            Self::Flush { e } => write!(f, "{} answers a FLUSH", engine(e)),
            Self::Clear { e } => write!(f, "{} clears the marks", engine(e)),
            Self::Fetch { e, r } => {
                write!(f, "{} reads from {}, and hasn't answered", engine(e), replica(r))
            }
            Self::AnswerRead => write!(f, "the read is answered"),
            Self::AbandonRead => write!(f, "the read gets no answer"),
            Self::Perform { e, r } => {
                write!(f, "{} does {}'s write and confirms it", replica(r), engine(e))
            }
            Self::PerformOld { e, r, value } => {
                write!(f, "{} does write {value} of an old session of {}", replica(r), engine(e))
            }
            Self::Hello { e, r } => write!(f, "{} greets {}", engine(e), replica(r)),
            Self::Disconnect { e, r } => write!(f, "{} loses {}", engine(e), replica(r)),
            Self::Restart { r } => write!(f, "{} is killed and restarted", replica(r)),
            Self::PowerCut { r, lost: true } => {
                write!(f, "{} loses power and what wasn't synced", replica(r))
            }
            Self::PowerCut { r, lost: false } => {
                write!(f, "{} loses power and nothing else", replica(r))
            }
            Self::Reformat { r } => write!(f, "{}'s directory is made anew", replica(r)),
            Self::Copy { e, r } => {
                write!(f, "{} copies what is missing to {}", engine(e), replica(r))
            }
            Self::Ready { r, .. } => write!(f, "{} has synced everything", replica(r)),
            Self::ProposeRemoval { e, kept } => {
                let kept: String =
                    (0..REPLICAS).filter(|r| kept & 1 << r != 0).map(replica).collect();
                write!(f, "{} asks for the set {{{kept}}}", engine(e))
            }
            Self::ProposeAddition { e, r } => write!(f, "{} asks to add {}", engine(e), replica(r)),
            Self::GiveUp { e } => write!(f, "{} takes no answer for a no", engine(e)),
            Self::ArbiterApplies { e } => write!(f, "the arbiter applies {}'s change", engine(e)),
            Self::Learn { e } => write!(f, "{} learns what became of it", engine(e)),
            Self::Advance { e, r } => write!(f, "{} makes {}'s set durable", replica(r), engine(e)),
            Self::Grant => write!(f, "E2 is started"),
            Self::DecideWhoStays => write!(f, "E2 waits no longer for answers"),
            Self::Settle { e, r } => write!(f, "{} makes all like {}", engine(e), replica(r)),
            Self::Crash { e } => write!(f, "{} is killed", engine(e)),
        }
    }
}

/// Everything that might be tried in a state.
pub fn candidates() -> impl Iterator<Item = Step> {
    let of_engine = |e| {
        let of_replica = move |r| {
            [
                Step::Fetch { e, r },
                Step::Perform { e, r },
                Step::PerformOld { e, r, value: 1 },
                Step::PerformOld { e, r, value: 2 },
                Step::Hello { e, r },
                Step::Disconnect { e, r },
                Step::Copy { e, r },
                Step::Ready { e, r },
                Step::ProposeAddition { e, r },
                Step::Advance { e, r },
                Step::Settle { e, r },
            ]
        };
        let alone = [
            Step::Submit { e },
            Step::Acknowledge { e },
            Step::Flush { e },
            Step::Clear { e },
            Step::GiveUp { e },
            Step::ArbiterApplies { e },
            Step::Learn { e },
            Step::Crash { e },
        ];
        let removals = (0..1 << REPLICAS).map(move |kept| Step::ProposeRemoval { e, kept });
        alone.into_iter().chain(removals).chain((0..REPLICAS).flat_map(of_replica))
    };
    let of_replica = |r| {
        let cut = |lost| Step::PowerCut { r, lost };
        [Step::Restart { r }, cut(false), cut(true), Step::Reformat { r }]
    };
    [Step::AnswerRead, Step::AbandonRead, Step::Grant, Step::DecideWhoStays]
        .into_iter()
        .chain((0..ENGINES).flat_map(of_engine))
        .chain((0..REPLICAS).flat_map(of_replica))
}
