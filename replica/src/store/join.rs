//! Removed layers: their hidden blocks are freed, the rest goes together with the child's.
//!
//! Owns the background work after a removal. Promises that no view changes at any step, that a
//! crash costs at most a batch of regions, and that memory and stalls are bounded. What may stay
//! where it is isn't copied: of the two layers the smaller one moves.
//!
//! ```text
//! hide    the removed layer forgets blocks that the child has (sector 0 of its pages: atomic),
//!         then their data is punched out
//! begin   chain.meta says whose files stay
//! move    data, sync; sums, sync; presence, sync      what the staying layer lacks
//! end     chain.meta: the child has the staying files, the removed layer is gone
//! ```

use std::cell::RefCell;
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::pages::WriteBack;
use super::query::block_at;
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, Store, StoreError};
use crate::chain::index::{BlockSum, Blocks, Page};
use crate::chain::{JoinPlan, Joining};
use crate::mutation::{self, Mutation};
use crate::types::{LayerId, REGION_BYTES, Region};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Regions that are handled between two turns of others, and between two syncs.
const BATCH: usize = 16;

/// How far the removal of a layer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinProgress {
    /// It isn't removed, is gone, or several layers need it.
    Nothing,
    /// What the head hides is freed; the rest waits for the next snapshot.
    Punched,
    Joined,
}

impl<S: Storage> Store<S> {
    /// Does what can be done now about a removed layer. Safe to repeat and to interrupt.
    pub async fn join(&self, layer: LayerId) -> Result<JoinProgress, StoreError> {
        self.check_usable()?;
        // One join at a time; one that a crash interrupted comes first.
        while let Some(begun) = self.chain.get().joining() {
            if begun.removed == layer {
                break;
            }
            self.move_blocks(begun).await?;
        }
        match self.chain.get().join_plan(layer) {
            JoinPlan::Nothing => Ok(JoinProgress::Nothing),
            plan @ JoinPlan::PunchUnderHead { .. } => {
                self.hide(layer, plan).await?;
                Ok(JoinProgress::Punched)
            }
            plan @ JoinPlan::JoinWith { child } => {
                let begun = match self.chain.get().joining() {
                    Some(begun) => begun,
                    None => {
                        if !self.hide(layer, plan).await? {
                            return Ok(JoinProgress::Nothing);
                        }
                        match self.begin(layer, child).await? {
                            Some(begun) => begun,
                            None => return Ok(JoinProgress::Nothing),
                        }
                    }
                };
                let done = self.move_blocks(begun).await?;
                Ok(if done { JoinProgress::Joined } else { JoinProgress::Nothing })
            }
        }
    }

    /// Frees what the only child hides. `false` if the chain has changed meanwhile.
    async fn hide(&self, removed: LayerId, plan: JoinPlan) -> Result<bool, StoreError> {
        let child = match plan {
            JoinPlan::Nothing => return Ok(false),
            JoinPlan::PunchUnderHead { head } => head,
            JoinPlan::JoinWith { child } => child,
        };
        let mut next = Region(0);
        loop {
            tokio::task::yield_now().await;
            let _one_at_a_time = self.chain_gate.lock().await;
            if self.chain.get().join_plan(removed) != plan {
                return Ok(false);
            }
            let (removed, child) = (self.layer(removed)?, self.layer(child)?);
            let regions = self.pages.some(removed.file, next, BATCH);
            let Some(last) = regions.last() else { return Ok(true) };
            next = last.next();
            let hidden = self.hidden(&removed, &child, &regions).await?;
            if hidden.is_empty() {
                continue;
            }
            for &(region, blocks) in &hidden {
                self.change_page(&removed, region, |page| page.forget(blocks)).await?;
            }
            if !mutation::is_on(Mutation::FreedBeforeForgotten) {
                self.sync_index().await?;
            }
            for (region, blocks) in hidden {
                self.punch(&removed, region, blocks).await;
            }
        }
    }

    /// Blocks that `removed` has and `child` has durably.
    async fn hidden(
        &self,
        removed: &OpenLayer<S::File>,
        child: &OpenLayer<S::File>,
        regions: &[Region],
    ) -> Result<Vec<(Region, Blocks)>, StoreError> {
        let find = |needs_flush: &mut bool| {
            let mut hidden = Vec::new();
            for &region in regions {
                if !self.pages.exists(child.file, region) {
                    continue;
                }
                let here = self.look_page(removed, region, Page::owned)?;
                if here.is_empty() {
                    continue;
                }
                let look = |page: &Page| (page.owned(), page.fresh());
                let (owned, fresh) = self.look_page(child, region, look)?;
                *needs_flush |= !(here & owned).is_empty();
                let fresh = if mutation::is_on(Mutation::FreedUnderUnflushed) {
                    Blocks::NONE
                } else {
                    fresh
                };
                let blocks = here & owned & !fresh;
                if !blocks.is_empty() {
                    hidden.push((region, blocks));
                }
            }
            Ok::<_, StoreError>(hidden)
        };
        let mut any = false;
        let sealed = find(&mut any)?;
        let unflushed = mutation::is_on(Mutation::FreedUnderUnflushed);
        if !any || child.id != self.head().id || unflushed {
            return Ok(sealed);
        }
        // Within a flush round nothing is between "flushed" in memory and durable on disk.
        let found = RefCell::new(Vec::new());
        self.flushes
            .join(async || {
                self.flush_now().await?;
                found.replace(find(&mut false)?);
                Ok::<_, StoreError>(())
            })
            .await?;
        Ok(found.into_inner())
    }

    async fn begin(&self, removed: LayerId, child: LayerId) -> Result<Option<Joining>, StoreError> {
        let _one_at_a_time = self.chain_gate.lock().await;
        if self.chain.get().join_plan(removed) != (JoinPlan::JoinWith { child }) {
            return Ok(None);
        }
        let size = |id| {
            let size = self.layer(id)?.data.allocated_bytes();
            size.map_err(|error| self.io_error("look at a layer", error))
        };
        let keep_files_of = if size(removed)? > size(child)? { removed } else { child };
        let begun = Joining { removed, child, keep_files_of };
        if keep_files_of == removed {
            let (from, to) = (self.layer(child)?, self.layer(removed)?);
            self.lengthen(&to, from.size_bytes).await?;
        }
        self.commit(self.chain.get().with_joining(begun)).await?;
        Ok(Some(begun))
    }

    /// Moves what the staying layer lacks, then drops the other. `false` if the layers are gone.
    async fn move_blocks(&self, begun: Joining) -> Result<bool, StoreError> {
        let (from, to) = if begun.keep_files_of == begun.removed {
            (begun.child, begun.removed)
        } else {
            (begun.removed, begun.child)
        };
        let mut next = Region(0);
        loop {
            tokio::task::yield_now().await;
            let _one_at_a_time = self.chain_gate.lock().await;
            if self.chain.get().joining() != Some(begun) {
                return Ok(false);
            }
            let (from, to) = (self.layer(from)?, self.layer(to)?);
            let regions = self.pages.some(from.file, next, BATCH);
            let Some(last) = regions.last() else { break };
            next = last.next();
            self.move_batch(&from, &to, &regions).await?;
        }
        let _one_at_a_time = self.chain_gate.lock().await;
        if self.chain.get().joining() != Some(begun) {
            return Ok(false);
        }
        // A page for which an earlier attempt found no room is in memory only.
        let done = self.pages.write_back_all();
        self.or_fail_unless_full("write the index", done).await?;
        self.sync_index().await?;
        self.commit(self.chain.get().joined()).await?;
        Ok(true)
    }

    async fn move_batch(
        &self,
        from: &OpenLayer<S::File>,
        to: &OpenLayer<S::File>,
        regions: &[Region],
    ) -> Result<(), StoreError> {
        let mut moved: Vec<(Region, Page, Blocks)> = Vec::new();
        for &region in regions {
            let page = self.look_page(from, region, Page::clone)?;
            if page.owned().is_empty() {
                continue;
            }
            let missing = page.owned() & !self.look_page(to, region, Page::owned)?;
            if missing.is_empty() {
                continue;
            }
            self.make_room(to, std::iter::once(region))?;
            self.move_data(from, to, region, missing & page.present()).await?;
            moved.push((region, page, missing));
        }
        if moved.is_empty() {
            return Ok(());
        }
        if !mutation::is_on(Mutation::JoinedDataUnsynced) {
            let done = to.data.sync().await;
            self.or_fail("make joined data durable", done).await?;
        }
        // A power cut between the sectors of a page: the sums are there before they count.
        for (region, source, blocks) in &moved {
            let copy_sums = |page: &mut Page| {
                blocks.slots().for_each(|slot| page.set_sum(slot, source.sum(slot)));
            };
            self.change_page(to, *region, copy_sums).await?;
        }
        if !mutation::is_on(Mutation::JoinedSumsUnsynced) {
            self.sync_index().await?;
        }
        for (region, source, blocks) in &moved {
            let copy_presence = |page: &mut Page| {
                for slot in blocks.slots() {
                    let _changed = match source.block(slot) {
                        BlockSum::Data { sum, verified } => page.set_data(slot, sum, verified),
                        BlockSum::Zero => page.set_zero(slot),
                        BlockSum::Absent => unreachable!("the source owns these blocks"),
                    };
                }
                page.set_flushed(*blocks);
            };
            self.change_page(to, *region, copy_presence).await?;
        }
        self.sync_index().await
    }

    /// Copies bytes as they are: a block that has rotted keeps the sum that shows it.
    async fn move_data(
        &self,
        from: &OpenLayer<S::File>,
        to: &OpenLayer<S::File>,
        region: Region,
        blocks: Blocks,
    ) -> Result<(), StoreError> {
        for run in blocks.runs() {
            let at = block_at(region, run.start).offset_bytes();
            let (done, data) = from.data.file.read(at, Buffer::zeroed(run.len() * BLOCK)).await;
            // Where it is, it may be readable again, or repaired; then the join goes on.
            done.map_err(|error| self.io_error("read the layer that is joined", error))?;
            let whole = 0..data.len();
            let done = to.data.write(at, Rc::new(data), whole).await;
            done.map_err(|error| self.io_error("join layers", error))?;
        }
        Ok(())
    }

    fn look_page<R>(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        look: impl FnOnce(&Page) -> R,
    ) -> Result<R, StoreError>
    where
        R: Default,
    {
        if region.0 >= layer.size_bytes / REGION_BYTES {
            return Ok(R::default()); // from before an expansion
        }
        let looked = self.pages.look(layer.file, region, look);
        looked.map_err(|fault| self.page_error(layer.file, region, fault))
    }

    async fn change_page(
        &self,
        layer: &OpenLayer<S::File>,
        region: Region,
        change: impl FnOnce(&mut Page),
    ) -> Result<(), StoreError> {
        let done = self.pages.change(layer.file, region, |page| {
            change(page);
            ((), WriteBack::Now)
        });
        self.or_fail_page(layer, done.map_err(|fault| (region, fault))).await
    }

    async fn sync_index(&self) -> Result<(), StoreError> {
        let done = self.pages.sync().await;
        self.or_fail("make the index durable", done).await
    }
}
