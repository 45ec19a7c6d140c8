//! What a sector of the volume holds: it says itself who wrote it, and where.
//!
//! ```text
//! 0 magic │ 8 run u64 │ 16 sector u64 │ 24 write u64 │ 32 noise that follows from these, to 512
//! ```
//!
//! So a sector that was misplaced, mixed from two, or comes from another run is none of ours.

use ankole_blockdev::disk::SECTOR_BYTES;
use ankole_replica::store::crash::Random;
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 8] = *b"POWERCUT";
const NOISE_AT: usize = 32;

/// Number of a write within its run.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WriteId(pub u32);

/// What was read from one sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Zeroes,
    Of(WriteId),
    /// Nobody wrote this here.
    Foreign,
}

/// Puts what `write` writes to `sector` into 512 bytes.
pub fn fill(run: u64, sector: u64, write: WriteId, into: &mut [u8]) {
    into[..8].copy_from_slice(&MAGIC);
    into[8..16].copy_from_slice(&run.to_le_bytes());
    into[16..24].copy_from_slice(&sector.to_le_bytes());
    into[24..32].copy_from_slice(&u64::from(write.0).to_le_bytes());
    let mut random = Random::new(run ^ sector.rotate_left(20) ^ u64::from(write.0).rotate_left(40));
    for word in into[NOISE_AT..].chunks_exact_mut(8) {
        word.copy_from_slice(&random.number().to_le_bytes());
    }
}

/// Who wrote these 512 bytes of `sector`; every byte is looked at.
pub fn recognise(run: u64, sector: u64, bytes: &[u8]) -> Content {
    if bytes.iter().all(|&byte| byte == 0) {
        return Content::Zeroes;
    }
    let word: [u8; 8] = bytes[24..32].try_into().expect("eight bytes");
    let Ok(id) = u32::try_from(u64::from_le_bytes(word)) else { return Content::Foreign };
    let mut expected = [0; SECTOR_BYTES as usize];
    fill(run, sector, WriteId(id), &mut expected);
    if expected[..] == *bytes { Content::Of(WriteId(id)) } else { Content::Foreign }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_who_wrote_it_and_nothing_else_passes_for_it() {
        let mut bytes = [0; 512];
        assert_eq!(recognise(7, 3, &bytes), Content::Zeroes);
        fill(7, 3, WriteId(42), &mut bytes);
        assert_eq!(recognise(7, 3, &bytes), Content::Of(WriteId(42)));
        assert_eq!(recognise(7, 4, &bytes), Content::Foreign, "of another place");
        assert_eq!(recognise(8, 3, &bytes), Content::Foreign, "of another run");
        for at in [0, 24, 32, 511] {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(recognise(7, 3, &torn), Content::Foreign, "byte {at}");
        }
    }
}
