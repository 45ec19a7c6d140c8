//! The store, for those who may block.

use std::sync::Arc;

use ankole_api::object::{Object, Spec};
use ankole_store::{Selector, Store, StoreError};
use tokio::runtime::Handle;

#[derive(Clone)]
pub struct Objects {
    pub store: Arc<dyn Store>,
    /// Where its calls make progress.
    pub runtime: Handle,
}

impl Objects {
    pub fn find<S: Spec>(&self, name: &str) -> Result<Option<Object<S>>, StoreError> {
        self.runtime.block_on(self.store.find(name))
    }

    pub fn get<S: Spec>(&self, name: &str) -> Result<Object<S>, StoreError> {
        self.runtime.block_on(self.store.get(name))
    }

    /// By name, each for itself: one that can't be read hides no other.
    pub fn list<S: Spec>(&self) -> Result<Vec<Result<Object<S>, StoreError>>, StoreError> {
        Ok(self.runtime.block_on(self.store.list::<S>(&Selector::all()))?.objects)
    }

    /// Those that can be read; the log says which can't.
    pub fn readable<S: Spec>(&self) -> Result<Vec<Object<S>>, StoreError> {
        let noted = |object: Result<_, StoreError>| {
            object.inspect_err(|error| tracing::error!(%error, "left out")).ok()
        };
        Ok(self.list()?.into_iter().filter_map(noted).collect())
    }

    pub fn create<S: Spec>(&self, object: &Object<S>) -> Result<Object<S>, StoreError> {
        self.runtime.block_on(self.store.create(object))
    }

    /// Spec and metadata; `change` may refuse, and may run more than once.
    pub fn modify<S: Spec, R, E: From<StoreError>>(
        &self,
        name: &str,
        change: impl FnMut(&mut Object<S>) -> Result<R, E>,
    ) -> Result<R, E> {
        self.runtime.block_on(self.store.modify(name, change))
    }

    pub fn modify_status<S: Spec, R, E: From<StoreError>>(
        &self,
        name: &str,
        change: impl FnMut(&Object<S>, &mut S::Status) -> Result<R, E>,
    ) -> Result<R, E> {
        self.runtime.block_on(self.store.modify_status(name, change))
    }

    /// If `allow` agrees to what the object is at that moment.
    pub fn delete<S: Spec, E: From<StoreError>>(
        &self,
        name: &str,
        allow: impl Fn(&Object<S>) -> Result<(), E>,
    ) -> Result<Option<Object<S>>, E> {
        self.runtime.block_on(self.store.delete(name, allow))
    }
}
