//! Who is in the in-sync set, decided by consensus elsewhere.
//!
//! Owns the volume's record and the rules by which it may change. The record lives in a store that
//! has consensus (the manager's embedded store, later the Kubernetes API server); the engine and
//! the manager change it by compare-and-swap on its generation. What may never happen: two changes
//! from the same generation both succeed, or the in-sync set becomes empty.

use serde::{Deserialize, Serialize};

use crate::mutation::{self, Mutation};
use crate::types::{Generation, Incarnation, ReplicaId};

/// The arbiter's record of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Raised by one at every change.
    pub generation: Generation,
    /// Written by the manager only.
    pub engine: Option<EngineGrant>,
    /// Counts attachments: a new one means that no kernel client of an older engine survived.
    /// Written by the manager only.
    pub attach_epoch: u64,
    /// Written by the engine named above only, but for a salvage. Never empty.
    pub in_sync: Vec<Member>,
    /// Since when the volume is what a person chose. A replica that was last in sync before may
    /// hold what the chosen one never had, see [`Record::remembers`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salvaged: Option<Generation>,
}

/// The one process that may write the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineGrant {
    pub node: String,
    /// Made anew for each process.
    pub instance: InstanceId,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub String);

/// A replica that has every acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
}

/// What a writer wants to become of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "change")]
pub enum Change {
    /// By the manager, before it starts an engine.
    Grant { engine: EngineGrant, attach_epoch: u64 },
    /// By the engine that the record names.
    Members { by: InstanceId, in_sync: Vec<Member> },
    /// By the manager, for a person: no member can open, and this copy is what the volume is from
    /// now on. `above` is the newest generation that any replica was found to have seen; the
    /// caller has seen that no engine lives.
    Salvage { member: Member, above: Generation },
}

/// Why a change was not made. The record is the present one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase", tag = "refused")]
pub enum Refused {
    #[error("the record is at {}, not at the generation that was expected", .record.generation)]
    Conflict { record: Record },
    #[error("the record names another engine instance")]
    NotTheEngine { record: Record },
    #[error("the in-sync set can't become empty")]
    LastMember { record: Record },
}

impl Refused {
    pub fn into_record(self) -> Record {
        match self {
            Self::Conflict { record }
            | Self::NotTheEngine { record }
            | Self::LastMember { record } => record,
        }
    }
}

impl Record {
    /// Of a volume whose replicas were just formatted.
    pub fn first(in_sync: Vec<Member>) -> Self {
        let generation = Generation::FIRST;
        Self { generation, engine: None, attach_epoch: 0, in_sync, salvaged: None }
    }

    /// Of a volume whose record was lost, and whose copy a person chose. `above` is the newest
    /// generation that any replica was found to have seen.
    pub fn anew(member: Member, above: Generation) -> Self {
        let generation = above.next();
        let salvaged = Some(generation);
        Self { generation, engine: None, attach_epoch: 0, in_sync: vec![member], salvaged }
    }

    /// Whether a replica that was last in sync in `synced` differs from the members only in what
    /// was written since. If not it is rebuilt in full, however much it has: after a salvage it
    /// may hold writes that the members never saw, and that no stamp of theirs remembers.
    pub fn remembers(&self, synced: Option<Generation>) -> bool {
        synced.is_some_and(|synced| self.salvaged.is_none_or(|salvaged| synced >= salvaged))
    }

    /// The record after `change`, if it is still at `expected`. The store that keeps the record
    /// calls this within its transaction.
    pub fn after(&self, expected: Generation, change: Change) -> Result<Self, Refused> {
        let refused = |why: fn(Self) -> Refused| Err(why(self.clone()));
        if self.generation != expected {
            return refused(|record| Refused::Conflict { record });
        }
        let generation = self.generation.next();
        match change {
            Change::Grant { engine, attach_epoch } => {
                Ok(Self { generation, engine: Some(engine), attach_epoch, ..self.clone() })
            }
            Change::Members { by, .. }
                if self.engine.as_ref().is_none_or(|engine| engine.instance != by) =>
            {
                refused(|record| Refused::NotTheEngine { record })
            }
            Change::Members { in_sync, .. }
                if in_sync.is_empty() && !mutation::is_on(Mutation::LastMemberRemoved) =>
            {
                refused(|record| Refused::LastMember { record })
            }
            Change::Members { in_sync, .. } => Ok(Self { generation, in_sync, ..self.clone() }),
            Change::Salvage { member, above } => {
                let chosen = Self::anew(member, self.generation.max(above));
                Ok(Self { attach_epoch: self.attach_epoch, ..chosen })
            }
        }
    }
}

/// One line of JSON from an engine to the arbiter's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "request")]
pub enum Request {
    Read { volume: String },
    Change { volume: String, expected: Generation, change: Change },
}

/// One line of JSON back. A connection that ends without it leaves the change ambiguous: it may be
/// made now, later or never, and is asked for again until one of these arrives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
pub enum Answer {
    Record(Record),
    Refused(Refused),
    /// The volume doesn't exist, or the store failed: nothing was changed.
    Error {
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            generation: Generation::FIRST,
            engine: Some(EngineGrant { node: "a".into(), instance: InstanceId("e1".into()) }),
            attach_epoch: 1,
            in_sync: vec![Member { replica: "r1".into(), incarnation: Incarnation(1) }],
            salvaged: None,
        }
    }

    /// An engine that woke up late must not take a replica out of its successor's set.
    #[test]
    fn only_the_engine_that_the_record_names_changes_the_set() {
        let late =
            Change::Members { by: InstanceId("e0".into()), in_sync: record().in_sync.clone() };
        assert!(matches!(
            record().after(Generation::FIRST, late),
            Err(Refused::NotTheEngine { .. })
        ));
    }

    #[test]
    fn the_last_member_is_never_removed() {
        let empty = Change::Members { by: InstanceId("e1".into()), in_sync: vec![] };
        assert!(matches!(
            record().after(Generation::FIRST, empty),
            Err(Refused::LastMember { .. })
        ));
    }

    #[test]
    fn of_two_changes_from_one_generation_the_second_conflicts() {
        let grant = |instance: &str| Change::Grant {
            engine: EngineGrant { node: "b".into(), instance: InstanceId(instance.into()) },
            attach_epoch: 2,
        };
        let first = record().after(Generation::FIRST, grant("e2")).expect("generation matches");
        assert_eq!(first.generation, Generation::FIRST.next());
        assert!(matches!(
            first.after(Generation::FIRST, grant("e3")),
            Err(Refused::Conflict { .. })
        ));
    }

    /// A record that was rolled back is below what replicas have seen: a salvage that only adds one
    /// would make a volume that every replica refuses.
    #[test]
    fn a_salvage_ends_above_every_generation_that_was_seen() {
        let number = |n: u64| Generation(n.try_into().expect("not zero"));
        let member = Member { replica: "r2".into(), incarnation: Incarnation(2) };
        let change = Change::Salvage { member: member.clone(), above: number(9) };
        let salvaged = record().after(Generation::FIRST, change.clone()).expect("it is its turn");
        assert_eq!((salvaged.generation, salvaged.engine), (number(10), None));
        assert_eq!(salvaged.in_sync, [member]);
        assert!(matches!(record().after(number(2), change), Err(Refused::Conflict { .. })));
    }

    /// r1 was in sync in g9 and wrote a region that the salvaged r2 never saw written: a delta
    /// since g9 would leave it as it is, and the two would differ for ever.
    #[test]
    fn who_was_in_sync_before_a_salvage_is_not_remembered() {
        let number = |n: u64| Generation(n.try_into().expect("not zero"));
        let salvaged = Record { generation: number(12), salvaged: Some(number(10)), ..record() };
        assert!(!salvaged.remembers(Some(number(9))));
        assert!(!salvaged.remembers(None));
        assert!(salvaged.remembers(Some(number(10))));
        assert!(record().remembers(Some(number(1))));
    }

    #[test]
    fn messages_survive_json() {
        let answer = Answer::Refused(Refused::Conflict { record: record() });
        let text = serde_json::to_string(&answer).expect("serialises");
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("parses"), answer);
    }
}
