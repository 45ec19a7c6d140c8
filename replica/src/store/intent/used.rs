//! Which sectors of the intent map were ever written.
//!
//! Owns the file `intent.used`. Promises that a sector gets into it only after it is durable in the
//! map: one that is in it and reads as zeroes was lost by the disk. Its own sectors are all written
//! when it is made or extended, so none of them may be zeroes either. What was used stays used.
//!
//! ```text
//! sector of 512 bytes │ 0 magic "INTUSED1" │ 8 sector u32 │ 12 one bit for each of 3968 │ 508 crc32c
//! ```

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use roaring::RoaringBitmap;

use super::{IntentError, Rounds, SECTOR_BYTES, StorageFile, number, runs};
use crate::store::meta::USED_FILE;

const MAGIC: [u8; 8] = *b"INTUSED1";
const BITS_AT: usize = 12;
const CHECK_AT: usize = SECTOR_BYTES - 4;
/// Sectors of the map that one sector here tells of.
const BITS: u64 = (CHECK_AT - BITS_AT) as u64 * 8;

pub(in crate::store) struct Used<F> {
    file: F,
    sectors: RefCell<Sectors>,
    rounds: Rounds,
}

#[derive(Default)]
struct Sectors {
    written: RoaringBitmap,
    durable: RoaringBitmap,
}

/// Of the largest volume some 140 KiB.
pub(in crate::store) fn file_bytes(sectors: u64) -> u64 {
    sectors.div_ceil(BITS) * SECTOR_BYTES as u64
}

impl<F: StorageFile> Used<F> {
    /// Nothing was used yet.
    pub(in crate::store) async fn make(file: &F, sectors: u64) -> io::Result<()> {
        write(file, 0..sectors.div_ceil(BITS), &RoaringBitmap::new())?;
        file.sync().await
    }

    pub(in crate::store) fn open(file: F, sectors: u64) -> Result<Self, IntentError> {
        let mut bytes = vec![0; file_bytes(sectors) as usize];
        file.read_at(0, &mut bytes)?;
        let mut used = RoaringBitmap::new();
        for (index, bytes) in (0..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            used.extend(decode(bytes, index)?);
        }
        used.remove_range(number(sectors)..);
        let sectors = Sectors { written: used.clone(), durable: used };
        Ok(Self { file, sectors: RefCell::new(sectors), rounds: Rounds::default() })
    }

    /// Durable after the next [`sync`](Self::sync).
    pub(super) fn extend(&self, sectors: u64, larger: u64) -> io::Result<()> {
        write(&self.file, sectors.div_ceil(BITS)..larger.div_ceil(BITS), &RoaringBitmap::new())
    }

    pub(super) fn shrink(&self, sectors: u64) -> io::Result<()> {
        self.file.truncate(file_bytes(sectors))
    }

    pub(super) fn has(&self, sector: u64) -> bool {
        self.sectors.borrow().durable.contains(number(sector))
    }

    pub(super) fn sectors(&self) -> RoaringBitmap {
        self.sectors.borrow().durable.clone()
    }

    /// They are durable in the map; that they are is itself when this returns.
    pub(super) async fn add(&self, first: &RoaringBitmap) -> io::Result<()> {
        {
            let written = &mut self.sectors.borrow_mut().written;
            *written |= first;
            let (Some(low), Some(high)) = (first.min(), first.max()) else { return Ok(()) };
            write(&self.file, u64::from(low) / BITS..u64::from(high) / BITS + 1, written)?;
        }
        self.sync().await?;
        self.sectors.borrow_mut().durable |= first;
        Ok(())
    }

    pub(super) async fn sync(&self) -> io::Result<()> {
        self.rounds.join(async || self.file.sync().await).await
    }
}

/// Writes some sectors, as `used` has them.
fn write<F: StorageFile>(file: &F, indexes: Range<u64>, used: &RoaringBitmap) -> io::Result<()> {
    for run in runs(indexes) {
        let at = run.start * SECTOR_BYTES as u64;
        let bytes: Vec<u8> = run.flat_map(|index| encode(index, used)).collect();
        file.write_at(at, &bytes)?;
    }
    Ok(())
}

fn encode(index: u64, used: &RoaringBitmap) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..BITS_AT].copy_from_slice(&(index as u32).to_le_bytes());
    let first = number(index * BITS);
    for sector in used.range(first..first + BITS as u32) {
        let bit = (sector - first) as usize;
        bytes[BITS_AT + bit / 8] |= 1 << (bit % 8);
    }
    let check = crc32c::crc32c(&bytes[..CHECK_AT]);
    bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], index: u64) -> Result<impl Iterator<Item = u32>, IntentError> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Err(IntentError::lost(USED_FILE, index));
    }
    if bytes[..8] != MAGIC
        || bytes[8..BITS_AT] != (index as u32).to_le_bytes()
        || bytes[CHECK_AT..] != crc32c::crc32c(&bytes[..CHECK_AT]).to_le_bytes()
    {
        return Err(IntentError::foreign(USED_FILE, index));
    }
    let first = number(index * BITS);
    let eights = (first..).step_by(8).zip(&bytes[BITS_AT..CHECK_AT]);
    let used = |(first, bits): (u32, &u8)| {
        let bits = *bits;
        (0..8).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| first + bit)
    };
    Ok(eights.filter(|(_, bits)| **bits != 0).flat_map(used))
}
