//! What the client asks for. Pure.

use std::ops::Range;

use ankole_blockdev::disk::{BLOCK_BYTES, Durability, Extent, SECTOR_BYTES};

use crate::random::Random;

const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;
/// Places that are used again and again, so that requests overlap.
const HOT_PLACES: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Read(Extent),
    Write(Extent, Durability),
    Zeroes(Extent, Durability),
    Trim(Extent),
    Flush,
    /// Asks what is zero.
    Map(Extent),
}

impl Request {
    pub fn random(random: &mut Random, size_bytes: u64) -> Self {
        let at = random_extent(random, size_bytes);
        let durability = match random.percent(8) {
            true => Durability::ForcedUnitAccess,
            false => Durability::Volatile,
        };
        match random.below(100) {
            0..54 => Self::Write(at, durability),
            54..82 => Self::Read(at),
            82..87 => Self::Zeroes(at, durability),
            87..92 => Self::Trim(at),
            92..98 => Self::Flush,
            _ => Self::Map(at),
        }
    }

    /// The sectors that it changes.
    pub fn changes(self) -> Range<u64> {
        match self {
            Self::Write(at, _) | Self::Zeroes(at, _) => sectors(at),
            Self::Trim(at) => whole_blocks(at),
            Self::Read(_) | Self::Flush | Self::Map(_) => 0..0,
        }
    }
}

pub fn sectors(at: Extent) -> Range<u64> {
    at.offset_bytes / SECTOR_BYTES..at.end_bytes() / SECTOR_BYTES
}

/// A discard gives back whole blocks only, and leaves the rest as it is.
fn whole_blocks(at: Extent) -> Range<u64> {
    let Range { start, end } = sectors(at);
    let first = start.next_multiple_of(SECTORS_PER_BLOCK);
    let last = end - end % SECTORS_PER_BLOCK;
    first..last.max(first)
}

fn random_extent(random: &mut Random, size_bytes: u64) -> Extent {
    let sectors = size_bytes / SECTOR_BYTES;
    let length = match random.below(100) {
        0..35 => random.between(1, 8), // within or over a block
        35..70 => SECTORS_PER_BLOCK * random.between(1, 5), // a few blocks
        70..90 => random.between(8, 129), // up to 64 KiB, odd
        90..98 => SECTORS_PER_BLOCK * random.between(16, 65), // up to 256 KiB
        _ => SECTORS_PER_BLOCK * random.between(200, 600), // over regions
    };
    let length = length.min(sectors);
    let is_hot = random.percent(60);
    let first = match is_hot {
        true => random.below(HOT_PLACES) * (sectors / HOT_PLACES) + random.below(24),
        false => random.below(sectors),
    };
    // Large ones and half of the others on whole blocks, as a file system does it.
    let first = match length.is_multiple_of(SECTORS_PER_BLOCK) {
        true => first - first % SECTORS_PER_BLOCK,
        false => first,
    };
    let first = first.min(sectors - length);
    Extent { offset_bytes: first * SECTOR_BYTES, length_bytes: length * SECTOR_BYTES }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lie_within_the_volume_and_some_of_each_kind_come() {
        let mut random = Random::new(1);
        let mut kinds = [0; 6];
        for _ in 0..2000 {
            let request = Request::random(&mut random, 2 << 20);
            let (kind, at) = match request {
                Request::Read(at) => (0, Some(at)),
                Request::Write(at, _) => (1, Some(at)),
                Request::Zeroes(at, _) => (2, Some(at)),
                Request::Trim(at) => (3, Some(at)),
                Request::Map(at) => (4, Some(at)),
                Request::Flush => (5, None),
            };
            kinds[kind] += 1;
            if let Some(at) = at {
                assert!(
                    at.is_within(2 << 20) && at.is_aligned_to(SECTOR_BYTES) && at.length_bytes > 0
                );
            }
        }
        assert!(kinds.iter().all(|&count| count > 0), "{kinds:?}");
    }

    #[test]
    fn a_trim_changes_the_whole_blocks_within_it() {
        let trim = |first: u64, end: u64| {
            let at = Extent { offset_bytes: first * 512, length_bytes: (end - first) * 512 };
            Request::Trim(at).changes()
        };
        assert_eq!(trim(0, 16), 0..16);
        assert_eq!(trim(1, 17), 8..16);
        assert!(trim(1, 7).is_empty());
    }
}
