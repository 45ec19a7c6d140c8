//! A volume whose object says no more who is in sync: nothing is started, nothing is made anew.

use ankole_replica::inspect::{Evidence, Found};

use super::Plan;
use crate::one_node::seen::{ReplicaSeen, Seen};
use ankole_api::volume::{Condition, Reason, State, salvage_hint};

impl Plan {
    /// An engine that still runs goes on as it is: what it can't do without its record it says itself.
    pub(super) fn tell_lost_record(&mut self, seen: &Seen) {
        if !seen.volume.spec.tickets.is_empty() {
            self.state = State::Attaching;
        }
        let name = &seen.volume.name;
        let of = |replica: &ReplicaSeen| {
            let evidence = replica.evidence.as_ref();
            let found = evidence.map_or("not looked at".into(), |evidence| in_words(evidence));
            format!("{}: {found}", replica.place.replica)
        };
        let found = seen.replicas.iter().map(of).collect::<Vec<_>>().join("; ");
        let message = format!(
            "the record of who is in sync is lost, and what the directories hold is left as it is ({found})"
        );
        let is_empty = |replica: &ReplicaSeen| {
            replica.evidence.as_ref().is_some_and(|evidence| evidence.holds_nothing())
        };
        let next = if seen.replicas.iter().all(is_empty) {
            format!(
                "if a disk isn't mounted, mount it; if nothing was ever written, ankole volume rm {name}, and create it again"
            )
        } else {
            salvage_hint(name)
        };
        self.note(Condition::new(Reason::RecordLost, message).next(next));
    }
}

fn in_words(evidence: &Evidence) -> String {
    match &evidence.found {
        Found::Missing => "no directory".into(),
        Found::Empty => "an empty directory".into(),
        Found::HalfFormatted => "a directory that was never finished".into(),
        Found::Foreign { file } => format!("something else, {file:?}"),
        Found::Unreadable { why } => format!("can't be looked at: {why}"),
        Found::Replica(replica) if replica.content.is_none() => "a copy that is damaged".into(),
        Found::Replica(replica) => match replica.synced_gen {
            Some(synced) => format!("a copy, last in sync in {synced}"),
            None if evidence.holds_nothing() => "a copy that was never used".into(),
            None => "a copy that was never in sync".into(),
        },
    }
}
