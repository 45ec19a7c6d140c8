//! What a sector that was written by this program looks like, so that a wrong, misplaced, foreign
//! or torn one is told from a right one by looking at it.
//!
//! ```text
//! 0          8        16       24       32                    508      512
//! | magic    | volume | sector | number | fill                | crc32c |
//! ```
//!
//! Little-endian. `number` is that of the write; the checksum covers all before it. A sector that
//! was never written, or was trimmed, is all zero and counts as written with number 0.

use std::fmt;

use ankole_blockdev::disk::SECTOR_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"ANKTORT1");
pub const SECTOR: usize = SECTOR_BYTES as usize;
const SUM_AT: usize = SECTOR - 4;

/// Number of a write; each write has its own. Zero is the number of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub u64);

impl Number {
    pub const ZEROES: Self = Self(0);
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ZEROES => f.write_str("zeroes"),
            Self(number) => write!(f, "#{number}"),
        }
    }
}

/// Bytes that no write to this sector ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    #[error("bytes that this program never wrote")]
    Unknown,
    #[error("a torn sector: it begins as {0}, and its checksum is wrong")]
    Torn(Number),
    #[error("sector {sector}'s {number}: it was misplaced")]
    Misplaced { sector: u64, number: Number },
    #[error("{0} of another volume")]
    OtherVolume(Number),
}

/// Fills `into`, which is one sector.
pub fn encode(volume: u64, sector: u64, number: Number, into: &mut [u8]) {
    let fields = [MAGIC, volume, sector, number.0];
    let mut word = volume ^ sector.rotate_left(32) ^ number.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (index, place) in into.chunks_exact_mut(8).enumerate() {
        word = word.wrapping_mul(0xd129_42f0_5d47_8b55).wrapping_add(1);
        place.copy_from_slice(&fields.get(index).copied().unwrap_or(word).to_le_bytes());
    }
    let sum = crc32c::crc32c(&into[..SUM_AT]);
    into[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
}

/// Which write `bytes`, one sector, came from.
pub fn decode(volume: u64, sector: u64, bytes: &[u8]) -> Result<Number, Nonsense> {
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[index * 8..][..8]);
        u64::from_le_bytes(word)
    };
    if word(0) == 0 && bytes.iter().all(|&byte| byte == 0) {
        return Ok(Number::ZEROES);
    }
    if word(0) != MAGIC {
        return Err(Nonsense::Unknown);
    }
    let number = Number(word(3));
    if crc32c::crc32c(&bytes[..SUM_AT]).to_le_bytes() != bytes[SUM_AT..] {
        Err(Nonsense::Torn(number))
    } else if word(1) != volume {
        Err(Nonsense::OtherVolume(number))
    } else if word(2) != sector {
        Err(Nonsense::Misplaced { sector: word(2), number })
    } else {
        Ok(number)
    }
}

/// The writes that `bytes` came from, which begin at sector `first`; or the first nonsense in it
/// and the sector where it is.
pub fn decode_all(volume: u64, first: u64, bytes: &[u8]) -> Result<Vec<Number>, (u64, Nonsense)> {
    (first..)
        .zip(bytes.chunks_exact(SECTOR))
        .map(|(sector, bytes)| decode(volume, sector, bytes).map_err(|nonsense| (sector, nonsense)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(volume: u64, sector: u64, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        encode(volume, sector, Number(number), &mut bytes);
        bytes
    }

    #[test]
    fn a_sector_tells_its_write_and_zeroes_are_number_zero() {
        assert_eq!(decode(7, 9, &sector(7, 9, 1)), Ok(Number(1)));
        assert_eq!(decode(7, 9, &[0; SECTOR]), Ok(Number::ZEROES));
    }

    /// The errors that storage makes: bytes of another place, of another volume, half of a write.
    #[test]
    fn a_sector_that_was_not_written_there_as_a_whole_is_recognised() {
        let misplaced = Nonsense::Misplaced { sector: 8, number: Number(1) };
        assert_eq!(decode(7, 9, &sector(7, 8, 1)), Err(misplaced));
        assert_eq!(decode(7, 9, &sector(6, 9, 1)), Err(Nonsense::OtherVolume(Number(1))));
        let mut torn = sector(7, 9, 1);
        torn[256..].copy_from_slice(&sector(7, 9, 2)[256..]);
        assert_eq!(decode(7, 9, &torn), Err(Nonsense::Torn(Number(1))));
        let mut flipped = vec![0; SECTOR];
        flipped[100] = 1;
        assert_eq!(decode(7, 9, &flipped), Err(Nonsense::Unknown));
    }
}
