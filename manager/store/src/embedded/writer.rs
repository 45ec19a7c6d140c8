//! The one thread that writes: takes what waits, decides it in order, makes all of it durable in one
//! transaction, and only then shows and answers it.
//!
//! ```text
//!           job ──▶ batch ──▶ one transaction ──▶ published, answered
//! open ──────────────┬──────────────▲
//!   ▲                │ error        │ "nothing was written" or "it isn't known"
//!   │                ▼
//!   └── compared ── closed ── each write answered "nothing was written"; opened again with growing pauses
//! ```
//! After an error redb refuses everything, so the file is closed, and looked into: it holds the batch that
//! failed, which is shown and answered then, or it doesn't. If a sync had failed, or the file is damaged
//! or older than what was answered, it is made anew from memory, which has all of that. Only if the disk
//! allows neither is it not known for now; it is looked into again before the file is opened.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ankole_api::error::chain;
use ankole_api::object::Kind;
use redb::{Database, DatabaseError, StorageBackend};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::disk::{Disk, DiskFile, Health};
use super::file::{self, FileError, Verified};
use super::guard::caught;
use crate::shared::Shared;
use crate::state::{Change, Written};
use crate::{Stamp, StoreError, Write};

/// So many writes are in one transaction.
const BATCH_MAX: usize = 256;
const PAUSE_MIN: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A program that was just killed has its lock until it has ended; a child of this one that was forked
/// and isn't another program yet has what was locked then.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_LOOK: Duration = Duration::from_millis(5);

pub(super) struct Job {
    pub kind: Kind,
    pub write: Write,
    pub answer: oneshot::Sender<Result<Written, StoreError>>,
    /// Its place in the queue.
    pub permit: OwnedSemaphorePermit,
}

/// redb over a file; tests put a disk with faults between them.
pub(super) type Attach = Box<dyn Fn(DiskFile) -> Result<Database, DatabaseError> + Send>;

/// What a store takes from outside.
pub(super) struct Outside {
    pub attach: Attach,
    pub stamps: Box<dyn FnMut() -> Stamp + Send>,
}

impl Default for Outside {
    fn default() -> Self {
        Self { attach: Box::new(attach), stamps: Box::new(Stamp::of_the_system) }
    }
}

pub(super) fn attach(disk: impl StorageBackend) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(file::CACHE_BYTES).create_with_backend(disk)
}

pub(super) struct Writer {
    path: PathBuf,
    outside: Outside,
    health: Arc<Health>,
    shared: Arc<Shared>,
    file: Opened,
    /// None while all is well. Since the first error there was no write that succeeded.
    trouble: Option<Trouble>,
}

struct Trouble {
    /// Before the next attempt.
    pause: Duration,
}

enum Opened {
    Open(Database, Weak<Disk>),
    Closed(Outage),
}

struct Outage {
    why: String,
    /// What may be in the file.
    unknown: Vec<Change>,
    next: Instant,
}

impl Writer {
    /// Opens the file, which [`file::verify`] has found to hold what `shared` has.
    pub fn open(path: PathBuf, outside: Outside, shared: Arc<Shared>) -> Result<Self, FileError> {
        let health = Arc::default();
        let (database, disk) = open_file(&path, &outside.attach, &health)?;
        Ok(Self {
            path,
            outside,
            health,
            shared,
            file: Opened::Open(database, disk),
            trouble: None,
        })
    }

    /// Until nobody can send a job any more.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let first = match &self.file {
                Opened::Open(..) => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Opened::Closed(outage) => {
                    let pause = outage.next.saturating_duration_since(Instant::now());
                    jobs.recv_timeout(pause)
                }
            };
            let mut batch = match first {
                Ok(job) => vec![job],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            batch.extend(jobs.try_iter().take(BATCH_MAX - 1));
            self.reopen_if_due();
            self.write(batch);
        }
    }

    fn write(&mut self, jobs: Vec<Job>) {
        let (database, disk) = match &self.file {
            Opened::Open(database, disk) => (database, disk),
            Opened::Closed(Outage { why, .. }) => {
                return fail(jobs, &StoreError::Unavailable { why: why.clone() });
            }
        };
        if self.health.lacks_room()
            && let Some(disk) = disk.upgrade()
        {
            disk.reserve(); // there may be room by now
        }
        let (results, changes) =
            decide(&jobs, &self.shared, &self.health, &mut self.outside.stamps);
        if !changes.is_empty()
            && let Err(failure) = file::write(database, &changes)
        {
            let why = format!("the disk of the store: {}", failure.why);
            let changes = if failure.is_undone { Vec::new() } else { changes };
            let last = changes.last().map(|change| change.revision);
            let outcome = self.close(why.clone(), changes);
            // Those that were refused fail, too: it may have been because of what isn't so.
            return match outcome {
                Outcome::Unknown => fail(jobs, &StoreError::OutcomeUnknown { why }),
                Outcome::Revision(revision) if Some(revision) == last => answer_all(jobs, results),
                Outcome::Revision(_) => fail(jobs, &StoreError::Unavailable { why }),
            };
        }
        if !changes.is_empty() {
            self.shared.change(|state| state.publish(changes));
            if self.trouble.take().is_some() {
                tracing::warn!(path = %self.path.display(), "the store can be changed again");
            }
        }
        answer_all(jobs, results);
    }

    /// And looks what has become of the changes.
    fn close(&mut self, why: String, unknown: Vec<Change>) -> Outcome {
        let outage = Outage { why, unknown, next: Instant::now() + self.pause() };
        if self.trouble.is_none() {
            tracing::error!(
                path = %self.path.display(), error = outage.why,
                "the store is closed: nothing can be changed until it can be opened again"
            );
        }
        self.trouble = Some(Trouble { pause: self.pause() });
        let closed = std::mem::replace(&mut self.file, Opened::Closed(outage));
        let _ = caught(|| drop(closed)); // it may want to write
        let Opened::Closed(outage) = &mut self.file else { unreachable!("it was closed") };
        match settle(&self.path, &self.shared, &self.health, &outage.unknown) {
            Ok(()) => {
                outage.unknown.clear();
                Outcome::Revision(self.shared.read().revision())
            }
            Err(_) => Outcome::Unknown,
        }
    }

    /// Before the next attempt: longer each time, until a write has succeeded.
    fn pause(&self) -> Duration {
        self.trouble.as_ref().map_or(PAUSE_MIN, |it| (it.pause * 2).min(PAUSE_MAX))
    }

    fn reopen_if_due(&mut self) {
        let Opened::Closed(outage) = &self.file else { return };
        if Instant::now() < outage.next {
            return;
        }
        match self.reopen(&outage.unknown) {
            Ok((database, disk)) => self.file = Opened::Open(database, disk),
            Err(error) => {
                let pause = self.pause();
                self.trouble = Some(Trouble { pause });
                if let Opened::Closed(outage) = &mut self.file {
                    outage.why = chain(&error);
                    outage.next = Instant::now() + pause;
                }
            }
        }
    }

    fn reopen(&self, unknown: &[Change]) -> Result<(Database, Weak<Disk>), FileError> {
        settle(&self.path, &self.shared, &self.health, unknown)?;
        open_file(&self.path, &self.outside.attach, &self.health)
    }
}

/// What has become of the changes that were being written, if any.
enum Outcome {
    Unknown,
    /// The last that is in the file, and shown.
    Revision(u64),
}

/// Makes file and memory the same.
fn settle(
    path: &Path,
    shared: &Shared,
    health: &Health,
    unknown: &[Change],
) -> Result<(), FileError> {
    let answered = shared.read().revision();
    match found(path, answered, health, unknown)? {
        FileHas::Answered => {}
        FileHas::Unknown => shared.change(|state| state.publish(unknown.to_vec())),
        FileHas::Less(why) => {
            let state = shared.read().snapshot();
            file::make(path, state.revision(), file::stored(&state))?;
            health.is_written_anew();
            tracing::warn!(path = %path.display(), why, "the store was made anew from memory");
        }
    }
    Ok(())
}

/// What is in the file, beside what was answered.
fn found(
    path: &Path,
    answered: u64,
    health: &Health,
    unknown: &[Change],
) -> Result<FileHas, FileError> {
    if health.sync_failed() {
        return Ok(FileHas::Less("a sync failed, so what can be read may be lost".into()));
    }
    // An error that only the page cache knows is told now.
    if let Ok(file) = File::open(path)
        && let Err(error) = file.sync_all()
    {
        health.sync_has_failed();
        return Ok(FileHas::Less(format!("it can't be synced: {error}")));
    }
    let state = match file::verify(path) {
        Ok(Verified::Sound(state)) => state,
        Ok(Verified::Missing) => return Ok(FileHas::Less("it is missing".into())),
        Ok(Verified::Empty) => return Ok(FileHas::Less("it has no bytes".into())),
        Err(FileError::Damaged { what, .. }) => return Ok(FileHas::Less(what)),
        Err(error) => return Err(error),
    };
    let with_unknown = unknown.last().map(|change| change.revision);
    match state.revision() {
        is if is == answered => Ok(FileHas::Answered),
        is if Some(is) == with_unknown => Ok(FileHas::Unknown),
        is if is < answered => Ok(FileHas::Less("it has lost changes".into())),
        _ => Err(file::damaged(path, "another program has changed it")),
    }
}

fn decide(
    jobs: &[Job],
    shared: &Shared,
    health: &Health,
    stamps: &mut dyn FnMut() -> Stamp,
) -> (Vec<Result<Written, StoreError>>, Vec<Change>) {
    let lacks_room = health.lacks_room();
    let state = shared.read();
    let mut batch = state.batch();
    let decided = jobs.iter().map(|Job { kind, write, .. }| {
        if lacks_room && matches!(write, Write::Create(_)) {
            let why = "the disk of the store has no room".into();
            return Err(StoreError::Unavailable { why });
        }
        batch.apply(*kind, write, &stamps())
    });
    let results = decided.collect();
    (results, batch.finish())
}

fn open_file(
    path: &Path,
    attach: &Attach,
    health: &Arc<Health>,
) -> Result<(Database, Weak<Disk>), FileError> {
    let failed = |error| file::open_error(path, redb::Error::Io(error));
    let deadline = Instant::now() + LOCK_PATIENCE;
    let disk = loop {
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        match DiskFile::new(file, Arc::clone(health)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Err(FileError::InUse { path: path.into() });
                }
                std::thread::sleep(LOCK_LOOK);
            }
            disk => break disk.map_err(failed)?,
        }
    };
    let handle = disk.disk();
    let opened = caught(|| attach(disk)).map_err(|panic| file::damaged(path, panic))?;
    Ok((opened.map_err(|error| file::open_error(path, error))?, handle))
}

enum FileHas {
    /// Just that.
    Answered,
    /// The batch that failed, too.
    Unknown,
    /// Not all of it, or nobody knows.
    Less(String),
}

fn fail(jobs: Vec<Job>, error: &StoreError) {
    for job in jobs {
        answer(job, Err(error.clone()));
    }
}

fn answer_all(jobs: Vec<Job>, results: Vec<Result<Written, StoreError>>) {
    for (job, result) in jobs.into_iter().zip(results) {
        answer(job, result);
    }
}

fn answer(job: Job, result: Result<Written, StoreError>) {
    drop(job.permit);
    // Whoever asked may be gone.
    let _ = job.answer.send(result);
}
