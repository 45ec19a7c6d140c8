//! Writing blocks into the head.
//!
//! Owns the order in which a write does its parts: room, mark, data, page. Promises that what was
//! answered survives a SIGKILL, and that a write for which there was no room has changed nothing.

use std::ops::Range;
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::error::is_no_space;
use super::intent::Reach;
use super::pages::{PageFault, WriteBack};
use super::query::slots_of;
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, Store, StoreError};
use crate::chain::index::{Blocks, Page};
use crate::checksum::{self, ZERO_BLOCK_SUM};
use crate::mutation::{self, Mutation};
use crate::types::{BLOCKS_PER_REGION, BlockIndex, BlockRange, Generation, Region};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Regions that a large discard handles before others get their turn.
const ZERO_BATCH: usize = 64;
/// Regions with unflushed presence after which a write flushes first: bounds what a power cut
/// leaves to be looked at, and the memory for it.
const FRESH_REGIONS_MAX: usize = 4096;

/// Counts a write as running in its regions, for as long as it lives.
struct Writing<'a, S: Storage> {
    store: &'a Store<S>,
    range: BlockRange,
}

impl<'a, S: Storage> Writing<'a, S> {
    fn begin(store: &'a Store<S>, range: BlockRange) -> Self {
        let mut writing = store.head_state.writing.borrow_mut();
        range.regions().for_each(|region| *writing.entry(region).or_default() += 1);
        drop(writing);
        store.keep_marks(range);
        Self { store, range }
    }
}

impl<S: Storage> Drop for Writing<'_, S> {
    fn drop(&mut self) {
        let mut writing = self.store.head_state.writing.borrow_mut();
        for region in self.range.regions() {
            let count = writing.get_mut(&region).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                writing.remove(&region);
            }
        }
    }
}

impl<S: Storage> Store<S> {
    /// Writes whole blocks, whose checksums are `sums`, from `data` at `offset_bytes`. When it
    /// returns the kernel has the bytes: they survive a SIGKILL. Blocks of zeroes take no space.
    pub async fn write(
        &self,
        range: BlockRange,
        data: Rc<Buffer>,
        offset_bytes: usize,
        sums: &[u32],
        generation: Generation,
    ) -> Result<(), StoreError> {
        assert_eq!(sums.len() as u64, range.count, "one sum per block");
        self.check_usable()?;
        let head = self.head();
        self.check_range(&head, range)?;
        let _writing = Writing::begin(self, range);
        self.recover_all(range).await?;
        self.make_room(&head, range.regions())?;
        let marks_late = mutation::is_on(Mutation::MarkAfterWrite);
        if !marks_late {
            self.mark(|| range.regions(), generation, Reach::Group).await?;
        }
        let block_at = |index: usize| offset_bytes + index * BLOCK;
        let is_zero = |index: usize| {
            sums[index] == ZERO_BLOCK_SUM
                && data[block_at(index)..block_at(index + 1)].iter().all(|&byte| byte == 0)
        };
        for run in runs_where(sums.len(), |index| !is_zero(index)) {
            let blocks = BlockRange::new(
                BlockIndex(range.first.0 + run.start as u64),
                (run.end - run.start) as u64,
            );
            let part = block_at(run.start)..block_at(run.end);
            let written = head.data.write(blocks.first.offset_bytes(), data.clone(), part).await;
            if let Err(error) = written {
                return Err(self.after_failed_write(&head, range.blocks(), error).await);
            }
        }
        if marks_late {
            self.mark(|| range.regions(), generation, Reach::Group).await?;
        }
        let zeroes = runs_where(sums.len(), is_zero);
        let zeroes: Vec<Range<usize>> = zeroes.collect();
        let recorded = self.record(&head, range, |page, slot, index| {
            if zeroes.iter().any(|run| run.contains(&index)) {
                set_zero(&head, page, slot)
            } else {
                page.set_data(slot, sums[index], true)
            }
        });
        self.or_fail_page(&head, recorded).await?;
        self.bound_fresh().await
    }

    /// Makes the range read as zeroes and gives its space back. Survives a SIGKILL when it returns.
    pub async fn zero(&self, range: BlockRange, generation: Generation) -> Result<(), StoreError> {
        self.check_usable()?;
        let head = self.head();
        self.check_range(&head, range)?;
        let _writing = Writing::begin(self, range);
        self.recover_all(range).await?;
        let regions: Vec<Region> = range.regions().collect();
        for batch in regions.chunks(ZERO_BATCH) {
            let mut wanted = Vec::new();
            for &region in batch {
                let part = range.clipped_to(region);
                let span = Blocks::span(slots_of(part));
                let look = |page: &Page| {
                    let there = page.present() & span;
                    let changes = if head.has_parent { page.zero() & span != span } else { false };
                    (there, changes || !(page.owned() & span).is_empty())
                };
                let looked = self.pages.look(head.file, region, look);
                let looked = looked.map_err(|fault| self.page_error(head.file, region, fault))?;
                if looked.1 {
                    wanted.push((part, looked.0));
                }
            }
            if !wanted.is_empty() {
                let regions = || wanted.iter().map(|(part, _)| part.first.region());
                self.make_room(&head, regions())?;
                self.mark(regions, generation, Reach::Group).await?;
            }
            for (part, there) in wanted {
                let change = |page: &mut Page, slot, _| set_zero(&head, page, slot);
                let recorded = self.record(&head, part, change);
                self.or_fail_page(&head, recorded).await?;
                self.punch(&head, part.first.region(), there).await;
            }
            self.bound_fresh().await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// What runs from here on is not what a clearing has synced.
    pub(super) fn keep_marks(&self, range: BlockRange) {
        let mut clearing = self.head_state.clearing.borrow_mut();
        if !clearing.is_empty() {
            range.regions().for_each(|region| {
                clearing.remove(&region);
            });
        }
    }

    /// Takes the room for pages that don't exist yet (rule 21). Without it nothing was changed.
    pub(super) fn make_room(
        &self,
        layer: &OpenLayer<S::File>,
        mut regions: impl Iterator<Item = Region>,
    ) -> Result<(), StoreError> {
        let made = regions.try_for_each(|region| self.pages.make_room(layer.file, region));
        made.map_err(|error| self.io_error("make room in the index", error))
    }

    pub(super) async fn mark<I: Iterator<Item = Region>>(
        &self,
        regions: impl Fn() -> I,
        generation: Generation,
        reach: Reach,
    ) -> Result<(), StoreError> {
        if mutation::is_on(Mutation::NoMarks) {
            return Ok(());
        }
        let marked = self.intent.mark(regions, generation, reach).await;
        self.or_fail_intent("mark regions", marked).await
    }

    /// Changes the pages of a range; those whose presence changes reach the kernel now.
    pub(super) fn record(
        &self,
        layer: &OpenLayer<S::File>,
        range: BlockRange,
        mut change: impl FnMut(&mut Page, usize, usize) -> bool,
    ) -> Result<(), (Region, PageFault)> {
        let mut index = 0;
        for region in range.regions() {
            let part = range.clipped_to(region);
            let mut changed = Blocks::NONE;
            let done = self.pages.change(layer.file, region, |page| {
                for slot in slots_of(part) {
                    if change(page, slot, index) {
                        changed.put(slot, true);
                    }
                    index += 1;
                }
                let write_back = if changed.is_empty() { WriteBack::Later } else { WriteBack::Now };
                ((), write_back)
            });
            if !changed.is_empty() {
                self.head_state.fresh.borrow_mut().insert(region);
                if let Some(flushing) = self.head_state.flushing.borrow_mut().get_mut(&region) {
                    *flushing = *flushing & !changed;
                }
            }
            done.map_err(|fault| (region, fault))?;
        }
        Ok(())
    }

    /// A damaged page fails the write; a page that can't be written fails the store.
    pub(super) async fn or_fail_page(
        &self,
        layer: &OpenLayer<S::File>,
        recorded: Result<(), (Region, PageFault)>,
    ) -> Result<(), StoreError> {
        match recorded {
            Ok(()) => Ok(()),
            // Only where the file system can't take room for it before.
            Err((_, PageFault::Io(error))) if is_no_space(&error) => {
                Err(self.io_error("write the index", error))
            }
            Err((_, PageFault::Io(error))) => self.or_fail("write the index", Err(error)).await,
            Err((region, fault)) => Err(self.page_error(layer.file, region, fault)),
        }
    }

    /// A discard that can't give space back is still a discard.
    pub(super) async fn punch(&self, layer: &OpenLayer<S::File>, region: Region, blocks: Blocks) {
        for run in blocks.runs() {
            let start = BlockIndex(region.blocks().start + run.start as u64).offset_bytes();
            let end = start + (run.len() * BLOCK) as u64;
            if let Err(error) = layer.data.punch(start..end).await {
                tracing::debug!(place = self.place(), %error, "space isn't given back");
            }
        }
    }

    async fn bound_fresh(&self) -> Result<(), StoreError> {
        if self.head_state.fresh.borrow().len() > FRESH_REGIONS_MAX {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// A write that failed may have left old, new or mixed bytes: the sums of blocks that were
    /// there say what there is now, and count as unverified.
    pub(super) async fn after_failed_write(
        &self,
        layer: &OpenLayer<S::File>,
        blocks: impl Iterator<Item = BlockIndex>,
        error: std::io::Error,
    ) -> StoreError {
        if !is_no_space(&error) {
            self.doubt(&error).await;
        }
        let error = self.io_error("write blocks", error);
        for block in blocks {
            let (region, slot) = (block.region(), (block.0 % BLOCKS_PER_REGION) as usize);
            let present = self.pages.look(layer.file, region, |page| page.present().has(slot));
            if !present.unwrap_or(false) {
                continue;
            }
            let buffer = Buffer::zeroed(BLOCK);
            let (done, buffer) = layer.data.file.read(block.offset_bytes(), buffer).await;
            if done.is_err() {
                continue; // a read says so again
            }
            let found = checksum::of_block(&buffer);
            let changed = self.pages.change(layer.file, region, |page| {
                if page.sum(slot) == found {
                    return ((), WriteBack::Unchanged);
                }
                let _same_presence = page.set_data(slot, found, false);
                ((), WriteBack::Now)
            });
            match changed {
                // Until there is room, memory alone has it.
                Err(PageFault::Io(error)) if is_no_space(&error) => {}
                Err(PageFault::Io(error)) => {
                    return self.fail(format!("write the index: {error}")).await;
                }
                _ => {}
            }
        }
        error
    }
}

/// In the oldest layer, what is absent reads as zeroes too, and costs no page.
fn set_zero<F>(layer: &OpenLayer<F>, page: &mut Page, slot: usize) -> bool {
    if layer.has_parent { page.set_zero(slot) } else { page.set_absent(slot) }
}

/// Maximal runs of `0..length` for which `belongs` holds.
fn runs_where(
    length: usize,
    belongs: impl Fn(usize) -> bool,
) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        while next < length && !belongs(next) {
            next += 1;
        }
        let start = next;
        while next < length && belongs(next) {
            next += 1;
        }
        (start < next).then_some(start..next)
    })
}
