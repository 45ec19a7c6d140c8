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
    /// Written by the engine named above only. Never empty.
    pub in_sync: Vec<Member>,
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

    #[test]
    fn messages_survive_json() {
        let answer = Answer::Refused(Refused::Conflict { record: record() });
        let text = serde_json::to_string(&answer).expect("serialises");
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("parses"), answer);
    }
}
