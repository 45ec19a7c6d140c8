//! Where objects are kept: the small part of an API server that the control plane needs.
//!
//! Every object has a version that is never used again. An update names the version that it saw
//! and is refused when that isn't the present one: of two writers who read the same, one wins and
//! the other looks again. What may never happen: a write is answered before it is durable, or a
//! write undoes another that its writer hasn't seen.

pub mod copy;
mod embedded;
mod guard;
pub mod opening;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::api::error::chain;
use crate::api::target::BackupTarget;
use crate::api::volume::Volume;

pub use embedded::EmbeddedStore;

/// Raised by one at each write to the store, over all objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    Volume,
    BackupTarget,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Volume, Self::BackupTarget];

    fn table(self) -> &'static str {
        match self {
            Self::Volume => "volumes",
            Self::BackupTarget => "backup-targets",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Volume => "volume",
            Self::BackupTarget => "target",
        })
    }
}

/// An object as the store sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub version: Version,
    pub json: Vec<u8>,
}

/// Tells that an object was made, changed or deleted, not how: who wants to know looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub kind: Kind,
    pub name: String,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{kind} {name} doesn't exist")]
    NotFound { kind: Kind, name: String },
    #[error("{kind} {name} exists already")]
    Exists { kind: Kind, name: String },
    #[error("{kind} {name} was changed by somebody else")]
    Conflict { kind: Kind, name: String },
    #[error("open the store {path}")]
    Open { path: String, source: Box<redb::Error> },
    #[error("the store {path} is damaged: {what}")]
    Damaged { path: String, what: String },
    #[error("the {kind} {name} in the store is damaged: its sum isn't that of what it holds")]
    ObjectDamaged { kind: Kind, name: String },
    #[error("read or write the store: it may be damaged: {what}")]
    Panicked { what: String },
    #[error("the store {path} has format {found}; this program knows up to {known}")]
    Newer { path: String, found: u64, known: u64 },
    #[error("the {kind} {name} in the store can't be read")]
    Garbage { kind: Kind, name: String, source: serde_json::Error },
    #[error("read or write the store")]
    Database(#[from] Box<redb::Error>),
}

/// All calls may wait for the disk: on an async task, make them where blocking is allowed.
pub trait Store: Send + Sync {
    fn get(&self, kind: Kind, name: &str) -> Result<Option<Stored>, StoreError>;
    /// By name.
    fn list(&self, kind: Kind) -> Result<Vec<(String, Stored)>, StoreError>;
    fn create(&self, kind: Kind, name: &str, json: &[u8]) -> Result<Version, StoreError>;
    fn update(
        &self,
        kind: Kind,
        name: &str,
        seen: Version,
        json: &[u8],
    ) -> Result<Version, StoreError>;
    fn delete(&self, kind: Kind, name: &str, seen: Version) -> Result<(), StoreError>;
    /// Changes from now on. A receiver that lags is told so and lists again.
    fn watch(&self) -> broadcast::Receiver<Changed>;
}

/// A type that the store keeps.
pub trait Object: Serialize + DeserializeOwned {
    const KIND: Kind;
    fn name(&self) -> &str;
}

impl Object for Volume {
    const KIND: Kind = Kind::Volume;
    fn name(&self) -> &str {
        &self.name
    }
}

impl Object for BackupTarget {
    const KIND: Kind = Kind::BackupTarget;
    fn name(&self) -> &str {
        &self.name
    }
}

/// Objects with their names, or why one can't be read.
pub type Each<T> = Vec<(String, Result<T, StoreError>)>;

/// Typed access to any store.
impl dyn Store + '_ {
    pub fn read<T: Object>(&self, name: &str) -> Result<T, StoreError> {
        self.find(name)?.ok_or_else(|| StoreError::NotFound { kind: T::KIND, name: name.into() })
    }

    pub fn find<T: Object>(&self, name: &str) -> Result<Option<T>, StoreError> {
        self.get(T::KIND, name)?.map(|stored| parse(name, &stored)).transpose()
    }

    /// Fails if one of them can't be read: for who must know them all.
    pub fn all<T: Object>(&self) -> Result<Vec<T>, StoreError> {
        self.each()?.into_iter().map(|(_, object)| object).collect()
    }

    /// By name, each for itself: one that can't be read (written by another version, or damaged)
    /// hides no other.
    pub fn each<T: Object>(&self) -> Result<Each<T>, StoreError> {
        let parsed = |(name, stored): (String, Stored)| {
            let object = parse(&name, &stored);
            (name, object)
        };
        Ok(self.list(T::KIND)?.into_iter().map(parsed).collect())
    }

    /// Those that can be read; the log says which can't.
    pub fn readable<T: Object>(&self) -> Result<Vec<T>, StoreError> {
        let noted = |(_, object): (String, Result<T, StoreError>)| {
            object.inspect_err(|error| tracing::error!(error = chain(error), "left out")).ok()
        };
        Ok(self.each()?.into_iter().filter_map(noted).collect())
    }

    pub fn add<T: Object>(&self, object: &T) -> Result<(), StoreError> {
        self.create(T::KIND, object.name(), &to_json(object)).map(drop)
    }

    /// Read, change, compare-and-swap, until nobody came in between. `change` may refuse, and
    /// may run more than once.
    pub fn modify<T, R, E>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut T) -> Result<R, E>,
    ) -> Result<R, E>
    where
        T: Object,
        E: From<StoreError>,
    {
        loop {
            let not_found = || StoreError::NotFound { kind: T::KIND, name: name.into() };
            let stored = self.get(T::KIND, name)?.ok_or_else(not_found)?;
            let mut object: T = parse(name, &stored)?;
            let result = change(&mut object)?;
            let json = to_json(&object);
            if json == stored.json {
                return Ok(result);
            }
            match self.update(T::KIND, name, stored.version, &json) {
                Ok(_) => return Ok(result),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Deletes the object if `allow` agrees to what it is at that moment.
    pub fn remove<T: Object, E: From<StoreError>>(
        &self,
        name: &str,
        allow: impl Fn(&T) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let not_found = || StoreError::NotFound { kind: T::KIND, name: name.into() };
            let stored = self.get(T::KIND, name)?.ok_or_else(not_found)?;
            allow(&parse(name, &stored)?)?;
            match self.delete(T::KIND, name, stored.version) {
                Err(StoreError::Conflict { .. }) => {}
                done => return done.map_err(E::from),
            }
        }
    }
}

fn parse<T: Object>(name: &str, stored: &Stored) -> Result<T, StoreError> {
    serde_json::from_slice(&stored.json).map_err(|source| StoreError::Garbage {
        kind: T::KIND,
        name: name.into(),
        source,
    })
}

fn to_json<T: Object>(object: &T) -> Vec<u8> {
    serde_json::to_vec(object).expect("objects have string keys and no failing serializer")
}
