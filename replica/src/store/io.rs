//! Reading and writing blocks.

use std::ops::Range;
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use futures_util::StreamExt;
use roaring::RoaringBitmap;

use super::below::{Found, Known, Merged};
use super::error::{BadBlock, BlockProblem, is_no_space};
use super::intent::Reach;
use super::pages::{PageFault, WriteBack};
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, Path, ReadError, Store, StoreError, View};
use crate::chain::index::{BlockSum, Blocks, Page};
use crate::checksum::{self, ZERO_BLOCK_SUM};
use crate::mutation::{self, Mutation};
use crate::types::{BLOCKS_PER_REGION, BlockIndex, BlockRange, Generation, Region};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Regions that a large discard handles before others get their turn.
const ZERO_BATCH: usize = 64;
/// Regions with unflushed presence after which a write flushes first: bounds what a power cut
/// leaves to be looked at, and the memory for it.
const FRESH_REGIONS_MAX: usize = 4096;
/// A read races with a join at most as often as there are joins; this is never reached.
const READ_ATTEMPTS: usize = 8;
/// Pieces of one read that are asked for at once.
const PIECES_AT_ONCE: usize = 32;

/// What is known about the bytes of a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Checksum of each block, as read.
    pub sums: Vec<u32>,
    /// Blocks whose checksum was rebuilt from the disk after a crash: nobody has compared them.
    pub unverified: Vec<BlockIndex>,
}

/// Where a block's bytes come from.
#[derive(Clone, PartialEq, Eq)]
enum Source {
    Zero,
    Data { layer: usize, sum: u32, verified: bool },
    Bad { layer: usize, problem: String },
}

/// A run of one kind within a request.
struct Piece {
    blocks: Range<usize>,
    /// Position in the path; `None` for zeroes.
    layer: Option<usize>,
}

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

pub(super) fn slots_of(part: BlockRange) -> Range<usize> {
    let first = (part.first.0 % BLOCKS_PER_REGION) as usize;
    first..first + part.count as usize
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

    /// Reads whole blocks as `view` shows them and checks each one. `into` has the range's length;
    /// on an error its content is undefined.
    pub async fn read(
        &self,
        view: View,
        range: BlockRange,
        into: Buffer,
    ) -> (Result<ReadReport, ReadError>, Buffer) {
        assert_eq!(into.len() as u64, range.length_bytes(), "the buffer has the range's length");
        let mut into = into;
        let mut before: Option<(Vec<u32>, Vec<Source>)> = None;
        for _ in 0..READ_ATTEMPTS {
            if let Err(error) = self.recover_all(range).await {
                return (Err(error.into()), into);
            }
            let (path, sources) = match self.resolve(view, range).await {
                Ok(resolved) => resolved,
                Err(error) => return (Err(error.into()), into),
            };
            let files: Vec<u32> = path.iter().map(|layer| layer.file).collect();
            let bad;
            (bad, into) = self.fetch(&path, range, &sources, into).await;
            if bad.is_empty() {
                return (Ok(report(range, &sources)), into);
            }
            // A join may have moved the block while it was read; then it is found elsewhere now.
            if before.as_ref().is_some_and(|(f, s)| *f == files && *s == sources) {
                self.note_bad_blocks(&bad);
                return (Err(ReadError::BadBlocks(bad)), into);
            }
            before = Some((files, sources));
        }
        let error = std::io::Error::other("the block moves all the time");
        (Err(self.io_error("read blocks", error).into()), into)
    }

    /// Reads the pieces and checks every block; what is bad is returned.
    async fn fetch(
        &self,
        path: &[Rc<OpenLayer<S::File>>],
        range: BlockRange,
        sources: &[Source],
        into: Buffer,
    ) -> (Vec<BadBlock>, Buffer) {
        let mut into = into;
        let mut bad = Vec::new();
        let mut several = Vec::new();
        for piece in pieces(sources) {
            let bytes = piece.blocks.start * BLOCK..piece.blocks.end * BLOCK;
            let Some(layer) = piece.layer else {
                into[bytes].fill(0);
                continue;
            };
            let at = (range.first.0 + piece.blocks.start as u64) * BLOCK_BYTES;
            let data = path[layer].data.clone();
            if bytes.len() == into.len() {
                let done;
                (done, into) = data.file.read(at, into).await;
                if let Err(error) = done {
                    self.doubt(&error).await;
                    bad.extend(self.unreadable(path, range, sources, piece.blocks, &error).await);
                }
            } else {
                several.push(async move {
                    let (done, part) = data.file.read(at, Buffer::for_data(bytes.len())).await;
                    (piece.blocks, done, part)
                });
            }
        }
        // Pieces of other layers don't wait for each other.
        let mut reading = futures_util::stream::iter(several).buffered(PIECES_AT_ONCE);
        while let Some((blocks, done, part)) = reading.next().await {
            into[blocks.start * BLOCK..blocks.end * BLOCK].copy_from_slice(&part);
            if let Err(error) = done {
                self.doubt(&error).await;
                bad.extend(self.unreadable(path, range, sources, blocks, &error).await);
            }
        }
        let is_bad = |block: BlockIndex| bad.iter().any(|bad: &BadBlock| bad.block == block);
        let mut wrong = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let block = BlockIndex(range.first.0 + index as u64);
            match source {
                Source::Zero => {}
                Source::Data { layer, sum, .. } if !is_bad(block) => {
                    let found = checksum::of_block(&into[index * BLOCK..][..BLOCK]);
                    if found != *sum && !mutation::is_on(Mutation::SumsUnchecked) {
                        let problem = BlockProblem::Checksum { expected: *sum, found };
                        wrong.push(BadBlock { block, layer: path[*layer].id, problem });
                    }
                }
                Source::Data { .. } => {}
                Source::Bad { layer, problem } => {
                    let problem = BlockProblem::Index(problem.clone());
                    wrong.push(BadBlock { block, layer: path[*layer].id, problem });
                }
            }
        }
        bad.append(&mut wrong);
        bad.sort_by_key(|bad| bad.block);
        (bad, into)
    }

    /// One block that can't be read fails the whole piece: finds out which.
    async fn unreadable(
        &self,
        path: &[Rc<OpenLayer<S::File>>],
        range: BlockRange,
        sources: &[Source],
        blocks: Range<usize>,
        error: &std::io::Error,
    ) -> Vec<BadBlock> {
        let mut bad = Vec::new();
        let alone = blocks.len() == 1;
        for index in blocks {
            let Source::Data { layer, sum, .. } = sources[index] else { continue };
            let block = BlockIndex(range.first.0 + index as u64);
            let problem = if alone {
                Some(error.to_string())
            } else {
                let buffer = Buffer::zeroed(BLOCK);
                let (done, buffer) = path[layer].data.file.read(block.offset_bytes(), buffer).await;
                // Readable alone, but the piece's bytes aren't in the buffer: a retry is needed.
                let sound = checksum::of_block(&buffer) == sum;
                done.err().map(|error| error.to_string()).or((!sound).then(|| error.to_string()))
            };
            if let Some(problem) = problem {
                let layer = path[layer].id;
                bad.push(BadBlock { block, layer, problem: BlockProblem::Unreadable(problem) });
            }
        }
        bad
    }

    fn note_bad_blocks(&self, bad: &[BadBlock]) {
        let first = &bad[0];
        tracing::warn!(place = self.place(), block = first.block.0, layer = %first.layer,
            problem = ?first.problem, count = bad.len(), "blocks can't be read");
    }

    /// For each block of the range, the newest layer of the view's path that has it.
    async fn resolve(
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

    pub(super) fn check_range(
        &self,
        layer: &OpenLayer<S::File>,
        range: BlockRange,
    ) -> Result<(), StoreError> {
        let (size_bytes, layer) = (layer.size_bytes, layer.id);
        let end = range.first.0.checked_add(range.count);
        if end.is_none_or(|end| end > size_bytes / BLOCK_BYTES) || range.count == 0 {
            return Err(StoreError::OutOfRange { range, layer, size_bytes });
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
            if let Err(error) = layer.data.file.punch(start..end).await {
                tracing::debug!(place = self.place(), %error, "space isn't given back");
            }
            layer.data.unsynced.set(true);
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

fn problem_of(fault: PageFault) -> String {
    match fault {
        PageFault::Io(error) => error.to_string(),
        PageFault::Bad(problem) => problem.to_string(),
        PageFault::Gone => "its layer is gone".into(),
    }
}

fn report(range: BlockRange, sources: &[Source]) -> ReadReport {
    let mut report = ReadReport { sums: Vec::with_capacity(sources.len()), unverified: Vec::new() };
    for (source, block) in sources.iter().zip(range.blocks()) {
        match source {
            Source::Data { sum, verified, .. } => {
                report.sums.push(*sum);
                if !verified {
                    report.unverified.push(block);
                }
            }
            Source::Zero | Source::Bad { .. } => report.sums.push(ZERO_BLOCK_SUM),
        }
    }
    report
}

fn pieces(sources: &[Source]) -> impl Iterator<Item = Piece> {
    let layer_of = |index: usize| match sources[index] {
        Source::Data { layer, .. } => Some(layer),
        Source::Zero | Source::Bad { .. } => None,
    };
    let mut start = 0;
    std::iter::from_fn(move || {
        let layer = (start < sources.len()).then(|| layer_of(start))?;
        let mut end = start + 1;
        while end < sources.len() && layer_of(end) == layer {
            end += 1;
        }
        let blocks = start..end;
        start = end;
        Some(Piece { blocks, layer })
    })
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
