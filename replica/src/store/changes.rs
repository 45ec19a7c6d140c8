//! Changes of the chain: each is one write of `chain.meta`, so it is done or never begun.

use std::rc::Rc;

use super::meta::{data_name, index_name};
use super::open::{create_layer, open_layers, remove_unused};
use super::pages;
use super::storage::{Storage, StorageFile};
use super::{OpenLayer, ReplicaState, Store, StoreError};
use crate::chain::{Chain, ChainChange, ChainOp};
use crate::types::LayerId;

impl<S: Storage> Store<S> {
    /// Does `op`, or nothing if it was done before; durable when it returns. The engine has
    /// drained its writes and flushed.
    pub async fn apply(&self, op: &ChainOp) -> Result<(), StoreError> {
        self.check_usable()?;
        let _one_at_a_time = self.chain_gate.lock().await;
        let Some(mut next) = self.chain.get().after(op)? else { return Ok(()) };
        let is_rebuilt = self.state() == ReplicaState::Rebuilding;
        if is_rebuilt && matches!(op.change, ChainChange::Snapshot { .. }) {
            next = next.with_filling(self.head().id);
        }
        let room = self.chain.check_room(&next);
        room.map_err(|bytes| StoreError::MetadataTooLarge { layers: next.layers().len(), bytes })?;
        match &op.change {
            ChainChange::Snapshot { .. } => {
                // A sealed layer's sums are trusted whatever is marked, so they must be there.
                let unrecovered: Vec<_> = self.unrecovered.borrow().iter().copied().collect();
                for region in unrecovered {
                    self.recover_region(region).await?;
                }
                self.settle_everything().await?;
                self.check_drained()?;
                self.make_head(&next).await?;
                self.check_drained()?;
            }
            ChainChange::Revert { .. } => {
                self.check_drained()?;
                self.make_head(&next).await?;
            }
            ChainChange::Expand { size_bytes } => self.extend(*size_bytes).await?,
            ChainChange::Remove { .. } => {}
        }
        let is_new_head = next.head().id != self.chain.get().head().id;
        self.commit(next).await?;
        if is_new_head {
            self.head_state.fresh.borrow_mut().clear();
            // The old head's pages don't matter any more; those that a rebuild fills do.
            if !self.layers.borrow().by_id.values().any(|layer| layer.filling) {
                self.unrecovered.borrow_mut().clear();
            }
        }
        Ok(())
    }

    fn check_drained(&self) -> Result<(), StoreError> {
        if self.head_state.writing.borrow().is_empty() {
            return Ok(());
        }
        let busy = std::io::Error::other("writes are running");
        Err(self.io_error("change the chain", busy))
    }

    async fn make_head(&self, next: &Chain) -> Result<(), StoreError> {
        let head = next.head();
        let made = async {
            for name in [data_name(head.file), index_name(head.file)] {
                match self.storage.remove(&name) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => {} // an earlier attempt may have left it
                }
            }
            create_layer(&self.storage, head.file, head.size_bytes, true).await?;
            self.storage.sync_dir().await
        };
        if let Err(error) = made.await {
            let _ = self.storage.remove(&data_name(head.file));
            let _ = self.storage.remove(&index_name(head.file));
            return Err(self.io_error("make a new layer", error));
        }
        Ok(())
    }

    async fn extend(&self, size_bytes: u64) -> Result<(), StoreError> {
        self.extend_intent(size_bytes).await?;
        self.lengthen(&self.head(), size_bytes, true).await
    }

    /// Room for the marks of a volume of this size.
    pub(super) async fn extend_intent(&self, size_bytes: u64) -> Result<(), StoreError> {
        let extended = self.intent.extend(size_bytes);
        extended.map_err(|error| self.io_error("make room for marks", error))?;
        let done = self.intent.sync().await;
        self.or_fail("make the marks durable", done).await
    }

    /// Makes a layer's files longer; with `reserve` its index never lacks room. What a sync that
    /// fails leaves out may be what was written before, so it fails the replica.
    pub(super) async fn lengthen(
        &self,
        layer: &OpenLayer<S::File>,
        size_bytes: u64,
        reserve: bool,
    ) -> Result<(), StoreError> {
        let index = self.pages.file(layer.file);
        let index_bytes = pages::file_bytes(size_bytes);
        let done = if reserve { index.preallocate(index_bytes) } else { index.extend(index_bytes) };
        let done = done.and_then(|()| layer.data.file.extend(size_bytes));
        done.map_err(|error| self.io_error("make a layer longer", error))?;
        let done = index.sync().await;
        self.or_fail("make the index durable", done).await?;
        let done = layer.data.file.sync().await;
        self.or_fail("make the data durable", done).await
    }

    /// Makes `next` the chain, durable, and lets go of files that it doesn't use.
    pub(super) async fn commit(&self, next: Chain) -> Result<(), StoreError> {
        let layers = {
            let before = self.layers.borrow();
            open_layers(&self.storage, &next, &self.pages, Some(&before))?
        };
        let done = self.chain.update(|_| next).await;
        self.or_fail("make the chain durable", done).await?;
        let before = self.layers.replace(layers);
        let chain: Rc<Chain> = self.chain.get();
        self.intent.resize(chain.size_bytes());
        for layer in before.by_id.values() {
            if !chain.layers().iter().any(|kept| kept.file == layer.file) {
                self.pages.drop_file(layer.file);
            }
        }
        match self.storage.list() {
            Ok(names) => remove_unused(&self.storage, &chain, &names),
            Err(error) => tracing::warn!(place = self.place(), %error, "unused files stay"),
        }
        Ok(())
    }

    /// Names of the files that hold a layer's data and index.
    pub fn layer_files(&self, layer: LayerId) -> Result<(String, String), StoreError> {
        let layer = self.layer(layer)?;
        Ok((data_name(layer.file), index_name(layer.file)))
    }
}
