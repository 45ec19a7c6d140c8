//! What the tests share: a volume too simple to be wrong, places to restore to, and targets that
//! fail.

#![allow(dead_code, unreachable_pub, reason = "every test file uses a part")]

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use ankole_backup::target::{Access, MemoryTarget, Target, TargetError};
use ankole_backup::*;
use sha2::{Digest, Sha256};

pub const UNIT: u64 = 4096;
/// Small blocks, so that a volume of many blocks is quick. The format allows any size.
pub const SMALL_BLOCK: u64 = 4 * UNIT;

/// Times that order things as the real ones do, and don't make a test wait.
pub fn quick() -> LockTimes {
    LockTimes {
        settle: Duration::from_millis(1),
        refresh: Duration::from_secs(1),
        stale: Duration::from_secs(60),
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn request(backup: &str) -> BackupRequest {
    let mut request = BackupRequest::new(name(backup));
    request.block_bytes = SMALL_BLOCK;
    request.lock_times = quick();
    request
}

pub fn options() -> RestoreOptions {
    RestoreOptions { lock_times: quick(), ..Default::default() }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A volume as a flat array, and all snapshots it ever had as whole copies.
#[derive(Clone)]
pub struct Model {
    pub volume: String,
    pub bytes: Vec<u8>,
    /// Units written since the last snapshot, also with zeroes.
    written: Vec<bool>,
    pub snapshots: Vec<Snapshot>,
}

#[derive(Clone)]
pub struct Snapshot {
    pub volume: String,
    pub name: String,
    pub id: String,
    pub bytes: Vec<u8>,
    /// For every earlier snapshot that is still there, oldest first: its id and the units written
    /// after it. The entry without id has everything ever written.
    written_since: Vec<(Option<String>, Vec<bool>)>,
}

impl Model {
    pub fn new(volume: &str, size_bytes: u64) -> Self {
        let bytes = vec![0; size_bytes as usize];
        let written = vec![false; (size_bytes / UNIT) as usize];
        Self { volume: volume.to_owned(), bytes, written, snapshots: Vec::new() }
    }

    pub fn write(&mut self, unit: u64, units: u64, seed: u64) {
        let end = (unit + units).min(self.bytes.len() as u64 / UNIT);
        for at in unit.min(end)..end {
            let range = (at * UNIT) as usize..((at + 1) * UNIT) as usize;
            // Seed 0 is zeroes; few different seeds make equal blocks.
            self.bytes[range].fill((seed % 256) as u8);
            self.written[at as usize] = true;
        }
    }

    /// `id` is unique, `name` needn't be.
    pub fn snapshot(&mut self, name: &str) -> Snapshot {
        let mut written_since = self
            .snapshots
            .last()
            .map_or(vec![(None, vec![false; self.written.len()])], |s| s.written_since.clone());
        if let Some(last) = self.snapshots.last() {
            written_since.push((Some(last.id.clone()), vec![false; self.written.len()]));
        }
        for (_, units) in &mut written_since {
            units.resize(self.written.len(), false);
            for (unit, written) in units.iter_mut().zip(&self.written) {
                *unit |= *written;
            }
        }
        self.written.fill(false);
        static IDS: AtomicUsize = AtomicUsize::new(0);
        let snapshot = Snapshot {
            volume: self.volume.clone(),
            name: name.to_owned(),
            id: format!("id-{}", IDS.fetch_add(1, Ordering::Relaxed)),
            bytes: self.bytes.clone(),
            written_since,
        };
        self.snapshots.push(snapshot.clone());
        snapshot
    }

    pub fn grow(&mut self, bytes: u64) {
        self.bytes.resize(self.bytes.len() + bytes as usize, 0);
        self.written.resize(self.bytes.len() / UNIT as usize, false);
    }
}

impl Snapshot {
    /// The source after the user deleted snapshot `id`.
    pub fn forget(&mut self, id: &str) {
        self.written_since.retain(|(known, _)| known.as_deref() != Some(id));
    }
}

fn ranges(units: &[bool]) -> Vec<Range<u64>> {
    let written = units.iter().enumerate().filter(|(_, written)| **written);
    written.map(|(unit, _)| unit as u64 * UNIT..(unit as u64 + 1) * UNIT).collect()
}

impl Source for Snapshot {
    fn volume(&self) -> &str {
        &self.volume
    }
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn snapshot_name(&self) -> &str {
        &self.name
    }
    fn snapshot_id(&self) -> &str {
        &self.id
    }
    fn changed(&self, since: Option<&str>) -> io::Result<Changed> {
        let known = |id: &&(Option<String>, Vec<bool>)| id.0.as_deref() == since;
        Ok(match self.written_since.iter().find(known).filter(|_| since.is_some()) {
            Some((_, units)) => Changed::Since(ranges(units)),
            None => Changed::Everything(ranges(&self.written_since[0].1)),
        })
    }
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        let at = offset_bytes as usize;
        into.copy_from_slice(&self.bytes[at..at + into.len()]);
        Ok(())
    }
}

/// A device that is full of old bytes, as for a restore in place.
pub struct DirtyDevice(pub Mutex<Vec<u8>>);

impl DirtyDevice {
    pub fn new(size_bytes: usize) -> Self {
        Self(Mutex::new(vec![0xee; size_bytes]))
    }
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

impl Sink for DirtyDevice {
    fn size_bytes(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let at = offset_bytes as usize;
        self.0.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn zero_at(&self, range: Range<u64>) -> io::Result<()> {
        self.0.lock().unwrap()[range.start as usize..range.end as usize].fill(0);
        Ok(())
    }
    fn finish(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The whole content of a backup.
pub fn restored(target: &dyn Target, volume: &str, backup: &str) -> Result<Vec<u8>, Error> {
    let (volume, backup) = (name(volume), name(backup));
    let size_bytes = inventory::inspect(target, &volume, &backup)?.size_bytes;
    let device = DirtyDevice::new(size_bytes as usize);
    restore(target, &volume, &backup, &device, &options(), &unobserved)?;
    Ok(device.into_bytes())
}

/// Error text with all causes, as a user sees it.
pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// A target that wraps one in memory and fails on command.
#[derive(Default)]
pub struct Faulty {
    pub inner: MemoryTarget,
    /// Bytes that may be written before the target is full; `i64::MIN` means no limit.
    room_bytes: Option<AtomicI64>,
    /// Calls until everything fails, as after a kill: not even a lock is given back.
    calls_left: Option<AtomicI64>,
    pub revived: AtomicBool,
}

impl Faulty {
    pub fn full_after(bytes: i64) -> Self {
        Self { room_bytes: Some(bytes.into()), ..Self::default() }
    }
    pub fn killed_after(calls: i64) -> Self {
        Self { calls_left: Some(calls.into()), ..Self::default() }
    }
    /// Ends all faults, and lets the locks of the killed process age away.
    pub fn revive(&self) {
        self.revived.store(true, Ordering::Relaxed);
        for key in self.inner.keys() {
            if key.ends_with(".lck") {
                self.inner.set_modified(&key, SystemTime::UNIX_EPOCH);
            }
        }
    }

    fn fail(&self, access: Access, key: &str, kind: io::ErrorKind) -> TargetError {
        TargetError::from_io(access, self.inner.locate(key), kind.into())
    }

    fn enter(&self, access: Access, key: &str) -> Result<(), TargetError> {
        let dead = |left: &AtomicI64| left.fetch_sub(1, Ordering::Relaxed) <= 0;
        let is_dead = self.calls_left.as_ref().is_some_and(dead);
        if is_dead && !self.revived.load(Ordering::Relaxed) {
            return Err(self.fail(access, key, io::ErrorKind::BrokenPipe));
        }
        Ok(())
    }
}

impl Target for Faulty {
    fn url(&self) -> &str {
        self.inner.url()
    }
    fn locate(&self, key: &str) -> String {
        self.inner.locate(key)
    }
    fn children(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        self.enter(Access::List, folder)?;
        self.inner.children(folder)
    }
    fn objects_below(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        self.enter(Access::List, folder)?;
        self.inner.objects_below(folder)
    }
    fn open(&self, key: &str) -> Result<Box<dyn io::Read + Send>, TargetError> {
        self.enter(Access::Read, key)?;
        self.inner.open(key)
    }
    fn read(&self, key: &str, bytes_max: u64) -> Result<Vec<u8>, TargetError> {
        self.enter(Access::Read, key)?;
        self.inner.read(key, bytes_max)
    }
    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), TargetError> {
        self.enter(Access::Write, key)?;
        if let Some(room) = &self.room_bytes
            && !self.revived.load(Ordering::Relaxed)
            && room.fetch_sub(bytes.len() as i64, Ordering::Relaxed) < bytes.len() as i64
        {
            return Err(self.fail(Access::Write, key, io::ErrorKind::StorageFull));
        }
        self.inner.write(key, bytes)
    }
    fn flush(&self) -> Result<(), TargetError> {
        self.enter(Access::Write, "")?;
        self.inner.flush()
    }
    fn object_bytes(&self, key: &str) -> Result<Option<u64>, TargetError> {
        self.enter(Access::Read, key)?;
        self.inner.object_bytes(key)
    }
    fn delete(&self, key: &str) -> Result<(), TargetError> {
        self.enter(Access::Delete, key)?;
        self.inner.delete(key)
    }
    fn modified(&self, key: &str) -> Result<SystemTime, TargetError> {
        self.enter(Access::Read, key)?;
        self.inner.modified(key)
    }
}
