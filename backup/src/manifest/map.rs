//! A backup's map of blocks: what can be told of it while it is read, without keeping it.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};

use crate::block::BlockChecksum;

/// Most blocks of a backup: 64 TiB in blocks of 2 MiB. Bounds the memory that a map takes, which is
/// 40 bytes for each.
pub const BLOCKS_MAX: u64 = 1 << 25;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockMapping {
    #[serde(rename = "Offset")]
    pub offset_bytes: u64,
    #[serde(rename = "BlockChecksum")]
    pub checksum: BlockChecksum,
}

/// Gathered from a map, one block after the other.
#[derive(Clone, Debug)]
pub(crate) struct MapFacts {
    pub(crate) blocks: u64,
    /// Of the block that lies last, wherever it is listed.
    pub(crate) last_offset_bytes: Option<u64>,
    /// The greatest common divisor of all offsets; 0 while none but 0 was met.
    pub(crate) divisor_bytes: u64,
    /// Each offset is greater than the one before.
    pub(crate) is_ascending: bool,
    hash: Sha512,
}

impl Default for MapFacts {
    fn default() -> Self {
        let (blocks, last_offset_bytes, divisor_bytes) = Default::default();
        Self { blocks, last_offset_bytes, divisor_bytes, is_ascending: true, hash: Sha512::new() }
    }
}

impl MapFacts {
    pub(crate) fn of(map: &[BlockMapping]) -> Self {
        let mut facts = Self::default();
        map.iter().for_each(|mapping| facts.add(mapping));
        facts
    }

    pub(crate) fn add(&mut self, mapping: &BlockMapping) {
        let offset_bytes = mapping.offset_bytes;
        self.blocks += 1;
        self.is_ascending &= self.last_offset_bytes.is_none_or(|last| last < offset_bytes);
        self.last_offset_bytes = self.last_offset_bytes.max(Some(offset_bytes));
        self.divisor_bytes = greatest_common_divisor(self.divisor_bytes, offset_bytes);
        self.hash.update(offset_bytes.to_le_bytes());
        self.hash.update(mapping.checksum.as_bytes());
    }

    /// Of the map in ascending order and of what a restore needs besides it: 32 bytes of SHA-512,
    /// in hex. All offsets (little-endian, 8 bytes) with their checksums (32 bytes) come first,
    /// then the size of a block and that of the volume (8 bytes each).
    pub(crate) fn sum(&self, block_bytes: u64, size_bytes: u64) -> String {
        let mut hash = self.hash.clone();
        hash.update(block_bytes.to_le_bytes());
        hash.update(size_bytes.to_le_bytes());
        hash.finalize()[..32].iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a String takes all");
            hex
        })
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Backups that were made are checked by it for ever.
    #[test]
    fn the_sum_of_a_map_stays_what_it_is() {
        let of = |offset_bytes, text: &str| BlockMapping {
            offset_bytes,
            checksum: BlockChecksum::of(text.as_bytes()),
        };
        let facts = MapFacts::of(&[of(0, "a"), of(2 << 20, "b")]);
        let expected = "d45d5384020c8b63eec296cc453172ce55675600326cca9138f7fbe087b09054";
        assert_eq!(facts.sum(2 << 20, 8 << 20), expected);
        assert_ne!(facts.sum(2 << 20, 10 << 20), expected);
        assert!(facts.is_ascending && !MapFacts::of(&[of(1, "a"), of(1, "b")]).is_ascending);
    }
}
