//! The write-intent map: which regions may differ from the other replicas after a crash.
//!
//! Owns the file `intent`. Promises that a region's mark is durable before [`Intent::mark`]
//! returns, and that a stamp outlives its mark: it tells a returning replica what it missed.
//! Many waiting writers share one sync; nothing else waits for it.
//!
//! A client's first write to a group of regions, those of one sector, marks the regions that it
//! touches; from the second region on the whole group is marked, by the same sync: who writes to
//! two of them will write to others. The engine counts on that ([`Group`](crate::types::Group)).
//!
//! ```text
//! sector of 512 bytes, little-endian: 62 entries of u64 (stamp << 1 | marked)
//! │ 496 magic "INTENT1\0" │ 504 sector u32 │ 508 crc32c      a sector of zeroes: nothing marked
//! ```

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;

use roaring::RoaringBitmap;

use super::rounds::Rounds;
use super::storage::StorageFile;
use crate::mutation::{self, Mutation};
use crate::regions::{PAGE_REGIONS_MAX, RegionPage};
use crate::types::{Generation, REGION_BYTES, REGIONS_PER_GROUP, Region, VOLUME_BYTES_MAX};

const SECTOR_BYTES: usize = 512;
const ENTRIES: u64 = REGIONS_PER_GROUP;
const MAGIC: [u8; 8] = *b"INTENT1\0";
const MAGIC_AT: usize = 496;
const SECTOR_AT: usize = 504;
const CHECK_AT: usize = 508;
/// Sectors that are read or written at once.
const RUN_SECTORS: u64 = 128;

const _: () = assert!(VOLUME_BYTES_MAX / REGION_BYTES <= u32::MAX as u64, "sets hold 32 bits");

/// Which regions a mark is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those that are named: a rebuild and settling know what they will write.
    Named,
    /// Their whole group, if it has others: a client will write there again.
    Group,
}

pub(super) struct Intent<F> {
    file: F,
    state: RefCell<State>,
    rounds: Rounds,
}

struct State {
    regions: u64,
    marked: RoaringBitmap,
    /// Marked, stamped with `generation`, and durable: what a write need not wait for.
    ready: RoaringBitmap,
    generation: Option<Generation>,
    /// How often marks were cleared: whoever waits for a sync must not call a region ready whose
    /// mark has gone meanwhile.
    clears: u64,
}

type Entries = [u64; ENTRIES as usize];

pub(super) enum IntentError {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for IntentError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(super) fn file_bytes(volume_bytes: u64) -> u64 {
    (volume_bytes / REGION_BYTES).div_ceil(ENTRIES) * SECTOR_BYTES as u64
}

impl State {
    /// A newer generation: what is marked has to be stamped anew.
    fn advance(&mut self, generation: Generation) {
        if self.generation.is_none_or(|newest| newest < generation) {
            self.generation = Some(generation);
            self.ready.clear();
        }
    }

    /// What is to be marked for `missing`.
    fn reached(&self, missing: RoaringBitmap, reach: Reach) -> RoaringBitmap {
        let mut reached = missing;
        if reach == Reach::Group {
            let groups: Vec<_> = sectors_of(&reached).collect();
            for group in groups {
                let regions = numbers(group..group + 1, self.regions);
                let named = reached.range_cardinality(regions.clone());
                let others = self.marked.range_cardinality(regions.clone());
                let both = reached.range(regions.clone()).filter(|it| self.marked.contains(*it));
                if named + others - both.count() as u64 > 1 {
                    reached.insert_range(regions);
                }
            }
        }
        reached -= &self.ready;
        reached
    }
}

impl<F: StorageFile> Intent<F> {
    pub(super) fn open(file: F, volume_bytes: u64) -> Result<Self, IntentError> {
        let regions = volume_bytes / REGION_BYTES;
        let (marked, ready) = (RoaringBitmap::new(), RoaringBitmap::new());
        let state = State { regions, marked, ready, generation: None, clears: 0 };
        let intent = Self { file, state: RefCell::new(state), rounds: Rounds::default() };
        let mut marked = RoaringBitmap::new();
        intent.scan(|region, entry| {
            if entry & 1 == 1 {
                marked.insert(region);
            }
        })?;
        intent.state.borrow_mut().marked = marked;
        Ok(intent)
    }

    /// Makes room for a larger volume; durable after the next sync.
    pub(super) fn extend(&self, volume_bytes: u64) -> io::Result<()> {
        self.file.preallocate(file_bytes(volume_bytes))
    }

    /// The volume has another size now: the file has room for it. Marks past the end are nobody's.
    pub(super) fn resize(&self, volume_bytes: u64) {
        let mut state = self.state.borrow_mut();
        let regions = volume_bytes / REGION_BYTES;
        state.regions = regions;
        state.marked.remove_range(number(regions)..);
        state.ready.remove_range(number(regions)..);
    }

    pub(super) fn is_marked(&self, region: Region) -> bool {
        self.state.borrow().marked.contains(number(region.0))
    }

    /// The marks of `regions` with this generation, or a newer one, are durable when this returns.
    pub(super) async fn mark<I: Iterator<Item = Region>>(
        &self,
        regions: impl Fn() -> I,
        generation: Generation,
        reach: Reach,
    ) -> Result<(), IntentError> {
        let (wanted, stamp, clears) = {
            let mut state = self.state.borrow_mut();
            state.advance(generation);
            let is_missing = |region: &u32| !state.ready.contains(*region);
            let mut missing =
                regions().map(|region| number(region.0)).filter(is_missing).peekable();
            if missing.peek().is_none() {
                return Ok(());
            }
            let wanted = state.reached(missing.collect(), reach);
            (wanted, state.generation.unwrap_or(generation), state.clears)
        };
        for run in runs(&wanted) {
            self.change(run.clone(), &wanted, |_| entry(stamp, true))?;
            let regions = numbers(run, u64::from(u32::MAX));
            self.state.borrow_mut().marked.extend(wanted.range(regions));
        }
        if !mutation::is_on(Mutation::MarkNotSynced) {
            self.rounds.join(async || self.file.sync().await).await?;
        }
        let mut state = self.state.borrow_mut();
        if state.generation == Some(stamp) && state.clears == clears {
            state.ready |= wanted;
        }
        Ok(())
    }

    /// Every marked region gets the stamp; durable when this returns.
    pub(super) async fn restamp(&self, generation: Generation) -> Result<(), IntentError> {
        // First of all, so that a write that is on its way doesn't mark with the older one.
        let (marked, clears) = {
            let mut state = self.state.borrow_mut();
            state.advance(generation);
            (state.marked.clone(), state.clears)
        };
        for run in runs(&marked) {
            // Its mark may have gone while others had their turn.
            let renew =
                |old: u64| if old & 1 == 1 { old.max(entry(generation, true)) } else { old };
            self.change(run, &marked, renew)?;
            tokio::task::yield_now().await;
        }
        if !marked.is_empty() {
            self.rounds.join(async || self.file.sync().await).await?;
        }
        let mut state = self.state.borrow_mut();
        if state.generation == Some(generation) && state.clears == clears {
            state.ready |= marked;
        }
        Ok(())
    }

    /// The regions' data and index are durable. Need not be durable itself.
    pub(super) fn clear(&self, regions: impl Iterator<Item = Region>) -> Result<(), IntentError> {
        let regions: RoaringBitmap = regions.map(|region| number(region.0)).collect();
        for run in runs(&regions) {
            self.change(run, &regions, |old| old & !1)?;
        }
        let mut state = self.state.borrow_mut();
        state.clears += 1;
        state.marked -= &regions;
        state.ready -= &regions;
        Ok(())
    }

    pub(super) fn marked(&self) -> Result<Vec<(Region, Generation)>, IntentError> {
        let marked = self.state.borrow().marked.clone();
        let mut stamped = Vec::with_capacity(marked.len() as usize);
        for run in runs(&marked) {
            let entries = self.entries(run.clone())?;
            for region in marked.range(numbers(run.clone(), u64::from(u32::MAX))) {
                let entry = entries[(u64::from(region) - run.start * ENTRIES) as usize];
                let stamp = NonZeroU64::new(entry >> 1).map_or(Generation::FIRST, Generation);
                stamped.push((Region(region.into()), stamp));
            }
        }
        Ok(stamped)
    }

    pub(super) fn marked_count(&self) -> u64 {
        self.state.borrow().marked.len()
    }

    /// As [`marked`](Self::marked), without the stamps.
    pub(super) fn marked_page(&self, from: Region) -> RegionPage {
        let state = self.state.borrow();
        let marked = state.marked.range(number(from.0)..);
        RegionPage::of(marked.map(|region| Region(region.into())), PAGE_REGIONS_MAX)
    }

    /// Regions written in a generation after `base`, whether still marked or not.
    pub(super) fn stamped_since(
        &self,
        base: u64,
    ) -> Result<Vec<(Region, Generation)>, IntentError> {
        let mut found = Vec::new();
        self.scan(|region, entry| {
            if let Some(stamp) = NonZeroU64::new(entry >> 1).filter(|stamp| stamp.get() > base) {
                found.push((Region(region.into()), Generation(stamp)));
            }
        })?;
        Ok(found)
    }

    /// A part of that, by one read; and where to go on, if there is more.
    pub(super) fn stamped_from(
        &self,
        base: u64,
        from: Region,
    ) -> Result<(Vec<Region>, Option<Region>), IntentError> {
        let regions = self.state.borrow().regions;
        let sectors = regions.div_ceil(ENTRIES);
        let first = from.0 / ENTRIES;
        let end = sectors.min(first + RUN_SECTORS);
        if first >= end {
            return Ok((Vec::new(), None));
        }
        let entries = self.entries(first..end)?;
        let stamped = (first * ENTRIES..regions).zip(entries);
        let stamped = stamped.filter(|(region, entry)| *region >= from.0 && entry >> 1 > base);
        let stamped = stamped.map(|(region, _)| Region(region)).collect();
        Ok((stamped, (end < sectors).then_some(Region(end * ENTRIES))))
    }

    pub(super) async fn sync(&self) -> io::Result<()> {
        self.rounds.join(async || self.file.sync().await).await
    }

    /// Shows every entry that isn't zero.
    fn scan(&self, mut show: impl FnMut(u32, u64)) -> Result<(), IntentError> {
        let regions = self.state.borrow().regions;
        let sectors = regions.div_ceil(ENTRIES);
        for first in (0..sectors).step_by(RUN_SECTORS as usize) {
            let entries = self.entries(first..sectors.min(first + RUN_SECTORS))?;
            let there = (first * ENTRIES..regions).zip(entries).filter(|(_, entry)| *entry != 0);
            there.for_each(|(region, entry)| show(number(region), entry));
        }
        Ok(())
    }

    /// Those of neighbouring sectors, one after another.
    fn entries(&self, sectors: Range<u64>) -> Result<Vec<u64>, IntentError> {
        let count = (sectors.end - sectors.start) as usize;
        let mut bytes = vec![0; count * SECTOR_BYTES];
        self.file.read_at(sectors.start * SECTOR_BYTES as u64, &mut bytes)?;
        let mut entries = Vec::with_capacity(count * ENTRIES as usize);
        for (sector, bytes) in sectors.zip(bytes.chunks_exact(SECTOR_BYTES)) {
            entries.extend(decode(bytes, sector)?);
        }
        Ok(entries)
    }

    /// Changes the entries of `regions` that lie in these neighbouring sectors, by one read and at
    /// most one write.
    fn change(
        &self,
        sectors: Range<u64>,
        regions: &RoaringBitmap,
        change: impl Fn(u64) -> u64,
    ) -> Result<(), IntentError> {
        let mut entries = self.entries(sectors.clone())?;
        let mut changed = false;
        for region in regions.range(numbers(sectors.clone(), u64::from(u32::MAX))) {
            let entry = &mut entries[(u64::from(region) - sectors.start * ENTRIES) as usize];
            let new = change(*entry);
            changed |= new != std::mem::replace(entry, new);
        }
        if changed {
            let of_sector = entries.chunks_exact(ENTRIES as usize);
            let bytes: Vec<u8> =
                sectors.clone().zip(of_sector).flat_map(|(at, it)| encode(it, at)).collect();
            self.file.write_at(sectors.start * SECTOR_BYTES as u64, &bytes)?;
        }
        Ok(())
    }
}

/// A region's number in the sets.
fn number(region: u64) -> u32 {
    u32::try_from(region).expect("the largest volume has fewer")
}

/// The regions of some sectors, up to the volume's end.
fn numbers(sectors: Range<u64>, end: u64) -> Range<u32> {
    number((sectors.start * ENTRIES).min(end))..number((sectors.end * ENTRIES).min(end))
}

/// The sectors in which `regions` lie, ascending.
fn sectors_of(regions: &RoaringBitmap) -> impl Iterator<Item = u64> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let region = regions.range(number(next * ENTRIES)..).next()?;
        let sector = u64::from(region) / ENTRIES;
        next = sector + 1;
        Some(sector)
    })
}

/// Neighbouring sectors, as many as are read at once, that all have some of `regions`.
fn runs(regions: &RoaringBitmap) -> impl Iterator<Item = Range<u64>> {
    let mut sectors = sectors_of(regions).peekable();
    std::iter::from_fn(move || {
        let first = sectors.next()?;
        let mut end = first + 1;
        while end - first < RUN_SECTORS && sectors.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(first..end)
    })
}

fn entry(stamp: Generation, marked: bool) -> u64 {
    stamp.0.get() << 1 | u64::from(marked)
}

fn encode(entries: &[u64], sector: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    for (chunk, entry) in bytes.chunks_exact_mut(8).zip(entries) {
        chunk.copy_from_slice(&entry.to_le_bytes());
    }
    bytes[MAGIC_AT..SECTOR_AT].copy_from_slice(&MAGIC);
    bytes[SECTOR_AT..CHECK_AT].copy_from_slice(&(sector as u32).to_le_bytes());
    let check = crc32c::crc32c(&bytes[..CHECK_AT]);
    bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], sector: u64) -> Result<Entries, IntentError> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok([0; ENTRIES as usize]);
    }
    let check = crc32c::crc32c(&bytes[..CHECK_AT]).to_le_bytes();
    if bytes[MAGIC_AT..SECTOR_AT] != MAGIC
        || bytes[CHECK_AT..] != check
        || bytes[SECTOR_AT..CHECK_AT] != (sector as u32).to_le_bytes()
    {
        return Err(IntentError::Damaged(format!("sector {sector} isn't what was written")));
    }
    let entry = |index: usize| {
        u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().expect("8 bytes"))
    };
    Ok(std::array::from_fn(entry))
}

#[cfg(test)]
mod tests;
