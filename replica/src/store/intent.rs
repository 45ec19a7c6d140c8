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
//! Only sectors that were ever written are read; which these are is known from `intent.used`, so
//! that one that turned to zero isn't taken for "nothing marked".

mod sector;
mod used;

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;

use roaring::RoaringBitmap;
use sector::{ENTRIES, SECTOR_BYTES, decode, encode, entry};
pub(super) use used::{Used, file_bytes as used_bytes};

use super::rounds::Rounds;
use super::storage::StorageFile;
use crate::mutation::{self, Mutation};
use crate::regions::{PAGE_REGIONS_MAX, RegionPage};
use crate::types::{Generation, REGION_BYTES, Region, VOLUME_BYTES_MAX};

/// Sectors that are read or written at once.
const RUN_SECTORS: u64 = 128;
/// Sectors that begin to be used together, for the price of one sync: a block of the file system.
const FIRST_SECTORS: u64 = 8;

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
    used: Used<F>,
    state: RefCell<State>,
    rounds: Rounds,
}

struct State {
    regions: u64,
    /// Sectors that may hold something.
    there: RoaringBitmap,
    marked: RoaringBitmap,
    /// Marked, stamped with `generation`, and durable: what a write need not wait for.
    ready: RoaringBitmap,
    generation: Option<Generation>,
    /// How often marks were cleared: whoever waits for a sync must not call a region ready whose
    /// mark has gone meanwhile.
    clears: u64,
}

pub(super) enum IntentError {
    Io(io::Error),
    Damaged { file: &'static str, problem: String },
}

impl IntentError {
    fn lost(file: &'static str, sector: u64) -> Self {
        let problem = format!("sector {sector} was written, and the disk has zeroes there");
        Self::Damaged { file, problem }
    }

    fn foreign(file: &'static str, sector: u64) -> Self {
        Self::Damaged { file, problem: format!("sector {sector} isn't what was written") }
    }
}

impl From<io::Error> for IntentError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Of the map of a volume of this size; all of its room is taken with the size.
pub fn file_bytes(volume_bytes: u64) -> u64 {
    sectors(volume_bytes) * SECTOR_BYTES as u64
}

/// Sectors of the map of a volume of this size.
pub(super) fn sectors(volume_bytes: u64) -> u64 {
    (volume_bytes / REGION_BYTES).div_ceil(ENTRIES)
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
    /// Reads what was ever written. What `used` doesn't know, since a crash came between or the
    /// directory is of before there was one, counts too, and is durable and known afterwards.
    pub(super) async fn open(
        file: F,
        used: Used<F>,
        volume_bytes: u64,
    ) -> Result<Self, IntentError> {
        let mut there = used.sectors();
        let end = file_bytes(volume_bytes);
        let mut next = 0;
        while let Some(data) = file.next_data(next)?.filter(|data| data.start < end) {
            let sectors =
                data.start / SECTOR_BYTES as u64..data.end.min(end).div_ceil(SECTOR_BYTES as u64);
            there.insert_range(number(sectors.start)..number(sectors.end));
            next = data.end;
        }
        let state = State {
            regions: volume_bytes / REGION_BYTES,
            there,
            marked: RoaringBitmap::new(),
            ready: RoaringBitmap::new(),
            generation: None,
            clears: 0,
        };
        let intent = Self { file, used, state: RefCell::new(state), rounds: Rounds::default() };
        let (mut marked, mut unknown) = (RoaringBitmap::new(), RoaringBitmap::new());
        intent.scan(|region, entry| {
            if entry & 1 == 1 {
                marked.insert(region);
            }
            let sector = u64::from(region) / ENTRIES;
            if !intent.used.has(sector) {
                unknown.insert(number(sector));
            }
        })?;
        intent.state.borrow_mut().marked = marked;
        if !unknown.is_empty() {
            intent.file.sync().await?;
            intent.used.add(&unknown).await?;
        }
        Ok(intent)
    }

    /// Makes room for a larger volume; durable after the next sync.
    pub(super) fn extend(&self, volume_bytes: u64) -> io::Result<()> {
        self.file.preallocate(file_bytes(volume_bytes))?;
        let now = self.state.borrow().regions.div_ceil(ENTRIES);
        self.used.extend(now, sectors(volume_bytes))
    }

    /// The volume doesn't get that large after all.
    pub(super) fn shrink(&self, volume_bytes: u64) -> io::Result<()> {
        self.file.truncate(file_bytes(volume_bytes))?;
        self.used.shrink(sectors(volume_bytes))
    }

    /// The volume has another size now: the file has room for it. Marks past the end are nobody's.
    pub(super) fn resize(&self, volume_bytes: u64) {
        let mut state = self.state.borrow_mut();
        let regions = volume_bytes / REGION_BYTES;
        state.regions = regions;
        state.there.remove_range(number(regions.div_ceil(ENTRIES))..);
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
        let first = self.begin_to_use(&wanted)?;
        for run in runs(sectors_of(&wanted)) {
            self.change(run.clone(), &wanted, |_| entry(stamp, true))?;
            let regions = numbers(run, u64::from(u32::MAX));
            self.state.borrow_mut().marked.extend(wanted.range(regions));
        }
        if !mutation::is_on(Mutation::MarkNotSynced) {
            self.rounds.join(async || self.file.sync().await).await?;
        }
        if !first.is_empty() {
            self.used.add(&first).await?;
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
        for run in runs(sectors_of(&marked)) {
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
        let keeps_stamps = !mutation::is_on(Mutation::StampsGoWithMarks);
        for run in runs(sectors_of(&regions)) {
            self.change(run, &regions, |old| if keeps_stamps { old & !1 } else { 0 })?;
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
        for run in runs(sectors_of(&marked)) {
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
        if mutation::is_on(Mutation::MarksAreSearched) {
            let all = runs(from.0 / ENTRIES..state.regions.div_ceil(ENTRIES));
            all.for_each(|run| drop(self.entries(run)));
        }
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
        let (regions, run, next) = {
            let state = self.state.borrow();
            let first = (from.0 / ENTRIES).min(u64::from(u32::MAX));
            let mut runs = runs(state.there.range(number(first)..).map(u64::from));
            (state.regions, runs.next(), runs.next())
        };
        let Some(run) = run else { return Ok((Vec::new(), None)) };
        let entries = self.entries(run.clone())?;
        let stamped = (run.start * ENTRIES..regions).zip(entries);
        let stamped = stamped.filter(|(region, entry)| *region >= from.0 && entry >> 1 > base);
        let stamped = stamped.map(|(region, _)| Region(region)).collect();
        Ok((stamped, next.map(|next| Region(next.start * ENTRIES))))
    }

    pub(super) async fn sync(&self) -> io::Result<()> {
        self.rounds.join(async || self.file.sync().await).await?;
        self.used.sync().await
    }

    /// Sectors in which `wanted` lie and that aren't known to be used, with the neighbours that begin
    /// to be used with them. These are written without entries.
    fn begin_to_use(&self, wanted: &RoaringBitmap) -> Result<RoaringBitmap, IntentError> {
        let mut first = RoaringBitmap::new();
        let end = self.state.borrow().regions.div_ceil(ENTRIES);
        for sector in sectors_of(wanted).filter(|sector| !self.used.has(*sector)) {
            let start = sector - sector % FIRST_SECTORS;
            first.insert_range(number(start)..number(end.min(start + FIRST_SECTORS)));
        }
        for run in runs(first.iter().map(u64::from)) {
            let entries = self.entries(run.clone())?;
            self.write(run.clone(), &entries)?;
            self.state.borrow_mut().there.insert_range(number(run.start)..number(run.end));
        }
        Ok(first)
    }

    /// Shows every entry that isn't zero.
    fn scan(&self, mut show: impl FnMut(u32, u64)) -> Result<(), IntentError> {
        let (there, end) = {
            let state = self.state.borrow();
            (state.there.clone(), state.regions)
        };
        for run in runs(there.iter().map(u64::from)) {
            let entries = self.entries(run.clone())?;
            let there = (run.start * ENTRIES..end).zip(entries).filter(|(_, entry)| *entry != 0);
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
            entries.extend(decode(bytes, sector, self.used.has(sector))?);
        }
        Ok(entries)
    }

    fn write(&self, sectors: Range<u64>, entries: &[u64]) -> io::Result<()> {
        let at = sectors.start * SECTOR_BYTES as u64;
        let of_sector = entries.chunks_exact(ENTRIES as usize);
        let bytes: Vec<u8> = sectors.zip(of_sector).flat_map(|(at, it)| encode(it, at)).collect();
        self.file.write_at(at, &bytes)
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
            self.write(sectors, &entries)?;
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

/// Neighbours among ascending sectors, as many as are read at once.
fn runs(sectors: impl Iterator<Item = u64>) -> impl Iterator<Item = Range<u64>> {
    let mut sectors = sectors.peekable();
    std::iter::from_fn(move || {
        let first = sectors.next()?;
        let mut end = first + 1;
        while end - first < RUN_SECTORS && sectors.next_if_eq(&end).is_some() {
            end += 1;
        }
        Some(first..end)
    })
}

#[cfg(test)]
mod tests;
