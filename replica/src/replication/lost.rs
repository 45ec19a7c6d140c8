//! What no member can read: its readers get errors, and nobody tries to repair it, until a member is
//! back, or a new one comes, that may have it; until it is written anew; or until its layer is gone.

use std::collections::BTreeMap;

use super::damage::DamagedBlocks;
use crate::chain::index::Blocks;
use crate::types::{BlockRange, LayerId, Region};

/// Regions that are named; more only fail.
const REGIONS_MAX: usize = 4096;
/// Ranges that people are told; of more only the bytes.
const RANGES_MAX: usize = 16;

type BlocksOf = BTreeMap<(LayerId, Region), Blocks>;

#[derive(Debug, Default)]
pub(super) struct Lost {
    /// All members were asked.
    given_up: BlocksOf,
    /// All but a member that came since then: the next read asks again.
    hoped_for: BlocksOf,
}

impl Lost {
    pub(super) fn is_empty(&self) -> bool {
        self.given_up.is_empty() && self.hoped_for.is_empty()
    }

    /// Which blocks there is no use in asking for.
    pub(super) fn given_up(&self, layer: LayerId, region: Region) -> Blocks {
        self.given_up.get(&(layer, region)).copied().unwrap_or(Blocks::NONE)
    }

    /// Those that weren't known to be lost.
    pub(super) fn give_up(&mut self, damaged: DamagedBlocks) -> Blocks {
        let DamagedBlocks { layer, region, blocks } = damaged;
        let key = (layer, region);
        if self.given_up.len() >= REGIONS_MAX && !self.given_up.contains_key(&key) {
            return Blocks::NONE;
        }
        let given_up = self.given_up.entry(key).or_insert(Blocks::NONE);
        let known = *given_up | forget(&mut self.hoped_for, key, blocks);
        *given_up = *given_up | blocks;
        blocks & !known
    }

    /// But for those that `stay`.
    pub(super) fn hope_again(&mut self, stay: impl Fn(LayerId, Region) -> bool) {
        for (key, blocks) in self.given_up.extract_if(.., |key, _| !stay(key.0, key.1)) {
            let hoped_for = self.hoped_for.entry(key).or_insert(Blocks::NONE);
            *hoped_for = *hoped_for | blocks;
        }
    }

    /// They are there again. Those of them that were lost.
    pub(super) fn found(&mut self, damaged: DamagedBlocks) -> Blocks {
        let key = (damaged.layer, damaged.region);
        forget(&mut self.given_up, key, damaged.blocks)
            | forget(&mut self.hoped_for, key, damaged.blocks)
    }

    pub(super) fn forget_layers_but(&mut self, is_there: impl Fn(LayerId) -> bool) {
        self.given_up.retain(|(layer, _), _| is_there(*layer));
        self.hoped_for.retain(|(layer, _), _| is_there(*layer));
    }

    /// The first ranges, and the bytes of all. Neighbours are told as one.
    pub(super) fn ranges(&self) -> (Vec<(LayerId, BlockRange)>, u64) {
        let mut all = self.given_up.clone();
        for (key, blocks) in &self.hoped_for {
            let known = all.entry(*key).or_insert(Blocks::NONE);
            *known = *known | *blocks;
        }
        let mut ranges: Vec<(LayerId, BlockRange)> = Vec::new();
        let mut bytes = 0;
        for ((layer, region), blocks) in all {
            let damaged = DamagedBlocks { layer, region, blocks };
            bytes += damaged.bytes();
            for run in damaged.runs() {
                let told = ranges.len();
                match ranges.last_mut() {
                    Some((same, before)) if *same == layer && before.end() == run.first => {
                        before.count += run.count;
                    }
                    _ if told < RANGES_MAX => ranges.push((layer, run)),
                    _ => break,
                }
            }
        }
        (ranges, bytes)
    }
}

/// Those of `blocks` that were there.
fn forget(all: &mut BlocksOf, key: (LayerId, Region), blocks: Blocks) -> Blocks {
    let Some(known) = all.get_mut(&key) else { return Blocks::NONE };
    let forgotten = *known & blocks;
    *known = *known & !blocks;
    if known.is_empty() {
        all.remove(&key);
    }
    forgotten
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BLOCK_BYTES;

    fn blocks(layer: u32, region: u64, slots: std::ops::Range<usize>) -> DamagedBlocks {
        let (layer, region) = (LayerId(layer), Region(region));
        DamagedBlocks { layer, region, blocks: Blocks::span(slots) }
    }

    #[test]
    fn what_is_lost_is_told_in_ranges_and_of_many_only_the_first() {
        let mut lost = Lost::default();
        let head = [blocks(1, 0, 3..4), blocks(1, 0, 250..256), blocks(1, 1, 0..2)];
        for damaged in head.into_iter().chain([blocks(2, 1, 2..3)]) {
            lost.give_up(damaged);
        }
        let (ranges, bytes) = lost.ranges();
        let told: Vec<_> =
            ranges.iter().map(|(layer, at)| (layer.0, at.first.0, at.count)).collect();
        assert_eq!(told, [(1, 3, 1), (1, 250, 8), (2, 258, 1)]);
        assert_eq!(bytes, 10 * BLOCK_BYTES);
        for region in 0..100 {
            lost.give_up(blocks(3, region, 7..8));
        }
        let (ranges, bytes) = lost.ranges();
        assert_eq!((ranges.len(), bytes), (RANGES_MAX, 110 * BLOCK_BYTES));
        lost.forget_layers_but(|layer| layer == LayerId(2));
        assert_eq!(lost.ranges().1, BLOCK_BYTES);
    }

    /// It is told as lost all the time: nobody has it yet.
    #[test]
    fn what_is_hoped_for_is_asked_for_again_and_lost_until_it_is_found() {
        let mut lost = Lost::default();
        let (one, other) = (blocks(1, 0, 0..4), blocks(1, 5, 0..1));
        assert_eq!(lost.give_up(one).count(), 4);
        assert_eq!(lost.give_up(one), Blocks::NONE, "known");
        lost.give_up(other);
        lost.hope_again(|_, region| region == Region(5));
        assert_eq!(lost.given_up(one.layer, one.region), Blocks::NONE);
        assert_eq!(lost.given_up(other.layer, other.region).count(), 1);
        assert_eq!(lost.ranges().1, 5 * BLOCK_BYTES);
        assert_eq!(lost.give_up(blocks(1, 0, 0..1)), Blocks::NONE, "it was told");
        assert_eq!(lost.found(one).count(), 4);
        assert_eq!(lost.ranges().1, BLOCK_BYTES);
    }
}
