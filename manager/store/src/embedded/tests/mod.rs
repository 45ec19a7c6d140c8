//! What the stories of every backend don't tell: the file, its disk, and the end of a process.

mod copies;
mod crash;
mod faults;
mod files;
mod full_disk;
mod model;
mod older;
mod openings;
mod power;

use std::path::{Path, PathBuf};

use ankole_api::object::{Kind, ResourceVersion};

use super::EmbeddedStore;
use crate::{Precondition, Raw, Selector, Store, StoreError};

const LAMP: Kind = Kind { name: "Lamp", plural: "lamps" };

fn path_in(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("ankole.redb")
}

fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path).unwrap()
}

fn lamp(name: &str, lumen: u64) -> Raw {
    let json = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"lumen":{lumen}}}}}"#);
    Raw::from_json(&json).unwrap()
}

async fn create(store: &EmbeddedStore, name: &str, lumen: u64) -> ResourceVersion {
    let made = store.create_raw(LAMP, lamp(name, lumen)).await.unwrap();
    made.metadata.resource_version.clone()
}

async fn replace(store: &EmbeddedStore, name: &str, lumen: u64) -> Result<(), StoreError> {
    let mut next = lamp(name, lumen);
    next.metadata = store.get_raw(LAMP, name).await?.unwrap().metadata.clone();
    store.replace_raw(LAMP, next).await.map(drop)
}

async fn lumen(store: &EmbeddedStore, name: &str) -> Option<u64> {
    let found = store.get_raw(LAMP, name).await.unwrap()?;
    let spec: serde_json::Value = found.spec().parse().unwrap();
    spec["lumen"].as_u64()
}

async fn delete(store: &EmbeddedStore, name: &str) {
    store.delete_raw(LAMP, name, &Precondition::none()).await.unwrap();
}

/// Everything, as text.
async fn all(store: &EmbeddedStore) -> Vec<String> {
    let list = store.list_raw(LAMP, &Selector::all()).await.unwrap();
    let unreadable = list.unreadable.iter().map(|it| format!("{} {}", it.name, it.text));
    list.objects.iter().map(|raw| raw.to_json()).chain(unreadable).collect()
}

fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}
