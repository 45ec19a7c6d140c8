//! Changes of the chain: each is one write of `chain.meta`, so it is done or never begun.
//!
//! What takes room is *prepared* first: the files of the next head, or the room of a larger volume.
//! Nothing shows them; what isn't used is given back when it is abandoned, when something else is
//! prepared, or when the directory is opened.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::meta::{data_name, index_name, names_of};
use super::open::{create_layer, open_layers};
use super::pages;
use super::storage::{Storage, StorageFile};
use super::{Layers, OpenLayer, ReplicaState, Store, StoreError};
use crate::chain::{Chain, ChainChange, ChainOp};
use crate::types::LayerId;

/// What a change of the chain takes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prepared {
    /// The empty files of a head.
    Head { file: u32, size_bytes: u64 },
    /// Room for a volume of this size.
    Size(u64),
}

impl Prepared {
    fn of(op: &ChainOp, next: &Chain) -> Option<Self> {
        match op.change {
            ChainChange::Snapshot { .. } | ChainChange::Revert { .. } => {
                let head = next.head();
                Some(Self::Head { file: head.file, size_bytes: head.size_bytes })
            }
            ChainChange::Expand { size_bytes } => Some(Self::Size(size_bytes)),
            ChainChange::Remove { .. } => None,
        }
    }
}

impl<S: Storage> Store<S> {
    /// Takes the room for `op`, which changes nothing yet; durable when it returns.
    pub async fn prepare(&self, op: &ChainOp) -> Result<(), StoreError> {
        self.check_usable()?;
        let _one_at_a_time = self.chain_gate.lock().await;
        let Some(next) = self.chain.get().after(op)? else { return Ok(()) };
        self.check_chain_room(&next)?;
        match Prepared::of(op, &next) {
            Some(wanted) => self.make_ready(wanted).await,
            None => Ok(()),
        }
    }

    /// Gives back what was prepared.
    pub async fn abandon(&self) -> Result<(), StoreError> {
        self.check_usable()?;
        let _one_at_a_time = self.chain_gate.lock().await;
        self.drop_prepared();
        Ok(())
    }

    async fn make_ready(&self, wanted: Prepared) -> Result<(), StoreError> {
        if self.prepared.get() == Some(wanted) {
            return Ok(());
        }
        self.drop_prepared();
        self.prepared.set(Some(wanted));
        let made = match wanted {
            Prepared::Head { file, size_bytes } => self.make_head(file, size_bytes).await,
            Prepared::Size(size_bytes) => self.extend(size_bytes).await,
        };
        if made.is_err() {
            self.drop_prepared();
        }
        made
    }

    pub(super) fn drop_prepared(&self) {
        let dropped = match self.prepared.take() {
            None => Ok(()),
            Some(Prepared::Head { file, .. }) => self.remove_layer_files(file),
            Some(Prepared::Size(_)) => self.shrink_to_fit(),
        };
        if let Err(error) = dropped {
            tracing::warn!(place = self.place(), %error, "room for a change stays taken");
        }
    }

    fn remove_layer_files(&self, file: u32) -> std::io::Result<()> {
        for name in names_of(file) {
            match self.storage.remove(&name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What lies behind the volume's end was for a size that it didn't get.
    pub(super) fn shrink_to_fit(&self) -> std::io::Result<()> {
        let (head, size_bytes) = (self.head(), self.size_bytes());
        self.intent.shrink(size_bytes)?;
        self.pages.file(head.file).truncate(pages::file_bytes(size_bytes))?;
        head.data.file.truncate(size_bytes)
    }

    pub(super) fn check_chain_room(&self, next: &Chain) -> Result<(), StoreError> {
        let room = self.chain.check_room(next);
        room.map_err(|bytes| StoreError::MetadataTooLarge { layers: next.layers().len(), bytes })
    }

    /// Does `op`, or nothing if it was done before; durable when it returns. The engine has
    /// drained its writes and flushed.
    pub async fn apply(&self, op: &ChainOp) -> Result<(), StoreError> {
        self.check_usable()?;
        let _one_at_a_time = self.chain_gate.lock().await;
        let Some(next) = self.chain_after(op)? else { return Ok(()) };
        self.check_chain_room(&next)?;
        let wanted = Prepared::of(op, &next);
        if let Some(wanted) = wanted {
            self.make_ready(wanted).await?;
        }
        let replaces_head = next.head().id != self.head().id;
        if matches!(op.change, ChainChange::Snapshot { .. }) {
            self.settle_for_sealing().await?;
        }
        if replaces_head {
            self.check_drained()?;
        }
        self.commit(next).await?;
        if wanted.is_some() {
            self.prepared.set(None); // in use from here on
        }
        if replaces_head {
            self.forget_head();
        }
        Ok(())
    }

    /// Of a replica that is being rebuilt, what is sealed is still being filled.
    fn chain_after(&self, op: &ChainOp) -> Result<Option<Chain>, StoreError> {
        let next = self.chain.get().after(op)?;
        let fills = matches!(op.change, ChainChange::Snapshot { .. })
            && self.state() == ReplicaState::Rebuilding;
        Ok(next.map(|next| if fills { next.with_filling(self.head().id) } else { next }))
    }

    /// After the head of before is durably another layer: until then a flush and a recovery need what
    /// is known of it. What a rebuild fills is looked at still.
    fn forget_head(&self) {
        self.head_state.fresh.borrow_mut().clear();
        if !self.layers.borrow().by_id.values().any(|layer| layer.filling) {
            self.unrecovered.borrow_mut().clear();
        }
    }

    fn check_drained(&self) -> Result<(), StoreError> {
        if self.head_state.writing.borrow().is_empty() {
            return Ok(());
        }
        let busy = std::io::Error::other("writes are running");
        Err(self.io_error("change the chain", busy))
    }

    async fn make_head(&self, file: u32, size_bytes: u64) -> Result<(), StoreError> {
        let made = async {
            self.remove_layer_files(file)?; // an earlier attempt may have left them
            create_layer(&self.storage, file, size_bytes).await?;
            self.storage.sync_dir().await
        };
        made.await.map_err(|error| self.io_error("make a new layer", error))
    }

    async fn extend(&self, size_bytes: u64) -> Result<(), StoreError> {
        self.extend_intent(size_bytes).await?;
        self.lengthen(&self.head(), size_bytes).await
    }

    /// Room for the marks of a volume of this size.
    pub(super) async fn extend_intent(&self, size_bytes: u64) -> Result<(), StoreError> {
        let extended = self.intent.extend(size_bytes);
        extended.map_err(|error| self.io_error("make room for marks", error))?;
        let done = self.intent.sync().await;
        self.or_fail("make the marks durable", done).await
    }

    /// Makes a layer's files longer, which takes no space. What a sync that fails leaves out may be
    /// what was written before, so it fails the replica.
    pub(super) async fn lengthen(
        &self,
        layer: &OpenLayer<S::File>,
        size_bytes: u64,
    ) -> Result<(), StoreError> {
        let index = self.pages.file(layer.file);
        let done = index.extend(pages::file_bytes(size_bytes));
        let done = done.and_then(|()| layer.data.file.extend(size_bytes));
        done.map_err(|error| self.io_error("make a layer longer", error))?;
        let done = index.sync().await;
        self.or_fail("make the index durable", done).await?;
        let done = layer.data.sync().await;
        self.or_fail("make the data durable", done).await
    }

    /// Makes `next` the chain, durable, and lets go of files that it doesn't use.
    pub(super) async fn commit(&self, next: Chain) -> Result<(), StoreError> {
        let (layers, _) = {
            let before = self.layers.borrow();
            open_layers(&self.storage, &next, &self.pages, Some(&before))?
        };
        let next = next.with_pages(|file| self.pages.logged(file));
        let done = self.chain.update(|_| next).await;
        self.or_fail("make the chain durable", done).await?;
        let before = self.layers.replace(layers);
        self.note_path(&before);
        let chain: Rc<Chain> = self.chain.get();
        self.intent.resize(chain.size_bytes());
        let kept: BTreeSet<u32> = chain.layers().iter().map(|layer| layer.file).collect();
        for file in before.by_id.values().map(|layer| layer.file) {
            if !kept.contains(&file) {
                self.pages.drop_file(file);
                if let Err(error) = self.remove_layer_files(file) {
                    tracing::warn!(place = self.place(), file, %error, "unused files stay");
                }
            }
        }
        Ok(())
    }

    /// What is known of the path below the head stays true after a snapshot, and if nothing of the
    /// path has changed.
    fn note_path(&self, before: &Layers<S::File>) {
        let layers = self.layers.borrow();
        let same = |new: &[Rc<OpenLayer<S::File>>]| {
            let pairs = || new.iter().zip(before.top.iter());
            new.len() == before.top.len() && pairs().all(|(new, old)| new.file == old.file)
        };
        let sealed = (same(&layers.top[1..])).then(|| before.top[0].file);
        if same(&layers.top) {
            self.pages.layers_changed();
        } else {
            self.pages.path_changed(layers.top[0].file, sealed);
        }
    }

    /// Names of the files that hold a layer's data and index.
    pub fn layer_files(&self, layer: LayerId) -> Result<(String, String), StoreError> {
        let layer = self.layer(layer)?;
        Ok((data_name(layer.file), index_name(layer.file)))
    }
}
