//! Where the target may differ: which layers, and which regions of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::super::core::Core;
use super::super::peer::{PeerState, Purpose};
use super::super::slots::{Slot, Slots};
use super::Stage;
use crate::chain::ChainInfo;
use crate::message::{Adopted, Refusal, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{LayerId, REGION_BYTES, Region};

/// The questions that are out.
#[derive(Debug)]
pub(super) struct Gathering {
    adopted: Adopted,
    /// Members that have yet to say what was written since.
    stamps_of: Slots,
    /// The member and the target that have yet to say what a layer holds.
    source: Slot,
    /// The head when they were asked.
    head: LayerId,
    occupied_of: BTreeSet<(Slot, LayerId)>,
    /// Written since the target was in sync, or marked there.
    set: BTreeSet<Region>,
    /// What the layers that may differ anywhere hold, there or here.
    occupied: BTreeMap<LayerId, BTreeSet<Region>>,
}

impl Gathering {
    pub(super) fn is_complete(&self) -> bool {
        self.stamps_of.is_empty() && self.occupied_of.is_empty()
    }

    /// Whether the answers can't become complete without `slot`. Each member alone knows all that
    /// was missed; all are asked in case one has lost its memory.
    pub(super) fn loses(&mut self, slot: Slot) -> bool {
        self.stamps_of.remove(slot);
        slot == self.source
    }
}

impl Core {
    pub(in super::super) fn rebuild_described(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        reply: Reply<()>,
    ) {
        let Reply::Chain(chain) = reply else { return self.lose_for(now, slot, &reply) };
        let Some((_, rebuild)) = self.rebuild_numbered(number) else { return };
        if let Stage::Describing { waiting, chains } = &mut rebuild.stage {
            waiting.remove(slot);
            chains.insert(slot, *chain);
        }
    }

    /// Members may have joined different layers so far. Those with the same ones can stand in for
    /// each other.
    pub(super) fn rebuild_adopts(&mut self, now: Instant, target: Slot) {
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let Stage::Describing { chains, .. } = &rebuild.stage else { return };
        let Some((first, chain)) = chains.first_key_value() else { return };
        let (first, chain) = (*first, chain.clone());
        // What a removed layer holds and what its child does is each member's own affair until it
        // is joined: only together do they show the same.
        let joins = chain.layers.iter().any(|layer| layer.removed);
        rebuild.sources =
            chains.iter().filter(|(_, other)| is_alike(other, &chain)).map(|it| *it.0).collect();
        if joins {
            rebuild.sources = [first].into_iter().collect();
        }
        rebuild.layers = chain.layers.iter().map(|layer| (layer.id, layer.size_bytes)).collect();
        rebuild.stage = Stage::Adopting { chain: chain.clone() };
        let request = Request::AdoptChain(Box::new(chain));
        self.send(now, target, Purpose::RebuildAdopt, request, None);
    }

    pub(in super::super) fn rebuild_adopted(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let Reply::Adopted(adopted) = reply else { return self.lose_for(now, slot, &reply) };
        let before = self.ios.keys().copied().collect();
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&slot) else { return };
        let Stage::Adopting { chain } = &rebuild.stage else { return };
        // Of one that was never in sync nothing is known; else what it says of itself is.
        let adopted = if rebuild.base.is_some() {
            *adopted
        } else {
            let anywhere = chain.layers.iter().map(|layer| layer.id).collect();
            Adopted { in_the_set: Vec::new(), anywhere }
        };
        rebuild.stage = Stage::Draining { before, adopted };
        self.peer_mut(slot).state = PeerState::WriteOnly;
    }

    pub(super) fn rebuild_gathers(&mut self, now: Instant, target: Slot) {
        let (members, head) = (self.live(), self.chain.head);
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let Stage::Draining { adopted, .. } = &mut rebuild.stage else { return };
        let adopted = std::mem::take(adopted);
        let Some(source) = rebuild.sources.intersection(members).iter().next() else {
            return self.lose(now, target, "no member has the chain that it was given");
        };
        let marked = !mutation::is_on(Mutation::RebuildIgnoresTargetsMarks);
        let asked = adopted.anywhere.iter().flat_map(|layer| [(source, *layer), (target, *layer)]);
        let asked: BTreeSet<_> = asked.collect();
        rebuild.stage = Stage::Gathering(Gathering {
            adopted,
            stamps_of: members,
            source,
            head,
            occupied_of: asked.clone(),
            set: if marked { rebuild.marked.clone() } else { BTreeSet::new() },
            occupied: BTreeMap::new(),
        });
        let number = rebuild.number;
        let mut after = rebuild.base;
        if mutation::is_on(Mutation::DeltaFromWrongBase) {
            after = self.generation();
        }
        for slot in members.iter() {
            let purpose = Purpose::RebuildStamps(number);
            self.send(now, slot, purpose, Request::Stamps { after }, None);
        }
        for (slot, layer) in asked {
            let purpose = Purpose::RebuildOccupied(number, layer);
            self.send(now, slot, purpose, Request::Occupied { layer }, None);
        }
    }

    pub(in super::super) fn rebuild_stamps(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        reply: Reply<()>,
    ) {
        let Reply::Occupied(regions) = reply else { return self.lose_for(now, slot, &reply) };
        let Some((_, rebuild)) = self.rebuild_numbered(number) else { return };
        if let Stage::Gathering(gathering) = &mut rebuild.stage {
            gathering.stamps_of.remove(slot);
            gathering.set.extend(regions);
        }
    }

    pub(in super::super) fn rebuild_occupied(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        layer: LayerId,
        reply: Reply<()>,
    ) {
        let Some((target, rebuild)) = self.rebuild_numbered(number) else { return };
        let Stage::Gathering(gathering) = &mut rebuild.stage else { return };
        let regions = match reply {
            Reply::Occupied(regions) => regions,
            // A change of the chain came first and dropped it.
            Reply::Refused(Refusal::Invalid { .. }) => Vec::new(),
            Reply::Refused(refusal) => {
                let reason = format!("what a layer holds can't be found out: {refusal}");
                return self.lose(now, target, &reason);
            }
            other => return self.lose_for(now, slot, &other),
        };
        gathering.occupied_of.remove(&(slot, layer));
        if slot == target {
            rebuild.occupied.extend(regions.iter().map(|region| (layer, *region)));
        }
        gathering.occupied.entry(layer).or_default().extend(regions);
    }

    /// All that will be looked at, and all that was ever written, is marked at the target first.
    pub(super) fn rebuild_marks(&mut self, now: Instant, target: Slot) {
        let size_regions = self.chain.size_bytes() / REGION_BYTES;
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let Stage::Gathering(gathering) = &mut rebuild.stage else { return };
        let layers = &rebuild.layers;
        let mut regions: BTreeSet<(LayerId, Region)> = BTreeSet::new();
        let within = |layer: LayerId, region: &Region| {
            layers.get(&layer).is_some_and(|size_bytes| region.0 < size_bytes / REGION_BYTES)
        };
        let mut add = |layer: LayerId, of: &BTreeSet<Region>| {
            let there = of.iter().copied().filter(|region| within(layer, region));
            regions.extend(there.map(|region| (layer, region)));
        };
        for layer in &gathering.adopted.in_the_set {
            add(*layer, &gathering.set);
            let both = gathering.set.iter().map(|region| (*layer, *region));
            rebuild.occupied.extend(both); // not asked: it may hold any of them
        }
        for layer in &gathering.adopted.anywhere {
            add(*layer, gathering.occupied.entry(*layer).or_default());
        }
        if gathering.adopted.anywhere.contains(&gathering.head) {
            // Settling copies to the source what only another member held then.
            add(gathering.head, &gathering.set);
        }
        let mut marks = std::mem::take(&mut gathering.set);
        marks.extend(regions.iter().map(|(_, region)| *region));
        marks.retain(|region| region.0 < size_regions);
        rebuild.total_bytes = regions.len() as u64 * REGION_BYTES;
        rebuild.regions = VecDeque::from_iter(regions);
        rebuild.stage = Stage::Marking;
        let request = Request::Mark { regions: marks.into_iter().collect() };
        self.send(now, target, Purpose::RebuildMark, request, None);
    }

    pub(in super::super) fn rebuild_marked(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if self.expect_done(now, slot, reply)
            && let Some(rebuild) = self.rebuilds.by_target.get_mut(&slot)
        {
            rebuild.stage = Stage::Copying;
            rebuild.rate = super::Rate::new(now);
        }
    }
}

/// The same layers over the same ones. What they take on the disk may differ.
fn is_alike(a: &ChainInfo, b: &ChainInfo) -> bool {
    let shape = |chain: &ChainInfo| {
        let layers = chain.layers.iter();
        layers.map(|it| (it.id, (it.parent, it.removed, it.size_bytes))).collect::<BTreeMap<_, _>>()
    };
    a.head == b.head && a.last_op == b.last_op && shape(a) == shape(b)
}
