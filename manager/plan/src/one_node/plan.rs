//! From what is wanted and what is seen to the next actions. Pure: no clock, no process, no disk.
//!
//! ```text
//! attach   lost replica formatted ─▶ replicas started ─▶ grant ─▶ engine started ─▶ wait for its endpoint
//! engine died                                            grant (same attach epoch) ─▶ started with --recover
//! upgrade  engine hands over ─▶ gone ─▶ grant (same attach epoch) ─▶ started with --recover
//! detach   engine asked ─▶ gone ─▶ replicas ended ─▶ attachment cleared     (asked in vain: killed)
//! stop     as detach, but what is used goes on      (the next standalone adopts it)
//! held     engine killed ─▶ replicas ended          (while a person chooses a copy)
//! gone     as detach, then the directories, then the object
//! ```
//! What may never happen: an engine is granted while one of this volume lives (rule 1), or by a
//! record that was rolled back (rule 8); a replica of the in-sync set is formatted, or one of a
//! volume that has lost its record; a directory is removed while a process may use it.

mod attach;
mod attached;
mod detach;
mod lost_record;
mod replicas;
mod trouble;

use std::fmt;
use std::time::Duration;

use ankole_replica::record::Record;
use ankole_replica::types::ReplicaId;

use super::action::Action;
use super::seen::{Doubt, EngineSeen, History, Seen};
use super::validate::Wanted;
use ankole_api::volume::{Condition, Reason, State};

/// An engine drains and flushes within this, or the disks are in trouble.
pub const DETACH_PATIENCE: Duration = Duration::from_secs(60);
/// Requests of a device without an engine wait so long, and then get errors: a supervisor must not
/// let its clients hang for ever. A disk's time-outs are shorter, a node's reboot takes less.
pub const DEVICE_PATIENCE: Duration = Duration::from_secs(300);
/// A replica without an engine has nothing left to do.
pub const REPLICA_PATIENCE: Duration = Duration::from_secs(10);

/// An engine that opens gives silent members some 10 s; what it waits for longer may never come.
const OPEN_PATIENCE: Duration = Duration::from_secs(12);

/// An engine opens within a few of these; one that waits for something is asked less often.
const WHILE_STARTING: Duration = Duration::from_millis(20);
const WHILE_WAITING: Duration = Duration::from_millis(200);
const WHILE_ATTACHED: Duration = Duration::from_secs(1);
const WHILE_UNREADABLE: Duration = Duration::from_secs(5);
const WHILE_IDLE: Duration = Duration::from_secs(60);

/// Actions are done in order; when one fails the rest waits for the next pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub state: State,
    pub actions: Vec<Action>,
    pub conditions: Vec<Condition>,
    /// If no event comes before. After an action that was done, the next pass follows at once.
    pub look_again: Duration,
}

pub fn plan(wanted: Wanted, seen: &Seen) -> Plan {
    let mut plan = Plan {
        state: State::Creating,
        actions: vec![],
        conditions: vec![],
        look_again: WHILE_IDLE,
    };
    match (wanted, &seen.volume.status.record) {
        (Wanted::Formatted, _) => plan.actions.push(Action::FormatAll),
        (Wanted::Attached { read_only }, Some(record)) => plan.attach(seen, record, read_only),
        (Wanted::Attached { .. }, None) => plan.tell_lost_record(seen),
        (Wanted::Detached, record) => {
            if plan.detach(seen) && seen.volume.status.unformatted {
                plan.state = State::Creating;
            } else if record.is_none() {
                plan.tell_lost_record(seen);
            }
        }
        (Wanted::LeftIfUsed, record) => {
            if !plan.leave_used(seen) && plan.detach(seen) && record.is_none() {
                plan.state = State::Creating;
            }
        }
        (Wanted::Still, _) => plan.stand_still(seen),
        (Wanted::Gone, _) => {
            if plan.detach(seen) && plan.actions.is_empty() {
                plan.actions.extend([Action::RemoveDirectories, Action::Forget]);
            }
            plan.state = State::Deleting;
        }
    }
    plan
}

impl Plan {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wait(&mut self, reason: Reason, message: String) {
        self.note(Condition::new(reason, message));
    }

    fn note(&mut self, condition: Condition) {
        self.conditions.push(condition);
    }

    fn hold_off(
        &mut self,
        reason: Reason,
        part: Option<&ReplicaId>,
        what: &str,
        history: &History,
    ) {
        let left = history.hold_off.unwrap_or_default();
        let how = history.last_end.as_deref().unwrap_or("for an unknown reason");
        let seconds = left.as_secs_f64().ceil();
        let words = history.last_words.as_ref();
        let why = words.map_or(String::new(), |words| format!(": {}", words.error));
        let message = format!("{what} ended ({how}){why}; it is started again in {seconds} s");
        let (replica, next) = (part.cloned(), words.and_then(|words| words.next.clone()));
        self.note(Condition { replica, next, ..Condition::new(reason, message) });
        self.look_within(left);
    }

    /// Whether it can't be told that none lives: a second one beside it could do harm.
    fn is_in_doubt(&mut self, part: Option<&ReplicaId>, history: &History) -> bool {
        let Some(Doubt { message, next }) = &history.doubt else { return false };
        let unknown = Condition::new(Reason::ProcessUnknown, message.clone()).next(next.clone());
        self.note(Condition { replica: part.cloned(), ..unknown });
        self.look_within(WHILE_ATTACHED);
        true
    }

    /// A little later than `left`, so that what is due then is due.
    fn look_within(&mut self, left: Duration) {
        self.look_again = self.look_again.min(left + Duration::from_millis(10));
    }
}

/// An engine that the record doesn't name is fenced already: it only stands in the way.
fn is_granted(record: &Record, engine: &EngineSeen) -> bool {
    record.engine.as_ref().is_some_and(|grant| grant.instance == engine.instance)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "state: {}", self.state)?;
        self.actions.iter().try_for_each(|action| writeln!(f, "do: {action}"))?;
        for Condition { reason, message, next, .. } in &self.conditions {
            writeln!(f, "{reason:?}: {message}")?;
            next.iter().try_for_each(|next| writeln!(f, "  next: {next}"))?;
        }
        writeln!(f, "look again: {:?}", self.look_again)
    }
}
