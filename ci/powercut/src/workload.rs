//! What the client does next: small verified writes, and many flushes. Pure.

use ankole_blockdev::disk::{BLOCK_BYTES, Durability, Extent, SECTOR_BYTES};
use ankole_replica::store::crash::Random;

/// A part that half of all requests go to, so that sectors are overwritten between two flushes.
const HOT_BYTES: u64 = 256 << 10;
/// Longest write of whole blocks.
const BLOCKS_MAX: u64 = 16;
/// Longest write of sectors.
const SECTORS_MAX: u64 = 24;

/// One request to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Write(Extent, Durability),
    WriteZeroes(Extent, Durability),
    /// Of whole blocks, which read as zeroes afterwards.
    Trim(Extent),
    Read(Extent),
    Flush,
    /// `alone`: while no other request runs, so that it is known to the byte what it shows.
    Snapshot {
        alone: bool,
    },
    RemoveSnapshot,
}

/// Of a volume of `size_bytes`.
pub fn next(random: &mut Random, size_bytes: u64) -> Request {
    match random.below(1000) {
        0..400 => Request::Write(blocks(random, size_bytes), durability(random)),
        400..600 => Request::Write(sectors(random, size_bytes), durability(random)),
        600..640 => Request::WriteZeroes(blocks(random, size_bytes), durability(random)),
        640..680 => Request::WriteZeroes(sectors(random, size_bytes), durability(random)),
        680..710 => Request::Trim(blocks(random, size_bytes)),
        710..790 => Request::Read(sectors(random, size_bytes)),
        790..985 => Request::Flush,
        985..994 => Request::Snapshot { alone: random.below(2) == 0 },
        _ => Request::RemoveSnapshot,
    }
}

fn durability(random: &mut Random) -> Durability {
    match random.below(8) {
        0 => Durability::ForcedUnitAccess,
        _ => Durability::Volatile,
    }
}

fn blocks(random: &mut Random, size_bytes: u64) -> Extent {
    extent(random, size_bytes, BLOCK_BYTES, BLOCKS_MAX)
}

fn sectors(random: &mut Random, size_bytes: u64) -> Extent {
    extent(random, size_bytes, SECTOR_BYTES, SECTORS_MAX)
}

fn extent(random: &mut Random, size_bytes: u64, unit_bytes: u64, most: u64) -> Extent {
    let length_bytes = (1 + random.below(most)) * unit_bytes;
    // The hot part lies over the border of two regions.
    let is_hot = random.below(2) == 0 && size_bytes > 2 * HOT_BYTES;
    let (from, room) = match is_hot {
        true => (size_bytes / 2 - HOT_BYTES / 2, HOT_BYTES),
        false => (0, size_bytes),
    };
    let places = (room - length_bytes) / unit_bytes + 1;
    Extent { offset_bytes: from + random.below(places) * unit_bytes, length_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_lies_within_the_volume() {
        let mut random = Random::new(1);
        let size_bytes = 2 << 20;
        for _ in 0..20_000 {
            match next(&mut random, size_bytes) {
                Request::Write(at, _) | Request::WriteZeroes(at, _) | Request::Read(at) => {
                    assert!(at.is_within(size_bytes) && at.is_aligned_to(SECTOR_BYTES), "{at:?}");
                }
                Request::Trim(at) => assert!(at.is_within(size_bytes) && at.is_aligned_to(4096)),
                Request::Flush | Request::Snapshot { .. } | Request::RemoveSnapshot => {}
            }
        }
    }
}
