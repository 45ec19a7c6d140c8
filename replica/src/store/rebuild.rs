//! A replica that is being filled from another one: same layers, same blocks in each.

use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::intent::Reach;
use super::meta::names_of;
use super::open::create_layer;
use super::pages::{PageFault, WriteBack};
use super::query::{block_at, slots_of};
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, ReadError, ReplicaState, Store, StoreError, View};
use crate::chain::index::{BlockSum, Blocks, Page};
use crate::chain::{Chain, ChainInfo, Difference, Layer};
use crate::checksum;
use crate::message::Adopted;
use crate::types::{BLOCKS_PER_REGION, BlockRange, Generation, LayerId, REGION_BYTES, Region};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Marks that are made between two turns of others.
const MARK_BATCH: usize = 4096;
/// A span is read as one if at least one block of so many is wanted.
const SPAN_FACTOR: usize = 4;

impl<S: Storage> Store<S> {
    /// Takes over the members' chain. What this replica holds of it stays, and the answer says
    /// where that may differ; other layers are empty, and [`copy`](Self::copy) fills them. Layers
    /// that the members have joined meanwhile are joined here first. Refused for a replica that is
    /// in sync, or was and may be the last.
    pub async fn adopt_chain(&self, info: &ChainInfo) -> Result<Adopted, StoreError> {
        self.check_usable()?;
        if matches!(self.state(), ReplicaState::Member | ReplicaState::Ready) {
            let source = std::io::Error::other("it has all data; say first that it is rebuilt");
            return Err(self.io_error("give up layers", source));
        }
        let mut adoption = self.chain.get().adoption(info);
        for (layer, difference) in &mut adoption.differences {
            if *difference != Difference::Nowhere && self.empty_damaged(*layer).await? {
                *difference = Difference::Anywhere;
            }
        }
        if let Some(Ok(prepared)) = adoption.prepared.map(Chain::checked) {
            self.take_over(prepared).await?;
            for layer in adoption.joins {
                // What isn't joined is dropped, and then comes from the members.
                if let Err(error) = self.join(layer).await {
                    tracing::warn!(place = self.place(), %error, %layer, "not joined");
                }
            }
        }
        self.take_over(self.chain.get().adopted(info, &adoption.differences)?).await?;
        let mut adopted = Adopted::default();
        for layer in &info.layers {
            match adoption.differences.get(&layer.id) {
                Some(Difference::Nowhere) => {}
                Some(Difference::InTheSet) => adopted.in_the_set.push(layer.id),
                Some(Difference::Anywhere) | None => adopted.anywhere.push(layer.id),
            }
        }
        Ok(adopted)
    }

    /// A page that a power cut has torn says nothing of its region: that counts as empty, and is
    /// marked first, so that it is looked at whatever becomes of this rebuild.
    async fn empty_damaged(&self, layer: LayerId) -> Result<bool, StoreError> {
        let layer = self.layer(layer)?;
        let generation = self.fence().map_or(Generation::FIRST, |fence| fence.generation);
        let mut found = false;
        let mut next = Region(0);
        while let Some(region) = self.pages.next(layer.file, next) {
            if let Err(PageFault::Bad(_)) = self.pages.look(layer.file, region, |_| ()) {
                self.mark(|| std::iter::once(region), generation, Reach::Named).await?;
                let emptied = self.pages.replace(layer.file, region, Page::EMPTY);
                self.or_fail_unless_full("write the index", emptied).await?;
                found = true;
            }
            next = region.next();
            tokio::task::yield_now().await;
        }
        Ok(found)
    }

    /// Makes `next` the chain, whatever the present one is.
    async fn take_over(&self, next: Chain) -> Result<(), StoreError> {
        let _one_at_a_time = self.chain_gate.lock().await;
        self.check_chain_room(&next)?;
        self.drop_prepared(); // of an engine that is gone
        let head_changes = next.head().id != self.head().id;
        if head_changes {
            self.settle_for_sealing().await?; // what stays of the head
        }
        self.extend_intent(next.size_bytes()).await?;
        for layer in next.layers() {
            let open =
                self.layers.borrow().by_id.values().find(|it| it.file == layer.file).cloned();
            let is_head = layer.id == next.head().id;
            if let Some(open) = open.filter(|open| is_head || layer.size_bytes > open.size_bytes) {
                self.lengthen(&open, layer.size_bytes).await?;
            }
        }
        let kept = self.chain.get();
        let is_new = |layer: &&Layer| !kept.layers().iter().any(|old| old.file == layer.file);
        if let Err(error) = self.make_layers(&next, is_new).await {
            for layer in next.layers().iter().filter(is_new) {
                for name in names_of(layer.file) {
                    let _ = self.storage.remove(&name);
                }
            }
            return Err(self.io_error("make layers", error));
        }
        self.commit(next).await?;
        if head_changes {
            self.head_state.fresh.borrow_mut().clear();
        }
        Ok(())
    }

    async fn make_layers(
        &self,
        next: &Chain,
        is_new: impl Fn(&&Layer) -> bool,
    ) -> std::io::Result<()> {
        for layer in next.layers().iter().filter(is_new) {
            for name in names_of(layer.file) {
                match self.storage.remove(&name) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => {} // an earlier attempt may have left it
                }
            }
            create_layer(&self.storage, layer.file, layer.size_bytes).await?;
        }
        self.storage.sync_dir().await
    }

    /// Marks regions that a rebuild will look at, so that the next one looks at them again if this
    /// one ends early, and later ones know that they were changed. Durable when it returns.
    pub async fn mark_regions(
        &self,
        regions: &[Region],
        generation: Generation,
    ) -> Result<(), StoreError> {
        self.check_usable()?;
        let end = self.size_bytes() / REGION_BYTES;
        if let Some(beyond) = regions.iter().find(|region| region.0 >= end) {
            let (layer, size_bytes) = (self.head().id, self.size_bytes());
            return Err(StoreError::OutOfRange { range: beyond.range(), layer, size_bytes });
        }
        for batch in regions.chunks(MARK_BATCH) {
            self.mark(|| batch.iter().copied(), generation, Reach::Named).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// The data blocks `wanted` that a layer itself has of a region, packed in ascending order, and
    /// each checked. Nobody writes there meanwhile.
    pub async fn read_packed(
        &self,
        layer: LayerId,
        region: Region,
        wanted: Blocks,
    ) -> Result<Buffer, ReadError> {
        let open = self.layer(layer)?;
        let sums: Vec<u32> = {
            let look = |page: &Page| wanted.slots().map(|slot| page.sum(slot)).collect();
            let looked = self.pages.look(open.file, region, look);
            looked.map_err(|fault| self.page_error(open.file, region, fault))?
        };
        let mut runs = wanted.runs();
        let packed = match (runs.next(), runs.next()) {
            (None, _) => return Ok(Buffer::zeroed(0)),
            (Some(run), None) => read_run(&open, region, run).await,
            _ => read_scattered(&open, region, wanted).await,
        };
        if let Ok(packed) = packed
            && packed
                .chunks_exact(BLOCK)
                .zip(&sums)
                .all(|(block, sum)| checksum::of_block(block) == *sum)
        {
            return Ok(packed);
        }
        // Something is wrong: the way on which it is found out which block that is.
        let mut packed = Buffer::zeroed(wanted.count() as usize * BLOCK);
        let mut filled = 0;
        for run in wanted.runs() {
            let range = BlockRange::new(block_at(region, run.start), run.len() as u64);
            let into = Buffer::zeroed(run.len() * BLOCK);
            let (done, data) = self.read(View::Own(layer), range, into).await;
            done?;
            packed[filled..filled + data.len()].copy_from_slice(&data);
            filled += data.len();
        }
        Ok(packed)
    }

    /// Makes a layer's own `blocks` of a region what `sums` says, one for each; the data of those
    /// that have some lies packed in `data`. The layer is the head or one that is being filled.
    pub async fn copy(
        &self,
        layer: LayerId,
        region: Region,
        blocks: Blocks,
        sums: &[BlockSum],
        data: Rc<Buffer>,
        generation: Generation,
    ) -> Result<(), StoreError> {
        assert_eq!(sums.len() as u64, blocks.count(), "one description per block");
        self.check_usable()?;
        let layer = self.layer(layer)?;
        self.check_range(&layer, region.range())?;
        let is_head = Rc::ptr_eq(&layer, &self.head());
        if !is_head && !layer.filling {
            let source = std::io::Error::other(format!("{} is sealed", layer.id));
            return Err(self.io_error("copy into a layer", source));
        }
        self.recover_all(region.range()).await?;
        self.make_room(&layer, std::iter::once(region))?;
        self.mark(|| std::iter::once(region), generation, Reach::Named).await?;
        let mut with_data = Blocks::NONE;
        for (slot, sum) in blocks.slots().zip(sums) {
            with_data.put(slot, matches!(sum, BlockSum::Data { .. }));
        }
        let mut packed = 0;
        let writes = with_data.runs().map(|run| {
            let part = packed..packed + run.len() * BLOCK;
            packed = part.end;
            let at = block_at(region, run.start).offset_bytes();
            layer.data.write(at, data.clone(), part)
        });
        let done = futures_util::future::join_all(writes).await;
        if let Some(error) = done.into_iter().find_map(Result::err) {
            let blocks = with_data.slots().map(|slot| block_at(region, slot));
            return Err(self.after_failed_write(&layer, blocks, error).await);
        }
        let mut described = [None; BLOCKS_PER_REGION as usize];
        for (slot, sum) in blocks.slots().zip(sums) {
            described[slot] = Some(*sum);
        }
        let put = |page: &mut Page, slot: usize, index: usize| match described[index] {
            None => false,
            Some(BlockSum::Absent) => page.set_absent(slot),
            Some(BlockSum::Zero) => page.set_zero(slot),
            Some(BlockSum::Data { sum, verified }) => page.set_data(slot, sum, verified),
        };
        // A snapshot may have sealed the layer meanwhile: no flush would ever look at it again.
        let _no_change_of_chain = self.chain_gate.lock().await;
        let recorded = if layer.id == self.head().id {
            self.record(&layer, region.range(), put)
        } else {
            self.record_filling(&layer, region.range(), put)
        };
        self.or_fail_page(&layer, recorded).await
    }

    /// No flush looks at a layer that is being filled: it counts only once all of it is durable.
    fn record_filling(
        &self,
        layer: &OpenLayer<S::File>,
        range: BlockRange,
        put: impl Fn(&mut Page, usize, usize) -> bool,
    ) -> Result<(), (Region, PageFault)> {
        let mut index = 0;
        for region in range.regions() {
            let slots = slots_of(range.clipped_to(region));
            let done = self.pages.change(layer.file, region, |page| {
                for slot in slots {
                    let _ = put(page, slot, index);
                    index += 1;
                }
                page.set_flushed(page.fresh());
                ((), WriteBack::Now)
            });
            done.map_err(|fault| (region, fault))?;
        }
        Ok(())
    }

    /// Every layer has what it should: makes that durable and seals the layers.
    pub(super) async fn finish_filling(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.chain_gate.lock().await;
        self.settle_for_sealing().await?;
        let filled = self.chain.get().filled();
        if filled != *self.chain.get() { self.commit(filled).await } else { Ok(()) }
    }
}

async fn read_run<F: StorageFile>(
    layer: &OpenLayer<F>,
    region: Region,
    run: std::ops::Range<usize>,
) -> std::io::Result<Buffer> {
    let at = block_at(region, run.start).offset_bytes();
    let (done, data) = layer.data.file.read(at, Buffer::zeroed(run.len() * BLOCK)).await;
    done.map(|()| data)
}

/// Many small pieces cost more than the gaps between them: those are read along, if they are small.
async fn read_scattered<F: StorageFile>(
    layer: &OpenLayer<F>,
    region: Region,
    wanted: Blocks,
) -> std::io::Result<Buffer> {
    let mut packed = Buffer::zeroed(wanted.count() as usize * BLOCK);
    let slots: Vec<usize> = wanted.slots().collect();
    let span = slots[0]..slots[slots.len() - 1] + 1;
    let mut filled = 0;
    if slots.len() * SPAN_FACTOR >= span.len() {
        let data = read_run(layer, region, span.clone()).await?;
        for run in wanted.runs() {
            let part = (run.start - span.start) * BLOCK..(run.end - span.start) * BLOCK;
            packed[filled..filled + part.len()].copy_from_slice(&data[part.clone()]);
            filled += part.len();
        }
        return Ok(packed);
    }
    let runs = wanted.runs().map(|run| read_run(layer, region, run));
    for data in futures_util::future::join_all(runs).await {
        let data = data?;
        packed[filled..filled + data.len()].copy_from_slice(&data);
        filled += data.len();
    }
    Ok(packed)
}
