//! Reading everything and comparing it with its sums.

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::error::{BadBlock, BlockProblem};
use super::pages::PageFault;
use super::query::block_at;
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, Store, StoreError};
use crate::chain::index::Page;
use crate::checksum;
use crate::types::{LayerId, Region};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Bad blocks that a report names; more are only counted.
const NAMED_MAX: usize = 1000;

/// What a full reading found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    pub blocks_checked: u64,
    /// Sums that were rebuilt after a crash: they match, but nobody has compared them.
    pub blocks_unverified: u64,
    pub blocks_bad: u64,
    /// The first of them.
    pub bad: Vec<BadBlock>,
}

impl<S: Storage> Store<S> {
    /// Reads all layers. Other work goes on meanwhile.
    pub async fn verify(&self) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        let ids: Vec<LayerId> = self.chain().layers.iter().map(|layer| layer.id).collect();
        for id in ids {
            self.verify_layer(id, &mut report).await?;
        }
        Ok(report)
    }

    /// Reads one layer's own blocks; a scrub does that for one after another.
    pub async fn verify_layer(
        &self,
        id: LayerId,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        let mut next = Region(0);
        // Looked up again for each region: a join may take it away, or give it other files.
        while let Ok(layer) = self.layer(id)
            && let Some(region) = self.pages.next(layer.file, next)
        {
            self.recover_region(region).await?;
            self.verify_region(&layer, region, report).await?;
            next = region.next();
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn verify_region(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        let mut note = |slot, problem| {
            report.blocks_bad += 1;
            if report.bad.len() < NAMED_MAX {
                let block = block_at(region, slot);
                report.bad.push(BadBlock { block, layer: layer.id, problem });
            }
        };
        let page = match self.pages.look(layer.file, region, Page::clone) {
            Ok(page) => page,
            Err(PageFault::Bad(problem)) => {
                note(0, BlockProblem::Index(problem.to_string()));
                return Ok(());
            }
            Err(PageFault::Gone) => return Ok(()),
            Err(fault) => return Err(self.page_error(layer.file, region, fault)),
        };
        for run in page.present().runs() {
            let first = block_at(region, run.start);
            let (done, data) =
                layer.data.file.read(first.offset_bytes(), Buffer::zeroed(run.len() * BLOCK)).await;
            for (slot, bytes) in run.zip(data.chunks_exact(BLOCK)) {
                let (expected, found) = (page.sum(slot), checksum::of_block(bytes));
                if expected == found || self.has_moved_on(layer, region, slot, expected) {
                    continue;
                }
                note(
                    slot,
                    match &done {
                        Ok(()) => BlockProblem::Checksum { expected, found },
                        Err(error) => BlockProblem::Unreadable(error.to_string()),
                    },
                );
            }
        }
        report.blocks_checked += page.present().count();
        report.blocks_unverified += (page.unverified() & page.present()).count();
        Ok(())
    }

    /// A write or a join was faster than the reading: there is nothing to compare with.
    fn has_moved_on(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        slot: usize,
        expected: u32,
    ) -> bool {
        let writing = self.head_state.writing.borrow().contains_key(&region);
        let is_head = layer.id == self.head().id;
        let same = self.pages.look(layer.file, region, |page| {
            page.present().has(slot) && page.sum(slot) == expected
        });
        (is_head && writing) || !same.unwrap_or(true)
    }
}
