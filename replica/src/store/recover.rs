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
//!   and its bytes are zero      what it was before         the same
//! ```
//! Zeroes are written as zeroes and never as data: where a fresh block of data has none but zeroes,
//! it never arrived, whatever is known of the power. So a doubtful replica shows no zeroes in place
//! of what is durable below; what else it can't tell it keeps.

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::pages::PageFault;
use super::query::block_at;
use super::storage::{Storage, StorageFile};
use super::witness::Continuity;
use super::{OpenLayer, Store, StoreError};
use crate::chain::index::{Blocks, Page};
use crate::checksum;
use crate::payload::is_zero_block;
use crate::types::{BlockRange, Region};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Regions that are looked at side by side, at most.
pub(super) const RECOVERIES: usize = 16;

/// A block as the disk has it.
pub(super) struct Seen {
    pub(super) slot: usize,
    pub(super) sum: u32,
    pub(super) fingerprint: u128,
    is_zero: bool,
}

impl Seen {
    fn of(slot: usize, block: &[u8]) -> Self {
        let (sum, fingerprint) = (checksum::of_block(block), checksum::fingerprint(block));
        Self { slot, sum, fingerprint, is_zero: is_zero_block(sum, block) }
    }
}

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

    /// How many of the regions that were marked at open haven't been looked at.
    pub fn unrecovered_count(&self) -> u64 {
        self.unrecovered.borrow().len() as u64
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

    /// Before a flush makes fresh blocks lasting: those that a power cut took, or may have, are found.
    pub(super) async fn judge_fresh(&self, region: Region) -> Result<(), StoreError> {
        let may_lack = self.continuity() != Continuity::Unbroken;
        if self.lost_power || may_lack { self.recover_region(region).await } else { Ok(()) }
    }

    pub(super) async fn recover_fresh(&self) -> Result<(), StoreError> {
        let fresh: Vec<_> = self.head_state.fresh.borrow().iter().copied().collect();
        for region in fresh {
            self.judge_fresh(region).await?;
        }
        Ok(())
    }

    pub(super) async fn recover_region(&self, region: Region) -> Result<(), StoreError> {
        self.recover_reading(region).await.map(drop)
    }

    /// The same, with what it has read of the head: nothing if the region was looked at before.
    pub(super) async fn recover_reading(&self, region: Region) -> Result<Vec<Seen>, StoreError> {
        let mut of_head = Vec::new();
        if !self.unrecovered.borrow().contains(&region) {
            return Ok(of_head);
        }
        let gate = &self.recovery_gates[(region.0 % RECOVERIES as u64) as usize];
        let _one_at_a_time = gate.lock().await;
        if !self.unrecovered.borrow().contains(&region) {
            return Ok(of_head);
        }
        let open: Vec<_> = {
            let layers = self.layers.borrow();
            let filling = layers.by_id.values().filter(|layer| layer.filling).cloned();
            filling.chain([layers.top[0].clone()]).collect()
        };
        for layer in open {
            if region.range().first.offset_bytes() < layer.size_bytes {
                of_head = self.recover_page(&layer, region).await?;
            }
        }
        self.unrecovered.borrow_mut().remove(&region);
        Ok(of_head)
    }

    async fn recover_page(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
    ) -> Result<Vec<Seen>, StoreError> {
        let Some((page, _)) = self.page_to_recover(layer, region)? else { return Ok(Vec::new()) };
        let found = self.look_at(layer, region, page.present()).await;
        // Also after a mere kill: the process that was killed need not have looked here itself.
        let leftovers = self.look_at(layer, region, page.leftovers()).await;
        // Looked at anew: a flush may have noted meanwhile what is durable.
        let Some((before, lost)) = self.page_to_recover(layer, region)? else {
            return Ok(Vec::new());
        };
        let mut page = before.clone();
        for seen in &found {
            self.judge(&mut page, seen, lost);
        }
        let disowned = disown(&mut page, &leftovers);
        if page != before || !lost.is_empty() {
            // With the kernel before anyone sees it: the next process must decide the same.
            let done = self.pages.replace(layer.file, region, page);
            self.or_fail_unless_full("write the index", done).await?;
        }
        if disowned {
            let done = self.pages.sync().await;
            self.or_fail("make the index durable", done).await?;
        }
        Ok(found)
    }

    /// What the disk has in the places of `blocks`; those that can't be read are left out: they
    /// keep their sums, and reads of them say why.
    async fn look_at(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        blocks: Blocks,
    ) -> Vec<Seen> {
        let mut found = Vec::new();
        for run in blocks.runs() {
            let bytes = run.len() * BLOCK;
            let at = block_at(region, run.start).offset_bytes();
            let (done, data) = layer.data.file.read(at, Buffer::zeroed(bytes)).await;
            for (slot, block) in run.zip(data.chunks_exact(BLOCK)) {
                if done.is_ok() {
                    found.push(Seen::of(slot, block));
                    continue;
                }
                // One bad block fails the run.
                let at = block_at(region, slot).offset_bytes();
                let (done, block) = layer.data.file.read(at, Buffer::zeroed(BLOCK)).await;
                if done.is_ok() {
                    found.push(Seen::of(slot, &block));
                }
            }
        }
        found
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

    fn judge(&self, page: &mut Page, seen: &Seen, lost: Blocks) {
        let slot = seen.slot;
        if page.sum(slot) == seen.sum && !lost.has(slot) {
            return;
        }
        let never_arrived = self.lost_power || seen.is_zero;
        if page.fresh().has(slot) && never_arrived {
            page.fall_back(slot);
        } else {
            let _same_presence = page.set_data(slot, seen.sum, false);
        }
    }
}

/// A torn page may say that a block isn't there and have the sum of the bytes at its place. If the
/// block's next write were torn the same way, those bytes would count as it. Says whether there are
/// any; then the page must be durable before that write.
fn disown(page: &mut Page, leftovers: &[Seen]) -> bool {
    let is_stale = |seen: &&Seen| !page.present().has(seen.slot) && page.sum(seen.slot) == seen.sum;
    let stale: Vec<usize> = leftovers.iter().filter(is_stale).map(|seen| seen.slot).collect();
    stale.iter().for_each(|slot| page.disown(*slot));
    !stale.is_empty()
}
