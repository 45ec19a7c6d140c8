//! The records of who may write, as part of the volumes in the store. The arbiter and whoever grants
//! change them; that of two changes from one generation one is refused is made sure by
//! [`Record::after`] and the store's compare-and-swap together.

use std::sync::Arc;

use ankole_replica::record::{Change, Record, Refused};
use ankole_replica::types::Generation;

use crate::agent::arbiter::{Failure, Records};
use crate::api::volume::Volume;
use crate::store::{Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("volume {volume} has no record")]
    NoRecord { volume: String },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Those of a store, for the arbiter.
pub struct StoredRecords(pub Arc<dyn Store>);

impl Records for StoredRecords {
    fn read(&self, volume: &str) -> Result<Record, Failure> {
        let no_record = || RecordError::NoRecord { volume: volume.into() };
        let stored = self.0.read::<Volume>(volume).map_err(RecordError::from)?;
        Ok(stored.status.record.ok_or_else(no_record)?)
    }

    fn change(
        &self,
        volume: &str,
        expected: Generation,
        change: &Change,
    ) -> Result<Record, Failure> {
        let changed = self.0.modify(volume, |object: &mut Volume| {
            let record = object.status.record.as_mut();
            let record = record.ok_or_else(|| RecordError::NoRecord { volume: volume.into() })?;
            *record = record.after(expected, change.clone())?;
            Ok::<_, RecordError>(record.clone())
        });
        Ok(changed?)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Refused(refused) => Self::Refused(refused),
            RecordError::Store(error @ (StoreError::Database(_) | StoreError::Panicked { .. })) => {
                Self::Unclear(error.into())
            }
            error => Self::Impossible(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ankole_replica::record::{EngineGrant, InstanceId, Member};
    use ankole_replica::types::Incarnation;

    use super::*;
    use crate::api::volume::VolumeStatus;
    use crate::store::EmbeddedStore;

    fn member(replica: &str) -> Member {
        Member { replica: replica.into(), incarnation: Incarnation(1) }
    }

    /// Two changes from one generation, both answered "done", would leave the engine with a set
    /// that the record doesn't have: an acknowledged write could be on no member.
    #[test]
    fn of_many_changes_that_race_exactly_one_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(EmbeddedStore::open(&folder.path().join("store")).unwrap());
        let request: crate::api::volume::VolumeRequest =
            serde_json::from_str(r#"{"name": "v1", "sizeBytes": 1}"#).unwrap();
        let record = Record {
            generation: Generation::FIRST,
            engine: Some(EngineGrant { node: "n".into(), instance: InstanceId("e1".into()) }),
            attach_epoch: 1,
            in_sync: ["r1", "r2", "r3"].map(member).to_vec(),
            salvaged: None,
        };
        let status = VolumeStatus { record: Some(record), ..VolumeStatus::default() };
        let spec = request.validate().unwrap();
        store.add(&Volume { name: request.name, uid: "u1".into(), spec, status }).unwrap();

        let records = StoredRecords(store);
        let made = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|i| {
                    let members = if i % 2 == 0 { ["r1", "r2"] } else { ["r1", "r3"] };
                    let in_sync = members.map(member).to_vec();
                    let change = Change::Members { by: InstanceId("e1".into()), in_sync };
                    let records = &records;
                    scope.spawn(move || records.change("v1", Generation::FIRST, &change))
                })
                .collect();
            let answers = racers.into_iter().map(|racer| racer.join().unwrap());
            answers.filter(Result::is_ok).count()
        });
        assert_eq!(made, 1);
        let record = records.read("v1").unwrap();
        assert_eq!((record.generation, record.in_sync.len()), (Generation::FIRST.next(), 2));
    }

    #[test]
    fn a_volume_that_is_not_there_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&folder.path().join("store")).unwrap();
        let records = StoredRecords(Arc::new(store));
        assert!(matches!(records.read("v1"), Err(Failure::Impossible(_))));
    }
}
