//! Keeps deletions and uploads of one volume apart, by Longhorn's protocol of lock objects.
//!
//! ```text
//! write lock (not acquired) ──settle──▶ list ──nobody of the other kind ranks before──▶ rewrite (acquired)
//!                                        └──somebody does──▶ delete lock, give up: Busy
//! held: rewritten at every `refresh`; ignored by others when not rewritten for `stale`
//! ```
//! A lock ranks before another if it is acquired and the other isn't, then by age, then by name.
//! Backups and restores share a volume, deletions share a volume, one kind excludes the other.
//! A store has no compare-and-swap, so the pause between writing and listing is what makes two
//! contenders see each other.
//!
//! Promises that work under a lock which may have gone stale (a machine that slept, a target that
//! was away) stops with [`Error::LockLost`] instead of going on unprotected: see
//! [`HeldLock::check`].

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::json;
use crate::name::Name;
use crate::store::VolumeStore;
use crate::target::{Target, TargetError, found};

const LOCK_BYTES_MAX: u64 = 64 << 10;

/// The protocol's times. All who share a store must use the same ones, which are the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockTimes {
    /// Between writing a lock and looking for others.
    pub settle: Duration,
    pub refresh: Duration,
    /// A lock that wasn't rewritten for so long counts no more.
    pub stale: Duration,
}

impl Default for LockTimes {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(2),
            refresh: Duration::from_secs(60),
            stale: Duration::from_secs(150),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockKind {
    Use,
    Delete,
}

impl LockKind {
    const fn number(self) -> u32 {
        match self {
            Self::Use => 1,
            Self::Delete => 2,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockFile {
    name: String,
    #[serde(rename = "Type")]
    kind: u32,
    acquired: bool,
}

/// A lock of somebody else that still counts.
struct OtherLock {
    file: LockFile,
    modified: SystemTime,
}

impl OtherLock {
    /// Whether this lock ranks before one that isn't acquired yet.
    fn precedes(&self, mine: &str, mine_modified: SystemTime) -> bool {
        self.file.acquired || (self.modified, self.file.name.as_str()) < (mine_modified, mine)
    }
}

pub(crate) struct HeldLock<'a> {
    store: &'a VolumeStore<'a>,
    name: String,
    kind: LockKind,
    times: LockTimes,
    /// Begin of the last rewriting that succeeded; both clocks, because one stops while the machine
    /// sleeps and the other may be set. `None` once the lock has been lost.
    refreshed: Mutex<Option<(Instant, SystemTime)>>,
}

/// Runs `body` while holding a lock of `kind`.
pub(crate) fn with_lock<'a, T>(
    store: &'a VolumeStore<'a>,
    kind: LockKind,
    times: LockTimes,
    body: impl FnOnce(&HeldLock<'a>) -> Result<T, Error>,
) -> Result<T, Error> {
    hold(HeldLock::acquire(store, kind, times)?, body)
}

/// Runs `body` while holding a lock for a restore or verification, or without one if the target
/// can't be written: then a deletion may take blocks away meanwhile, which is found and reported,
/// as every block is verified.
pub(crate) fn with_lock_if_writable<T>(
    store: &VolumeStore<'_>,
    times: LockTimes,
    body: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    match HeldLock::acquire(store, LockKind::Use, times) {
        Ok(lock) => hold(lock, |_| body()),
        Err(Error::Target(TargetError::Denied { path, .. })) => {
            tracing::warn!(%path, "reading without a lock, because the target isn't writable");
            body()
        }
        Err(error) => Err(error),
    }
}

/// What became of the locks that a volume had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unlocked {
    /// Where those lay that nobody renewed; they are gone.
    pub removed: Vec<String>,
    /// Where those lie whose holders live.
    pub alive: Vec<String>,
}

/// Watches a volume's locks for as long as one may go without being renewed, and removes those that
/// weren't. The target's clock isn't asked: it may have been wrong when a lock was written, which
/// then wouldn't go stale until it catches up.
pub fn remove_dead_locks(
    target: &dyn Target,
    volume: &Name,
    times: LockTimes,
) -> Result<Unlocked, Error> {
    let store = VolumeStore::new(target, volume);
    let mut watched = Vec::new();
    for child in target.children(&store.paths.locks())? {
        let Some(name) = child.strip_suffix(".lck") else { continue };
        let key = store.paths.lock(name);
        if let Some(modified) = found(target.modified(&key))? {
            watched.push((key, modified));
        }
    }
    if !watched.is_empty() {
        thread::sleep(times.stale);
    }
    let mut unlocked = Unlocked::default();
    for (key, before) in watched {
        match found(target.modified(&key))? {
            None => {} // given back
            Some(now) if now == before => {
                target.delete(&key)?;
                unlocked.removed.push(target.locate(&key));
            }
            Some(_) => unlocked.alive.push(target.locate(&key)),
        }
    }
    Ok(unlocked)
}

fn hold<'a, T>(
    lock: HeldLock<'a>,
    body: impl FnOnce(&HeldLock<'a>) -> Result<T, Error>,
) -> Result<T, Error> {
    let refresh = lock.times.refresh;
    let (stop, stopped) = mpsc::channel::<()>();
    let lock_ref = &lock;
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            let mut wait = refresh;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = if lock_ref.refresh() { refresh } else { refresh / 6 };
            }
        });
        // Dropped at the end or by a panic, which ends the refreshing.
        let _stop = stop;
        body(lock_ref)
    });
    lock.release();
    result
}

impl<'a> HeldLock<'a> {
    fn acquire(
        store: &'a VolumeStore<'a>,
        kind: LockKind,
        times: LockTimes,
    ) -> Result<Self, Error> {
        let name = format!("lock-{:016x}", RandomState::new().build_hasher().finish());
        let lock = Self { store, name, kind, times, refreshed: Mutex::new(None) };
        let begun = (Instant::now(), SystemTime::now());
        lock.write(false)?;
        let settled = lock.settle_and_rank();
        if settled.is_ok() {
            *lock.refreshed.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
        } else {
            lock.release();
        }
        settled.map(|()| lock)
    }

    fn settle_and_rank(&self) -> Result<(), Error> {
        thread::sleep(self.times.settle);
        let modified = self.store.target.modified(&self.key())?;
        let mut excluding = self.others()?;
        excluding.retain(|other| other.file.kind != self.kind.number());
        if let Some(first) = excluding.iter().find(|other| other.precedes(&self.name, modified)) {
            return Err(self.busy(&first.file));
        }
        self.write(true)
    }

    fn busy(&self, holder: &LockFile) -> Error {
        let doing = if holder.kind == LockKind::Delete.number() {
            "a deletion"
        } else {
            "a backup or restore"
        };
        let path = self.store.target.locate(&self.store.paths.lock(&holder.name));
        Error::Busy { volume: self.store.volume.clone(), holder: format!("{doing} ({path})") }
    }

    /// Locks of others that aren't stale.
    fn others(&self) -> Result<Vec<OtherLock>, Error> {
        self.scan().map(|(others, _stale)| others)
    }

    /// Removes what killed processes left.
    pub(crate) fn remove_stale_ones(&self) -> Result<(), Error> {
        let (_others, stale) = self.scan()?;
        Ok(stale.iter().try_for_each(|key| self.store.target.delete(key))?)
    }

    /// Locks of others that count, and keys of the stale ones. One that can't be read is passed
    /// over, as by Longhorn.
    fn scan(&self) -> Result<(Vec<OtherLock>, Vec<String>), Error> {
        let target = self.store.target;
        let (mut others, mut stale) = (Vec::new(), Vec::new());
        for child in target.children(&self.store.paths.locks())? {
            let Some(name) = child.strip_suffix(".lck").filter(|name| *name != self.name) else {
                continue;
            };
            let key = self.store.paths.lock(name);
            let bytes = match found(target.read(&key, LOCK_BYTES_MAX)) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error @ (TargetError::NotPlain { .. } | TargetError::TooBig { .. })) => {
                    tracing::warn!(%error, "skipping what is no lock");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let Some(modified) = found(target.modified(&key))? else { continue };
            let age = SystemTime::now().duration_since(modified).unwrap_or_default();
            match serde_json::from_slice::<LockFile>(&bytes) {
                _ if age >= self.times.stale => stale.push(key),
                Ok(mut file) => {
                    file.name = name.to_owned(); // what its object is called, whatever it says
                    others.push(OtherLock { file, modified });
                }
                Err(error) => tracing::warn!(%key, %error, "skipping an unreadable lock"),
            }
        }
        Ok((others, stale))
    }

    /// Whether somebody else backs up or restores this volume now.
    pub(crate) fn has_company(&self) -> Result<bool, Error> {
        Ok(self.others()?.iter().any(|other| other.file.kind == LockKind::Use.number()))
    }

    /// Fails if others may have stopped respecting this lock. To be called before every step that
    /// needs its protection. The margin is for the step itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refreshed = *self.refreshed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = refreshed.is_some_and(|(instant, time)| {
            let age = instant.elapsed().max(time.elapsed().unwrap_or_default());
            age < self.times.stale / 5 * 4
        });
        if is_fresh { Ok(()) } else { Err(Error::LockLost { volume: self.store.volume.clone() }) }
    }

    /// Like [`check`](Self::check), and asks the target: somebody may have removed the lock. Before
    /// what can't be taken back.
    pub(crate) fn confirm(&self) -> Result<(), Error> {
        self.check()?;
        match self.store.target.exists(&self.key())? {
            true => Ok(()),
            false => Err(Error::LockLost { volume: self.store.volume.clone() }),
        }
    }

    /// A lock that was lost once stays lost: a deletion may have begun in between.
    fn refresh(&self) -> bool {
        if matches!(self.confirm(), Err(Error::LockLost { .. })) {
            *self.refreshed.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return false;
        }
        let begun = (Instant::now(), SystemTime::now());
        match self.write(true) {
            Ok(()) => {
                *self.refreshed.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
                true
            }
            Err(error) => {
                let volume = self.store.volume.as_str();
                tracing::warn!(volume, %error, "can't refresh the lock; trying again");
                false
            }
        }
    }

    fn write(&self, acquired: bool) -> Result<(), Error> {
        let file = LockFile { name: self.name.clone(), kind: self.kind.number(), acquired };
        Ok(self.store.target.write(&self.key(), &json::to_vec(&file))?)
    }

    fn release(&self) {
        if let Err(error) = self.store.target.delete(&self.key()) {
            let volume = self.store.volume.as_str();
            tracing::warn!(volume, %error, "can't remove the lock; it ends by itself");
        }
    }

    fn key(&self) -> String {
        self.store.paths.lock(&self.name)
    }
}
