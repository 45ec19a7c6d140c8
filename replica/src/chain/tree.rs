//! The tree of layers, and what may be done to it.
//!
//! Owns the parent links, the operations with their ids, and the decision which layers can be
//! joined. Promises that every chain it returns is sound: one head that is a leaf and isn't
//! removed, every parent there, no cycle, at most [`LAYERS_MAX`] layers.
//!
//! ```text
//! L1 ◀── L2 ◀── L3 ◀── head        the live path: a block is looked for from right to left
//!         └◀── L4                  another branch, left behind by a revert
//! ```

mod adoption;

pub(crate) use adoption::Difference;
use serde::{Deserialize, Serialize};

use super::layer::{LayerInfo, Seal};
use crate::types::{ChainOpId, LayerId, VOLUME_BYTES_MAX, VOLUME_UNIT_BYTES};

/// Layers of one replica, the head among them. What `chain.meta` has room for.
pub const LAYERS_MAX: usize = 4096;

/// A change of the chain, the same on all replicas. Repeating it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainOp {
    /// Rises with every operation of the volume.
    pub id: ChainOpId,
    pub change: ChainChange,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainChange {
    /// The head becomes a snapshot, an empty layer the head.
    Snapshot { seal: Seal, new_head: LayerId },
    /// The head is thrown away; an empty one stands on `to`. The volume keeps its size.
    Revert { to: LayerId, new_head: LayerId },
    /// The snapshot isn't readable any more. What no other layer needs is freed by joins.
    Remove { layer: LayerId },
    /// The head grows; sealed layers keep their size.
    Expand { size_bytes: u64 },
}

/// The chain as the engine and people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainInfo {
    /// Every layer after its parent.
    pub layers: Vec<LayerInfo>,
    pub head: LayerId,
    pub last_op: ChainOpId,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("there is no {0}")]
    NoLayer(LayerId),
    #[error("{0} is the head, not a snapshot")]
    IsHead(LayerId),
    #[error("{0} was removed")]
    IsRemoved(LayerId),
    #[error("{0} exists already")]
    Exists(LayerId),
    #[error("the volume has {LAYERS_MAX} layers, no more are possible; remove snapshots")]
    TooManyLayers,
    #[error("a volume of {now} bytes can't become one of {asked}: sizes grow, by 2 MiB steps")]
    Size { now: u64, asked: u64 },
    #[error("the layers aren't a chain: {0}")]
    Unsound(String),
}

/// A layer as it is kept: what is shown of it and which files hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) id: LayerId,
    pub(crate) parent: Option<LayerId>,
    pub(crate) seal: Option<Seal>,
    pub(crate) removed: bool,
    pub(crate) size_bytes: u64,
    /// Number in the names of its files; a join may give a layer the files of its parent.
    pub(crate) file: u32,
    /// A rebuild is still copying into it.
    pub(crate) filling: bool,
    /// So many pages of its index are known to exist, at least; nothing: it is from before there
    /// were logs of them.
    #[serde(default)]
    pub(crate) pages: Option<u64>,
}

/// A join that has begun: from here on the blocks of `child` hide those of `removed` on disk too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joining {
    pub(crate) removed: LayerId,
    pub(crate) child: LayerId,
    /// Whose files stay: the larger ones.
    pub(crate) keep_files_of: LayerId,
}

/// What can be done about a removed layer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinPlan {
    /// It isn't removed, or several layers stand on it, or one that is being filled.
    Nothing,
    /// Blocks that the head hides can be freed; the rest waits for the next snapshot.
    PunchUnderHead {
        head: LayerId,
    },
    JoinWith {
        child: LayerId,
    },
}

/// The chain as it is kept in `chain.meta`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    layers: Vec<Layer>,
    head: LayerId,
    last_op: ChainOpId,
    next_file: u32,
    joining: Option<Joining>,
}

impl Chain {
    /// One empty head.
    pub fn new(head: LayerId, size_bytes: u64) -> Result<Self, ChainError> {
        let layer = Layer {
            id: head,
            parent: None,
            seal: None,
            removed: false,
            size_bytes,
            file: 1,
            filling: false,
            pages: Some(0),
        };
        Self { layers: vec![layer], head, last_op: ChainOpId(0), next_file: 2, joining: None }
            .checked()
    }

    /// Believes a chain that came from a file or a peer only if it is one.
    pub(crate) fn checked(self) -> Result<Self, ChainError> {
        let unsound = |why: String| Err(ChainError::Unsound(why));
        if self.layers.len() > LAYERS_MAX {
            return Err(ChainError::TooManyLayers);
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut files = std::collections::BTreeSet::new();
        for layer in &self.layers {
            let asked = layer.size_bytes;
            if asked == 0 || asked > VOLUME_BYTES_MAX || !asked.is_multiple_of(VOLUME_UNIT_BYTES) {
                return Err(ChainError::Size { now: 0, asked });
            }
            // Parents come first, so a link to what was seen can't close a cycle.
            if layer.parent.is_some_and(|parent| !seen.contains(&parent)) {
                return unsound(format!("the parent of {} isn't there", layer.id));
            }
            if layer.parent == Some(self.head) {
                return unsound(format!("{} stands on the head", layer.id));
            }
            if !seen.insert(layer.id) {
                return unsound(format!("{} is there twice", layer.id));
            }
            if layer.file >= self.next_file || !files.insert(layer.file) {
                return unsound(format!("{} has file {} of another one", layer.id, layer.file));
            }
            if layer.seal.is_none() != (layer.id == self.head) {
                return unsound(format!("{} is neither head nor snapshot", layer.id));
            }
        }
        match self.layers.iter().find(|layer| layer.id == self.head) {
            None => unsound(format!("the head, {}, isn't there", self.head)),
            Some(head) if head.removed => unsound("the head was removed".into()),
            Some(_) => Ok(self),
        }
    }

    pub(crate) fn head(&self) -> &Layer {
        self.layer(self.head).expect("a chain has its head")
    }
    pub fn size_bytes(&self) -> u64 {
        self.head().size_bytes
    }
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }
    /// What it holds was durable before it came to be so: sealed, filled, and touched by no join.
    pub(crate) fn is_durable(&self, layer: &Layer) -> bool {
        let joins = |join: Joining| [join.removed, join.child].contains(&layer.id);
        layer.seal.is_some() && !layer.filling && !self.joining.is_some_and(joins)
    }
    pub(crate) fn joining(&self) -> Option<Joining> {
        self.joining
    }
    pub fn last_op(&self) -> ChainOpId {
        self.last_op
    }

    pub(crate) fn layer(&self, id: LayerId) -> Result<&Layer, ChainError> {
        self.layers.iter().find(|layer| layer.id == id).ok_or(ChainError::NoLayer(id))
    }

    fn layer_mut(&mut self, id: LayerId) -> &mut Layer {
        self.layers.iter_mut().find(|layer| layer.id == id).expect("looked up before")
    }

    /// A snapshot that can be read.
    pub(crate) fn snapshot(&self, id: LayerId) -> Result<&Layer, ChainError> {
        let layer = self.layer(id)?;
        match layer {
            _ if id == self.head => Err(ChainError::IsHead(id)),
            _ if layer.removed => Err(ChainError::IsRemoved(id)),
            _ => Ok(layer),
        }
    }

    /// The layers that decide what `id` shows, newest first.
    pub(crate) fn path(&self, id: LayerId) -> impl Iterator<Item = &Layer> {
        let mut next = Some(id);
        // Parents come first: once through the layers is enough.
        self.layers.iter().rev().filter(move |layer| {
            let is_next = next == Some(layer.id);
            if is_next {
                next = layer.parent;
            }
            is_next
        })
    }

    fn children(&self, id: LayerId) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |layer| layer.parent == Some(id))
    }

    /// The chain after `op`, or `None` if it was done before.
    pub fn after(&self, op: &ChainOp) -> Result<Option<Self>, ChainError> {
        if op.id <= self.last_op {
            return Ok(None);
        }
        let mut next = self.clone();
        next.last_op = op.id;
        match &op.change {
            ChainChange::Snapshot { seal, new_head } => {
                next.layer_mut(self.head).seal = Some(seal.clone());
                next.push_head(*new_head, self.head)?;
            }
            ChainChange::Revert { to, new_head } => {
                self.snapshot(*to)?;
                next.push_head(*new_head, *to)?;
                next.layers.retain(|layer| layer.id != self.head);
            }
            ChainChange::Remove { layer } => match self.snapshot(*layer) {
                Ok(_) => next.layer_mut(*layer).removed = true,
                Err(ChainError::IsRemoved(_)) => {}
                Err(error) => return Err(error),
            },
            ChainChange::Expand { size_bytes } => {
                let (now, asked) = (self.size_bytes(), *size_bytes);
                if asked < now || asked > VOLUME_BYTES_MAX || asked % VOLUME_UNIT_BYTES != 0 {
                    return Err(ChainError::Size { now, asked });
                }
                next.layer_mut(self.head).size_bytes = asked;
            }
        }
        next.drop_leaves();
        next.checked().map(Some)
    }

    fn push_head(&mut self, id: LayerId, parent: LayerId) -> Result<(), ChainError> {
        if self.layer(id).is_ok() {
            return Err(ChainError::Exists(id));
        }
        self.layers.push(Layer {
            id,
            parent: Some(parent),
            seal: None,
            removed: false,
            size_bytes: self.size_bytes(),
            file: self.next_file,
            filling: false,
            pages: Some(0),
        });
        self.next_file += 1;
        self.head = id;
        Ok(())
    }

    /// Drops removed layers on which nothing stands any more.
    fn drop_leaves(&mut self) {
        while let Some(at) = (self.layers.iter())
            .position(|layer| layer.removed && self.children(layer.id).next().is_none())
        {
            self.layers.remove(at);
        }
        let there = |id| self.layers.iter().any(|layer| layer.id == id);
        self.joining = self.joining.filter(|join| there(join.removed) && there(join.child));
    }

    pub fn join_plan(&self, id: LayerId) -> JoinPlan {
        let Ok(layer) = self.layer(id) else { return JoinPlan::Nothing };
        let mut children = self.children(id);
        match (children.next(), children.next()) {
            (Some(child), None) if layer.removed && !layer.filling && !child.filling => {
                if child.id == self.head {
                    JoinPlan::PunchUnderHead { head: child.id }
                } else {
                    JoinPlan::JoinWith { child: child.id }
                }
            }
            _ => JoinPlan::Nothing,
        }
    }

    /// The number that the next layer's files get; all lower ones were given.
    pub(crate) fn next_file(&self) -> u32 {
        self.next_file
    }

    pub(crate) fn with_joining(&self, joining: Joining) -> Self {
        Self { joining: Some(joining), ..self.clone() }
    }

    /// The chain after the join that was begun: `removed` is gone, `child` has the files kept.
    pub(crate) fn joined(&self) -> Self {
        let joining = self.joining.expect("a join was begun");
        let mut next = self.clone();
        let removed = next.layer_mut(joining.removed).clone();
        let child = next.layer_mut(joining.child);
        child.parent = removed.parent;
        if joining.keep_files_of == joining.removed {
            child.file = removed.file;
        }
        next.layers.retain(|layer| layer.id != joining.removed);
        next.joining = None;
        next
    }

    /// `id` was sealed before a rebuild had filled it.
    pub(crate) fn with_filling(mut self, id: LayerId) -> Self {
        self.layer_mut(id).filling = true;
        self
    }

    pub(crate) fn filled(&self) -> Self {
        let mut next = self.clone();
        next.layers.iter_mut().for_each(|layer| layer.filling = false);
        next
    }

    /// Notes how many pages each file is known to have.
    pub(crate) fn with_pages(mut self, pages_of: impl Fn(u32) -> u64) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.pages = Some(pages_of(layer.file)));
        self
    }

    pub(crate) fn info(&self, data_bytes: impl Fn(LayerId) -> u64) -> ChainInfo {
        let layers = self.layers.iter().map(|layer| LayerInfo {
            id: layer.id,
            parent: layer.parent,
            seal: layer.seal.clone(),
            removed: layer.removed,
            size_bytes: layer.size_bytes,
            data_bytes: data_bytes(layer.id),
        });
        ChainInfo { layers: layers.collect(), head: self.head, last_op: self.last_op }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 << 20;

    fn done(chain: &Chain, id: u64, change: ChainChange) -> Chain {
        let op = ChainOp { id: ChainOpId(id), change };
        let next = chain.after(&op).expect("allowed").expect("new");
        assert_eq!(next.after(&op), Ok(None), "repeating changes nothing");
        next
    }

    fn snapshot(chain: &Chain, id: u64, new_head: u32) -> Chain {
        let change = ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(new_head) };
        done(chain, id, change)
    }

    fn path(chain: &Chain) -> Vec<u32> {
        chain.path(chain.head).map(|layer| layer.id.0).collect()
    }

    #[test]
    fn a_revert_leaves_the_other_branch_and_removal_of_its_leaf_drops_it() {
        let chain = Chain::new(LayerId(1), SIZE).expect("sound");
        let chain = snapshot(&snapshot(&chain, 1, 2), 2, 3);
        let chain = done(&chain, 3, ChainChange::Revert { to: LayerId(1), new_head: LayerId(4) });
        assert_eq!(path(&chain), [4, 1]);
        assert_eq!(chain.layers.len(), 3, "layer 2 is still a snapshot");
        let chain = done(&chain, 4, ChainChange::Remove { layer: LayerId(2) });
        assert_eq!(chain.layers.len(), 2);
    }

    #[test]
    fn a_removed_layer_is_joined_only_with_its_one_sealed_child() {
        let chain = Chain::new(LayerId(1), SIZE).expect("sound");
        let chain = snapshot(&chain, 1, 2);
        let chain = done(&chain, 2, ChainChange::Remove { layer: LayerId(1) });
        assert_eq!(chain.join_plan(LayerId(1)), JoinPlan::PunchUnderHead { head: LayerId(2) });
        let chain = snapshot(&chain, 3, 3);
        assert_eq!(chain.join_plan(LayerId(1)), JoinPlan::JoinWith { child: LayerId(2) });
        let begun = chain.with_joining(Joining {
            removed: LayerId(1),
            child: LayerId(2),
            keep_files_of: LayerId(1),
        });
        let joined = begun.joined().checked().expect("sound");
        assert_eq!(path(&joined), [3, 2]);
        assert_eq!(joined.layer(LayerId(2)).map(|layer| layer.file), Ok(1));
    }

    #[test]
    fn what_would_break_the_chain_is_refused_and_says_why() {
        let chain = snapshot(&Chain::new(LayerId(1), SIZE).expect("sound"), 1, 2);
        let refused = |change| chain.after(&ChainOp { id: ChainOpId(9), change });
        let head = LayerId(2);
        assert_eq!(
            refused(ChainChange::Remove { layer: head }),
            Err(ChainError::IsHead(head)),
            "the head isn't a snapshot"
        );
        assert_eq!(
            refused(ChainChange::Snapshot { seal: Seal::default(), new_head: LayerId(1) }),
            Err(ChainError::Exists(LayerId(1)))
        );
        assert!(matches!(
            refused(ChainChange::Expand { size_bytes: SIZE - VOLUME_UNIT_BYTES }),
            Err(ChainError::Size { .. })
        ));
        assert!(matches!(
            refused(ChainChange::Revert { to: LayerId(7), new_head: LayerId(3) }),
            Err(ChainError::NoLayer(LayerId(7)))
        ));
    }

    #[test]
    fn a_chain_of_a_peer_or_file_that_has_a_cycle_or_a_gap_is_refused() {
        let chain = snapshot(&Chain::new(LayerId(1), SIZE).expect("sound"), 1, 2);
        let mut cycle = chain.clone();
        cycle.layers[0].parent = Some(LayerId(2));
        assert!(matches!(cycle.checked(), Err(ChainError::Unsound(_))));
        let mut gap = chain.info(|_| 0);
        gap.layers.remove(0);
        assert!(matches!(chain.adopted(&gap, &Default::default()), Err(ChainError::Unsound(_))));
    }
}
