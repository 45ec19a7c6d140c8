//! The copy of the store: a file beside it with every object, for the day when the store is gone.
//!
//! ```text
//! ankole store copy 1 89abcdef01234567     sum of the rest, XXH3
//! {"version": 12, "takenUnixS": …, "objects": [{"kind": "volume", "name": "v1", "json": "{…}"}, …]}
//! ```
//! Taken at the start, at most a second after a change, and at a clean end; each time whole, so that
//! the file is the last one or the one before. It is never newer than the store, and may be older:
//! what it says of who is in sync is believed only if the replicas agree, see
//! [`opening`](super::opening).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use ankole_whole_file as whole_file;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use twox_hash::XxHash3_64;

use super::{EmbeddedStore, Kind, Store, StoreError, Version};
use crate::api::error::chain;

const TITLE: &str = "ankole store copy 1 ";
/// Changes come in bursts: many are in one copy.
const SETTLE: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreCopy {
    /// Of the last change that is in it.
    pub version: u64,
    pub taken_unix_s: u64,
    pub objects: Vec<CopiedObject>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct CopiedObject {
    pub kind: Kind,
    pub name: String,
    pub json: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the store's copy {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the store's copy {path} is damaged: {what}")]
    Damaged { path: PathBuf, what: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub fn path_of(store: &Path) -> PathBuf {
    whole_file::beside(store, ".copy")
}

impl StoreCopy {
    /// None if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, CopyError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CopyError::Io { path: path.into(), source }),
        };
        let damaged = |what| CopyError::Damaged { path: path.into(), what };
        let rest = text.strip_prefix(TITLE.as_bytes()).ok_or_else(|| damaged("no copy"))?;
        let end = rest.iter().position(|byte| *byte == b'\n');
        let (sum, body) = rest.split_at(end.ok_or_else(|| damaged("it is cut short"))?);
        if sum != sum_of(&body[1..]).as_bytes() {
            return Err(damaged("its sum isn't that of what it holds"));
        }
        serde_json::from_slice(&body[1..]).map(Some).map_err(|_| damaged("it can't be parsed"))
    }

    fn write(&self, path: &Path) -> Result<(), CopyError> {
        let body = serde_json::to_string(self).expect("strings and numbers do");
        let text = format!("{TITLE}{}\n{body}", sum_of(body.as_bytes()));
        whole_file::write(path, text.as_bytes())
            .map_err(|source| CopyError::Io { path: path.into(), source })
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.objects.iter().filter(|object| object.kind == kind).count()
    }
}

fn sum_of(body: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(body))
}

/// Takes copies of a store as it changes.
pub struct Copies {
    store: Arc<EmbeddedStore>,
    path: PathBuf,
    last: Mutex<Option<Version>>,
}

impl Copies {
    pub fn new(store: Arc<EmbeddedStore>, path: PathBuf) -> Self {
        Self { store, path, last: Mutex::default() }
    }

    /// Unless nothing has changed since the last one.
    pub fn take(&self) -> Result<(), CopyError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.store.version()?;
        if *last == Some(version) {
            return Ok(());
        }
        let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (version, objects) = self.store.dump()?;
        StoreCopy { version: version.0, taken_unix_s: taken.as_secs(), objects }
            .write(&self.path)?;
        *last = Some(version);
        Ok(())
    }

    /// For as long as the process lives. A copy that fails is taken with the next change.
    pub async fn follow(self: Arc<Self>) {
        let mut changes = self.store.watch();
        loop {
            if let Err(RecvError::Closed) = changes.recv().await {
                return;
            }
            tokio::time::sleep(SETTLE).await;
            while changes.try_recv().is_ok() {}
            let copies = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || copies.take()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = chain(&error), "copy the store"),
                Err(_) => return, // the process ends, or the panic is in its log
            }
        }
    }
}
