//! What is explored.

use crate::protocol::Bounds;
use crate::rules::Rule;

/// Two engines, two members, one write; nothing else happens.
const LEAST: Bounds = Bounds {
    members: 2,
    writes: 1,
    reads: false,
    flushes: false,
    rebuilds: false,
    returns: true,
    successor: true,
    successions: true,
    restarts: false,
    power_cuts: false,
    reformats: false,
    deltas: false,
};

/// A name for people, and what may happen.
pub type Configuration = (&'static str, Bounds);

/// Explored completely by `ci/test`.
pub const PROVED: &[Configuration] = &[
    ("two engines, reads", Bounds { members: 3, reads: true, restarts: true, ..LEAST }),
    ("two engines, two writes", Bounds { members: 3, writes: 2, restarts: true, ..LEAST }),
    ("two engines, rebuild", Bounds { rebuilds: true, returns: false, ..LEAST }),
    (
        "two engines, power cuts",
        Bounds { reads: true, restarts: true, flushes: true, power_cuts: true, ..LEAST },
    ),
    ("two engines, new disks", Bounds { members: 3, reads: true, reformats: true, ..LEAST }),
    (
        "one engine, rebuild, power cuts",
        Bounds {
            writes: 2,
            rebuilds: true,
            flushes: true,
            power_cuts: true,
            reads: true,
            successor: false,
            ..LEAST
        },
    ),
    (
        "one engine, deltas",
        Bounds {
            members: 3,
            rebuilds: true,
            flushes: true,
            deltas: true,
            successor: false,
            ..LEAST
        },
    ),
];

/// Explored completely by `ci/soak`.
pub const PROVED_AT_LENGTH: &[Configuration] = &[
    (
        "two engines, two writes, reads",
        Bounds { members: 3, writes: 2, reads: true, restarts: true, ..LEAST },
    ),
    (
        "two engines, rebuild, reads",
        Bounds { rebuilds: true, returns: false, reads: true, ..LEAST },
    ),
    ("two engines, rebuild and return", Bounds { rebuilds: true, ..LEAST }),
    (
        "two engines, three members, power cuts",
        Bounds { members: 3, flushes: true, power_cuts: true, ..LEAST },
    ),
    (
        "one engine, two writes, deltas",
        Bounds {
            members: 3,
            writes: 2,
            rebuilds: true,
            flushes: true,
            deltas: true,
            successor: false,
            ..LEAST
        },
    ),
];

/// The least in which the world goes wrong without the rule.
pub const fn where_it_matters(rule: Rule) -> Bounds {
    match rule {
        Rule::GrantFirst
        | Rule::RefuseOlderEngine
        | Rule::FenceBeforeAnswer
        | Rule::RemoveBeforeAcknowledge
        | Rule::PingBeforeChange
        | Rule::CompareBeforeSwap
        | Rule::FencedAnswersNothing
        | Rule::LastMemberStays => LEAST,
        Rule::SessionsOrder => Bounds { writes: 2, successor: false, ..LEAST },
        Rule::CheckIncarnation => Bounds { reads: true, reformats: true, ..LEAST },
        Rule::AdvanceBeforeAcknowledge => {
            Bounds { rebuilds: true, deltas: true, flushes: true, successor: false, ..LEAST }
        }
        Rule::RepeatUntilDefinite | Rule::AcknowledgeNeedsUnion | Rule::CandidateConfirms => {
            Bounds { rebuilds: true, successor: false, ..LEAST }
        }
        Rule::ReadyBeforeAdd => Bounds { rebuilds: true, flushes: true, successor: false, ..LEAST },
        Rule::SuspectStaysAway => {
            Bounds { members: 1, power_cuts: true, reads: true, successor: false, ..LEAST }
        }
        Rule::SuspectLeavesAtOpen | Rule::OpenWaitsForTheMissing | Rule::AcknowledgeNeedsLeases => {
            Bounds { power_cuts: true, ..LEAST }
        }
        Rule::ReadNeedsLeasesOfUnion
        | Rule::HelloWaitsForLease
        | Rule::ReadNeedsAllLeases
        | Rule::SettleBeforeRead => Bounds { reads: true, ..LEAST },
        Rule::RestartRemembersLease => Bounds { reads: true, restarts: true, ..LEAST },
    }
}
