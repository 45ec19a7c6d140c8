//! The index page: what one layer has of one region.
//!
//! Owns the page's bytes and the transitions of a block's state. Promises that a page is either
//! decoded as it was written or refused; zeroes are an empty page to it, and who knows that there
//! was one says that it is lost. What may never
//! happen: that a block counts as present after a power cut although its data never arrived.
//!
//! ```text
//! page of 2048 bytes, little-endian; each 512-byte sector is atomic on disk and checks itself
//! sector 0   0 magic "ANKINDEX" │ 8 version u32 │ 12 file u32 │ 16 region u64 │ 24 reserved
//!           32 present 256 bits │ 64 zero │ 96 fresh │ 128 unverified │ 160 reserved │ 508 crc32c
//! sector 1   0 96 × sum of blocks   0..96     │ 384 region u64 │ 392 sector u32 │ … │ 508 crc32c
//! sector 2   0 96 × sum of blocks  96..192    │ the same
//! sector 3   0 64 × sum of blocks 192..256    │ the same
//! ```
//!
//! A block of a layer is in one of three states, and may be *fresh*:
//!
//! ```text
//!            write                zero
//! absent ───────────▶ data ───────────▶ zero      present=1: data; else zero=1: zero; else absent
//!    └───────────────── zero ────────────▲
//! fresh=1: changed since the last flush. For data the zero bit then says what it was before, and
//! is what the block falls back to if a power cut took the data but not this page.
//! ```

use std::fmt;
use std::ops::{BitAnd, BitOr, Not, Range};

use crate::checksum::ZERO_BLOCK_SUM;
use crate::types::{BLOCKS_PER_REGION, Region};

pub const PAGE_BYTES: usize = 2048;
pub const SECTOR_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"ANKINDEX";
const VERSION: u32 = 2;
const SUMS_PER_SECTOR: usize = 96;
/// Where a sector keeps the checksum of the bytes before it.
const CHECK_AT: usize = SECTOR_BYTES - 4;
const BLOCKS: usize = BLOCKS_PER_REGION as usize;
const _: () = assert!(3 * SUMS_PER_SECTOR >= BLOCKS && BLOCKS == 256);

/// A set of blocks of one region.
#[derive(Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Blocks([u64; 4]);

impl Blocks {
    pub const NONE: Self = Self([0; 4]);
    pub const ALL: Self = Self([u64::MAX; 4]);

    /// The blocks `slots`, which are below 256.
    pub fn span(slots: Range<usize>) -> Self {
        let mut words = [0; 4];
        for (index, word) in words.iter_mut().enumerate() {
            let start = slots.start.clamp(index * 64, index * 64 + 64) - index * 64;
            let end = slots.end.clamp(index * 64, index * 64 + 64) - index * 64;
            if start < end {
                *word = (u64::MAX >> (64 - (end - start))) << start;
            }
        }
        Self(words)
    }

    pub fn has(&self, slot: usize) -> bool {
        self.0[slot / 64] >> (slot % 64) & 1 == 1
    }

    pub fn put(&mut self, slot: usize, member: bool) {
        let bit = 1 << (slot % 64);
        if member {
            self.0[slot / 64] |= bit;
        } else {
            self.0[slot / 64] &= !bit;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub fn slots(self) -> impl Iterator<Item = usize> {
        (0..4).flat_map(move |index| {
            let mut word = self.0[index];
            std::iter::from_fn(move || {
                (word != 0).then(|| {
                    let bit = word.trailing_zeros() as usize;
                    word &= word - 1;
                    index * 64 + bit
                })
            })
        })
    }

    /// Maximal runs of neighbouring members.
    pub fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let mut slots = self.slots().peekable();
        std::iter::from_fn(move || {
            let start = slots.next()?;
            let mut end = start + 1;
            while slots.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some(start..end)
        })
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(std::array::from_fn(|index| read_u64(bytes, index * 8)))
    }
}

impl BitAnd for Blocks {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] & other.0[index]))
    }
}

impl BitOr for Blocks {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] | other.0[index]))
    }
}

impl Not for Blocks {
    type Output = Self;
    fn not(self) -> Self {
        Self(self.0.map(|word| !word))
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

/// What one layer says about one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSum {
    /// An older layer decides.
    Absent,
    Zero,
    /// `verified`: the sum was computed from what a client sent, or compared with a peer.
    Data {
        sum: u32,
        verified: bool,
    },
}

/// One layer's knowledge of one region.
#[derive(Clone, PartialEq, Eq)]
pub struct Page {
    present: Blocks,
    zero: Blocks,
    fresh: Blocks,
    unverified: Blocks,
    sums: [u32; BLOCKS],
}

impl Page {
    pub const EMPTY: Self = Self {
        present: Blocks::NONE,
        zero: Blocks::NONE,
        fresh: Blocks::NONE,
        unverified: Blocks::NONE,
        sums: [0; BLOCKS],
    };

    pub fn present(&self) -> Blocks {
        self.present
    }
    /// Blocks that this layer says are zero.
    pub fn zero(&self) -> Blocks {
        self.zero & !self.present
    }
    /// Blocks for which no older layer is asked.
    pub fn owned(&self) -> Blocks {
        self.present | self.zero
    }
    /// Blocks whose state changed since the last flush.
    pub fn fresh(&self) -> Blocks {
        self.fresh
    }
    pub fn unverified(&self) -> Blocks {
        self.unverified
    }
    pub fn sum(&self, slot: usize) -> u32 {
        self.sums[slot]
    }

    pub fn block(&self, slot: usize) -> BlockSum {
        if self.present.has(slot) {
            BlockSum::Data { sum: self.sums[slot], verified: !self.unverified.has(slot) }
        } else if self.zero.has(slot) {
            BlockSum::Zero
        } else {
            BlockSum::Absent
        }
    }

    /// Says whether presence changed, so that the page must reach the kernel before the answer.
    #[must_use]
    pub fn set_data(&mut self, slot: usize, sum: u32, verified: bool) -> bool {
        let changed = !self.present.has(slot);
        if changed {
            self.present.put(slot, true);
            self.fresh.put(slot, true);
        }
        self.sums[slot] = sum;
        self.unverified.put(slot, !verified);
        changed
    }

    #[must_use]
    pub fn set_zero(&mut self, slot: usize) -> bool {
        self.leave_data(slot, true)
    }

    #[must_use]
    pub fn set_absent(&mut self, slot: usize) -> bool {
        self.leave_data(slot, false)
    }

    fn leave_data(&mut self, slot: usize, zero: bool) -> bool {
        let changed = self.present.has(slot) || self.zero.has(slot) != zero;
        if changed {
            if self.present.has(slot) {
                self.sums[slot] = other_sum(self.sums[slot]);
            }
            self.present.put(slot, false);
            self.zero.put(slot, zero);
            self.fresh.put(slot, true);
            self.unverified.put(slot, false);
        }
        changed
    }

    /// Changes only what the sectors of sums say; presence comes later.
    pub fn set_sum(&mut self, slot: usize, sum: u32) {
        self.sums[slot] = sum;
    }

    pub fn set_verified(&mut self, slot: usize) {
        self.unverified.put(slot, false);
    }

    /// The data of `blocks` is durable: they no longer fall back to what was before.
    pub fn set_flushed(&mut self, blocks: Blocks) {
        self.fresh = self.fresh & !blocks;
        self.zero = self.zero & !(self.present & !self.fresh);
    }

    /// The data of a fresh block never arrived: it is again what it was before its first write.
    pub fn fall_back(&mut self, slot: usize) {
        self.present.put(slot, false);
        self.unverified.put(slot, false);
    }

    /// Blocks that aren't there and yet have a sum: see [`disown`](Self::disown).
    pub fn leftovers(&self) -> Blocks {
        let mut found = Blocks::NONE;
        for (slot, sum) in self.sums.iter().enumerate() {
            found.put(slot, *sum != 0 && !self.present.has(slot));
        }
        found
    }

    /// The bytes at the place of a block that isn't there have exactly the sum that it had: gives
    /// it another one, as [`set_zero`](Self::set_zero) does.
    pub fn disown(&mut self, slot: usize) {
        self.sums[slot] = other_sum(self.sums[slot]);
    }

    /// Drops `blocks` from a layer that nobody reads there any more. Leaves the sums as they are,
    /// so that only sector 0 changes, which is atomic.
    pub fn forget(&mut self, blocks: Blocks) {
        self.present = self.present & !blocks;
        self.zero = self.zero & !blocks;
        self.fresh = self.fresh & !blocks;
        self.unverified = self.unverified & !blocks;
    }

    pub fn is_empty(&self) -> bool {
        (self.present | self.zero | self.fresh).is_empty()
    }

    pub fn encode(&self, file: u32, region: Region) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&file.to_le_bytes());
        bytes[16..24].copy_from_slice(&region.0.to_le_bytes());
        let sets = [self.present, self.zero, self.fresh, self.unverified];
        for (set, at) in sets.into_iter().zip([32, 64, 96, 128]) {
            bytes[at..at + 32].copy_from_slice(&set.to_bytes());
        }
        for (part, sums) in self.sums.chunks(SUMS_PER_SECTOR).enumerate() {
            let sector = &mut bytes[(part + 1) * SECTOR_BYTES..][..SECTOR_BYTES];
            for (entry, sum) in sector.chunks_exact_mut(4).zip(sums) {
                entry.copy_from_slice(&sum.to_le_bytes());
            }
            sector[384..392].copy_from_slice(&region.0.to_le_bytes());
            sector[392..396].copy_from_slice(&(part as u32 + 1).to_le_bytes());
        }
        for sector in bytes.chunks_exact_mut(SECTOR_BYTES) {
            let check = crc32c::crc32c(&sector[..CHECK_AT]);
            sector[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        }
        bytes
    }

    /// The page, and the present blocks whose sums are lost because their sector doesn't check.
    pub fn decode(bytes: &[u8], file: u32, region: Region) -> Result<(Self, Blocks), PageError> {
        assert_eq!(bytes.len(), PAGE_BYTES, "the caller read one page");
        let head = &bytes[..SECTOR_BYTES];
        if head.iter().all(|&byte| byte == 0) {
            return Ok((Self::EMPTY, Blocks::NONE));
        }
        if head[..8] != MAGIC {
            return Err(PageError::Magic);
        }
        if !checks(head) {
            return Err(PageError::Checksum);
        }
        match read_u32(head, 8) {
            VERSION => {}
            version => return Err(PageError::Version { version }),
        }
        let (found_file, found_region) = (read_u32(head, 12), read_u64(head, 16));
        if (found_file, found_region) != (file, region.0) {
            return Err(PageError::Misplaced { file: found_file, region: found_region });
        }
        let mut page = Self {
            present: Blocks::from_bytes(&head[32..64]),
            zero: Blocks::from_bytes(&head[64..96]),
            fresh: Blocks::from_bytes(&head[96..128]),
            unverified: Blocks::from_bytes(&head[128..160]),
            sums: [0; BLOCKS],
        };
        let mut lost = Blocks::NONE;
        for part in 0..3 {
            let sector = &bytes[(part + 1) * SECTOR_BYTES..][..SECTOR_BYTES];
            let slots = part * SUMS_PER_SECTOR..((part + 1) * SUMS_PER_SECTOR).min(BLOCKS);
            if checks(sector)
                && read_u64(sector, 384) == region.0
                && read_u32(sector, 392) == part as u32 + 1
            {
                for (index, slot) in slots.enumerate() {
                    page.sums[slot] = read_u32(sector, index * 4);
                }
            } else {
                lost = lost | (Blocks::span(slots) & page.present);
            }
        }
        Ok((page, lost))
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page")
            .field("present", &self.present)
            .field("zero", &self.zero)
            .field("fresh", &self.fresh)
            .field("unverified", &self.unverified)
            .finish_non_exhaustive()
    }
}

/// Why a page can't be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("it was written, and there are only zeroes now")]
    Lost,
    #[error("it isn't an index page")]
    Magic,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it has version {version}, this program reads version {VERSION}")]
    Version { version: u32 },
    #[error("it belongs to file {file}, region {region}")]
    Misplaced { file: u32, region: u64 },
    #[error("the checksums of blocks {0:?} are damaged")]
    SumsLost(Blocks),
}

/// A sum that neither the bytes of `sum` nor zeroes have. Bytes that a block no longer means stay
/// on the disk; written again, the block may come back from a power cut as present with this
/// sector and those bytes, and must not be taken for them.
fn other_sum(sum: u32) -> u32 {
    if !sum == ZERO_BLOCK_SUM { sum ^ 1 } else { !sum }
}

fn checks(sector: &[u8]) -> bool {
    crc32c::crc32c(&sector[..CHECK_AT]) == read_u32(sector, CHECK_AT)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_exactly_its_slots() {
        for (start, end) in [(0, 0), (0, 1), (0, 256), (63, 65), (64, 128), (5, 250), (255, 256)] {
            let span = Blocks::span(start..end);
            assert_eq!(span.slots().collect::<Vec<_>>(), (start..end).collect::<Vec<_>>());
            assert_eq!(span.runs().count(), usize::from(start < end));
        }
    }

    #[test]
    fn a_page_reads_back_as_it_was_written() {
        let mut page = Page::EMPTY;
        for slot in 0..200 {
            assert!(page.set_data(slot, slot as u32 * 77, slot % 3 == 0));
        }
        assert!(page.set_zero(250));
        let bytes = page.encode(7, Region(12));
        assert_eq!(Page::decode(&bytes, 7, Region(12)), Ok((page, Blocks::NONE)));
        assert!(matches!(
            Page::decode(&bytes, 7, Region(13)),
            Err(PageError::Misplaced { region: 12, .. })
        ));
    }

    /// A power cut leaves each sector old or new; every one of them must then be usable alone.
    #[test]
    fn damage_in_a_sector_of_sums_costs_only_the_sums_in_it() {
        let mut page = Page::EMPTY;
        for slot in 90..110 {
            let _ = page.set_data(slot, 1, true);
        }
        let mut bytes = page.encode(1, Region(0));
        bytes[2 * SECTOR_BYTES + 5] ^= 1;
        let (_, lost) = Page::decode(&bytes, 1, Region(0)).expect("sector 0 is sound");
        assert_eq!(lost, Blocks::span(96..110));
        bytes[100] ^= 1;
        assert_eq!(Page::decode(&bytes, 1, Region(0)), Err(PageError::Checksum));
    }

    /// Data, then flushed zeroes, then data whose presence arrived and whose sum and bytes didn't:
    /// the sum that was left lay beside the bytes that were left, and they agreed.
    #[test]
    fn the_sum_of_a_block_that_became_zero_fits_neither_its_old_bytes_nor_zeroes() {
        for sum in [7, ZERO_BLOCK_SUM, !ZERO_BLOCK_SUM] {
            let mut page = Page::EMPTY;
            assert!(page.set_data(3, sum, true));
            assert!(page.set_zero(3));
            assert!(page.sum(3) != sum && page.sum(3) != ZERO_BLOCK_SUM);
        }
    }

    /// The block was zero by an answered flush; then it was written, and a power cut took the data
    /// but kept the page. It must be zero again, not absent: an older layer may have other bytes.
    #[test]
    fn a_fresh_block_falls_back_to_what_it_was_at_the_last_flush() {
        let mut page = Page::EMPTY;
        assert!(page.set_zero(3));
        page.set_flushed(Blocks::ALL);
        assert!(page.set_data(3, 5, true));
        assert!(page.set_data(4, 5, true));
        assert!(!page.set_data(4, 6, true), "an overwrite doesn't change presence");
        let mut lost = page.clone();
        lost.fall_back(3);
        lost.fall_back(4);
        assert_eq!((lost.block(3), lost.block(4)), (BlockSum::Zero, BlockSum::Absent));
        page.set_flushed(Blocks::ALL);
        assert_eq!(page.block(3), BlockSum::Data { sum: 5, verified: true });
        assert!(page.zero().is_empty() && page.fresh().is_empty());
    }
}
