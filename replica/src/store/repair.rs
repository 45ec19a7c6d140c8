//! Bad blocks are replaced by a peer's (rule 19).
//!
//! Promises that nothing is replaced by bytes that were never written here: a block must have the
//! checksum that this replica's own index has for it. Only where the index page itself is damaged
//! is the peer believed, for the whole region and with it what the layer has there at all; the
//! engine has compared the other members then, and no join is under way.

use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::intent::Reach;
use super::pages::{PageFault, WriteBack};
use super::query::{block_at, slots_of};
use super::storage::Storage;
use super::{OpenLayer, ReadError, Store, StoreError, View};
use crate::chain::index::{BlockSum, Blocks, Page};
use crate::checksum;
use crate::types::{BLOCKS_PER_REGION, BlockIndex, BlockRange, Generation, LayerId, Region};

const BLOCK: usize = BLOCK_BYTES as usize;

/// What a peer has at some blocks of a region.
pub struct Replacement<'a> {
    pub blocks: Blocks,
    /// One for each of them, ascending.
    pub sums: &'a [BlockSum],
    /// The data blocks among them, packed.
    pub data: &'a Rc<Buffer>,
}

/// What is to be done about a page.
enum Plan {
    /// It says what was written: only data is replaced.
    Keep,
    /// It is made anew.
    Replace(Box<Page>),
}

impl<S: Storage> Store<S> {
    /// Puts a peer's bytes in place of one bad block, in the layer that holds it.
    pub async fn repair(
        &self,
        layer: LayerId,
        block: BlockIndex,
        data: Rc<Buffer>,
        generation: Generation,
    ) -> Result<(), StoreError> {
        let slot = (block.0 % BLOCKS_PER_REGION) as usize;
        let sums = [BlockSum::Data { sum: checksum::of_block(&data[..BLOCK]), verified: true }];
        let blocks = Blocks::span(slot..slot + 1);
        let by = Replacement { blocks, sums: &sums, data: &data };
        self.repair_region(layer, block.region(), &by, generation).await
    }

    /// Puts a peer's blocks in place of bad ones and reads them back. Refuses bytes that this
    /// replica's index doesn't have, if it can be read; a sum that nobody has verified is replaced.
    /// A damaged page needs all blocks of the region.
    pub async fn repair_region(
        &self,
        layer: LayerId,
        region: Region,
        by: &Replacement<'_>,
        generation: Generation,
    ) -> Result<(), StoreError> {
        assert_eq!(by.sums.len() as u64, by.blocks.count(), "one description per block");
        self.check_usable()?;
        let layer = self.layer(layer)?;
        let range = region.range();
        self.check_range(&layer, range)?;
        self.recover_all(range).await?;
        let plan = self.plan_repair(&layer, region, by)?;
        self.mark(|| range.regions(), generation, Reach::Named).await?;
        self.keep_marks(range);
        self.write_data(&layer, region, by).await?;
        match plan {
            Plan::Keep => self.note_sums(&layer, region, by).await?,
            Plan::Replace(page) => {
                // The data first, as in a flush: the page says for good that it is there.
                let done = layer.data.sync().await;
                self.or_fail("make the data durable", done).await?;
                let done = self.pages.replace(layer.file, region, *page);
                let done = done.map_err(|error| (region, PageFault::Io(error)));
                self.or_fail_page(&layer, done).await?;
                let done = self.pages.sync().await;
                self.or_fail("make the index durable", done).await?;
            }
        }
        let is_head = Rc::ptr_eq(&layer, &self.head());
        if !is_head {
            self.settle_everything().await?;
        }
        self.read_back(&layer, region, by).await
    }

    fn plan_repair(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        by: &Replacement<'_>,
    ) -> Result<Plan, StoreError> {
        let refuse = |why| Err(self.io_error("repair blocks", std::io::Error::other(why)));
        let (own, lost) = match self.pages.load_damaged(layer.file, region) {
            Ok((page, lost)) => (Some(page), lost),
            Err(PageFault::Bad(_) | PageFault::Io(_)) => (None, Blocks::NONE),
            Err(fault) => return Err(self.page_error(layer.file, region, fault)),
        };
        let is_whole = by.blocks == Blocks::ALL;
        if !is_whole && (own.is_none() || !lost.is_empty()) {
            return refuse("the index page is damaged: the whole region is needed");
        }
        if let Some(page) = &own {
            for (slot, &sum) in by.blocks.slots().zip(by.sums) {
                let own = page.block(slot);
                let known = !lost.has(slot) && !own.is_unverified();
                let same_kind = std::mem::discriminant(&own) == std::mem::discriminant(&sum);
                if !same_kind || known && !own.is_like(sum) {
                    return Err(StoreError::NotWritten {
                        place: self.place(),
                        layer: layer.id,
                        region: region.0,
                    });
                }
            }
            if lost.is_empty() {
                return Ok(Plan::Keep);
            }
        }
        let mut page = Page::EMPTY;
        for (slot, &sum) in by.blocks.slots().zip(by.sums) {
            let _changed = match sum {
                BlockSum::Absent => false,
                BlockSum::Zero => page.set_zero(slot),
                BlockSum::Data { sum, verified } => page.set_data(slot, sum, verified),
            };
        }
        page.set_flushed(page.fresh());
        Ok(Plan::Replace(Box::new(page)))
    }

    async fn write_data(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        by: &Replacement<'_>,
    ) -> Result<(), StoreError> {
        let mut offset_bytes = 0;
        for run in data_blocks(by).runs() {
            let part = offset_bytes..offset_bytes + run.len() * BLOCK;
            offset_bytes = part.end;
            let at = block_at(region, run.start).offset_bytes();
            let done = layer.data.write(at, by.data.clone(), part).await;
            done.map_err(|error| self.io_error("repair blocks", error))?;
        }
        Ok(())
    }

    /// Sums that were made from what the disk had become the peer's.
    async fn note_sums(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        by: &Replacement<'_>,
    ) -> Result<(), StoreError> {
        let changed = self.pages.change(layer.file, region, |page| {
            let mut write_back = WriteBack::Unchanged;
            for (slot, &sum) in by.blocks.slots().zip(by.sums) {
                if let BlockSum::Data { sum, verified } = sum
                    && page.unverified().has(slot)
                {
                    let _same_presence = page.set_data(slot, sum, verified);
                    write_back = WriteBack::Now;
                }
            }
            ((), write_back)
        });
        self.or_fail_page(layer, changed.map_err(|fault| (region, fault))).await
    }

    /// A disk that took the bytes and doesn't give them back has failed.
    async fn read_back(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        by: &Replacement<'_>,
    ) -> Result<(), StoreError> {
        for run in data_blocks(by).runs() {
            let range = BlockRange::new(block_at(region, run.start), run.len() as u64);
            debug_assert_eq!(slots_of(range), run);
            let into = Buffer::zeroed(range.length_bytes() as usize);
            let (read, _) = self.read(View::Own(layer.id), range, into).await;
            match read {
                Ok(_) => {}
                Err(ReadError::Store(error)) => return Err(error),
                Err(bad) => {
                    let source = std::io::Error::other(bad.to_string());
                    return Err(self.io_error("read back what was repaired", source));
                }
            }
        }
        Ok(())
    }
}

fn data_blocks(by: &Replacement<'_>) -> Blocks {
    let mut blocks = Blocks::NONE;
    for (slot, sum) in by.blocks.slots().zip(by.sums) {
        blocks.put(slot, matches!(sum, BlockSum::Data { .. }));
    }
    blocks
}
