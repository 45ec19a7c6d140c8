//! One sector of the intent map: the entries of a group.
//!
//! ```text
//! 512 bytes, little-endian: 62 entries of u64 (stamp << 1 | marked)
//! │ 496 magic "INTENT1\0" │ 504 sector u32 │ 508 crc32c      zeroes: never written, nothing marked
//! ```

use super::IntentError;
use crate::store::meta::INTENT_FILE;
use crate::types::{Generation, REGIONS_PER_GROUP};

pub(super) const SECTOR_BYTES: usize = 512;
pub(super) const ENTRIES: u64 = REGIONS_PER_GROUP;
const MAGIC: [u8; 8] = *b"INTENT1\0";
const MAGIC_AT: usize = 496;
const SECTOR_AT: usize = 504;
const CHECK_AT: usize = 508;

pub(super) fn entry(stamp: Generation, marked: bool) -> u64 {
    stamp.0.get() << 1 | u64::from(marked)
}

pub(super) fn encode(entries: &[u64], sector: u64) -> [u8; SECTOR_BYTES] {
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

/// `was_written`: it was durable once, so it can't be zeroes.
pub(super) fn decode(
    bytes: &[u8],
    sector: u64,
    was_written: bool,
) -> Result<[u64; ENTRIES as usize], IntentError> {
    if bytes.iter().all(|&byte| byte == 0) {
        if was_written {
            return Err(IntentError::lost(INTENT_FILE, sector));
        }
        return Ok([0; ENTRIES as usize]);
    }
    let check = crc32c::crc32c(&bytes[..CHECK_AT]).to_le_bytes();
    if bytes[MAGIC_AT..SECTOR_AT] != MAGIC
        || bytes[CHECK_AT..] != check
        || bytes[SECTOR_AT..CHECK_AT] != (sector as u32).to_le_bytes()
    {
        return Err(IntentError::foreign(INTENT_FILE, sector));
    }
    let entry = |index: usize| {
        u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().expect("8 bytes"))
    };
    Ok(std::array::from_fn(entry))
}
