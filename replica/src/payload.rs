//! Bulk data of messages: blocks with their checksums.

use std::rc::Rc;

use ankole_blockdev::disk::{Allocation, Buffer, Extent};

use crate::chain::index::{BlockSum, Blocks};
use crate::checksum::{self, ZERO_BLOCK_SUM};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_REGION, BlockIndex, BlockRange};

const BLOCK: usize = BLOCK_BYTES as usize;

/// What a message carries beside its fields.
#[derive(Debug)]
pub enum Payload {
    Blocks(BlockData),
    Patch(Patch),
    /// Neighbouring runs, from the start of the range that was asked for.
    Map(Vec<Run>),
}

/// Blocks that are alike for a client that skips zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub blocks: u64,
    pub allocation: Allocation,
}

/// Neighbouring blocks.
#[derive(Debug)]
pub struct BlockData {
    /// Checksum of each block.
    pub sums: Vec<u32>,
    pub data: Rc<Buffer>,
}

/// What one layer holds, or is to hold, at some blocks of a region.
#[derive(Debug)]
pub struct Patch {
    /// The blocks that it speaks of.
    pub blocks: Blocks,
    /// One for each of them, ascending.
    pub sums: Vec<BlockSum>,
    /// The data blocks among them, packed.
    pub data: Rc<Buffer>,
    /// Of the whole region where it came from, see `RegionSums::digest`.
    pub digest: u32,
}

impl BlockData {
    /// Blocks as the frontend writes them, with checksums computed here.
    pub fn from_client(data: Buffer) -> Self {
        Self {
            sums: data.chunks_exact(BLOCK).map(checksum::of_block).collect(),
            data: Rc::new(data),
        }
    }

    /// What a frontend writes at `at`, as whole blocks: its bytes as they are, or laid over the
    /// blocks at its edges, which were read.
    pub fn over_edges<'a>(
        at: Extent,
        bytes: Buffer,
        edges: impl IntoIterator<Item = (BlockIndex, &'a Payload)>,
    ) -> Self {
        let range = BlockRange::covering(at);
        if at == range.extent() {
            return Self::from_client(bytes);
        }
        let first = range.first.offset_bytes();
        let mut whole = Buffer::zeroed(range.length_bytes() as usize);
        for (block, payload) in edges {
            if let Payload::Blocks(edge) = payload {
                let start = (block.offset_bytes() - first) as usize;
                whole[start..start + BLOCK].copy_from_slice(&edge.data);
            }
        }
        let start = (at.offset_bytes - first) as usize;
        whole[start..start + bytes.len()].copy_from_slice(&bytes);
        Self::from_client(whole)
    }

    /// Whether each block has its checksum.
    pub fn is_sound(&self) -> bool {
        self.sums.len() * BLOCK == self.data.len()
            && self
                .data
                .chunks_exact(BLOCK)
                .zip(&self.sums)
                .all(|(block, sum)| checksum::of_block(block) == *sum)
    }
}

impl Patch {
    /// Whether the parts fit each other and each data block has its checksum.
    pub fn is_sound(&self) -> bool {
        let sums = self.sums.iter().filter_map(|sum| match sum {
            BlockSum::Data { sum, .. } => Some(*sum),
            BlockSum::Absent | BlockSum::Zero => None,
        });
        self.sums.len() == self.blocks.count() as usize
            && self.sums.len() <= BLOCKS_PER_REGION as usize
            && sums.clone().count() * BLOCK == self.data.len()
            && sums
                .zip(self.data.chunks_exact(BLOCK))
                .all(|(sum, block)| checksum::of_block(block) == sum)
    }
}

/// Whether a block with this checksum is all zero; looks at the bytes only if it may be.
pub fn is_zero_block(sum: u32, block: &[u8]) -> bool {
    sum == ZERO_BLOCK_SUM && block.iter().all(|&byte| byte == 0)
}
