//! The store on one machine: all in memory, each change in a file before anybody sees it.
//!
//! ```text
//! writes ──queue──▶ writer, a thread of its own ──▶ file (redb) ──then──▶ state in memory
//! reads, watches ◀──────────────────────────────────────────────────────────────┘
//! ```
//! Reads and watches wait for no disk. What may never happen: something is seen or answered that a
//! power cut could take back.

mod copy;
mod disk;
mod file;
mod guard;
mod look;
mod opening;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use ankole_api::object::{Kind, ResourceVersion};
use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

pub use copy::{Copies, CopyError, StoreCopy, path_of as copy_of};
pub use file::{FORMAT, FileError, StoredObject, Verified, read_older, verify};
pub use opening::{Convert, OpenError, Opening, Recover, Unconverted};
use writer::{Job, Outside, Writer};

use crate::shared::Shared;
use crate::state::{State, Written};
use crate::{
    Events, List, OBJECT_BYTES_MAX, Precondition, Raw, Selector, Store, StoreError, Write,
};

/// Of the writes that wait for the disk: one takes a place for each KiB and one more.
const QUEUE_PLACES: u32 = 16 << 10;
/// A place in the queue is waited for this long, and the disk once more.
const WAIT_MAX: Duration = Duration::from_secs(30);

pub struct EmbeddedStore {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    /// None when it ends.
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the file, or makes it. A store that is gone, damaged or older than its copy, or that a
    /// newer program wrote, is refused untouched.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_as(path, &Opening::default())
    }

    pub fn open_as(path: &Path, opening: &Opening<'_>) -> Result<Self, OpenError> {
        let state = opening.open(path)?;
        Ok(Self::start(path, state, Outside::default())?)
    }

    /// `state` is what the file holds.
    fn start(path: &Path, state: State, outside: Outside) -> Result<Self, FileError> {
        let shared = Shared::new(state);
        let writer = Writer::open(path.into(), outside, Arc::clone(&shared))?;
        let (jobs, waiting) = mpsc::channel();
        let thread = std::thread::Builder::new().name("store".into());
        let writer = thread
            .spawn(move || writer.run(&waiting))
            .map_err(|error| file::open_error(path, redb::Error::Io(error)))?;
        let places = Arc::new(Semaphore::new(QUEUE_PLACES as usize));
        Ok(Self { shared, places, jobs: Some(jobs), writer: Some(writer) })
    }

    #[cfg(test)]
    fn open_with(path: &Path, outside: Outside) -> Result<Self, OpenError> {
        let state = Opening::default().open(path)?;
        Ok(Self::start(path, state, outside)?)
    }

    async fn write(&self, kind: Kind, write: Write) -> Result<Written, StoreError> {
        let size_bytes = match &write {
            Write::Create(object) | Write::Replace(object) | Write::ReplaceStatus(object) => {
                object.size_bytes().min(OBJECT_BYTES_MAX)
            }
            Write::Delete { .. } => 0,
        };
        let places = u32::try_from(size_bytes / 1024).expect("the limit is") + 1;
        let place = timeout(WAIT_MAX, Arc::clone(&self.places).acquire_many_owned(places));
        let Ok(Ok(permit)) = place.await else {
            let why = "too many writes wait for the disk of the store".into();
            return Err(StoreError::Unavailable { why });
        };
        let (answer, answered) = oneshot::channel();
        let job = Job { kind, write, answer, permit };
        if self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            return Err(StoreError::Unavailable { why: "the store's writer has ended".into() });
        }
        match timeout(WAIT_MAX, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                let why = "the store's writer has ended".into();
                Err(StoreError::OutcomeUnknown { why })
            }
            Err(_) => {
                let seconds = WAIT_MAX.as_secs();
                let why = format!("the disk of the store hasn't answered for {seconds} s");
                Err(StoreError::OutcomeUnknown { why })
            }
        }
    }

    async fn put(&self, kind: Kind, write: Write) -> Result<Arc<Raw>, StoreError> {
        let written = self.write(kind, write).await?;
        Ok(written.object().expect("what is put can be read"))
    }
}

/// What waits is still written.
impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // Its panic is in the log.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get_raw(&self, kind: Kind, name: &str) -> Result<Option<Arc<Raw>>, StoreError> {
        self.shared.read().get(kind, name)
    }

    async fn list_raw(&self, kind: Kind, selector: &Selector) -> Result<List, StoreError> {
        Ok(self.shared.read().list(kind, selector))
    }

    async fn create_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.put(kind, Write::Create(object)).await
    }

    async fn replace_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.put(kind, Write::Replace(object)).await
    }

    async fn replace_status_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError> {
        self.put(kind, Write::ReplaceStatus(object)).await
    }

    async fn delete_raw(
        &self,
        kind: Kind,
        name: &str,
        precondition: &Precondition,
    ) -> Result<Option<Arc<Raw>>, StoreError> {
        let delete = Write::Delete { name: name.into(), precondition: precondition.clone() };
        Ok(match self.write(kind, delete).await? {
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
