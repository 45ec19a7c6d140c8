//! Volumes' records for the arbiter: they are in the objects of the volumes.

use std::sync::Arc;

use ankole_api::objects::VolumeSpec;
use ankole_replica::record::{Change, Record, Refused};
use ankole_replica::types::Generation;
use ankole_store::{Store, StoreError};
use tokio::runtime::Handle;

use crate::arbiter::{Failure, Records};

pub struct ObjectRecords {
    store: Arc<dyn Store>,
    /// Where the store's calls make progress; they are waited for on the arbiter's own threads.
    runtime: Handle,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("volume {volume} has no record")]
    NoRecord { volume: String },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ObjectRecords {
    pub fn new(store: Arc<dyn Store>, runtime: Handle) -> Self {
        Self { store, runtime }
    }
}

impl Records for ObjectRecords {
    fn read(&self, volume: &str) -> Result<Record, Failure> {
        let found = self.runtime.block_on(self.store.get::<VolumeSpec>(volume));
        let record = found.map_err(RecordError::from)?.status.record;
        Ok(record.ok_or_else(|| RecordError::NoRecord { volume: volume.into() })?)
    }

    fn change(
        &self,
        volume: &str,
        expected: Generation,
        change: &Change,
    ) -> Result<Record, Failure> {
        let changed =
            self.store.modify_status::<VolumeSpec, _, RecordError>(volume, |_, status| {
                let record = status.record.as_mut();
                let record =
                    record.ok_or_else(|| RecordError::NoRecord { volume: volume.into() })?;
                *record = record.after(expected, change.clone())?;
                Ok(record.clone())
            });
        Ok(self.runtime.block_on(changed)?)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Refused(refused) => Self::Refused(refused),
            RecordError::Store(error @ StoreError::OutcomeUnknown { .. }) => {
                Self::Unclear(error.into())
            }
            error => Self::Impossible(error.to_string()),
        }
    }
}
