//! Which layer a block's bytes come from.
//!
//! With what is kept of the layers below the head, a block is found by a look at two pages,
//! however long the chain is.

use std::ops::Range;
use std::rc::Rc;

use roaring::RoaringBitmap;

use super::below::{Found, Known, Merged};
use super::error::{BadBlock, BlockProblem};
use super::pages::PageFault;
use super::query::slots_of;
use super::storage::Storage;
use super::{Path, READ_ATTEMPTS, ReadError, Store, StoreError, View};
use crate::chain::index::{BlockSum, Blocks, Page};
use crate::types::{BlockRange, Region};

/// Where a block's bytes come from.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    Zero,
    Data { layer: usize, sum: u32, verified: bool },
    Bad { layer: usize, problem: String },
}

impl<S: Storage> Store<S> {
    /// For each block of the range, the newest layer of the view's path that has it.
    pub(super) async fn resolve(
        &self,
        view: View,
        range: BlockRange,
    ) -> Result<(Path<S::File>, Vec<Source>), StoreError> {
        for _ in 0..READ_ATTEMPTS {
            let paths = self.pages.paths();
            let path = self.path(view)?;
            self.check_range(&path[0], range)?;
            let mut sources = Vec::with_capacity(range.count as usize);
            for region in range.regions() {
                let slots = slots_of(range.clipped_to(region));
                let below = self.below(&path, region, Blocks::span(slots.clone())).await;
                // Last: what the head has by then hides what is below.
                self.resolve_region(&path, region, slots, below.as_deref(), &mut sources);
            }
            if paths == self.pages.paths() {
                return Ok((path, sources));
            }
        }
        let error = std::io::Error::other("the layers change all the time");
        Err(self.io_error("read blocks", error))
    }

    fn resolve_region(
        &self,
        path: &Path<S::File>,
        region: Region,
        slots: Range<usize>,
        below: Option<&Merged>,
        sources: &mut Vec<Source>,
    ) {
        let position = |depth: usize| path.len() - 1 - depth;
        let older = |slot: usize| match below.map(|below| below.block(slot)) {
            None | Some(Found::Nothing) => Source::Zero,
            Some(Found::Data { depth, sum, verified }) => {
                Source::Data { layer: position(depth), sum, verified }
            }
            Some(Found::Bad { depth, problem }) => {
                Source::Bad { layer: position(depth), problem: problem.to_owned() }
            }
        };
        let first = sources.len();
        let looked = self.pages.look(path[0].file, region, |page| {
            sources.extend(slots.clone().map(|slot| match page.block(slot) {
                BlockSum::Data { sum, verified } => Source::Data { layer: 0, sum, verified },
                BlockSum::Zero => Source::Zero,
                BlockSum::Absent => older(slot),
            }));
        });
        if let Err(fault) = looked {
            sources.truncate(first);
            let problem = problem_of(fault);
            sources.extend(slots.map(|_| Source::Bad { layer: 0, problem: problem.clone() }));
        }
    }

    /// What the layers under the first one of `path` have of a region: at least of `wanted`, and of
    /// all blocks if it is the live path, of which it is kept. `None`: nothing.
    async fn below(
        &self,
        path: &Path<S::File>,
        region: Region,
        wanted: Blocks,
    ) -> Option<Rc<Merged>> {
        if path.len() == 1 {
            return None;
        }
        let is_live = || Rc::ptr_eq(path, &self.layers.borrow().top);
        if is_live() {
            self.know_regions_below(path).await;
        }
        if is_live() {
            match self.pages.below(region) {
                Known::Nothing => return None,
                Known::Merged(merged) => return Some(merged),
                Known::Unknown => {}
            }
        }
        let mut attempts = 0;
        loop {
            let moment = self.pages.moment(region);
            let keeps = is_live();
            let all = if keeps { Blocks::ALL } else { wanted };
            // What changes all the time is looked at without giving others a turn.
            let merged = self.merge(path, region, all, keeps, attempts < READ_ATTEMPTS).await;
            if moment != self.pages.moment(region) && attempts < READ_ATTEMPTS {
                attempts += 1;
                continue;
            }
            let merged = Rc::new(merged);
            if keeps
                && is_live()
                && merged.is_sound()
                && let Err(error) = self.pages.keep_below(region, merged.clone())
            {
                tracing::debug!(place = self.place(), %error, "what is below isn't kept");
            }
            return Some(merged);
        }
    }

    /// At most one read between two turns of others, unless nobody else is to have one.
    async fn merge(
        &self,
        path: &Path<S::File>,
        region: Region,
        wanted: Blocks,
        is_kept: bool,
        yields: bool,
    ) -> Merged {
        let mut merged = Merged::new(wanted);
        for (layer, depth) in path.iter().zip((0..path.len()).rev()).skip(1) {
            if merged.is_complete() {
                break;
            }
            if !self.pages.exists(layer.file, region) {
                continue;
            }
            if yields && !self.pages.is_at_hand(layer.file, region) {
                tokio::task::yield_now().await;
            }
            let add = |page: &Page| merged.add(depth, page);
            let looked = if is_kept {
                self.pages.glance(layer.file, region, add)
            } else {
                self.pages.look(layer.file, region, add)
            };
            if let Err(fault) = looked {
                merged.add_bad(depth, problem_of(fault));
            }
        }
        merged
    }

    /// Finds out once for a path which regions any layer below the head has.
    async fn know_regions_below(&self, path: &Path<S::File>) {
        while !self.pages.knows_regions_below() {
            let paths = self.pages.paths();
            let mut regions = RoaringBitmap::new();
            for layer in path.iter().skip(1) {
                self.pages.add_regions_to(layer.file, &mut regions);
                tokio::task::yield_now().await;
            }
            if paths != self.pages.paths() {
                return; // the path isn't live any more
            }
            // What came to exist meanwhile.
            for layer in path.iter().skip(1) {
                self.pages.add_regions_to(layer.file, &mut regions);
            }
            self.pages.set_regions_below(regions);
        }
    }

    /// What `view` shows of each block, without reading data. What no layer has is zero.
    pub async fn sums(&self, view: View, range: BlockRange) -> Result<Vec<BlockSum>, ReadError> {
        self.recover_all(range).await?;
        let (path, sources) = self.resolve(view, range).await?;
        let mut sums = Vec::with_capacity(sources.len());
        let mut bad = Vec::new();
        for (source, block) in sources.into_iter().zip(range.blocks()) {
            match source {
                Source::Zero => sums.push(BlockSum::Zero),
                Source::Data { sum, verified, .. } => sums.push(BlockSum::Data { sum, verified }),
                Source::Bad { layer, problem } => {
                    let layer = path[layer].id;
                    bad.push(BadBlock { block, layer, problem: BlockProblem::Index(problem) });
                }
            }
        }
        if bad.is_empty() { Ok(sums) } else { Err(ReadError::BadBlocks(bad)) }
    }
}

fn problem_of(fault: PageFault) -> String {
    match fault {
        PageFault::Io(error) => error.to_string(),
        PageFault::Bad(problem) => problem.to_string(),
        PageFault::Gone => "its layer is gone".into(),
    }
}
