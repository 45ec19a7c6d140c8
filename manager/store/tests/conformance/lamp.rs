//! A kind of object for the stories.

use ankole_api::object::{Kind, Object, Spec};
use ankole_store::{Event, Events, Raw, Store, StoreError};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lamp {
    pub lumen: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LampStatus {
    pub is_lit: bool,
}

impl Spec for Lamp {
    const KIND: Kind = Kind { name: "Lamp", plural: "lamps" };
    type Status = LampStatus;

    fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }
}

/// Of another kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Switch {}

impl Spec for Switch {
    const KIND: Kind = Kind { name: "Switch", plural: "switches" };
    type Status = LampStatus;
}

pub const LAMP: Kind = Lamp::KIND;

pub fn lamp(name: &str, lumen: u64) -> Object<Lamp> {
    Object::new(name.parse().unwrap(), Lamp { lumen, node: None })
}

pub async fn create(store: &dyn Store, name: &str, lumen: u64) -> Object<Lamp> {
    store.create(&lamp(name, lumen)).await.unwrap()
}

/// The spec is replaced by one with so much light, as its writer has seen the object.
pub async fn replace(
    store: &dyn Store,
    seen: &Object<Lamp>,
    lumen: u64,
) -> Result<Object<Lamp>, StoreError> {
    let next = Object { spec: Lamp { lumen, ..seen.spec.clone() }, ..seen.clone() };
    Ok(read(&*store.replace_raw(LAMP, Raw::of(&next)).await?))
}

pub fn read(raw: &Raw) -> Object<Lamp> {
    raw.parse().unwrap()
}

/// What so many did at once, each on a thread of its own.
pub async fn at_once<F, T>(count: u64, work: impl Fn(u64) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let handle = Handle::current();
    let start = |number| {
        let (handle, work) = (handle.clone(), work(number));
        tokio::task::spawn_blocking(move || handle.block_on(work))
    };
    let mut done = Vec::new();
    for work in (0..count).map(start).collect::<Vec<_>>() {
        done.push(work.await.unwrap());
    }
    done
}

/// `+name lumen`, `-name` or `resync`.
pub async fn next(events: &mut Events) -> String {
    match events.next().await {
        Some(Event::Applied(raw)) => format!("+{} {}", raw.name(), read(&raw).spec.lumen),
        Some(Event::Deleted(raw)) => format!("-{}", raw.name()),
        Some(Event::Resync) => "resync".into(),
        None => "end".into(),
    }
}
