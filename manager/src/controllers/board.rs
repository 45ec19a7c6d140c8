//! What the controllers saw last, for those who show it or wait for it. Lost with the process.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ankole_replica::admin::EngineStatus;
use ankole_replica::types::ReplicaId;

use crate::api::Name;
use crate::api::volume::{Condition, State, VolumeSpec};

#[derive(Clone, Debug)]
pub struct Observed {
    pub state: State,
    pub engine_pid: Option<u32>,
    pub engine: Option<EngineStatus>,
    pub conditions: Vec<Condition>,
    /// What each replica takes of its disk, in bytes; of some seconds ago.
    pub used_bytes: BTreeMap<ReplicaId, u64>,
    /// What was wanted then.
    pub spec: VolumeSpec,
    /// Since when the engine waits for something without a break, in seconds of Unix time.
    pub waiting_since_unix_s: Option<u64>,
    /// Passes in a row that couldn't do what they planned.
    pub failures: u32,
}

#[derive(Debug, Default)]
pub struct Board {
    volumes: Mutex<BTreeMap<Name, Observed>>,
    changed: Condvar,
}

impl Board {
    pub fn put(&self, volume: &Name, observed: Observed) {
        self.volumes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(volume.clone(), observed);
        self.changed.notify_all();
    }

    pub fn take_down(&self, volume: &Name) {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).remove(volume);
        self.changed.notify_all();
    }

    pub fn get(&self, volume: &Name) -> Option<Observed> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).get(volume).cloned()
    }

    /// Waits until `enough` finds what it looks for; None when `timeout` is over. `enough` sees
    /// None while nothing is known of the volume.
    pub fn wait<T>(
        &self,
        volume: &Name,
        timeout: Duration,
        mut enough: impl FnMut(Option<&Observed>) -> Option<T>,
    ) -> Option<T> {
        let mut found = None;
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let _unlocked = self.changed.wait_timeout_while(volumes, timeout, |volumes| {
            found = enough(volumes.get(volume));
            found.is_none()
        });
        found
    }
}
