use std::sync::atomic::{AtomicBool, Ordering};

use ankole_api::object::{Kind, ResourceVersion};
use ankole_api::objects::volume::DATA_FINALIZER;
use ankole_store::{Events, List, MemoryStore, Precondition, Raw, Selector};
use async_trait::async_trait;

use super::*;

/// Writes of v1 fail while it is so.
struct Ailing {
    store: MemoryStore,
    is_ill: AtomicBool,
}

impl Ailing {
    fn try_to_write(&self, name: &str) -> Result<(), StoreError> {
        let why = "no room".to_owned();
        let fails = name == "v1" && self.is_ill.load(Ordering::Acquire);
        if fails { Err(StoreError::Unavailable { why }) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for Ailing {
    async fn get_raw(&self, kind: Kind, name: &str) -> Result<Option<Arc<Raw>>, StoreError> {
        self.store.get_raw(kind, name).await
    }

    async fn list_raw(&self, kind: Kind, selector: &Selector) -> Result<List, StoreError> {
        self.store.list_raw(kind, selector).await
    }

    async fn create_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.store.create_raw(kind, object).await
    }

    async fn replace_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.try_to_write(object.name())?;
        self.store.replace_raw(kind, object).await
    }

    async fn replace_status_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.try_to_write(object.name())?;
        self.store.replace_status_raw(kind, object).await
    }

    async fn delete_raw(
        &self,
        kind: Kind,
        name: &str,
        precondition: &Precondition,
    ) -> Result<Option<Arc<Raw>>, StoreError> {
        self.store.delete_raw(kind, name, precondition).await
    }

    async fn watch_raw(
        &self,
        kind: Kind,
        selector: &Selector,
        from: &ResourceVersion,
    ) -> Result<Events, StoreError> {
        self.store.watch_raw(kind, selector, from).await
    }
}

async fn until_marked(store: &dyn Store, volume: &str) {
    loop {
        let found = store.get::<VolumeSpec>(volume).await.unwrap();
        if found.metadata.finalizers.contains(DATA_FINALIZER) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// It slept in the middle of its queue, and the others waited until something else happened.
#[tokio::test]
async fn a_volume_that_can_not_be_written_keeps_no_other_from_its_turn() {
    let ailing = Arc::new(Ailing { store: MemoryStore::default(), is_ill: true.into() });
    let store: Arc<dyn Store> = ailing.clone();
    let spec: VolumeSpec =
        serde_json::from_str(r#"{"sizeBytes": 2097152, "replicas": 1}"#).unwrap();
    for name in ["v1", "v2"] {
        store.create(&Volume::new(name.parse().unwrap(), spec.clone())).await.unwrap();
    }
    let manager = tokio::spawn(Manager::new(Arc::clone(&store)).run());
    until_marked(&*store, "v2").await;
    ailing.is_ill.store(false, Ordering::Release);
    until_marked(&*store, "v1").await;
    manager.abort();
}

/// While a person chooses a copy, nobody else may begin to.
#[tokio::test]
async fn a_volume_is_held_by_one_at_a_time() {
    let manager = Manager::new(Arc::new(MemoryStore::default()));
    let volume = "v1".parse().unwrap();
    let hold = manager.hold(&volume).unwrap();
    assert!(manager.hold(&volume).is_none());
    drop(hold);
    assert!(manager.hold(&volume).is_some());
}
