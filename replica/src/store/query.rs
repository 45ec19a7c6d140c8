//! What layers have, without their data.

use std::rc::Rc;

use ankole_blockdev::disk::{Allocation, BLOCK_BYTES};

use super::io::slots_of;
use super::pages::WriteBack;
use super::storage::Storage;
use super::{OpenLayer, ReadError, Store, StoreError, View};
use crate::chain::ChainError;
use crate::chain::index::{BlockSum, Blocks, Page};
use crate::checksum;
use crate::message::Contents;
use crate::types::{BLOCKS_PER_REGION, BlockIndex, BlockRange, LayerId, REGION_BYTES, Region};

/// Pages that are looked at between two turns of others.
const LOOKS: u64 = 64;

impl<S: Storage> Store<S> {
    /// What one layer itself has of each block; its parents aren't asked.
    pub async fn own_sums(
        &self,
        layer: LayerId,
        range: BlockRange,
    ) -> Result<Vec<BlockSum>, StoreError> {
        self.recover_all(range).await?;
        let layer = self.layer(layer)?;
        self.check_range(&layer, range)?;
        let mut sums = Vec::with_capacity(range.count as usize);
        for region in range.regions() {
            let slots = slots_of(range.clipped_to(region));
            let look = |page: &Page| sums.extend(slots.map(|slot| page.block(slot)));
            let looked = self.pages.look(layer.file, region, look);
            looked.map_err(|fault| self.page_error(layer.file, region, fault))?;
        }
        Ok(sums)
    }

    /// What a layer itself has of a region, and what the data is. Nobody writes there meanwhile.
    /// What can't be read is told, and is no error. After a crash all is read once for both.
    pub async fn contents(
        &self,
        layer: LayerId,
        region: Region,
    ) -> Result<(Vec<BlockSum>, Contents), StoreError> {
        let seen = self.recover_reading(region).await?;
        let sums = self.own_sums(layer, region.range()).await?;
        let mut wanted = Blocks::NONE;
        for (slot, sum) in sums.iter().enumerate() {
            wanted.put(slot, matches!(sum, BlockSum::Data { .. }));
        }
        let mut hashes = vec![0; sums.len()];
        let is_head = layer == self.head().id;
        for seen in seen.iter().filter(|_| is_head) {
            if matches!(sums[seen.slot], BlockSum::Data { crc, .. } if crc == seen.sum) {
                hashes[seen.slot] = seen.fingerprint;
                wanted.put(seen.slot, false);
            }
        }
        let mut unreadable = Blocks::NONE;
        match self.read_packed(layer, region, wanted).await {
            Ok(packed) => {
                for (slot, block) in wanted.slots().zip(packed.chunks_exact(BLOCK_BYTES as usize)) {
                    hashes[slot] = checksum::fingerprint(block);
                }
            }
            Err(ReadError::Store(error)) => return Err(error),
            Err(ReadError::BadBlocks(_)) => {
                for slot in wanted.slots() {
                    let one = Blocks::span(slot..slot + 1);
                    match self.read_packed(layer, region, one).await {
                        Ok(block) => hashes[slot] = checksum::fingerprint(&block),
                        Err(ReadError::BadBlocks(_)) => unreadable.put(slot, true),
                        Err(ReadError::Store(error)) => return Err(error),
                    }
                }
            }
        }
        Ok((sums, Contents { hashes, unreadable }))
    }

    /// Regions from `from` on of which one layer itself has anything, and where to go on: nowhere
    /// at the end. Looks at no more than `at_most` pages; others get their turn meanwhile. Removed
    /// layers count too, until a join has freed them.
    pub async fn occupied(
        &self,
        layer: LayerId,
        from: Region,
        at_most: u64,
    ) -> Result<(Vec<Region>, Option<Region>), StoreError> {
        let (mut found, mut at, stop) = (Vec::new(), from.0, from.0.saturating_add(at_most));
        loop {
            // Anew after each turn of others: a join may give it other files.
            let layer = self.layer(layer)?;
            let end = layer.size_bytes / REGION_BYTES;
            let turn = at..stop.min(end).min(at.saturating_add(LOOKS));
            for region in turn.clone().map(Region) {
                let owned = self.pages.look(layer.file, region, Page::owned);
                let owned = owned.map_err(|fault| self.page_error(layer.file, region, fault))?;
                if !owned.is_empty() {
                    found.push(region);
                }
            }
            at = turn.end;
            if at >= end {
                return Ok((found, None));
            }
            if at >= stop {
                return Ok((found, Some(Region(at))));
            }
            tokio::task::yield_now().await;
        }
    }

    /// The head's blocks of `range` were compared with a peer's and are equal.
    pub async fn mark_verified(&self, range: BlockRange) -> Result<(), StoreError> {
        self.check_usable()?;
        self.recover_all(range).await?;
        let head = self.head();
        self.check_range(&head, range)?;
        for region in range.regions() {
            let slots = Blocks::span(slots_of(range.clipped_to(region)));
            let done = self.pages.change(head.file, region, |page| {
                let unverified = page.unverified() & slots;
                unverified.slots().for_each(|slot| page.set_verified(slot));
                let write_back =
                    if unverified.is_empty() { WriteBack::Unchanged } else { WriteBack::Later };
                ((), write_back)
            });
            self.or_fail_page(&head, done.map_err(|fault| (region, fault))).await?;
        }
        Ok(())
    }

    /// Runs that cover `range` without gaps: what holds data and what reads as zeroes. Others get
    /// their turn meanwhile.
    pub async fn extents(
        &self,
        view: View,
        range: BlockRange,
    ) -> Result<Vec<(BlockRange, Allocation)>, ReadError> {
        let mut runs: Vec<(BlockRange, Allocation)> = Vec::new();
        for region in range.regions() {
            let part = range.clipped_to(region);
            for (sum, block) in self.sums(view, part).await?.iter().zip(part.blocks()) {
                let kind = match sum {
                    BlockSum::Data { .. } => Allocation::Data,
                    BlockSum::Zero | BlockSum::Absent => Allocation::Zero,
                };
                match runs.last_mut() {
                    Some((run, last)) if *last == kind => run.count += 1,
                    _ => runs.push((BlockRange::new(block, 1), kind)),
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(runs)
    }

    /// Blocks that the layers after `after` up to `upto` have, per region from `from` on: what an
    /// incremental backup of `upto` has to look at. Without `after`, all that `upto` shows. Also
    /// where to go on: nowhere at the end. Looks at no more than `at_most` pages and a chain's
    /// length; others get their turn meanwhile.
    pub async fn changed(
        &self,
        after: Option<LayerId>,
        upto: LayerId,
        from: Region,
        at_most: u64,
    ) -> Result<(Vec<(Region, Blocks)>, Option<Region>), StoreError> {
        let (mut found, mut looks, mut turn) = (Vec::new(), 0, 0);
        let mut newer = self.newer(after, upto)?;
        let end = newer.iter().map(|layer| layer.size_bytes / REGION_BYTES).max().unwrap_or(0);
        for region in (from.0..end).map(Region) {
            if looks >= at_most {
                return Ok((found, Some(region)));
            }
            // Never within a region: what a join moves to a layer that was looked at already, from
            // one that wasn't, would be missed.
            if turn >= LOOKS {
                tokio::task::yield_now().await;
                newer = self.newer(after, upto)?;
                turn = 0;
            }
            let mut blocks = Blocks::NONE;
            for layer in newer.iter().filter(|it| region.0 < it.size_bytes / REGION_BYTES) {
                let owned = self.pages.look(layer.file, region, Page::owned);
                let owned = owned.map_err(|fault| self.page_error(layer.file, region, fault))?;
                blocks = blocks | owned;
            }
            looks += newer.len() as u64;
            turn += newer.len() as u64;
            if !blocks.is_empty() {
                found.push((region, blocks));
            }
        }
        Ok((found, None))
    }

    /// The layers after `after` that `upto` shows.
    fn newer(
        &self,
        after: Option<LayerId>,
        upto: LayerId,
    ) -> Result<Vec<Rc<OpenLayer<S::File>>>, StoreError> {
        let path = self.path(View::Layer(upto))?;
        let newer: Vec<_> =
            path.iter().take_while(|layer| Some(layer.id) != after).cloned().collect();
        match after {
            Some(after) if newer.len() == path.len() => Err(ChainError::NoLayer(after).into()),
            _ => Ok(newer),
        }
    }
}

/// The block at `slot` of `region`.
pub(super) fn block_at(region: Region, slot: usize) -> BlockIndex {
    BlockIndex(region.0 * BLOCKS_PER_REGION + slot as u64)
}
