//! A store that ends with its process: for tests, and for a cluster that is simulated.

use std::sync::{Arc, Mutex, PoisonError};

use ankole_api::object::{Kind, ResourceVersion};
use async_trait::async_trait;

use crate::shared::Shared;
use crate::state::{State, Written};
use crate::{Events, List, Precondition, Raw, Selector, Stamp, Store, StoreError, Write};

pub struct MemoryStore {
    shared: Arc<Shared>,
    /// Held during a write, so that there is one at a time.
    stamps: Mutex<Box<dyn FnMut() -> Stamp + Send>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_stamps(Stamp::of_the_system)
    }
}

impl MemoryStore {
    /// With times and uids of the caller's.
    pub fn with_stamps(stamps: impl FnMut() -> Stamp + Send + 'static) -> Self {
        Self { shared: Shared::new(State::default()), stamps: Mutex::new(Box::new(stamps)) }
    }

    fn write(&self, kind: Kind, write: &Write) -> Result<Written, StoreError> {
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamps();
        self.shared.change(|state| {
            let mut batch = state.batch();
            let written = batch.apply(kind, write, &stamp)?;
            let changes = batch.finish();
            state.publish(changes);
            Ok(written)
        })
    }

    fn put(&self, kind: Kind, write: &Write) -> Result<Arc<Raw>, StoreError> {
        let written = self.write(kind, write)?;
        Ok(written.object().expect("what is put can be read"))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get_raw(&self, kind: Kind, name: &str) -> Result<Option<Arc<Raw>>, StoreError> {
        self.shared.read().get(kind, name)
    }

    async fn list_raw(&self, kind: Kind, selector: &Selector) -> Result<List, StoreError> {
        Ok(self.shared.read().list(kind, selector))
    }

    async fn create_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.put(kind, &Write::Create(object))
    }

    async fn replace_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.put(kind, &Write::Replace(object))
    }

    async fn replace_status_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.put(kind, &Write::ReplaceStatus(object))
    }

    async fn delete_raw(
        &self,
        kind: Kind,
        name: &str,
        precondition: &Precondition,
    ) -> Result<Option<Arc<Raw>>, StoreError> {
        let delete = Write::Delete { name: name.into(), precondition: precondition.clone() };
        Ok(match self.write(kind, &delete)? {
            Written::Is(ending) => Some(ending),
            Written::Gone(_) => None,
        })
    }

    async fn watch_raw(
        &self,
        kind: Kind,
        selector: &Selector,
        from: &ResourceVersion,
    ) -> Result<Events, StoreError> {
        Ok(self.shared.watch(kind, selector, from))
    }
}
