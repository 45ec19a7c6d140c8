//! How a replica that was away takes over the members' chain and keeps what it holds.
//!
//! Owns the decision which of its layers stay, and where they may differ. It trusts one fact: in a
//! region that isn't in the rebuild's *set* (stamped by a member after this replica was last in
//! sync, or marked here) nobody has written since. There, layers that came later hold nothing of
//! their own, and only joins have moved what older ones held.
//!
//! | here | at the members | may differ |
//! | --- | --- | --- |
//! | sealed | sealed by the same cut | nowhere |
//! | sealed | the head, or sealed by another cut | anywhere |
//! | the head | there | in the set |
//! | sealed | removed, and to be joined with a sealed one; or that one | anywhere: either replica may have moved a part |
//! | there, or not | removed, under the head | in the set: what a removed layer's child hides may be freed |
//! | between two layers that stay | joined upwards | joined here too, then compared everywhere |
//! | being filled, or it holds nothing | there | anywhere |
//! | on no way to a layer that stays | gone | dropped |
//!
//! A cut is known by its layer's number and the generation of the engine that made it. The number
//! alone won't do: the last change that this replica took part in may have been made by nobody
//! else, since its engine died, and the next engine gave the same number to another cut.

use std::collections::{BTreeMap, BTreeSet};

use super::{Chain, ChainError, ChainInfo, Layer};
use crate::chain::{LayerInfo, Seal};
use crate::mutation::{self, Mutation};
use crate::types::LayerId;

/// Where a layer that stays may differ from the members' one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    Nowhere,
    InTheSet,
    Anywhere,
}

#[derive(Debug)]
pub(crate) struct Adoption {
    /// The chain in which `joins` have to be done first, if there are any.
    pub(crate) prepared: Option<Chain>,
    /// Removed layers that the members have joined, newest first.
    pub(crate) joins: Vec<LayerId>,
    /// Of the layers that stay.
    pub(crate) differences: BTreeMap<LayerId, Difference>,
}

impl Chain {
    /// What it takes to become `info`.
    pub(crate) fn adoption(&self, info: &ChainInfo) -> Adoption {
        let stays = |layer: &&Layer| info.layer(layer.id).is_some();
        let kept: Vec<&Layer> = self.layers.iter().filter(stays).collect();
        let mut joined: BTreeMap<LayerId, Vec<LayerId>> = BTreeMap::new();
        for layer in &kept {
            let below = self.path(layer.id).skip(1);
            let gone = below.take_while(|below| info.layer(below.id).is_none());
            joined.insert(layer.id, gone.map(|layer| layer.id).collect());
        }
        let in_joins = layers_in_joins(info);
        let difference = |layer: &Layer| {
            let theirs = info.layer(layer.id)?;
            let is_head = layer.id == self.head;
            let resized = layer.size_bytes != theirs.size_bytes && !is_head;
            let is_unlike = layer.filling || resized || !joined[&layer.id].is_empty();
            Some(if is_unlike || in_joins.contains(&layer.id) {
                Difference::Anywhere
            } else if is_head || layer.removed || theirs.removed {
                Difference::InTheSet
            } else if same_cut(layer, theirs) {
                Difference::Nowhere
            } else {
                Difference::Anywhere
            })
        };
        let differences =
            kept.iter().filter_map(|layer| Some((layer.id, difference(layer)?))).collect();
        // Under a head nothing is joined; what two layers stand on isn't either.
        let mut users: BTreeMap<LayerId, u32> = BTreeMap::new();
        joined.values().flatten().for_each(|below| *users.entry(*below).or_default() += 1);
        let joins: Vec<LayerId> = joined
            .iter()
            .filter(|(id, _)| **id != info.head)
            .flat_map(|(_, below)| below.iter().copied())
            .filter(|below| users[below] == 1)
            .collect();
        let unlike = |id: &LayerId| joined.get(id).is_some_and(|below| !below.is_empty());
        let prepared = (!joins.is_empty()).then(|| self.prepared(info, &kept, &joins, unlike));
        Adoption { prepared, joins, differences }
    }

    /// What stays and what is to be joined into it; the head is sealed if the members' one is. A
    /// crash may leave it so: what isn't equal yet must not pass for the members' cut.
    fn prepared(
        &self,
        info: &ChainInfo,
        kept: &[&Layer],
        joins: &[LayerId],
        unlike: impl Fn(&LayerId) -> bool,
    ) -> Self {
        let there: BTreeSet<LayerId> =
            kept.iter().map(|layer| layer.id).chain(joins.iter().copied()).collect();
        let mut next = self.clone();
        next.layers.retain(|layer| there.contains(&layer.id));
        for layer in &mut next.layers {
            let mut above = self.path(layer.id).skip(1);
            layer.parent = above.find(|below| there.contains(&below.id)).map(|below| below.id);
            layer.removed |= joins.contains(&layer.id);
            if layer.id == self.head && layer.id != info.head {
                layer.seal = info.layer(layer.id).and_then(|theirs| theirs.seal.clone());
            }
            if let Some(seal) = &mut layer.seal
                && (layer.id == self.head || unlike(&layer.id))
            {
                seal.generation = None;
            }
        }
        if !there.contains(&info.head) {
            let parent = Some(self.head).filter(|head| there.contains(head));
            let size_bytes = info.size_bytes();
            next.layers.push(empty(info.head, parent, size_bytes, next.next_file));
            next.next_file += 1;
        }
        next.head = info.head;
        next.keep_joining();
        next
    }

    /// The members' chain. What stays keeps its files; the rest is empty, and to be filled.
    pub(crate) fn adopted(
        &self,
        info: &ChainInfo,
        differences: &BTreeMap<LayerId, Difference>,
    ) -> Result<Self, ChainError> {
        let mut next = Self {
            layers: Vec::new(),
            head: info.head,
            last_op: info.last_op,
            next_file: self.next_file,
            joining: self.joining,
        };
        for theirs in &info.layers {
            let kept = differences.get(&theirs.id).zip(self.layer(theirs.id).ok());
            let (file, filling, pages) = match kept {
                Some((difference, layer)) => {
                    let is_head = theirs.id == info.head;
                    let differs = *difference != Difference::Nowhere;
                    (layer.file, layer.filling || differs && !is_head, layer.pages)
                }
                None => {
                    next.next_file += 1;
                    (next.next_file - 1, true, Some(0))
                }
            };
            next.layers.push(Layer {
                id: theirs.id,
                parent: theirs.parent,
                seal: theirs.seal.clone(),
                removed: theirs.removed,
                size_bytes: theirs.size_bytes,
                file,
                filling,
                pages,
            });
        }
        next.keep_joining();
        next.checked()
    }

    /// A join that a crash interrupted goes on only between layers that nobody fills.
    fn keep_joining(&mut self) {
        let whole = |id| self.layer(id).is_ok_and(|layer| !layer.filling);
        self.joining = self.joining.filter(|join| whole(join.removed) && whole(join.child));
    }
}

/// Removed layers and those with which they are joined, as far as that has begun anywhere.
fn layers_in_joins(info: &ChainInfo) -> BTreeSet<LayerId> {
    let removed = info.layers.iter().filter(|layer| layer.removed);
    let removed: BTreeSet<LayerId> = removed.map(|layer| layer.id).collect();
    let sealed = info.layers.iter().filter(|layer| layer.id != info.head);
    let joins = sealed.filter_map(|layer| Some((layer.id, layer.parent?)));
    let joins = joins.filter(|(_, below)| removed.contains(below));
    joins.flat_map(|(layer, below)| [layer, below]).collect()
}

fn same_cut(here: &Layer, there: &LayerInfo) -> bool {
    if mutation::is_on(Mutation::AnyCutAdopted) {
        return here.seal.is_some() && there.seal.is_some();
    }
    let cut = |seal: &Option<Seal>| seal.as_ref()?.generation;
    cut(&here.seal).is_some_and(|here| Some(here) == cut(&there.seal))
}

fn empty(id: LayerId, parent: Option<LayerId>, size_bytes: u64, file: u32) -> Layer {
    Layer {
        id,
        parent,
        seal: None,
        removed: false,
        size_bytes,
        file,
        filling: true,
        pages: Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ChainChange, ChainOp};
    use super::*;
    use crate::chain::Joining;
    use crate::types::{ChainOpId, Generation};

    const SIZE: u64 = 4 << 20;

    fn after(chain: &Chain, change: ChainChange) -> Chain {
        let op = ChainOp { id: ChainOpId(chain.last_op.0 + 1), change };
        chain.after(&op).expect("allowed").expect("new")
    }

    fn snapshot(chain: &Chain) -> Chain {
        snapshot_in(Generation::FIRST, chain)
    }

    fn snapshot_in(generation: Generation, chain: &Chain) -> Chain {
        let seal = Seal { generation: Some(generation), ..Seal::default() };
        after(chain, ChainChange::Snapshot { seal, new_head: LayerId(chain.head.0 + 1) })
    }

    fn remove(chain: &Chain, layer: u32) -> Chain {
        after(chain, ChainChange::Remove { layer: LayerId(layer) })
    }

    fn joined(chain: &Chain, removed: u32, child: u32) -> Chain {
        let (removed, child) = (LayerId(removed), LayerId(child));
        chain.with_joining(Joining { removed, child, keep_files_of: child }).joined()
    }

    fn fates(mine: &Chain, theirs: &Chain) -> Vec<(u32, Difference)> {
        let adoption = mine.adoption(&theirs.info(|_| 0));
        adoption.differences.into_iter().map(|(id, difference)| (id.0, difference)).collect()
    }

    /// Layers 1 and 2 sealed, 3 the head.
    fn three() -> Chain {
        snapshot(&snapshot(&Chain::new(LayerId(1), SIZE).expect("sound")))
    }

    use Difference::{Anywhere, InTheSet, Nowhere};

    #[test]
    fn what_was_sealed_while_in_sync_is_kept_and_the_head_of_then_is_caught_up() {
        let fates = fates(&three(), &snapshot(&three()));
        assert_eq!(fates, [(1, Nowhere), (2, Nowhere), (3, InTheSet)]);
    }

    /// A snapshot that only the absent replica made: another engine gave its number to another cut.
    #[test]
    fn a_seal_of_another_engine_is_not_believed() {
        assert_eq!(fates(&snapshot(&three()), &three())[2], (3, Anywhere));
        let theirs = snapshot_in(Generation::FIRST.next(), &three());
        assert_eq!(
            fates(&snapshot(&three()), &theirs),
            [(1, Nowhere), (2, Nowhere), (3, Anywhere), (4, InTheSet)]
        );
    }

    #[test]
    fn a_layer_that_was_joined_meanwhile_is_joined_here_too_and_then_compared() {
        let theirs = joined(&remove(&snapshot(&three()), 2), 2, 3);
        let mine = three();
        let info = theirs.info(|_| 0);
        let adoption = mine.adoption(&info);
        assert_eq!(adoption.joins, [LayerId(2)]);
        assert_eq!(adoption.differences[&LayerId(3)], Anywhere);
        let prepared = adoption.prepared.expect("there is a join").checked().expect("sound");
        let plan = prepared.join_plan(LayerId(2));
        assert_eq!(plan, crate::chain::JoinPlan::JoinWith { child: LayerId(3) });
        let next = joined(&prepared, 2, 3).adopted(&info, &adoption.differences).expect("sound");
        assert_eq!(next.info(|_| 0), info);
        assert_eq!(next.layer(LayerId(3)).map(|layer| layer.filling), Ok(true));
        assert_eq!(next.layer(LayerId(1)).map(|layer| layer.filling), Ok(false));
    }

    /// The joins are done, and then there is no room for a new layer: the next adoption finds
    /// nothing to join.
    #[test]
    fn what_was_joined_here_is_compared_also_if_the_adoption_broke_off() {
        let theirs = joined(&remove(&snapshot(&three()), 2), 2, 3).info(|_| 0);
        let prepared = three().adoption(&theirs).prepared.expect("there is a join");
        let broken_off = joined(&prepared.checked().expect("sound"), 2, 3);
        let again = broken_off.adoption(&theirs);
        assert!(again.joins.is_empty());
        assert_eq!(again.differences[&LayerId(3)], Anywhere);
        assert_eq!(again.differences[&LayerId(1)], Nowhere);
    }

    /// On a full disk a join frees what it has moved: of two replicas one has a block in the removed
    /// layer, the other in its child. Taking over only one of the two layers would lose it.
    #[test]
    fn layers_between_which_a_join_may_be_under_way_are_compared_everywhere() {
        let four = snapshot(&three());
        assert_eq!(
            fates(&four, &remove(&four, 2)),
            [(1, Nowhere), (2, Anywhere), (3, Anywhere), (4, InTheSet)]
        );
        // Under the head nothing is moved.
        assert_eq!(
            fates(&four, &remove(&four, 3)),
            [(1, Nowhere), (2, Nowhere), (3, InTheSet), (4, InTheSet)]
        );
    }

    #[test]
    fn after_a_revert_the_old_head_is_dropped() {
        let theirs = after(&three(), ChainChange::Revert { to: LayerId(1), new_head: LayerId(4) });
        let info = theirs.info(|_| 0);
        let adoption = three().adoption(&info);
        assert!(adoption.joins.is_empty());
        let next = three().adopted(&info, &adoption.differences).expect("sound");
        assert_eq!(next.info(|_| 0), info);
    }

    /// What a rebuild that was interrupted had begun to fill isn't whole, sealed or not.
    #[test]
    fn a_layer_that_was_being_filled_is_compared_everywhere() {
        let empty = Chain::new(LayerId(1), SIZE).expect("sound");
        let info = three().info(|_| 0);
        let first = empty.adoption(&info);
        let begun = empty.adopted(&info, &first.differences).expect("sound");
        assert_eq!(fates(&begun, &three()), [(1, Anywhere), (2, Anywhere), (3, Anywhere)]);
    }
}
