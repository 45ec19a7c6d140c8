//! One file: what the kernel shows, what is durable, and what may become of the rest.

use super::*;

#[derive(Default)]
pub(super) struct File {
    /// What the kernel shows.
    pub(super) sectors: RefCell<BTreeMap<u64, Sector>>,
    pub(super) durable: RefCell<BTreeMap<u64, Sector>>,
    /// Versions since the last sync, oldest first, numbered.
    pub(super) unsynced: RefCell<BTreeMap<u64, Vec<(u64, Sector)>>>,
    pub(super) written: Cell<u64>,
    /// Sectors that can't be read.
    pub(super) bad: RefCell<BTreeSet<u64>>,
    pub(super) length: Cell<u64>,
    pub(super) durable_length: Cell<u64>,
    /// What was allocated, in bytes from the start.
    pub(super) reserved: Cell<u64>,
    /// What was allocated further on, in blocks of the file system.
    pub(super) rooms: RefCell<BTreeSet<u64>>,
}

/// The file system's block.
const ROOM: u64 = 4096;

impl File {
    pub(super) fn copy(&self) -> Rc<Self> {
        let copy = Self::default();
        copy.sectors.replace(self.sectors.borrow().clone());
        copy.durable.replace(self.durable.borrow().clone());
        copy.unsynced.replace(self.unsynced.borrow().clone());
        copy.length.set(self.length.get());
        copy.durable_length.set(self.durable_length.get());
        copy.reserved.set(self.reserved.get());
        copy.rooms.replace(self.rooms.borrow().clone());
        copy.written.set(self.written.get());
        copy.bad.replace(self.bad.borrow().clone());
        Rc::new(copy)
    }

    pub(super) fn survivors(&self, random: &mut Random) -> Self {
        let mut sectors = self.durable.borrow().clone();
        // All lost, all kept, every other sector: each finds other faults than a mix does.
        let mood = random.below(6);
        for (&sector, versions) in self.unsynced.borrow().iter() {
            let kept = match mood {
                0 => 0,
                1 => versions.len(),
                2 | 3 if sector % 2 == mood % 2 => versions.len(),
                2 | 3 => 0,
                _ => random.below(versions.len() as u64 + 1) as usize,
            };
            if kept > 0 {
                sectors.insert(sector, versions[kept - 1].1.clone());
            }
        }
        let length = if random.below(2) == 0 { &self.length } else { &self.durable_length };
        let survivor = Self::default();
        survivor.length.set(length.get());
        survivor.durable_length.set(length.get());
        survivor.reserved.set(self.reserved.get());
        survivor.rooms.replace(self.rooms.borrow().clone());
        survivor.bad.replace(self.bad.borrow().clone());
        survivor.durable.replace(sectors.clone());
        survivor.sectors.replace(sectors);
        survivor
    }

    pub(super) fn put(&self, sector: u64, bytes: Sector) {
        let number = self.written.get() + 1;
        self.written.set(number);
        self.unsynced.borrow_mut().entry(sector).or_default().push((number, bytes.clone()));
        self.sectors.borrow_mut().insert(sector, bytes);
    }

    /// Whether writing there takes space that the file doesn't have.
    pub(super) fn needs_space(&self, offset_bytes: u64, length: usize) -> bool {
        let end_bytes = offset_bytes + length as u64;
        let (sectors, rooms) = (self.sectors.borrow(), self.rooms.borrow());
        let has_room = |sector: u64| {
            let in_room = rooms.contains(&(sector * SECTOR as u64 / ROOM));
            in_room || sectors.contains_key(&sector)
        };
        end_bytes > self.reserved.get()
            && (offset_bytes / SECTOR as u64..end_bytes.div_ceil(SECTOR as u64))
                .any(|sector| !has_room(sector))
    }

    pub(super) fn allocate(&self, range_bytes: Range<u64>) {
        if range_bytes.start <= self.reserved.get() {
            self.reserved.set(self.reserved.get().max(range_bytes.end));
        } else {
            let blocks = range_bytes.start / ROOM..range_bytes.end.div_ceil(ROOM);
            self.rooms.borrow_mut().extend(blocks);
        }
    }

    /// The next run of sectors that were ever written.
    pub(super) fn next_data(&self, from_bytes: u64) -> Option<Range<u64>> {
        let sectors = self.sectors.borrow();
        let first = from_bytes / SECTOR as u64;
        let mut written = sectors.range(first..).map(|(sector, _)| *sector);
        let start = written.next()?;
        let end = written.zip(start + 1..).take_while(|(sector, next)| sector == next).count();
        let end = start + 1 + end as u64;
        Some((start * SECTOR as u64).max(from_bytes)..end * SECTOR as u64)
    }

    pub(super) fn check_readable(&self, offset_bytes: u64, length: usize) -> io::Result<()> {
        let end_bytes = offset_bytes + length as u64;
        let touched = offset_bytes / SECTOR as u64..end_bytes.div_ceil(SECTOR as u64);
        if self.bad.borrow().range(touched).next().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    pub(super) fn write(&self, offset_bytes: u64, from: &[u8]) {
        let mut at = 0;
        while at < from.len() {
            let position = offset_bytes + at as u64;
            let sector = position / SECTOR as u64;
            let within = (position % SECTOR as u64) as usize;
            let length = (SECTOR - within).min(from.len() - at);
            let old = self.sectors.borrow().get(&sector).cloned();
            let mut bytes = old.map_or(ZEROES, |old| *old);
            bytes[within..within + length].copy_from_slice(&from[at..at + length]);
            self.put(sector, Rc::new(bytes));
            at += length;
        }
        if !self.bad.borrow().is_empty() {
            let end = (offset_bytes + from.len() as u64) / SECTOR as u64;
            let whole = offset_bytes.div_ceil(SECTOR as u64)..end;
            self.bad.borrow_mut().retain(|sector| !whole.contains(sector));
        }
        self.length.set(self.length.get().max(offset_bytes + from.len() as u64));
    }

    pub(super) fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        let sectors = self.sectors.borrow();
        let mut at = 0;
        while at < into.len() {
            let position = offset_bytes + at as u64;
            let within = (position % SECTOR as u64) as usize;
            let length = (SECTOR - within).min(into.len() - at);
            let sector = sectors.get(&(position / SECTOR as u64));
            let bytes = sector.map_or(&ZEROES, |sector| &**sector);
            into[at..at + length].copy_from_slice(&bytes[within..within + length]);
            at += length;
        }
    }

    /// In all versions that are `old`, of one sector or of all.
    pub(super) fn replace(&self, old: &[u8; SECTOR], new: &[u8; SECTOR], only: Option<u64>) {
        let new = Rc::new(*new);
        let put = |number: u64, sector: &mut Sector| {
            if **sector == *old && only.is_none_or(|only| only == number) {
                *sector = new.clone();
            }
        };
        self.sectors.borrow_mut().iter_mut().for_each(|(number, sector)| put(*number, sector));
        self.durable.borrow_mut().iter_mut().for_each(|(number, sector)| put(*number, sector));
        for (number, versions) in self.unsynced.borrow_mut().iter_mut() {
            versions.iter_mut().for_each(|(_, sector)| put(*number, sector));
        }
    }

    pub(super) fn sync(&self) {
        self.sync_until(self.written.get());
    }

    /// Of what is written while a sync runs, it promises nothing.
    pub(super) fn sync_until(&self, number: u64) {
        let mut durable = self.durable.borrow_mut();
        self.unsynced.borrow_mut().retain(|sector, versions| {
            let covered = versions.partition_point(|(written, _)| *written <= number);
            if let Some((_, newest)) = versions.drain(..covered).next_back() {
                durable.insert(*sector, newest);
            }
            !versions.is_empty()
        });
        self.durable_length.set(self.length.get());
    }
}
