//! What was found to be damaged, for people: on which replica, where, and what became of it.
//!
//! Decides nothing: `repair` tells what it found and did. It is known for as long as the engine lives.

use std::collections::BTreeMap;
use std::time::Instant;

use super::slots::Slot;
use crate::chain::index::Blocks;
use crate::types::ReplicaId;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_REGION, BlockIndex, BlockRange, LayerId, Region};

/// Blocks of one region, in the layer that holds them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedBlocks {
    pub layer: LayerId,
    pub region: Region,
    pub blocks: Blocks,
}

/// What became known of damaged blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageNews {
    /// The replica can't read them; another one is asked.
    Found {
        replica: ReplicaId,
    },
    Repaired {
        replica: ReplicaId,
        from: ReplicaId,
    },
    /// No replica that is in sync can read them: their readers get errors.
    Lost,
    /// They were lost, and were written anew.
    Overwritten,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DamageStatus {
    /// Those that couldn't read something.
    pub replicas: Vec<ReplicaDamage>,
    /// What no replica can read: the first ranges of it, by layer.
    pub lost: Vec<(LayerId, BlockRange)>,
    pub lost_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaDamage {
    pub replica: ReplicaId,
    /// Wait for their repair.
    pub waiting_blocks: u64,
    pub repaired_blocks: u64,
    pub last: LastDamage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastDamage {
    pub layer: LayerId,
    /// From the first damaged block to the last.
    pub range: BlockRange,
    /// Who had it; none as long as it isn't repaired.
    pub repaired_from: Option<ReplicaId>,
    pub at: Instant,
}

/// By replica.
#[derive(Debug, Default)]
pub(super) struct Damages(BTreeMap<Slot, Damage>);

#[derive(Debug)]
struct Damage {
    repaired_blocks: u64,
    last: LastDamage,
}

impl DamagedBlocks {
    /// From the first to the last; none if there are no blocks.
    pub fn range(&self) -> Option<BlockRange> {
        let (first, last) = (self.blocks.slots().next()?, self.blocks.slots().last()?);
        let start = BlockIndex(self.region.0 * BLOCKS_PER_REGION + first as u64);
        Some(BlockRange::new(start, (last - first) as u64 + 1))
    }

    pub fn bytes(&self) -> u64 {
        self.blocks.count() * BLOCK_BYTES
    }

    pub(super) fn runs(&self) -> Vec<BlockRange> {
        let mut runs: Vec<BlockRange> = Vec::new();
        for slot in self.blocks.slots() {
            let block = BlockIndex(self.region.0 * BLOCKS_PER_REGION + slot as u64);
            match runs.last_mut() {
                Some(run) if run.end() == block => run.count += 1,
                _ => runs.push(BlockRange::new(block, 1)),
            }
        }
        runs
    }
}

impl Damages {
    pub(super) fn note(&mut self, now: Instant, slot: Slot, damaged: &DamagedBlocks) {
        let Some(range) = damaged.range() else { return };
        let last = LastDamage { layer: damaged.layer, range, repaired_from: None, at: now };
        let damage =
            self.0.entry(slot).or_insert(Damage { repaired_blocks: 0, last: last.clone() });
        damage.last = last;
    }

    pub(super) fn note_repaired(
        &mut self,
        now: Instant,
        slot: Slot,
        damaged: &DamagedBlocks,
        from: ReplicaId,
    ) {
        self.note(now, slot, damaged);
        if let Some(damage) = self.0.get_mut(&slot) {
            damage.repaired_blocks += damaged.blocks.count();
            damage.last.repaired_from = Some(from);
        }
    }

    pub(super) fn repaired_blocks(&self) -> u64 {
        self.0.values().map(|damage| damage.repaired_blocks).sum()
    }

    /// `describe` gives a replica's name, and how many of its blocks wait for their repair.
    pub(super) fn status(&self, describe: impl Fn(Slot) -> (ReplicaId, u64)) -> Vec<ReplicaDamage> {
        let told = self.0.iter().map(|(slot, damage)| {
            let (replica, waiting_blocks) = describe(*slot);
            let Damage { repaired_blocks, ref last } = *damage;
            ReplicaDamage { replica, waiting_blocks, repaired_blocks, last: last.clone() }
        });
        told.collect()
    }
}
