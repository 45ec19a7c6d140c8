//! What a replica asked of its disk, and what a power cut at any moment may leave of it. Pure.
//!
//! Owns the log of one machine's directory since it was started. Promises: what was synced is
//! there; each 512-byte sector that wasn't is what it was at the last sync or what one of the
//! writes since made of it, each for itself; so is each name, and each file's length. A call that
//! was running when the power was cut may have been done, not done, or done in part.
//!
//! ```text
//! write A ├──┤
//! write B    ├──────┤
//! sync            ├────┤          covers A: it had ended when the sync began. B may be lost.
//! cut                      ┃
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ankole_replica::store::crash::Random;

use crate::oracle::{Clock, Moment};

const SECTOR: usize = 512;

type Sector = Arc<[u8; SECTOR]>;

/// A file of a directory, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId(pub u32);

#[derive(Clone, Debug)]
pub enum Call {
    Create {
        name: String,
        file: FileId,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
    Write {
        file: FileId,
        offset_bytes: u64,
        bytes: Arc<[u8]>,
    },
    /// The range reads as zeroes afterwards.
    Punch {
        file: FileId,
        offset_bytes: u64,
        length_bytes: u64,
    },
    /// Makes it at least so long.
    Extend {
        file: FileId,
        length_bytes: u64,
    },
    Sync {
        file: FileId,
    },
    SyncDir,
}

#[derive(Clone, Debug)]
struct Entry {
    began: Moment,
    /// `None` while it runs, and for ever if it failed or its process was killed.
    ended: Option<Moment>,
    call: Call,
}

/// Clones are the same log.
#[derive(Clone)]
pub struct WriteLog {
    clock: Clock,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// A call that has begun.
pub struct Running(usize);

impl WriteLog {
    pub fn new(clock: Clock) -> Self {
        Self { clock, entries: Arc::default() }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, call: Call) -> Running {
        let mut entries = self.entries();
        entries.push(Entry { began: self.clock.now(), ended: None, call });
        Running(entries.len() - 1)
    }

    /// It was done. One that failed never ends.
    pub fn end(&self, running: Running) {
        self.entries()[running.0].ended = Some(self.clock.now());
    }

    /// How many calls there were, and how many of them were syncs.
    pub fn counts(&self) -> (usize, usize) {
        let entries = self.entries();
        let is_sync = |entry: &&Entry| matches!(entry.call, Call::Sync { .. } | Call::SyncDir);
        (entries.len(), entries.iter().filter(is_sync).count())
    }

    /// The machine lost power at `at`: what is left, decided by `random`.
    pub fn after_power_cut(&self, before: &Files, at: Moment, random: &mut Random) -> Files {
        self.replay(before, at).survivors(random)
    }

    /// The process was killed at `at`: the kernel kept what it was given. What was running is
    /// done or not, each call as a whole.
    pub fn after_kill(&self, before: &Files, at: Moment, random: &mut Random) -> Files {
        let mut disk = Disk::new(before);
        for entry in self.entries().iter().filter(|entry| entry.began <= at) {
            let is_done = entry.ended.is_some_and(|ended| ended <= at);
            if is_done || random.below(2) == 0 {
                disk.carry_out(&entry.call);
            }
        }
        disk.as_the_kernel_shows_it()
    }

    fn replay(&self, before: &Files, at: Moment) -> Disk {
        let mut disk = Disk::new(before);
        for entry in self.entries().iter().filter(|entry| entry.began <= at) {
            let ended = entry.ended.filter(|ended| *ended <= at);
            disk.now = ended.unwrap_or(Moment(u64::MAX));
            match (&entry.call, ended) {
                // A sync that hasn't returned promises nothing.
                (Call::Sync { .. } | Call::SyncDir, None) => {}
                (Call::Sync { file }, Some(_)) => disk.sync(*file, entry.began),
                (Call::SyncDir, Some(_)) => disk.sync_dir(entry.began),
                (call, _) => disk.carry_out(call),
            }
        }
        disk
    }
}

/// A directory's content: what a disk holds when nothing runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<String, FileImage>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FileImage {
    length_bytes: u64,
    /// Sectors that aren't zero.
    sectors: BTreeMap<u64, Sector>,
}

impl Files {
    /// Reads a directory; everything in it counts as durable.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            let bytes = std::fs::read(entry.path())?;
            let mut sectors = BTreeMap::new();
            for (at, piece) in (0..).zip(bytes.chunks(SECTOR)) {
                if piece.iter().any(|&byte| byte != 0) {
                    let mut sector = [0; SECTOR];
                    sector[..piece.len()].copy_from_slice(piece);
                    sectors.insert(at, Arc::new(sector));
                }
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, FileImage { length_bytes: bytes.len() as u64, sectors });
        }
        Ok(Self(files))
    }

    /// Makes the files in a directory, which is made if it isn't there.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        for (name, image) in &self.0 {
            let file = File::create_new(directory.join(name))?;
            file.set_len(image.length_bytes)?;
            let mut run: (u64, Vec<u8>) = (0, Vec::new());
            for (&sector, bytes) in &image.sectors {
                let at = sector * SECTOR as u64;
                if at >= image.length_bytes {
                    break;
                }
                if run.0 + run.1.len() as u64 != at {
                    file.write_all_at(&run.1, run.0)?;
                    run = (at, Vec::new());
                }
                let length = (image.length_bytes - at).min(SECTOR as u64) as usize;
                run.1.extend_from_slice(&bytes[..length]);
            }
            file.write_all_at(&run.1, run.0)?;
        }
        Ok(())
    }

    /// Files by name, numbered for a log that begins here.
    pub fn numbered(&self) -> BTreeMap<String, FileId> {
        self.0.keys().cloned().zip((0..).map(FileId)).collect()
    }
}

/// One thing that has a durable value and newer ones that may or may not be it after a cut.
#[derive(Clone, Debug)]
struct Versions<T> {
    durable: T,
    /// Since then, oldest first, each with the moment when its call had ended.
    newer: Vec<(Moment, T)>,
}

impl<T: Clone> Versions<T> {
    fn new(durable: T) -> Self {
        Self { durable, newer: Vec::new() }
    }

    fn now(&self) -> &T {
        self.newer.last().map_or(&self.durable, |(_, value)| value)
    }

    fn put(&mut self, ended: Moment, value: T) {
        self.newer.push((ended, value));
    }

    /// A sync that began at `began` has returned.
    fn sync(&mut self, began: Moment) {
        if let Some(covered) = self.newer.iter().rposition(|(ended, _)| *ended < began) {
            self.durable = self.newer[covered].1.clone();
            self.newer.drain(..=covered);
        }
    }

    fn survivor(&self, mood: Mood, place: u64, random: &mut Random) -> &T {
        let kept = match mood {
            Mood::AllLost => 0,
            Mood::AllKept => self.newer.len(),
            Mood::EveryOther(odd) if place % 2 == u64::from(odd) => self.newer.len(),
            Mood::EveryOther(_) => 0,
            Mood::UpTo(moment) => self.newer.iter().filter(|(ended, _)| *ended <= moment).count(),
            Mood::Mixed => random.below(self.newer.len() as u64 + 1) as usize,
        };
        kept.checked_sub(1).map_or(&self.durable, |index| &self.newer[index].1)
    }
}

/// Which unsynced versions of a file survive: each finds other faults.
#[derive(Clone, Copy, Debug)]
enum Mood {
    AllLost,
    AllKept,
    /// Of neighbouring sectors, one is lost and one is kept.
    EveryOther(bool),
    /// The disk wrote in order, and stopped somewhere.
    UpTo(Moment),
    Mixed,
}

/// The model of one disk while its log is replayed.
struct Disk {
    /// When the call that is carried out had ended; the end of time if it hadn't.
    now: Moment,
    names: BTreeMap<String, Versions<Option<FileId>>>,
    files: BTreeMap<FileId, FileVersions>,
}

struct FileVersions {
    length_bytes: Versions<u64>,
    sectors: BTreeMap<u64, Versions<Sector>>,
    /// Which of them have newer versions.
    unsynced: BTreeSet<u64>,
}

impl Disk {
    fn new(before: &Files) -> Self {
        let mut files = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (name, id) in before.numbered() {
            files.insert(id, FileVersions::of(&before.0[&name]));
            names.insert(name, Versions::new(Some(id)));
        }
        Self { now: Moment(u64::MAX), names, files }
    }

    fn carry_out(&mut self, call: &Call) {
        let now = self.now;
        match call {
            Call::Create { name, file } => {
                self.files.insert(*file, FileVersions::of(&FileImage::default()));
                self.name(name, Some(*file));
            }
            Call::Rename { from, to } => {
                let file = self.names.get(from).and_then(|versions| *versions.now());
                self.name(from, None);
                self.name(to, file);
            }
            Call::Remove { name } => self.name(name, None),
            Call::Write { file, offset_bytes, bytes } => {
                self.file(*file).write(now, *offset_bytes, bytes);
            }
            Call::Punch { file, offset_bytes, length_bytes } => {
                let first = offset_bytes / SECTOR as u64;
                self.file(*file).punch(now, first..first + length_bytes / SECTOR as u64);
            }
            Call::Extend { file, length_bytes } => self.file(*file).extend(now, *length_bytes),
            Call::Sync { .. } | Call::SyncDir => {}
        }
    }

    fn name(&mut self, name: &str, file: Option<FileId>) {
        let versions = self.names.entry(name.into()).or_insert(Versions::new(None));
        versions.put(self.now, file);
    }

    fn file(&mut self, file: FileId) -> &mut FileVersions {
        self.files.get_mut(&file).expect("a file is created before it is used")
    }

    fn sync(&mut self, file: FileId, began: Moment) {
        let file = self.file(file);
        file.length_bytes.sync(began);
        let sectors = &mut file.sectors;
        file.unsynced.retain(|sector| {
            let versions = sectors.get_mut(sector).expect("it was written");
            versions.sync(began);
            !versions.newer.is_empty()
        });
    }

    fn sync_dir(&mut self, began: Moment) {
        self.names.values_mut().for_each(|versions| versions.sync(began));
    }

    fn survivors(&self, random: &mut Random) -> Files {
        let mut files = Files::default();
        for (name, versions) in &self.names {
            // Half of the times as the kernel last showed it: most cuts are about content.
            let mood = if random.below(2) == 0 { Mood::AllKept } else { Mood::Mixed };
            if let Some(id) = versions.survivor(mood, 0, random) {
                files.0.insert(name.clone(), self.files[id].survivor(random));
            }
        }
        files
    }

    fn as_the_kernel_shows_it(&self) -> Files {
        let there = self.names.iter().filter_map(|(name, versions)| {
            let image = self.files[versions.now().as_ref()?].now();
            Some((name.clone(), image))
        });
        Files(there.collect())
    }
}

impl FileVersions {
    fn of(image: &FileImage) -> Self {
        let sectors = image.sectors.iter().map(|(&at, bytes)| (at, Versions::new(bytes.clone())));
        Self {
            length_bytes: Versions::new(image.length_bytes),
            sectors: sectors.collect(),
            unsynced: BTreeSet::new(),
        }
    }

    fn put(&mut self, ended: Moment, sector: u64, change: impl FnOnce(&mut [u8; SECTOR])) {
        let empty = || Versions::new(Arc::new([0; SECTOR]));
        let versions = self.sectors.entry(sector).or_insert_with(empty);
        let mut bytes = **versions.now();
        change(&mut bytes);
        versions.put(ended, Arc::new(bytes));
        self.unsynced.insert(sector);
    }

    fn write(&mut self, ended: Moment, offset_bytes: u64, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let position = offset_bytes + at as u64;
            let within = (position % SECTOR as u64) as usize;
            let piece = &bytes[at..bytes.len().min(at + SECTOR - within)];
            self.put(ended, position / SECTOR as u64, |sector| {
                sector[within..within + piece.len()].copy_from_slice(piece);
            });
            at += piece.len();
        }
        self.extend(ended, offset_bytes + bytes.len() as u64);
    }

    fn punch(&mut self, ended: Moment, sectors: std::ops::Range<u64>) {
        let there: Vec<u64> = self.sectors.range(sectors).map(|(&sector, _)| sector).collect();
        there.into_iter().for_each(|sector| self.put(ended, sector, |bytes| bytes.fill(0)));
    }

    fn extend(&mut self, ended: Moment, length_bytes: u64) {
        if *self.length_bytes.now() < length_bytes {
            self.length_bytes.put(ended, length_bytes);
        }
    }

    fn survivor(&self, random: &mut Random) -> FileImage {
        let ends = self.unsynced.iter().flat_map(|sector| &self.sectors[sector].newer);
        let ends: Vec<Moment> = ends.map(|(ended, _)| *ended).collect();
        let mood = match random.below(8) {
            0 => Mood::AllLost,
            1 => Mood::AllKept,
            2 => Mood::EveryOther(random.below(2) == 0),
            3 | 4 if !ends.is_empty() => Mood::UpTo(ends[random.below(ends.len() as u64) as usize]),
            _ => Mood::Mixed,
        };
        let sectors = self
            .sectors
            .iter()
            .map(|(&sector, versions)| (sector, versions.survivor(mood, sector, random).clone()));
        let sectors = sectors.filter(|(_, bytes)| **bytes != [0; SECTOR]).collect();
        FileImage { length_bytes: *self.length_bytes.survivor(mood, 0, random), sectors }
    }

    fn now(&self) -> FileImage {
        let sectors = self.sectors.iter().map(|(&at, versions)| (at, versions.now().clone()));
        let sectors = sectors.filter(|(_, bytes)| **bytes != [0; SECTOR]).collect();
        FileImage { length_bytes: *self.length_bytes.now(), sectors }
    }
}

#[cfg(test)]
mod tests;
