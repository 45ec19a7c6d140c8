//! What changes too often to be stored: what the engines of this node said last. Lost with the agent,
//! and asked again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ankole_api::Name;
use ankole_replica::admin::EngineStatus;

#[derive(Debug, Default)]
pub struct Live {
    engines: Mutex<BTreeMap<Name, Arc<EngineStatus>>>,
}

impl Live {
    /// None: there is none on this node, or it hasn't said anything yet.
    pub fn engine(&self, volume: &Name) -> Option<Arc<EngineStatus>> {
        self.engines().get(volume).cloned()
    }

    pub(super) fn note(&self, volume: &Name, said: Option<Arc<EngineStatus>>) {
        match said {
            Some(said) => drop(self.engines().insert(volume.clone(), said)),
            None => drop(self.engines().remove(volume)),
        }
    }

    fn engines(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<EngineStatus>>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
