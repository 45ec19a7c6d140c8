//! Which copy to trust when no member of the record can open the volume. Pure.
//!
//! Owns the rules of salvage: whether it is its turn ([`turn`]), and which directory is best and
//! how sure that is ([`choose`]). What may never happen: a copy wins because of its fence (a stale
//! replica raised it when it came back to be rebuilt), or one that may be stale is taken for sure.
//!
//! ```text
//! directories ─▶ evidence ─▶ turn ──members can open──▶ refused
//!                              └─▶ choose ─▶ best copy, what it may lack, what is lost ─▶ a person
//! ```

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::inspect::{Content, Evidence, Found, ReplicaEvidence};
use crate::record::{Member, Record};
use crate::store::ReplicaState;
use crate::types::{Generation, ReplicaId};

/// The place of one replica of the volume, and what was found there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exhibit {
    pub replica: ReplicaId,
    pub evidence: Evidence,
}

/// Whether a person has to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "turn")]
pub enum Turn {
    /// The record is older than what a replica has seen: it was brought back from a copy. It may
    /// name replicas that have left the set since.
    RolledBack { by: ReplicaId, seen: Generation },
    /// There is no record: only the copies themselves tell who was in sync.
    RecordLost,
    /// No member of the record can open the volume.
    NoMember,
    /// A member may hold acknowledged writes that the others lost, and can't be found.
    MemberMissing { missing: Vec<ReplicaId> },
    /// There is nothing to choose.
    CanOpen { members: Vec<ReplicaId> },
}

/// What a salvage would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// Copies that could be taken, the best first.
    pub order: Vec<ReplicaId>,
    /// The copy that the volume would be from then on.
    pub chosen: Option<Member>,
    /// Why this one, in words; or why none.
    pub why: String,
    /// Members of the newest in-sync set that any copy knows, of which none was found.
    pub missing: Vec<Member>,
    /// Why the choice may be stale, in words. Not empty: it needs an explicit yes.
    pub doubts: Vec<String>,
    /// What is lost by it, in words.
    pub losses: Vec<String>,
    /// The newest generation that any copy has seen.
    pub above: Option<Generation>,
}

/// A copy that can be opened, whoever trusts it.
struct Candidate<'a> {
    replica: &'a ReplicaEvidence,
    content: &'a Content,
}

impl Candidate<'_> {
    fn member(&self) -> Member {
        member_of(self.replica)
    }

    fn is_failed(&self) -> bool {
        self.replica.state == ReplicaState::Failed
    }

    /// Ascending: the best copy first.
    fn rank(&self) -> impl Ord + use<> {
        let Content { continuous, unverified_blocks, .. } = *self.content;
        (
            Reverse(self.replica.synced_gen),
            Reverse(self.replica.epoch.begun),
            self.is_failed(),
            !continuous,
            unverified_blocks,
            self.replica.replica.clone(),
        )
    }
}

fn member_of(replica: &ReplicaEvidence) -> Member {
    Member { replica: replica.replica.clone(), incarnation: replica.incarnation }
}

/// Copies of this volume, whatever they are worth.
fn copies<'a>(
    volume: &'a str,
    exhibits: &'a [Exhibit],
) -> impl Iterator<Item = &'a ReplicaEvidence> {
    exhibits.iter().filter_map(move |exhibit| {
        let replica = exhibit.evidence.replica()?;
        (replica.volume == volume && replica.replica == exhibit.replica).then_some(replica)
    })
}

/// Those of them that hold all of something: what was in sync once, or is known by the record.
fn candidates<'a>(
    volume: &'a str,
    exhibits: &'a [Exhibit],
    record: Option<&Record>,
) -> Vec<Candidate<'a>> {
    let whole = |replica: &'a ReplicaEvidence| {
        let content = replica.content.as_ref().filter(|content| !content.partial)?;
        let known = record.is_some_and(|record| record.in_sync.contains(&member_of(replica)));
        let held_all = replica.synced_gen.is_some() || replica.state == ReplicaState::Ready;
        (known || held_all).then_some(Candidate { replica, content })
    };
    copies(volume, exhibits).filter_map(whole).collect()
}

/// The newest fence of any copy, and whose it is.
fn newest_fence<'a>(
    volume: &'a str,
    exhibits: &'a [Exhibit],
) -> Option<(Generation, &'a ReplicaId)> {
    let fences = copies(volume, exhibits)
        .filter_map(|replica| Some((replica.fence?.generation, &replica.replica)));
    fences.max()
}

/// Whether it is salvage's turn. `client_waits`: a client of an engine that died may still wait for
/// its answers, so a member that is missing may hold what the others must not do without.
pub fn turn(
    volume: &str,
    exhibits: &[Exhibit],
    record: Option<&Record>,
    client_waits: bool,
) -> Turn {
    let Some(record) = record else { return Turn::RecordLost };
    if let Some((seen, by)) = newest_fence(volume, exhibits)
        && seen > record.generation
    {
        return Turn::RolledBack { by: by.clone(), seen };
    }
    let candidates = candidates(volume, exhibits, Some(record));
    let members = candidates.iter().filter(|copy| record.in_sync.contains(&copy.member()));
    let agreed = members.clone().map(|copy| copy.replica.epoch.agreed).max().unwrap_or(0);
    // An older copy of a member isn't that member (rule 10b).
    let usable: Vec<_> =
        members.filter(|copy| !copy.is_failed() && copy.replica.epoch.begun >= agreed).collect();
    let names = |copies: &[&Candidate<'_>]| {
        copies.iter().map(|copy| copy.replica.replica.clone()).collect::<Vec<_>>()
    };
    let continuous: Vec<_> =
        usable.iter().copied().filter(|copy| copy.content.continuous).collect();
    if !continuous.is_empty() {
        return Turn::CanOpen { members: names(&continuous) };
    }
    if usable.is_empty() {
        return Turn::NoMember;
    }
    let present = names(&usable);
    let members = record.in_sync.iter().map(|member| &member.replica);
    let missing: Vec<_> = members.filter(|member| !present.contains(member)).cloned().collect();
    if missing.is_empty() || !client_waits {
        return Turn::CanOpen { members: present };
    }
    Turn::MemberMissing { missing }
}

/// The best copy, or `wanted` if a person names one, and how sure that is.
pub fn choose(
    volume: &str,
    exhibits: &[Exhibit],
    record: Option<&Record>,
    wanted: Option<&ReplicaId>,
) -> Choice {
    let mut candidates = candidates(volume, exhibits, record);
    candidates.sort_by_cached_key(Candidate::rank);
    let chosen = match wanted {
        Some(wanted) => candidates.iter().find(|copy| copy.replica.replica == *wanted),
        None => candidates.first(),
    };
    let above = newest_fence(volume, exhibits).map(|(generation, _)| generation);
    let newest = copies(volume, exhibits).max_by_key(|replica| replica.synced_gen);
    let found: Vec<_> = candidates.iter().map(Candidate::member).collect();
    let set = newest.map_or(&[][..], |newest| &newest.synced_set);
    let missing: Vec<Member> = set.iter().filter(|one| !found.contains(one)).cloned().collect();
    let mut choice = Choice {
        order: candidates.iter().map(|copy| copy.replica.replica.clone()).collect(),
        chosen: chosen.map(Candidate::member),
        why: String::new(),
        missing,
        doubts: Vec::new(),
        losses: Vec::new(),
        above,
    };
    match chosen {
        Some(chosen) => {
            choice.why = why(chosen, &candidates);
            choice.doubts = doubts(chosen, newest, &choice.missing, exhibits, record, &found);
            choice.losses = losses(chosen, &candidates, !choice.doubts.is_empty());
        }
        None => choice.why = why_none(exhibits, wanted),
    }
    choice
}

fn why(chosen: &Candidate<'_>, candidates: &[Candidate<'_>]) -> String {
    let who = &chosen.replica.replica;
    let others: Vec<_> =
        candidates.iter().filter(|other| other.member() != chosen.member()).collect();
    let synced = chosen.replica.synced_gen;
    let text = match synced {
        Some(synced) => format!("{who} was last in sync in {synced}"),
        None => format!("{who} has everything, but was never told that it is in sync"),
    };
    if others.is_empty() {
        return format!("{text}, and there is no other whole copy");
    }
    if let Some(better) = others.iter().find(|other| other.rank() < chosen.rank()) {
        return format!("{text}; you named it, though {} is better", better.replica.replica);
    }
    let equals: Vec<_> = others.iter().filter(|other| other.replica.synced_gen == synced).collect();
    if equals.is_empty() {
        return format!("{text}, later than any other");
    }
    let unverified = chosen.content.unverified_blocks;
    let reason = if !chosen.is_failed() && equals.iter().all(|other| other.is_failed()) {
        "the others of that generation failed"
    } else if chosen.content.continuous && equals.iter().all(|other| !other.content.continuous) {
        "the others of that generation may have lost unflushed writes"
    } else if equals.iter().all(|other| other.content.unverified_blocks > unverified) {
        "it has fewer sums that had to be rebuilt than others of that generation"
    } else {
        "others of that generation are as good"
    };
    format!("{text}, as late as any; {reason}")
}

fn why_none(exhibits: &[Exhibit], wanted: Option<&ReplicaId>) -> String {
    let of = |exhibit: &Exhibit| format!("{}: {}", exhibit.replica, shortcoming(exhibit));
    match wanted.map(|wanted| exhibits.iter().find(|exhibit| exhibit.replica == *wanted)) {
        Some(Some(exhibit)) => format!("{} can't be taken", of(exhibit)),
        Some(None) => "the volume has no replica of that name".into(),
        None => {
            let all: Vec<_> = exhibits.iter().map(of).collect();
            format!("no directory holds a whole copy ({})", all.join("; "))
        }
    }
}

/// Why the copy isn't one that could be taken.
fn shortcoming(exhibit: &Exhibit) -> String {
    match &exhibit.evidence.found {
        Found::Missing => "its directory is gone".into(),
        Found::Empty => "its directory is empty".into(),
        Found::HalfFormatted => "its directory was never finished".into(),
        Found::Foreign { file } => format!("its directory holds something else ({file:?})"),
        Found::Unreadable { why } => format!("its directory can't be read ({why})"),
        Found::Replica(replica) => match &replica.content {
            None => format!("it can't be opened ({})", replica.problems.join("; ")),
            Some(content) if content.partial => "a rebuild was filling it: it has a part".into(),
            Some(_) if replica.replica != exhibit.replica => {
                let Member { replica, .. } = member_of(replica);
                format!("its directory holds {replica}")
            }
            Some(_) => format!(
                "it is a copy of volume {}, state {:?}, that was never in sync",
                replica.volume, replica.state
            ),
        },
    }
}

/// Reasons to think that a newer copy exists, or existed, somewhere.
fn doubts(
    chosen: &Candidate<'_>,
    newest: Option<&ReplicaEvidence>,
    missing: &[Member],
    exhibits: &[Exhibit],
    record: Option<&Record>,
    found: &[Member],
) -> Vec<String> {
    let mut doubts = Vec::new();
    let who = &chosen.replica.replica;
    let newest_gen = newest.and_then(|newest| newest.synced_gen);
    if chosen.replica.synced_gen < newest_gen
        && let Some(newest) = newest
        && let Some(synced) = newest_gen
    {
        doubts.push(format!("{} was in sync later than {who}, in {synced}", newest.replica));
    }
    for member in missing {
        let exhibit = exhibits.iter().find(|exhibit| exhibit.replica == member.replica);
        let why = exhibit.map_or("nobody knows its directory".into(), |exhibit| {
            match exhibit.evidence.replica() {
                Some(replica) if replica.incarnation != member.incarnation => {
                    "its directory was made anew".into()
                }
                _ => shortcoming(exhibit),
            }
        });
        let synced = newest_gen.map_or("the last known set".into(), |synced| synced.to_string());
        doubts.push(format!(
            "{} was in sync with it in {synced}, and isn't there: {why}",
            member.replica
        ));
    }
    if let Some(record) = record
        && !is_rolled_back(record, exhibits)
        && !record.in_sync.iter().any(|member| found.contains(member))
    {
        let names: Vec<_> = record.in_sync.iter().map(|one| one.replica.to_string()).collect();
        doubts.push(format!(
            "the record, at {}, says that {} had every acknowledged write, and of those none is left",
            record.generation,
            names.join(", ")
        ));
    }
    let is_new = record.is_some_and(|record| record.generation <= Generation::FIRST.next());
    if chosen.replica.synced_gen.is_none() && !is_new {
        doubts.push(format!("{who} doesn't know when it was in sync last"));
    }
    doubts
}

fn is_rolled_back(record: &Record, exhibits: &[Exhibit]) -> bool {
    let fences = exhibits.iter().filter_map(|exhibit| exhibit.evidence.replica()?.fence);
    fences.into_iter().any(|fence| fence.generation > record.generation)
}

fn losses(chosen: &Candidate<'_>, candidates: &[Candidate<'_>], doubtful: bool) -> Vec<String> {
    let who = &chosen.replica.replica;
    let mut losses = Vec::new();
    if doubtful {
        let since = chosen.replica.synced_gen;
        let since = since.map_or("it was made".into(), |synced| synced.to_string());
        losses
            .push(format!("whatever was written without {who} since {since}, acknowledged or not"));
    }
    if chosen.is_failed() {
        losses
            .push(format!("perhaps writes that {who}'s disk failed to keep: it is trusted again"));
    } else if !chosen.content.continuous {
        let regions = chosen.content.marked_regions;
        losses.push(format!("perhaps writes that weren't flushed, in {regions} MiB of {who}"));
    }
    for other in candidates {
        let only = other.content.snapshots.iter();
        let only: Vec<_> =
            only.filter(|name| !chosen.content.snapshots.contains(name)).cloned().collect();
        if !only.is_empty() {
            let names = only.join(", ");
            losses.push(format!("snapshots that only {} has: {names}", other.replica.replica));
        }
    }
    let others: Vec<_> = candidates
        .iter()
        .map(|other| other.replica.replica.to_string())
        .filter(|other| *other != who.to_string())
        .collect();
    if !others.is_empty() {
        losses.push(format!(
            "the other copies ({}): they are filled again from {who}, in full",
            others.join(", ")
        ));
    }
    losses
}
