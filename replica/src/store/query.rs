//! What layers have, without their data.

use std::ops::Range;
use std::rc::Rc;

use ankole_blockdev::disk::{Allocation, BLOCK_BYTES};

use super::pages::WriteBack;
use super::storage::Storage;
use super::{OpenLayer, ReadError, Store, StoreError, View};
use crate::chain::ChainError;
use crate::chain::index::{BlockSum, Blocks, Page};
use crate::checksum;
use crate::message::Contents;
use crate::mutation::{self, Mutation};
use crate::types::{BLOCKS_PER_REGION, BlockIndex, BlockRange, LayerId, REGION_BYTES, Region};

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
            if matches!(sums[seen.slot], BlockSum::Data { sum, .. } if sum == seen.sum) {
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

    /// Regions from `from` on of which one layer itself may have something, at most so many, and
    /// where to go on: nowhere at the end. No page is looked at. Removed layers count too, until a
    /// join has freed them.
    pub async fn occupied(
        &self,
        layer: LayerId,
        from: Region,
        at_most: u64,
    ) -> Result<(Vec<Region>, Option<Region>), StoreError> {
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX);
        let layer = self.layer(layer)?;
        if mutation::is_on(Mutation::OccupiedIsSearched) {
            for region in from.0..layer.size_bytes / REGION_BYTES {
                let _ = self.pages.exists(layer.file, Region(region));
            }
        }
        let mut found = self.pages.some(layer.file, from, at_most.saturating_add(1));
        let next = (found.len() > at_most).then(|| found.pop()).flatten();
        Ok((found, next))
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
    /// length, which exist; others get their turn meanwhile.
    pub async fn changed(
        &self,
        after: Option<LayerId>,
        upto: LayerId,
        from: Region,
        at_most: u64,
    ) -> Result<(Vec<(Region, Blocks)>, Option<Region>), StoreError> {
        let (mut found, mut looks, mut from) = (Vec::new(), 0, from);
        let mut paths = self.pages.paths();
        let mut newer = self.newer(after, upto)?;
        loop {
            // Also where all pages are at hand: to find the next region takes a look at each layer.
            tokio::task::yield_now().await;
            if paths != self.pages.paths() {
                paths = self.pages.paths();
                newer = self.newer(after, upto)?;
            }
            let nexts = newer.iter().filter_map(|layer| self.pages.next(layer.file, from));
            let Some(region) = nexts.min() else { return Ok((found, None)) };
            if looks >= at_most {
                return Ok((found, Some(region)));
            }
            let moment = self.pages.moment(region);
            let blocks = self.owned_by_any(&newer, region, true, &mut looks).await;
            let blocks = if moment == self.pages.moment(region) {
                blocks?
            } else {
                // A join may have moved something to a layer that was looked at already.
                newer = self.newer(after, upto)?;
                self.owned_by_any(&newer, region, false, &mut looks).await?
            };
            if !blocks.is_empty() {
                found.push((region, blocks));
            }
            from = region.next();
        }
    }

    async fn owned_by_any(
        &self,
        layers: &[Rc<OpenLayer<S::File>>],
        region: Region,
        yields: bool,
        looks: &mut u64,
    ) -> Result<Blocks, StoreError> {
        let mut blocks = Blocks::NONE;
        for layer in layers.iter().filter(|layer| self.pages.exists(layer.file, region)) {
            if yields && !self.pages.is_at_hand(layer.file, region) {
                tokio::task::yield_now().await;
            }
            let owned = self.pages.glance(layer.file, region, Page::owned);
            blocks = blocks | owned.map_err(|fault| self.page_error(layer.file, region, fault))?;
            *looks += 1;
        }
        Ok(blocks)
    }

    /// The layers after `after` that `upto` shows.
    fn newer(
        &self,
        after: Option<LayerId>,
        upto: LayerId,
    ) -> Result<Vec<Rc<OpenLayer<S::File>>>, StoreError> {
        let path = self.path(View::Layer(upto))?;
        let mut newer: Vec<_> =
            path.iter().take_while(|layer| Some(layer.id) != after).cloned().collect();
        if mutation::is_on(Mutation::ChangedOfNewestAlone) && newer.len() < path.len() {
            newer.truncate(1);
        }
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

/// The slots of its region that `part`, which lies in one region, covers.
pub(super) fn slots_of(part: BlockRange) -> Range<usize> {
    let first = (part.first.0 % BLOCKS_PER_REGION) as usize;
    first..first + part.count as usize
}
