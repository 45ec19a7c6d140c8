//! A simulated disk: loses what a power cut may lose, and fails when it is told to.
//!
//! Owns the files of one directory in memory. Promises that each 512-byte sector is what it was
//! at the last sync or what it became at one of the writes since, each sector for itself; names
//! in the directory likewise. What was synced stays. After a failed sync, what was written before
//! it is never durable by a later one: the kernel counts those pages as clean. Everything is
//! decided by a seed. The simulator of the replication core runs on it too.

mod file;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;

use ankole_blockdev::disk::Buffer;

use self::file::File;
use super::storage::{FileKind, FileSystem, LockError, Storage, StorageFile};

const SECTOR: usize = 512;
/// Its `st_dev`: major 8.
const DEVICE: u64 = 8 << 8;
/// Unwritten sectors of a file.
const ZEROES: [u8; SECTOR] = [0; SECTOR];

type Sector = Rc<[u8; SECTOR]>;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The call with this number (from 1) fails, and only that one.
    pub fail_call: Option<u64>,
    /// `EIO`, or `ENOSPC` (calls that need no space then succeed).
    pub no_space: bool,
    /// The end: this call and all later ones fail and do nothing.
    pub end_at_call: Option<u64>,
    /// The same, by counting syncs only.
    pub end_at_sync: Option<u64>,
}

/// What is asked of a disk that may take its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Sync,
    Punch,
}

/// What was asked of a disk so far, by whomever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub calls: u64,
    /// Read and written.
    pub bytes: u64,
}

/// How long operations take, in a world that has its own time.
pub trait Pace {
    fn wait(&self, call: Call) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// What stays wrong until it is said to be over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Whatever needs new space fails with `ENOSPC`.
    pub full: bool,
    /// That begins with this call, counted from here; 0: it doesn't.
    pub full_in_calls: u64,
    /// So many of the next block writes do a part and fail with `EIO`.
    pub failing_writes: u32,
    /// So many of the next syncs fail with `EIO`.
    pub failing_syncs: u32,
}

/// One directory on a disk that can lose power. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    state: Rc<RefCell<State>>,
}

struct State {
    names: BTreeMap<String, Rc<File>>,
    durable_names: BTreeMap<String, Rc<File>>,
    boot: u64,
    /// Counts the mounts of its file system.
    mount: u64,
    /// Nobody can tell one mount from another.
    hides_mounts: bool,
    random: Random,
    faults: Faults,
    calls: u64,
    syncs: u64,
    looks: u64,
    written_bytes: u64,
    work: Work,
    locked: bool,
    /// Futures wait a few turns first, so that operations overlap.
    is_slow: bool,
    pace: Option<Rc<dyn Pace>>,
    trouble: Trouble,
    /// Somebody looks who isn't there: nothing takes time or goes wrong.
    observed: bool,
    /// Block writes that the kernel has and has not done.
    in_flight: BTreeMap<u64, InFlight>,
    next_in_flight: u64,
}

struct InFlight {
    file: Rc<File>,
    offset_bytes: u64,
    from: Rc<Buffer>,
    part: Range<usize>,
}

/// Splitmix64: small, and the same everywhere.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }
}

impl Disk {
    pub fn new(seed: u64) -> Self {
        let state = State {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            boot: 1,
            mount: 1,
            hides_mounts: false,
            random: Random::new(seed),
            faults: Faults::default(),
            calls: 0,
            syncs: 0,
            looks: 0,
            written_bytes: 0,
            work: Work::default(),
            locked: false,
            is_slow: false,
            pace: None,
            trouble: Trouble::default(),
            observed: false,
            in_flight: BTreeMap::new(),
            next_in_flight: 0,
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Counts everything anew, and plans what goes wrong from here on.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state.borrow_mut();
        (state.faults, state.calls, state.syncs) = (faults, 0, 0);
        (state.looks, state.written_bytes) = (0, 0);
    }

    pub fn set_slow(&self, is_slow: bool) {
        self.state.borrow_mut().is_slow = is_slow;
    }

    /// From here on operations take the time that `pace` says. A disk after a crash has it too.
    pub fn set_pace(&self, pace: Rc<dyn Pace>) {
        self.state.borrow_mut().pace = Some(pace);
    }

    pub fn trouble(&self) -> Trouble {
        self.state.borrow().trouble
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        self.state.borrow_mut().trouble = trouble;
    }

    /// Lets `look` use the disk as if from outside: nothing takes time, fails, or is counted.
    pub fn observe<T>(&self, look: impl FnOnce() -> T) -> T {
        let before = std::mem::replace(&mut self.state.borrow_mut().observed, true);
        let seen = look();
        self.state.borrow_mut().observed = before;
        seen
    }

    /// Reads of these sectors fail until they are written, or until [`heal`](Self::heal).
    pub fn spoil(&self, name: &str, sectors: Range<u64>) {
        if let Some(file) = self.state.borrow().names.get(name) {
            file.bad.borrow_mut().extend(sectors);
        }
    }

    /// Flips a bit of a sector, in every version that there is, and returns what it became. `None`:
    /// it was never written.
    pub fn rot(&self, name: &str, sector: u64, bit: usize) -> Option<[u8; SECTOR]> {
        let state = self.state.borrow();
        let file = state.names.get(name)?;
        let shown = **file.sectors.borrow().get(&sector)?;
        let mut rotten = shown;
        rotten[bit / 8] ^= 1 << (bit % 8);
        file.replace(&shown, &rotten, Some(sector));
        Some(rotten)
    }

    /// Wherever a sector is still what [`rot`](Self::rot) made of it, it is as before.
    pub fn undo_rot(&self, rotten: &[u8; SECTOR], bit: usize) {
        let mut sound = *rotten;
        sound[bit / 8] ^= 1 << (bit % 8);
        for file in self.state.borrow().names.values() {
            file.replace(rotten, &sound, None);
        }
    }

    /// From here on nobody can tell one mount of its file system from another, or can again.
    pub fn hide_mounts(&self, are_hidden: bool) {
        self.state.borrow_mut().hides_mounts = are_hidden;
    }

    /// All sectors can be read again.
    pub fn heal(&self) {
        for file in self.state.borrow().names.values() {
            file.bad.borrow_mut().clear();
        }
    }

    /// The numbers of a file's sectors that were ever written.
    pub fn sectors_of(&self, name: &str) -> Vec<u64> {
        let state = self.state.borrow();
        let file = state.names.get(name);
        file.map_or(Vec::new(), |file| file.sectors.borrow().keys().copied().collect())
    }

    pub fn calls(&self) -> u64 {
        self.state.borrow().calls
    }

    pub fn syncs(&self) -> u64 {
        self.state.borrow().syncs
    }

    /// Sizes of files that were asked for, and names that were told: they are no calls.
    pub fn looks(&self) -> u64 {
        self.state.borrow().looks
    }

    pub fn written_bytes(&self) -> u64 {
        self.state.borrow().written_bytes
    }

    /// Not counted anew by [`set_faults`](Self::set_faults), and who observes counts too.
    pub fn work(&self) -> Work {
        self.state.borrow().work
    }

    /// The process was killed: the kernel keeps everything that it was given. What it was doing
    /// is done, done in part, or not.
    pub fn after_kill(&self) -> Self {
        let state = self.state.borrow();
        let mut random = state.random.clone();
        let mut names = BTreeMap::new();
        for (name, file) in &state.names {
            names.insert(name.clone(), state.end_writes(file, &mut random));
        }
        let mut disk = Self::new(random.0);
        disk.take_over(&state, names);
        disk
    }

    /// The machine lost power: a new disk with what may be left, decided by `seed`.
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let disk = self.after_remount(seed);
        disk.state.borrow_mut().boot += 1;
        disk
    }

    /// Its file system was shut down and mounted again while the machine ran on: what is left is as
    /// after a power cut.
    pub fn after_remount(&self, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let state = self.state.borrow();
        let mut names = BTreeMap::new();
        let all: BTreeSet<&String> = state.names.keys().chain(state.durable_names.keys()).collect();
        for name in all {
            let keep_old = random.below(2) == 0;
            let side = if keep_old { &state.durable_names } else { &state.names };
            if let Some(file) = side.get(name) {
                let file = state.end_writes(file, &mut random);
                names.insert(name.clone(), Rc::new(file.survivors(&mut random)));
            }
        }
        let mut disk = Self::new(random.number());
        disk.take_over(&state, names);
        disk.state.borrow_mut().mount += 1;
        disk
    }

    /// Somebody has put the files of `older`, a copy of this disk, in place of those that are here.
    pub fn put_back(&self, older: &Self) -> Self {
        let (state, older) = (self.state.borrow(), older.state.borrow());
        let mut random = state.random.clone();
        let mut names = BTreeMap::new();
        for (name, file) in &older.names {
            names.insert(name.clone(), older.end_writes(file, &mut random));
        }
        let mut disk = Self::new(random.number());
        disk.take_over(&state, names);
        disk
    }

    fn take_over(&mut self, from: &State, names: BTreeMap<String, Rc<File>>) {
        let mut state = self.state.borrow_mut();
        state.durable_names = names.clone();
        state.names = names;
        (state.boot, state.mount) = (from.boot, from.mount);
        state.hides_mounts = from.hides_mounts;
        state.pace = from.pace.clone();
        state.trouble = from.trouble;
        state.observed = from.observed;
    }

    /// Overwrites bytes of a file behind the store's back, durably: rot, or a bad hand.
    pub fn damage(&self, name: &str, offset_bytes: u64, bytes: &[u8]) {
        let file = self.state.borrow().names[name].clone();
        file.write(offset_bytes, bytes);
        file.sync();
    }

    pub fn truncate(&self, name: &str, length_bytes: u64) {
        self.state.borrow().names[name].length.set(length_bytes);
    }

    pub fn delete(&self, name: &str) {
        let mut state = self.state.borrow_mut();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    pub fn put_file(&self, name: &str, bytes: &[u8]) {
        let file = Rc::new(File::default());
        file.length.set(bytes.len() as u64);
        file.write(0, bytes);
        file.sync();
        let mut state = self.state.borrow_mut();
        state.names.insert(name.into(), file.clone());
        state.durable_names.insert(name.into(), file);
    }

    /// A file as the kernel shows it.
    pub fn bytes_of(&self, name: &str) -> Vec<u8> {
        let length = self.state.borrow().names[name].length.get();
        self.part_of(name, 0, length as usize)
    }

    pub fn part_of(&self, name: &str, offset_bytes: u64, length: usize) -> Vec<u8> {
        let file = self.state.borrow().names[name].clone();
        let mut bytes = vec![0; length];
        file.read(offset_bytes, &mut bytes);
        bytes
    }

    /// Counts a call and says whether it happens.
    fn call(&self, is_sync: bool, needs_space: bool) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.work.calls += 1;
        if state.observed {
            return Ok(());
        }
        state.calls += 1;
        state.syncs += u64::from(is_sync);
        let faults = state.faults;
        if faults.fail_call == Some(state.calls) && (needs_space || !faults.no_space) {
            let errno = if faults.no_space { libc::ENOSPC } else { libc::EIO };
            return Err(io::Error::from_raw_os_error(errno));
        }
        if state.trouble.full_in_calls > 0 {
            state.trouble.full_in_calls -= 1;
            state.trouble.full |= state.trouble.full_in_calls == 0;
        }
        if state.trouble.full && needs_space {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if state.trouble.failing_syncs > 0 && is_sync {
            state.trouble.failing_syncs -= 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if state.has_ended() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn count_looks(&self, looks: u64) {
        let mut state = self.state.borrow_mut();
        state.work.calls += looks;
        state.looks += if state.observed { 0 } else { looks };
    }

    fn count_read(&self, bytes: usize) {
        self.state.borrow_mut().work.bytes += bytes as u64;
    }

    fn count_written(&self, bytes: usize) {
        let mut state = self.state.borrow_mut();
        state.work.bytes += bytes as u64;
        state.written_bytes += if state.observed { 0 } else { bytes as u64 };
    }

    fn begin_write(&self, flight: InFlight) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next_in_flight += 1;
        let number = state.next_in_flight;
        state.in_flight.insert(number, flight);
        number
    }

    /// Like `call`, for blocks of a file.
    fn call_to_write(&self, file: &File, offset_bytes: u64, length: usize) -> io::Result<()> {
        let trouble = self.trouble();
        if trouble.failing_writes > 0 && !self.state.borrow().observed {
            let failing_writes = trouble.failing_writes - 1;
            self.set_trouble(Trouble { failing_writes, ..trouble });
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.call(false, !trouble.full || file.needs_space(offset_bytes, length))
    }

    async fn pause(&self, call: Call) {
        let (turns, pace) = {
            let mut state = self.state.borrow_mut();
            let pace = state.pace.clone().filter(|_| !state.observed);
            (if state.is_slow && !state.observed { state.random.below(4) } else { 0 }, pace)
        };
        if let Some(pace) = pace {
            pace.wait(call).await;
        }
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }
}

impl State {
    /// A copy of the file, in which the writes that were on their way have ended.
    fn end_writes(&self, file: &Rc<File>, random: &mut Random) -> Rc<File> {
        let copy = file.copy();
        for write in self.in_flight.values().filter(|write| Rc::ptr_eq(&write.file, file)) {
            let sectors = write.part.len() / SECTOR;
            let done = match random.below(3) {
                0 => 0,
                1 => sectors,
                _ => random.below(sectors as u64 + 1) as usize,
            };
            let part = write.part.start..write.part.start + done * SECTOR;
            if !part.is_empty() {
                copy.write(write.offset_bytes, &write.from[part]);
            }
        }
        copy
    }

    fn has_ended(&self) -> bool {
        self.faults.end_at_call.is_some_and(|at| self.calls >= at)
            || self.faults.end_at_sync.is_some_and(|at| self.syncs >= at)
    }
}

impl Storage for Disk {
    type File = DiskFile;
    type Lock = DiskLock;

    fn place(&self) -> String {
        "the simulated disk".into()
    }

    fn lock(&self) -> Result<DiskLock, LockError> {
        if std::mem::replace(&mut self.state.borrow_mut().locked, true) {
            return Err(LockError::Held { pid: None });
        }
        Ok(DiskLock(self.clone()))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.call(false, false)?;
        let names: Vec<String> = self.state.borrow().names.keys().cloned().collect();
        self.count_looks(names.len() as u64);
        Ok(names)
    }

    fn create(&self, name: &str, _: FileKind) -> io::Result<DiskFile> {
        self.call(false, true)?;
        let mut state = self.state.borrow_mut();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Rc::new(File::default());
        state.names.insert(name.into(), file.clone());
        Ok(DiskFile { disk: self.clone(), file })
    }

    fn open(&self, name: &str, _: FileKind) -> io::Result<DiskFile> {
        self.call(false, false)?;
        let state = self.state.borrow();
        let file = state.names.get(name).ok_or(io::ErrorKind::NotFound)?.clone();
        Ok(DiskFile { disk: self.clone(), file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call(false, false)?;
        let mut state = self.state.borrow_mut();
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(false, false)?;
        let removed = self.state.borrow_mut().names.remove(name);
        removed.ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    async fn sync_dir(&self) -> io::Result<()> {
        self.pause(Call::Sync).await;
        self.call(true, false)?;
        let mut state = self.state.borrow_mut();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(self.trouble().full.then_some(0))
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(self.state.borrow().boot.to_string())
    }

    fn file_system(&self) -> io::Result<FileSystem> {
        let state = self.state.borrow();
        let superblock = (!state.hides_mounts).then_some(state.mount);
        Ok(FileSystem { device: DEVICE, superblock })
    }
}

/// The disk's one user.
pub struct DiskLock(Disk);

impl Drop for DiskLock {
    fn drop(&mut self) {
        self.0.state.borrow_mut().locked = false;
    }
}

/// One open file of a [`Disk`].
pub struct DiskFile {
    disk: Disk,
    file: Rc<File>,
}

impl StorageFile for DiskFile {
    fn length_bytes(&self) -> io::Result<u64> {
        self.disk.count_looks(1);
        Ok(self.file.length.get())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.disk.count_looks(1);
        Ok((self.file.sectors.borrow().len() * SECTOR) as u64)
    }

    fn extend(&self, length_bytes: u64) -> io::Result<()> {
        self.disk.call(false, true)?;
        self.file.length.set(self.file.length.get().max(length_bytes));
        Ok(())
    }

    fn allocate(&self, range_bytes: Range<u64>) -> io::Result<()> {
        self.extend(range_bytes.end)?;
        self.file.allocate(range_bytes);
        Ok(())
    }

    fn next_data(&self, from_bytes: u64) -> io::Result<Option<Range<u64>>> {
        self.disk.call(false, false)?;
        Ok(self.file.next_data(from_bytes))
    }

    fn truncate(&self, length_bytes: u64) -> io::Result<()> {
        self.disk.call(false, false)?;
        self.file.length.set(self.file.length.get().min(length_bytes));
        self.file.reserved.set(self.file.reserved.get().min(length_bytes));
        Ok(())
    }

    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.call(false, false)?;
        self.disk.count_read(into.len());
        if offset_bytes + into.len() as u64 > self.file.length.get() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !self.disk.state.borrow().observed {
            self.file.check_readable(offset_bytes, into.len())?;
        }
        self.file.read(offset_bytes, into);
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        self.disk.call(false, self.file.needs_space(offset_bytes, from.len()))?;
        self.disk.count_written(from.len());
        self.file.write(offset_bytes, from);
        Ok(())
    }

    async fn read(&self, offset_bytes: u64, into: Buffer) -> (io::Result<()>, Buffer) {
        self.disk.pause(Call::Read).await;
        let mut into = into;
        (self.read_at(offset_bytes, &mut into), into)
    }

    async fn write(
        &self,
        offset_bytes: u64,
        from: Rc<Buffer>,
        part: Range<usize>,
    ) -> io::Result<()> {
        let flight = InFlight { file: self.file.clone(), offset_bytes, from: from.clone(), part };
        let part = flight.part.clone();
        let number = self.disk.begin_write(flight);
        self.disk.pause(Call::Write).await;
        self.disk.state.borrow_mut().in_flight.remove(&number);
        let done = self.disk.call_to_write(&self.file, offset_bytes, part.len());
        match done {
            Ok(()) => {
                self.disk.count_written(part.len());
                self.file.write(offset_bytes, &from[part]);
            }
            // A write that fails may have done a part.
            Err(_) => self.file.write(offset_bytes, &from[part.start..part.start + SECTOR]),
        }
        self.disk.pause(Call::Write).await;
        done
    }

    async fn sync(&self) -> io::Result<()> {
        let begun = self.file.written.get();
        self.disk.pause(Call::Sync).await;
        match self.disk.call(true, false) {
            Ok(()) => {
                self.file.sync_until(begun);
                Ok(())
            }
            Err(error) => {
                // At the end of everything nobody gets to mark pages as clean.
                if !self.disk.state.borrow().has_ended() {
                    self.file.unsynced.borrow_mut().clear();
                }
                Err(error)
            }
        }
    }

    async fn punch(&self, range_bytes: Range<u64>) -> io::Result<()> {
        self.disk.pause(Call::Punch).await;
        self.disk.call(false, false)?;
        let sectors = range_bytes.start / SECTOR as u64..range_bytes.end / SECTOR as u64;
        for sector in sectors {
            if self.file.sectors.borrow().contains_key(&sector) {
                self.file.put(sector, Rc::new(ZEROES));
            }
        }
        Ok(())
    }
}
