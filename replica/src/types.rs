//! Numbers and names that both ends of the wire and the store share. An index, a count and a size
//! are different types; a unit is the last word of a name.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;

pub use ankole_blockdev::disk::BLOCK_BYTES;
use ankole_blockdev::disk::Extent;
use serde::{Deserialize, Serialize};

/// Unit of the write-intent map and of one index page, in bytes.
pub const REGION_BYTES: u64 = 1 << 20;
pub const BLOCKS_PER_REGION: u64 = REGION_BYTES / BLOCK_BYTES;
/// Neighbouring regions whose marks lie in one sector of the write-intent map.
pub const REGIONS_PER_GROUP: u64 = 62;
/// A volume's size is a multiple of this: the block of a backup.
pub const VOLUME_UNIT_BYTES: u64 = 2 << 20;
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

/// Position in the volume, in 4 KiB blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    pub const fn offset_bytes(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
    pub const fn region(self) -> Region {
        Region(self.0 / BLOCKS_PER_REGION)
    }
}

/// A run of whole blocks, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    pub first: BlockIndex,
    pub count: u64,
}

impl BlockRange {
    pub fn new(first: BlockIndex, count: u64) -> Self {
        debug_assert!(count > 0, "a range has at least one block");
        Self { first, count }
    }

    /// The smallest range of whole blocks that holds `extent`, which isn't empty.
    pub fn covering(extent: Extent) -> Self {
        let first = extent.offset_bytes / BLOCK_BYTES;
        Self::new(BlockIndex(first), extent.end_bytes().div_ceil(BLOCK_BYTES) - first)
    }

    /// The largest range of whole blocks within `extent`.
    pub fn within(extent: Extent) -> Option<Self> {
        let first = extent.offset_bytes.div_ceil(BLOCK_BYTES);
        let end = extent.end_bytes() / BLOCK_BYTES;
        (first < end).then(|| Self::new(BlockIndex(first), end - first))
    }

    pub fn end(self) -> BlockIndex {
        BlockIndex(self.first.0 + self.count)
    }
    pub fn extent(self) -> Extent {
        Extent { offset_bytes: self.first.offset_bytes(), length_bytes: self.length_bytes() }
    }
    pub fn length_bytes(self) -> u64 {
        self.count * BLOCK_BYTES
    }
    pub fn blocks(self) -> impl Iterator<Item = BlockIndex> {
        (self.first.0..self.end().0).map(BlockIndex)
    }
    pub fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }
    pub fn regions(self) -> impl Iterator<Item = Region> {
        (self.first.region().0..=self.last_region().0).map(Region)
    }
    pub fn last_region(self) -> Region {
        BlockIndex(self.end().0 - 1).region()
    }
    /// The part of this range that lies in `region`, which it touches.
    pub fn clipped_to(self, region: Region) -> Self {
        let Range { start, end } = region.blocks();
        let first = self.first.0.max(start);
        Self::new(BlockIndex(first), self.end().0.min(end) - first)
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.first.0, self.end().0)
    }
}

/// One mebibyte of the volume: what is marked before it is written, and what one index page
/// describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Region(pub u64);

impl Region {
    pub fn blocks(self) -> Range<u64> {
        self.0 * BLOCKS_PER_REGION..(self.0 + 1) * BLOCKS_PER_REGION
    }
    pub fn range(self) -> BlockRange {
        BlockRange::new(BlockIndex(self.0 * BLOCKS_PER_REGION), BLOCKS_PER_REGION)
    }
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
    pub const fn group(self) -> Group {
        Group(self.0 / REGIONS_PER_GROUP)
    }
}

/// 62 neighbouring regions: a client's first write marks the regions that it touches, and from the
/// second region on all of them are marked by the same sync; they lose their marks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub u64);

impl Group {
    pub fn range(self) -> BlockRange {
        let blocks = REGIONS_PER_GROUP * BLOCKS_PER_REGION;
        BlockRange::new(BlockIndex(self.0 * blocks), blocks)
    }
}

/// Number of the volume's record, raised by the arbiter at every change of engine or in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub NonZeroU64);

impl Generation {
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    pub fn next(self) -> Self {
        Self(
            self.0.checked_add(1).expect("2^64 membership changes take longer than the disk lives"),
        )
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}

/// Orders the connections of one generation: each connection has a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session(pub u64);

/// Who may write: compared as a pair, generation first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    pub generation: Generation,
    pub session: Session,
}

/// How far a replica has come together with the others: tells the directory that took part from an
/// older copy of it (rule 10b).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The newest round that it took part in.
    pub begun: u64,
    /// The newest round of which it was told that all members had begun it.
    pub agreed: u64,
}

impl Epoch {
    pub fn max(self, other: Self) -> Self {
        Self { begun: self.begun.max(other.begun), agreed: self.agreed.max(other.agreed) }
    }
}

/// Name of a replica of one volume, such as `r1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub std::sync::Arc<str>);

impl From<&str> for ReplicaId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 128 random bits made when a replica's directory is formatted, never used again: tells an empty
/// directory that was made anew from the copy that was there before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Incarnation> for String {
    fn from(incarnation: Incarnation) -> Self {
        incarnation.to_string()
    }
}

impl TryFrom<String> for Incarnation {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}

/// A layer of the chain; given by the engine, the same on all replicas, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerId(pub u32);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.0)
    }
}

/// Identifies one change of the chain, so that it can be asked for again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainOpId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_outwards_for_writes_and_inwards_for_discards() {
        let extent = Extent { offset_bytes: 512, length_bytes: 8192 };
        assert_eq!(BlockRange::covering(extent), BlockRange::new(BlockIndex(0), 3));
        assert_eq!(BlockRange::within(extent), Some(BlockRange::new(BlockIndex(1), 1)));
        assert_eq!(BlockRange::within(Extent { offset_bytes: 512, length_bytes: 4096 }), None);
    }

    #[test]
    fn a_range_is_cut_at_the_borders_of_its_regions() {
        let range = BlockRange::new(BlockIndex(250), 300);
        let parts: Vec<_> = range.regions().map(|region| range.clipped_to(region)).collect();
        assert_eq!(parts.iter().map(|part| part.count).collect::<Vec<_>>(), [6, 256, 38]);
        assert_eq!(parts[0].first, range.first);
        assert_eq!(parts[2].end(), range.end());
    }
}
