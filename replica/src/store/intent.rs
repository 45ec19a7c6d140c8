//! The write-intent map: which regions may differ from the other replicas after a crash.
//!
//! Owns the file `intent`. Promises that a region's mark is durable before [`Intent::mark`]
//! returns, and that a stamp outlives its mark: it tells a returning replica what it missed.
//! Many waiting writers share one sync; nothing else waits for it.
//!
//! ```text
//! sector of 512 bytes, little-endian: 62 entries of u64 (stamp << 1 | marked)
//! │ 496 magic "INTENT1\0" │ 504 sector u32 │ 508 crc32c      a sector of zeroes: nothing marked
//! ```

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU64;

use super::rounds::Rounds;
use super::storage::StorageFile;
use crate::mutation::{self, Mutation};
use crate::types::{Generation, REGION_BYTES, Region};

const SECTOR_BYTES: usize = 512;
const ENTRIES: u64 = 62;
const MAGIC: [u8; 8] = *b"INTENT1\0";
const MAGIC_AT: usize = 496;
const SECTOR_AT: usize = 504;
const CHECK_AT: usize = 508;
/// Sectors that are read at once when the map is opened.
const SCAN_SECTORS: u64 = 128;
/// Regions that a sequential writer gets marked ahead of it, for the price of one sync.
const AHEAD: u64 = 8;

pub(super) struct Intent<F> {
    file: F,
    state: RefCell<State>,
    rounds: Rounds,
}

struct State {
    regions: u64,
    marked: Bitmap,
    /// Marked, stamped with `generation`, and durable: what a write need not wait for.
    ready: Bitmap,
    generation: Option<Generation>,
    /// How often marks were cleared: whoever waits for a sync must not call a region ready whose
    /// mark has gone meanwhile.
    clears: u64,
}

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

impl<F: StorageFile> Intent<F> {
    pub(super) fn open(file: F, volume_bytes: u64) -> Result<Self, IntentError> {
        let regions = volume_bytes / REGION_BYTES;
        let mut marked = Bitmap::new(regions);
        let sectors = regions.div_ceil(ENTRIES);
        let mut bytes = vec![0; SCAN_SECTORS as usize * SECTOR_BYTES];
        for first in (0..sectors).step_by(SCAN_SECTORS as usize) {
            let count = SCAN_SECTORS.min(sectors - first);
            let bytes = &mut bytes[..count as usize * SECTOR_BYTES];
            file.read_at(first * SECTOR_BYTES as u64, bytes)?;
            for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
                for (region, entry) in (sector * ENTRIES..regions).zip(decode(bytes, sector)?) {
                    marked.put(region, entry & 1 == 1);
                }
            }
        }
        let ready = Bitmap::new(regions);
        let state = RefCell::new(State { regions, marked, ready, generation: None, clears: 0 });
        Ok(Self { file, state, rounds: Rounds::default() })
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
        state.marked.resize(regions);
        state.ready.resize(regions);
    }

    pub(super) fn is_marked(&self, region: Region) -> bool {
        self.state.borrow().marked.has(region.0)
    }

    /// The marks of `regions` with this generation, or a newer one, are durable when this returns.
    /// A sequential writer gets some more.
    pub(super) async fn mark<I: Iterator<Item = Region>>(
        &self,
        regions: impl Fn() -> I,
        generation: Generation,
        is_sequential: bool,
    ) -> Result<(), IntentError> {
        let wanted = {
            let mut state = self.state.borrow_mut();
            if state.generation.is_none_or(|newest| newest < generation) {
                state.generation = Some(generation);
                state.ready.clear();
            }
            if regions().all(|region| state.ready.has(region.0)) {
                return Ok(());
            }
            let mut wanted: Vec<_> =
                regions().filter(|region| !state.ready.has(region.0)).collect();
            if let Some(last) = wanted.last().copied().filter(|_| is_sequential) {
                let ahead = last.0 + 1..(last.0 + 1 + AHEAD).min(state.regions);
                wanted.extend(ahead.map(Region).take_while(|next| !state.marked.has(next.0)));
            }
            wanted
        };
        let stamp = self.state.borrow().generation.unwrap_or(generation);
        let clears = self.state.borrow().clears;
        for region in &wanted {
            self.put(*region, |_| entry(stamp, true))?;
            self.state.borrow_mut().marked.put(region.0, true);
        }
        if !mutation::is_on(Mutation::MarkNotSynced) {
            self.rounds.join(async || self.file.sync().await).await?;
        }
        let mut state = self.state.borrow_mut();
        if state.generation == Some(stamp) && state.clears == clears {
            wanted.iter().for_each(|region| state.ready.put(region.0, true));
        }
        Ok(())
    }

    /// Every marked region gets the stamp; durable when this returns.
    pub(super) async fn restamp(&self, generation: Generation) -> Result<(), IntentError> {
        // First of all, so that a write that is on its way doesn't mark with the older one.
        {
            let mut state = self.state.borrow_mut();
            if state.generation.is_none_or(|newest| newest < generation) {
                state.generation = Some(generation);
                state.ready.clear();
            }
        }
        let marked: Vec<_> = self.state.borrow().marked.members().collect();
        let clears = self.state.borrow().clears;
        for region in &marked {
            self.put(Region(*region), |old| old.max(entry(generation, true)))?;
        }
        if !marked.is_empty() {
            self.rounds.join(async || self.file.sync().await).await?;
        }
        let mut state = self.state.borrow_mut();
        if state.generation == Some(generation) {
            let marked = if state.clears == clears { &marked[..] } else { &[] };
            marked.iter().for_each(|region| state.ready.put(*region, true));
        }
        Ok(())
    }

    /// The region's data and index are durable. Need not be durable itself.
    pub(super) fn clear(&self, region: Region) -> Result<(), IntentError> {
        self.put(region, |old| old & !1)?;
        let mut state = self.state.borrow_mut();
        state.clears += 1;
        state.marked.put(region.0, false);
        state.ready.put(region.0, false);
        Ok(())
    }

    pub(super) fn marked(&self) -> Result<Vec<(Region, Generation)>, IntentError> {
        let marked: Vec<_> = self.state.borrow().marked.members().collect();
        let mut stamped = Vec::with_capacity(marked.len());
        for region in marked {
            stamped.push((Region(region), self.entry(Region(region))?.0));
        }
        Ok(stamped)
    }

    /// Regions written in a generation after `base`, whether still marked or not.
    pub(super) fn stamped_since(
        &self,
        base: u64,
    ) -> Result<Vec<(Region, Generation)>, IntentError> {
        let regions = self.state.borrow().regions;
        let mut found = Vec::new();
        for sector in 0..regions.div_ceil(ENTRIES) {
            for (region, entry) in (sector * ENTRIES..regions).zip(self.sector(sector)?) {
                if let Some(stamp) = NonZeroU64::new(entry >> 1).filter(|stamp| stamp.get() > base)
                {
                    found.push((Region(region), Generation(stamp)));
                }
            }
        }
        Ok(found)
    }

    pub(super) async fn sync(&self) -> io::Result<()> {
        self.rounds.join(async || self.file.sync().await).await
    }

    fn entry(&self, region: Region) -> Result<(Generation, bool), IntentError> {
        let entries = self.sector(region.0 / ENTRIES)?;
        let entry = entries[(region.0 % ENTRIES) as usize];
        let stamp = NonZeroU64::new(entry >> 1).map_or(Generation::FIRST, Generation);
        Ok((stamp, entry & 1 == 1))
    }

    fn sector(&self, sector: u64) -> Result<[u64; ENTRIES as usize], IntentError> {
        let mut bytes = [0; SECTOR_BYTES];
        self.file.read_at(sector * SECTOR_BYTES as u64, &mut bytes)?;
        decode(&bytes, sector)
    }

    fn put(&self, region: Region, change: impl Fn(u64) -> u64) -> Result<(), IntentError> {
        let sector = region.0 / ENTRIES;
        let mut entries = self.sector(sector)?;
        let entry = &mut entries[(region.0 % ENTRIES) as usize];
        let new = change(*entry);
        if *entry != new {
            *entry = new;
            self.file.write_at(sector * SECTOR_BYTES as u64, &encode(&entries, sector))?;
        }
        Ok(())
    }
}

fn entry(stamp: Generation, marked: bool) -> u64 {
    stamp.0.get() << 1 | u64::from(marked)
}

fn encode(entries: &[u64; ENTRIES as usize], sector: u64) -> [u8; SECTOR_BYTES] {
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

fn decode(bytes: &[u8], sector: u64) -> Result<[u64; ENTRIES as usize], IntentError> {
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

/// One bit per region.
struct Bitmap(Vec<u64>);

impl Bitmap {
    fn new(length: u64) -> Self {
        Self(vec![0; length.div_ceil(64) as usize])
    }
    fn resize(&mut self, length: u64) {
        self.0.resize(length.div_ceil(64) as usize, 0);
        if let Some(last) = self.0.last_mut().filter(|_| !length.is_multiple_of(64)) {
            *last &= (1 << (length % 64)) - 1;
        }
    }
    fn has(&self, at: u64) -> bool {
        self.0.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
    fn put(&mut self, at: u64, member: bool) {
        let word = &mut self.0[(at / 64) as usize];
        *word = *word & !(1 << (at % 64)) | u64::from(member) << (at % 64);
    }
    fn clear(&mut self) {
        self.0.fill(0);
    }
    fn members(&self) -> impl Iterator<Item = u64> {
        self.0.iter().zip(0..).filter(|(word, _)| **word != 0).flat_map(|(&word, index)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        })
    }
}
