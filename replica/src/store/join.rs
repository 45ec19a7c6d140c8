//! Removed layers: their hidden blocks are freed, the rest goes together with the child's.
//!
//! Owns the background work after a removal. Promises that no view changes at any step, that a
//! crash costs at most a batch of regions, and that memory and stalls are bounded. What may stay
//! where it is isn't copied: of the two layers the smaller one moves, if the disk has the room for
//! it. Else the removed one does, batch by batch: each gives back what the next one takes.
//!
//! ```text
//! hide    the removed layer forgets blocks that the child has (sector 0 of its pages: atomic), sync,
//!         then their data is punched out
//! begin   chain.meta says whose files stay
//! move    data, sync; sums, sync; presence, sync      what the staying layer lacks;
//!         then, of a batch that came from the removed layer, the same as hide
//! end     chain.meta: the child has the staying files, the removed layer is gone
//! ```
//!
//! A child that stays must have all of its own until the end: other members have it there.

use std::cell::RefCell;
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::error::is_no_space;
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
                let done = match self.move_blocks(begun).await {
                    Err(error) if error.is_no_space() && begun.keep_files_of == layer => {
                        match self.turn_round(begun, plan).await? {
                            Some(begun) => self.move_blocks(begun).await?,
                            None => false,
                        }
                    }
                    done => done?,
                };
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
            self.give_back(&removed, hidden).await?;
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
        let (child_bytes, removed_bytes) = (size(child)?, size(removed)?);
        let has_room = || {
            let free_bytes = self.storage.free_bytes();
            free_bytes.map_err(|error| self.io_error("look at the disk's room", error))
        };
        let keeps_removed =
            removed_bytes > child_bytes && has_room()?.is_none_or(|free| free > child_bytes);
        let keep_files_of = if keeps_removed { removed } else { child };
        let begun = Joining { removed, child, keep_files_of };
        if keep_files_of == removed {
            let (from, to) = (self.layer(child)?, self.layer(removed)?);
            self.lengthen(&to, from.size_bytes).await?;
        }
        self.commit(self.chain.get().with_joining(begun)).await?;
        Ok(Some(begun))
    }

    /// The child's blocks have no room beside the removed layer's: that one moves instead, and what
    /// was copied to it is given back first.
    async fn turn_round(
        &self,
        begun: Joining,
        plan: JoinPlan,
    ) -> Result<Option<Joining>, StoreError> {
        let turned = Joining { keep_files_of: begun.child, ..begun };
        {
            let _one_at_a_time = self.chain_gate.lock().await;
            if self.chain.get().joining() != Some(begun) {
                return Ok(None);
            }
            self.commit(self.chain.get().with_joining(turned)).await?;
        }
        Ok(self.hide(begun.removed, plan).await?.then_some(turned))
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
            if self.move_batch(&from, &to, &regions, from.id == begun.removed).await? {
                next = last.next();
            }
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

    /// `false`: there was no room for all of it, but what was moved has given some back.
    async fn move_batch(
        &self,
        from: &OpenLayer<S::File>,
        to: &OpenLayer<S::File>,
        regions: &[Region],
        gives_back: bool,
    ) -> Result<bool, StoreError> {
        let mut moved: Vec<(Region, Page, Blocks)> = Vec::new();
        let mut refused = None;
        for &region in regions {
            let page = self.look_page(from, region, Page::clone)?;
            if page.owned().is_empty() {
                continue;
            }
            let missing = page.owned() & !self.look_page(to, region, Page::owned)?;
            if missing.is_empty() {
                continue;
            }
            let mut done = Blocks::NONE;
            let result = self.move_data(from, to, region, missing & page.present(), &mut done);
            let result = result.await;
            let is_moved = if result.is_ok() { missing } else { done };
            if !is_moved.is_empty() {
                moved.push((region, page, is_moved));
            }
            match result {
                Ok(()) => {}
                Err(error) if error.is_no_space() && gives_back && !moved.is_empty() => {
                    refused = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if moved.is_empty() {
            return Ok(true);
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
        self.sync_index().await?;
        if gives_back {
            let moved = moved.into_iter().map(|(region, _, blocks)| (region, blocks)).collect();
            self.give_back(from, moved).await?;
        }
        Ok(refused.is_none())
    }

    /// Blocks that the child has durably: the removed layer forgets them, and then they are freed.
    async fn give_back(
        &self,
        removed: &OpenLayer<S::File>,
        hidden: Vec<(Region, Blocks)>,
    ) -> Result<(), StoreError> {
        for &(region, blocks) in &hidden {
            self.change_page(removed, region, |page| page.forget(blocks)).await?;
        }
        if !mutation::is_on(Mutation::FreedBeforeForgotten) {
            self.sync_index().await?;
        }
        for (region, blocks) in hidden {
            self.punch(removed, region, blocks).await;
        }
        Ok(())
    }

    /// Copies bytes as they are: a block that has rotted keeps the sum that shows it. `done`: as far
    /// as there was room.
    async fn move_data(
        &self,
        from: &OpenLayer<S::File>,
        to: &OpenLayer<S::File>,
        region: Region,
        blocks: Blocks,
        done: &mut Blocks,
    ) -> Result<(), StoreError> {
        self.make_room(to, std::iter::once(region))?;
        for mut rest in blocks.runs() {
            let mut step = rest.len();
            while !rest.is_empty() {
                let part = rest.start..rest.end.min(rest.start + step);
                let at = block_at(region, part.start).offset_bytes();
                let buffer = Buffer::zeroed(part.len() * BLOCK);
                let (read, data) = from.data.file.read(at, buffer).await;
                // Where it is, it may be readable again, or repaired; then the join goes on.
                read.map_err(|error| self.io_error("read the layer that is joined", error))?;
                let whole = 0..data.len();
                match to.data.write(at, Rc::new(data), whole).await {
                    Ok(()) => {
                        *done = *done | Blocks::span(part.clone());
                        rest.start = part.end;
                    }
                    Err(error) if is_no_space(&error) && step > 1 => step /= 2,
                    Err(error) => return Err(self.io_error("join layers", error)),
                }
            }
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
