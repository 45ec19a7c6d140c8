//! The plan of a replica on its node.
//!
//! ```text
//! nothing there ──may be made──▶ formatted ──served──▶ its process ──not served──▶ stopped
//! another one is to be in its place: ended ─▶ set aside ─▶ formatted
//! deleted: ended ─▶ removed ─▶ released
//! ```
//! What may never happen: what may hold data is formatted or removed without the word of the object
//! that names it; a directory is touched while a process may use it.

use std::fmt;
use std::time::Duration;

use ankole_api::objects::replica::{Make, ReplicaPhase};
use ankole_api::objects::{Condition, ReplicaStatus};
use ankole_api::volume::Reason;
use ankole_replica::inspect::{Evidence, Found};
use ankole_replica::types::Incarnation;

use super::facts::{History, ReplicaFacts};

/// A replica without an engine has nothing left to do.
pub const REPLICA_PATIENCE: Duration = Duration::from_secs(10);
/// A disk that can't be asked may be back at any time.
const WHILE_UNREADABLE: Duration = Duration::from_secs(2);
/// Somebody may remove it, and then it isn't told any more.
const WHILE_SET_ASIDE: Duration = Duration::from_secs(2);
const WHILE_IDLE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaAction {
    Format,
    /// Its directory gets another name, under which nobody uses it.
    SetAside,
    Start,
    End,
    Kill,
    RemoveDirectory,
    /// The object may go.
    Release,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaPlan {
    pub actions: Vec<ReplicaAction>,
    pub status: ReplicaStatus,
    /// If no event comes before.
    pub look_again: Duration,
}

pub fn plan(facts: &ReplicaFacts) -> ReplicaPlan {
    let mut plan =
        ReplicaPlan { actions: Vec::new(), status: status(facts), look_again: WHILE_IDLE };
    plan.tell_what_was_set_aside(facts);
    if let (Some(ReplicaPhase::Damaged), Some(why)) = (plan.status.phase, &facts.damaged) {
        plan.tell_damaged(facts, why);
    }
    let spec = &facts.replica.spec;
    if facts.replica.is_ending() {
        if plan.is_ended(facts) {
            plan.remove(facts);
        }
    } else if spec.in_engine {
        plan.make(facts);
    } else if spec.served && !facts.is_stopping && !is_to_give_way(facts) {
        plan.serve(facts);
    } else if plan.is_ended(facts) && !facts.is_stopping {
        plan.make(facts);
    }
    plan
}

/// As it is now; `conditions` come with the plan.
fn status(facts: &ReplicaFacts) -> ReplicaStatus {
    let before = &facts.replica.status;
    let phase = match (&facts.process, &facts.evidence) {
        (Some(process), _) if process.asked_to_end.is_some() => ReplicaPhase::Ending,
        (Some(_), _) => ReplicaPhase::Served,
        (None, _) if facts.damaged.is_some() => ReplicaPhase::Damaged,
        (None, Some(evidence)) => match &evidence.found {
            Found::Missing | Found::Empty | Found::HalfFormatted => ReplicaPhase::Missing,
            Found::Foreign { .. } => ReplicaPhase::Occupied,
            Found::Unreadable { .. } => ReplicaPhase::Unreadable,
            Found::Replica(_) if !is_its_own(facts, evidence) => ReplicaPhase::Occupied,
            Found::Replica(_) => ReplicaPhase::Stopped,
        },
        (None, None) => ReplicaPhase::Stopped,
    };
    let found = facts.evidence.as_ref().filter(|evidence| is_its_own(facts, evidence));
    let incarnation = match (phase, found) {
        (ReplicaPhase::Missing | ReplicaPhase::Occupied, _) => None,
        (_, Some(evidence)) => evidence.replica().map(|replica| replica.incarnation),
        (_, None) => before.incarnation,
    };
    ReplicaStatus {
        phase: Some(phase),
        address: Some(facts.address.clone()),
        incarnation,
        newest_generation: facts.newest.or(before.newest_generation),
        conditions: Vec::new(),
    }
}

/// Another volume's, or another replica's, may have been there first.
fn is_its_own(facts: &ReplicaFacts, evidence: &Evidence) -> bool {
    let spec = &facts.replica.spec;
    let is_it = |it: &ankole_replica::inspect::ReplicaEvidence| {
        it.volume == *spec.volume && it.replica == spec.id
    };
    evidence.replica().is_some_and(is_it)
}

fn present(facts: &ReplicaFacts) -> Option<Incarnation> {
    let found = facts.evidence.as_ref().and_then(|evidence| evidence.replica());
    found.map(|replica| replica.incarnation).or(facts.replica.status.incarnation)
}

/// What is there is the one that is to be replaced.
fn is_to_give_way(facts: &ReplicaFacts) -> bool {
    matches!(facts.replica.spec.make, Make::InPlaceOf(other) if present(facts) == Some(other))
}

impl ReplicaPlan {
    fn act(&mut self, action: ReplicaAction) {
        self.actions.push(action);
    }

    fn note(&mut self, reason: Reason, message: String) -> &mut Condition {
        self.status.conditions.push(Condition::new(reason, message));
        self.status.conditions.last_mut().expect("it was just added")
    }

    /// A little later than `left`, so that what is due then is due.
    fn look_within(&mut self, left: Duration) {
        self.look_again = self.look_again.min(left + Duration::from_millis(10));
    }

    /// Whether no process of it is left; if one is, it is asked to end.
    fn is_ended(&mut self, facts: &ReplicaFacts) -> bool {
        let Some(process) = &facts.process else { return !self.is_in_doubt(&facts.history) };
        match process.asked_to_end {
            None => self.act(ReplicaAction::End),
            Some(since) if since > REPLICA_PATIENCE => self.act(ReplicaAction::Kill),
            Some(since) => self.look_within(REPLICA_PATIENCE.saturating_sub(since)),
        }
        false
    }

    fn is_in_doubt(&mut self, history: &History) -> bool {
        let Some(doubt) = &history.doubt else { return false };
        self.note(Reason::ProcessUnknown, doubt.message.clone()).next = Some(doubt.next.clone());
        self.look_within(Duration::from_secs(1));
        true
    }

    /// Nobody uses the directory. Made only if that is allowed and nothing is there that may hold
    /// data; what was there and is given up keeps its bytes under another name.
    fn make(&mut self, facts: &ReplicaFacts) {
        let Some(evidence) = &facts.evidence else { return };
        let make = facts.replica.spec.make;
        match &evidence.found {
            _ if is_to_give_way(facts) => {
                self.act(ReplicaAction::SetAside);
                self.act(ReplicaAction::Format);
            }
            // Whatever was meant to be replaced, it is another one now.
            Found::Replica(_) if is_its_own(facts, evidence) => {}
            Found::Unreadable { why } => self.tell_unreadable(facts, why),
            _ if make != Make::Never && evidence.holds_nothing() => {
                self.act(ReplicaAction::Format);
            }
            Found::Foreign { .. } | Found::Replica(_) => self.tell_occupied(facts),
            _ => self.tell_missing(facts),
        }
    }

    fn serve(&mut self, facts: &ReplicaFacts) {
        let id = &facts.replica.spec.id;
        match &facts.process {
            Some(process) if process.asked_to_end.is_some() => {
                let message = format!("replica {id}, pid {}, is ending", process.pid);
                self.note(Reason::Stopping, message);
                self.is_ended(facts);
            }
            Some(_) => {}
            None if self.is_in_doubt(&facts.history) => {}
            None => {
                self.make(facts);
                let will_be_there = self.actions.contains(&ReplicaAction::Format);
                let is_unreadable = self.status.phase == Some(ReplicaPhase::Unreadable);
                if !will_be_there && (is_unreadable || self.status.incarnation.is_none()) {
                    return;
                }
                match facts.history.hold_off {
                    Some(left) if !will_be_there => self.tell_hold_off(facts, left),
                    _ => self.act(ReplicaAction::Start),
                }
            }
        }
    }

    fn remove(&mut self, facts: &ReplicaFacts) {
        let is_free = facts
            .evidence
            .as_ref()
            .is_some_and(|evidence| evidence.holds_nothing() || is_its_own(facts, evidence));
        match &facts.evidence {
            Some(evidence) if matches!(evidence.found, Found::Missing) => {}
            Some(evidence) if facts.replica.spec.keeps_data && !evidence.holds_nothing() => {}
            Some(_) if is_free || facts.damaged.is_some() => {
                self.act(ReplicaAction::RemoveDirectory);
            }
            Some(evidence) => {
                if let Found::Unreadable { why } = &evidence.found {
                    return self.tell_unreadable(facts, why); // it may be back
                }
                // Somebody else's stays where it is.
            }
            None => return,
        }
        self.act(ReplicaAction::Release);
    }

    fn tell_hold_off(&mut self, facts: &ReplicaFacts, left: Duration) {
        let (id, history) = (&facts.replica.spec.id, &facts.history);
        let how = history.last_end.as_deref().unwrap_or("for an unknown reason");
        let words = history.last_words.as_ref();
        let why = words.map_or(String::new(), |words| format!(": {}", words.error));
        let message = format!("replica {id} ended ({how}){why}; it is started again");
        self.note(Reason::ReplicaEnded, message).next = words.and_then(|words| words.next.clone());
        self.look_within(left);
    }

    fn tell_unreadable(&mut self, facts: &ReplicaFacts, why: &str) {
        let (id, directory) = (&facts.replica.spec.id, facts.replica.spec.directory());
        let directory = directory.display();
        let message = format!(
            "whether the directory of replica {id} is there can't be told, and it is left as it is: {directory}: {why}"
        );
        let next = "look at its disk and its mount (the kernel's log, mount)";
        self.note(Reason::ReplicaUnreadable, message).next = Some(next.into());
        self.look_within(WHILE_UNREADABLE);
    }

    fn tell_missing(&mut self, facts: &ReplicaFacts) {
        let (id, directory) = (&facts.replica.spec.id, facts.replica.spec.directory());
        let directory = directory.display();
        let message = format!(
            "the directory of replica {id} is gone: {directory}; it is made anew once the engine has taken the replica out of the in-sync set"
        );
        let next = "if its disk isn't mounted, mount it";
        self.note(Reason::ReplicaMissing, message).next = Some(next.into());
        self.look_within(WHILE_UNREADABLE);
    }

    fn tell_occupied(&mut self, facts: &ReplicaFacts) {
        let spec = &facts.replica.spec;
        let directory = spec.directory();
        let directory = directory.display();
        let message = format!(
            "replica {} can't be made: {directory} holds something else, and is left as it is",
            spec.id
        );
        let next = format!(
            "ankole volume recover {} --dry-run shows what it holds; or move it away",
            spec.volume
        );
        self.note(Reason::ReplicaOccupied, message).next = Some(next);
        self.look_within(WHILE_UNREADABLE);
    }

    fn tell_damaged(&mut self, facts: &ReplicaFacts, why: &str) {
        let id = &facts.replica.spec.id;
        let message = format!("the directory of replica {id} is damaged: {why}");
        self.note(Reason::ReplicaDamaged, message);
    }

    fn tell_what_was_set_aside(&mut self, facts: &ReplicaFacts) {
        let id = &facts.replica.spec.id;
        if !facts.set_aside.is_empty() {
            self.look_within(WHILE_SET_ASIDE);
        }
        for directory in &facts.set_aside {
            let directory = directory.display();
            let message = format!(
                "an earlier directory of replica {id} was set aside and takes room: {directory}"
            );
            let next = format!("remove {directory} when nothing in it is needed any more");
            self.note(Reason::SetAside, message).next = Some(next);
        }
    }
}

impl fmt::Display for ReplicaAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => "format it",
            Self::SetAside => "set its directory aside",
            Self::Start => "start it",
            Self::End => "end it",
            Self::Kill => "kill it",
            Self::RemoveDirectory => "remove its directory",
            Self::Release => "release the object",
        })
    }
}

impl fmt::Display for ReplicaPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ReplicaStatus { phase, incarnation, conditions, .. } = &self.status;
        writeln!(f, "phase: {phase:?}, incarnation: {incarnation:?}")?;
        self.actions.iter().try_for_each(|action| writeln!(f, "do: {action}"))?;
        for Condition { reason, message, next, .. } in conditions {
            writeln!(f, "{reason:?}: {message}")?;
            next.iter().try_for_each(|next| writeln!(f, "  next: {next}"))?;
        }
        writeln!(f, "look again: {:?}", self.look_again)
    }
}
