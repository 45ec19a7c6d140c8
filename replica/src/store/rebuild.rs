//! A replica that is being filled from another one: same layers, same blocks in each.

use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use super::meta::{data_name, index_name};
use super::open::create_layer;
use super::pages::{PageFault, WriteBack};
use super::storage::Storage;
use super::{OpenLayer, ReplicaState, Store, StoreError};
use crate::chain::index::{BlockSum, Page};
use crate::chain::{Chain, ChainInfo};
use crate::types::{BlockIndex, BlockRange, Generation, LayerId, Region};

const BLOCK: usize = BLOCK_BYTES as usize;

impl<S: Storage> Store<S> {
    /// Drops everything and takes over a peer's layers, all empty; [`copy`](Self::copy) fills them.
    /// Refused for a replica that is in sync, or was and may be the last.
    pub async fn adopt_chain(&self, info: &ChainInfo) -> Result<(), StoreError> {
        self.check_usable()?;
        if matches!(self.state(), ReplicaState::Member | ReplicaState::Ready) {
            let source = std::io::Error::other("it has all data; say first that it is rebuilt");
            return Err(self.io_error("drop the layers", source));
        }
        let _one_at_a_time = self.chain_gate.lock().await;
        let next = self.chain.get().adopting(info)?;
        let room = self.chain.check_room(&next);
        room.map_err(|bytes| StoreError::MetadataTooLarge { layers: next.layers().len(), bytes })?;
        if let Err(error) = self.make_empty_layers(&next).await {
            for layer in next.layers() {
                let _ = self.storage.remove(&data_name(layer.file));
                let _ = self.storage.remove(&index_name(layer.file));
            }
            return Err(self.io_error("make empty layers", error));
        }
        self.commit(next).await?;
        self.head_state.fresh.borrow_mut().clear();
        self.unrecovered.borrow_mut().clear();
        Ok(())
    }

    async fn make_empty_layers(&self, next: &Chain) -> std::io::Result<()> {
        self.intent.extend(next.size_bytes()).await?;
        for layer in next.layers() {
            let is_head = layer.id == next.head().id;
            for name in [data_name(layer.file), index_name(layer.file)] {
                match self.storage.remove(&name) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => {} // an earlier attempt may have left it
                }
            }
            create_layer(&self.storage, layer.file, layer.size_bytes, is_head).await?;
        }
        self.storage.sync_dir().await
    }

    /// Makes a layer's own blocks of `range` what `blocks` says; the data of those that have some
    /// lies at the block's place in `data`, which starts at `offset_bytes`. The layer is the head
    /// or one that is being filled.
    pub async fn copy(
        &self,
        layer: LayerId,
        range: BlockRange,
        blocks: &[BlockSum],
        data: Rc<Buffer>,
        offset_bytes: usize,
        generation: Generation,
    ) -> Result<(), StoreError> {
        assert_eq!(blocks.len() as u64, range.count, "one description per block");
        self.check_usable()?;
        let layer = self.layer(layer)?;
        self.check_range(&layer, range)?;
        let is_head = Rc::ptr_eq(&layer, &self.head());
        if !is_head && !layer.filling {
            let source = std::io::Error::other(format!("{} is sealed", layer.id));
            return Err(self.io_error("copy into a layer", source));
        }
        self.recover_all(range).await?;
        self.mark(|| range.regions(), generation, false).await?;
        let mut index = 0;
        while index < blocks.len() {
            let is_data = |at: &usize| matches!(blocks[*at], BlockSum::Data { .. });
            let end = (index..blocks.len()).find(|at| !is_data(at)).unwrap_or(blocks.len());
            if end > index {
                let at = BlockIndex(range.first.0 + index as u64).offset_bytes();
                let part = offset_bytes + index * BLOCK..offset_bytes + end * BLOCK;
                let done = layer.data.write(at, data.clone(), part).await;
                done.map_err(|error| self.io_error("copy blocks", error))?;
            }
            index = end + 1;
        }
        let put = |page: &mut Page, slot: usize, index: usize| match blocks[index] {
            BlockSum::Absent => page.set_absent(slot),
            BlockSum::Zero => page.set_zero(slot),
            BlockSum::Data { crc, verified } => page.set_data(slot, crc, verified),
        };
        // A snapshot may have sealed the layer meanwhile: no flush would ever look at it again.
        let _no_change_of_chain = self.chain_gate.lock().await;
        let recorded = if layer.id == self.head().id {
            self.record(&layer, range, put)
        } else {
            self.record_filling(&layer, range, put)
        };
        self.or_fail_page(&layer, recorded).await
    }

    /// Puts a peer's bytes in place of a bad block, in the layer that holds it. They must be what
    /// this replica's own index says was written; a sum that nobody has verified is replaced.
    pub async fn repair(
        &self,
        layer: LayerId,
        block: BlockIndex,
        data: Rc<Buffer>,
        generation: Generation,
    ) -> Result<(), StoreError> {
        self.check_usable()?;
        let range = BlockRange::new(block, 1);
        let layer = self.layer(layer)?;
        self.check_range(&layer, range)?;
        self.recover_all(range).await?;
        let crc = crc32c::crc32c(&data[..BLOCK]);
        let (region, slot) = (block.region(), super::io::slots_of(range).start);
        let own = self.pages.look(layer.file, region, |page| page.block(slot));
        let own = own.map_err(|fault| self.page_error(layer.file, region, fault))?;
        match own {
            BlockSum::Data { crc: expected, verified } if crc == expected || !verified => {}
            _ => {
                let source = std::io::Error::other("the bytes aren't what was written here");
                return Err(self.io_error("repair a block", source));
            }
        }
        self.mark(|| range.regions(), generation, false).await?;
        let at = block.offset_bytes();
        let done = layer.data.write(at, data, 0..BLOCK).await;
        done.map_err(|error| self.io_error("repair a block", error))?;
        let changed = self.pages.change(layer.file, region, |page| {
            let _same_presence = page.set_data(slot, crc, true);
            ((), WriteBack::Now)
        });
        self.or_fail_page(&layer, changed.map_err(|fault| (region, fault))).await?;
        if Rc::ptr_eq(&layer, &self.head()) { Ok(()) } else { self.settle_everything().await }
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
            let slots = super::io::slots_of(range.clipped_to(region));
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
        let unrecovered: Vec<_> = self.unrecovered.borrow().iter().copied().collect();
        for region in unrecovered {
            self.recover_region(region).await?;
        }
        self.settle_everything().await?;
        let filled = self.chain.get().filled();
        if filled != *self.chain.get() { self.commit(filled).await } else { Ok(()) }
    }
}
