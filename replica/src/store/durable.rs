//! Flush, clear, close: what makes things durable, and in which order.

use std::collections::BTreeMap;

use super::meta::ReplicaMeta;
use super::pages::{PageFault, WriteBack};
use super::storage::Storage;
use super::{ReplicaState, Store, StoreError};
use crate::chain::index::Page;
use crate::mutation::{self, Mutation};
use crate::types::Region;

impl<S: Storage> Store<S> {
    /// When it returns, everything that was answered before the call survives a power cut. Callers
    /// share rounds, but never one that has begun. A sync that fails is never tried again.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.flushes.join(async || self.flush_now().await).await
    }

    /// Data first: a page must not say "present" for good before the bytes are there.
    pub(super) async fn flush_now(&self) -> Result<(), StoreError> {
        self.check_usable()?;
        let head = self.head();
        let regions = std::mem::take(&mut *self.head_state.fresh.borrow_mut());
        for &region in &regions {
            if let Err(error) = self.judge_fresh(region).await {
                self.head_state.fresh.borrow_mut().extend(&regions);
                return Err(error);
            }
        }
        let mut flushing = BTreeMap::new();
        for &region in &regions {
            match self.pages.look(head.file, region, Page::fresh) {
                Ok(fresh) => drop(flushing.insert(region, fresh)),
                Err(PageFault::Bad(_) | PageFault::Gone) => {} // nothing there could become durable
                Err(fault) => {
                    // Nothing was synced or forgotten: the next flush looks at all of it again.
                    self.head_state.fresh.borrow_mut().extend(&regions);
                    return Err(self.page_error(head.file, region, fault));
                }
            }
        }
        self.head_state.flushing.replace(flushing);
        self.sync_data().await?;
        let flushing = std::mem::take(&mut *self.head_state.flushing.borrow_mut());
        for (region, blocks) in flushing {
            let done = self.pages.change(head.file, region, |page| {
                page.set_flushed(blocks);
                ((), WriteBack::Now)
            });
            match done {
                Ok(()) | Err(PageFault::Bad(_) | PageFault::Gone) => {}
                Err(PageFault::Io(error)) => {
                    return self.or_fail("write the index", Err(error)).await;
                }
            }
        }
        let changed = !regions.is_empty() || self.index_of_before.get();
        if changed && !mutation::is_on(Mutation::FlushWithoutIndex) {
            let done = self.pages.sync().await;
            self.or_fail("make the index durable", done).await?;
            self.index_of_before.set(false);
        }
        Ok(())
    }

    /// Every data file with unsynced changes, also those of earlier processes.
    async fn sync_data(&self) -> Result<(), StoreError> {
        let unsynced: Vec<_> = {
            let layers = self.layers.borrow();
            let all = layers.by_id.values().filter(|layer| layer.data.is_unsynced());
            all.map(|layer| layer.data.clone()).collect()
        };
        for data in unsynced {
            let done = data.sync().await;
            self.or_fail("make the data durable", done).await?;
        }
        Ok(())
    }

    /// Ends the marks of regions that all members have alike and durable (rule 14). A region that
    /// is being written, or was since this began, keeps its mark. One that a crash brings back
    /// does no harm.
    pub async fn clear(&self, regions: &[Region]) -> Result<(), StoreError> {
        self.check_usable()?;
        let marked = |region: &Region| self.intent.is_marked(*region);
        let regions: Vec<Region> = regions.iter().copied().filter(marked).collect();
        let ticket = self.watch(&regions);
        let done = self.clear_watched(&regions, ticket).await;
        self.head_state.clearing.borrow_mut().retain(|_, watching| *watching != ticket);
        done
    }

    /// From here on a write says that it has touched one of these; those that run already do.
    fn watch(&self, regions: &[Region]) -> u64 {
        let ticket = self.head_state.clears.get() + 1;
        self.head_state.clears.set(ticket);
        let writing = self.head_state.writing.borrow();
        let untouched = regions.iter().filter(|region| !writing.contains_key(region));
        self.head_state.clearing.borrow_mut().extend(untouched.map(|region| (*region, ticket)));
        ticket
    }

    async fn clear_watched(&self, regions: &[Region], ticket: u64) -> Result<(), StoreError> {
        for region in regions {
            // What a crash left is looked at before its mark goes: unmarked sums are trusted.
            self.recover_region(*region).await?;
        }
        let in_order = !mutation::is_on(Mutation::ClearBeforeIndex);
        if in_order {
            self.write_back(regions).await?;
        }
        if !mutation::is_on(Mutation::ClearWithoutFlush) {
            self.flush().await?;
        }
        if in_order {
            let done = self.pages.sync().await;
            self.or_fail("make the index durable", done).await?;
        }
        let head = self.head();
        let unwritten = |region| in_order && self.pages.is_dirty(head.file, region);
        let quiet = |region: &&Region| {
            self.head_state.clearing.borrow().get(region) == Some(&ticket)
                && !self.head_state.fresh.borrow().contains(region)
                && !unwritten(**region)
                && self.intent.is_marked(**region)
        };
        let done = self.intent.clear(regions.iter().filter(quiet).copied());
        self.or_fail_intent("clear marks", done).await
    }

    async fn write_back(&self, regions: &[Region]) -> Result<(), StoreError> {
        let open: Vec<_> = {
            let layers = self.layers.borrow();
            let open = layers.by_id.values().filter(|layer| layer.filling);
            open.map(|layer| layer.file).chain([layers.top[0].file]).collect()
        };
        for &region in regions {
            for &file in &open {
                let done = self.pages.write_back(file, region);
                self.or_fail_unless_full("write the index", done).await?;
            }
        }
        Ok(())
    }

    /// Everything there is, sums too, is durable when it returns.
    pub(super) async fn settle_everything(&self) -> Result<(), StoreError> {
        let done = self.pages.write_back_all();
        self.or_fail_unless_full("write the index", done).await?;
        self.flush().await?;
        let done = self.pages.sync().await;
        self.or_fail("make the index durable", done).await
    }

    /// For a layer that is about to be sealed: its sums are trusted from then on, whatever is marked,
    /// and no flush looks at it again.
    pub(super) async fn settle_for_sealing(&self) -> Result<(), StoreError> {
        let unrecovered: Vec<_> = self.unrecovered.borrow().iter().copied().collect();
        for region in unrecovered {
            self.recover_region(region).await?;
        }
        self.settle_everything().await
    }

    /// A clean stop. What isn't marked for the engine's sake is durable afterwards.
    pub async fn close(self) -> Result<(), StoreError> {
        self.check_usable()?;
        self.settle_everything().await?;
        let done = self.intent.sync().await;
        self.or_fail("make the marks durable", done).await
    }

    /// Says for good that this replica can't be trusted, with the reason.
    pub async fn give_up(&self, reason: &str) -> StoreError {
        self.fail(reason.to_owned()).await
    }

    /// The durable reason of a failure of an earlier process.
    pub fn state(&self) -> ReplicaState {
        let meta: std::rc::Rc<ReplicaMeta> = self.meta.get();
        meta.membership.state
    }
}
