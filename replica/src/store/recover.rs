//! After a crash: what the sums of marked regions are worth.
//!
//! Sums reach the disk lazily, so in a region that was marked they may be older than the data.
//! Such a sum is taken from the data and counts as unverified. Elsewhere a wrong sum is damage.
//! Each region is looked at before it is first used.
//!
//! ```text
//! block of a marked region      killed process             lost power
//! sum matches                   verified                   verified
//! sum differs, not fresh        data, unverified           data, unverified
//! sum differs, fresh            data, unverified           what it was before: data never arrived
//! ```

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::pages::PageFault;
use super::query::block_at;
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, Store, StoreError};
use crate::chain::index::{Blocks, Page};
use crate::checksum;
use crate::types::{BlockRange, Region};

const BLOCK: usize = BLOCK_BYTES as usize;

impl<S: Storage> Store<S> {
    /// At open: which marked regions have blocks that no flush has covered.
    pub(super) fn find_fresh(&self) -> Result<(), StoreError> {
        let head = self.head();
        let mut regions: Vec<_> = self.unrecovered.borrow().iter().copied().collect();
        regions.sort_unstable();
        for region in regions {
            match self.pages.load_damaged(head.file, region) {
                Ok((page, _)) if !page.fresh().is_empty() => {
                    self.head_state.fresh.borrow_mut().insert(region);
                }
                Ok(_) | Err(PageFault::Bad(_) | PageFault::Gone) => {} // a damaged page shows when it is read
                Err(fault) => return Err(self.page_error(head.file, region, fault)),
            }
        }
        Ok(())
    }

    /// Whether all regions that a crash left marked have been looked at.
    pub fn is_recovered(&self) -> bool {
        self.unrecovered.borrow().is_empty()
    }

    pub(super) async fn recover_all(&self, range: BlockRange) -> Result<(), StoreError> {
        if self.is_recovered() {
            return Ok(());
        }
        for region in range.regions() {
            self.recover_region(region).await?;
        }
        Ok(())
    }

    /// Before a flush makes fresh blocks lasting: those that a power cut took are found.
    pub(super) async fn judge_fresh(&self, region: Region) -> Result<(), StoreError> {
        if self.lost_power { self.recover_region(region).await } else { Ok(()) }
    }

    pub(super) async fn recover_fresh(&self) -> Result<(), StoreError> {
        let fresh: Vec<_> = self.head_state.fresh.borrow().iter().copied().collect();
        for region in fresh {
            self.judge_fresh(region).await?;
        }
        Ok(())
    }

    pub(super) async fn recover_region(&self, region: Region) -> Result<(), StoreError> {
        if !self.unrecovered.borrow().contains(&region) {
            return Ok(());
        }
        let _one_at_a_time = self.recovery_gate.lock().await;
        if !self.unrecovered.borrow().contains(&region) {
            return Ok(());
        }
        let open: Vec<_> = {
            let layers = self.layers.borrow();
            let filling = layers.by_id.values().filter(|layer| layer.filling).cloned();
            filling.chain([layers.top[0].clone()]).collect()
        };
        for layer in open {
            if region.range().first.offset_bytes() < layer.size_bytes {
                self.recover_page(&layer, region).await?;
            }
        }
        self.unrecovered.borrow_mut().remove(&region);
        Ok(())
    }

    async fn recover_page(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
    ) -> Result<(), StoreError> {
        let Some((page, _)) = self.page_to_recover(layer, region)? else { return Ok(()) };
        let found = self.sums_of(layer, region, page.present()).await;
        let leftovers = if self.lost_power { page.leftovers() } else { Blocks::NONE };
        let leftovers = self.sums_of(layer, region, leftovers).await;
        // Looked at anew: a flush may have noted meanwhile what is durable.
        let Some((before, lost)) = self.page_to_recover(layer, region)? else { return Ok(()) };
        let mut page = before.clone();
        for (slot, crc) in found {
            self.judge(&mut page, slot, crc, lost);
        }
        let disowned = self.disown(&mut page, leftovers);
        if page != before || !lost.is_empty() {
            // With the kernel before anyone sees it: the next process must decide the same.
            let done = self.pages.replace(layer.file, region, page);
            self.or_fail_unless_full("write the index", done).await?;
        }
        if disowned {
            let done = self.pages.sync().await;
            self.or_fail("make the index durable", done).await?;
        }
        Ok(())
    }

    /// The sums of what the disk has in the places of `blocks`; those that can't be read are left
    /// out: they keep their sums, and reads of them say why.
    async fn sums_of(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        blocks: Blocks,
    ) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        for run in blocks.runs() {
            let bytes = run.len() * BLOCK;
            let at = block_at(region, run.start).offset_bytes();
            let (done, data) = layer.data.file.read(at, Buffer::zeroed(bytes)).await;
            for (slot, block) in run.zip(data.chunks_exact(BLOCK)) {
                if done.is_ok() {
                    found.push((slot, checksum::of_block(block)));
                    continue;
                }
                let at = block_at(region, slot).offset_bytes();
                let (done, block) = layer.data.file.read(at, Buffer::zeroed(BLOCK)).await;
                if done.is_ok() {
                    found.push((slot, checksum::of_block(&block)));
                }
            }
        }
        found
    }

    /// A torn page may say that a block isn't there and have the sum of the bytes at its place. If
    /// the block's next write were torn the same way, those bytes would count as it. Says whether
    /// there are any; then the page must be durable before that write.
    fn disown(&self, page: &mut Page, leftovers: Vec<(usize, u32)>) -> bool {
        let stale = leftovers
            .into_iter()
            .filter(|(slot, crc)| !page.present().has(*slot) && page.sum(*slot) == *crc);
        let stale: Vec<usize> = stale.map(|(slot, _)| slot).collect();
        stale.iter().for_each(|slot| page.disown(*slot));
        !stale.is_empty()
    }

    /// `None`: there is nothing to go by, and reads say so.
    fn page_to_recover(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
    ) -> Result<Option<(Page, Blocks)>, StoreError> {
        match self.pages.load_damaged(layer.file, region) {
            Ok(loaded) => Ok(Some(loaded)),
            Err(PageFault::Bad(_) | PageFault::Gone) => Ok(None),
            Err(fault) => Err(self.page_error(layer.file, region, fault)),
        }
    }

    fn judge(&self, page: &mut Page, slot: usize, found: u32, lost: Blocks) {
        if page.sum(slot) == found && !lost.has(slot) {
            return;
        }
        if page.fresh().has(slot) && self.lost_power {
            page.fall_back(slot);
        } else {
            let _same_presence = page.set_data(slot, found, false);
        }
    }
}
