//! Where the target may differ: which layers, and which regions of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::super::core::Core;
use super::super::peer::{PeerState, Purpose};
use super::super::slots::{Slot, Slots};
use super::todo::Todo;
use super::{Rate, RebuildPhase};
use crate::chain::ChainInfo;
use crate::message::{Adopted, MARK_REGIONS_MAX, Refusal, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::regions::{RegionPage, RegionSet};
use crate::types::{Generation, LayerId, REGION_BYTES, Region};

/// The questions that are out.
#[derive(Debug)]
pub(super) struct Gathering {
    adopted: Adopted,
    /// Members that have yet to say what was written after this generation.
    stamps_of: Slots,
    after: Option<Generation>,
    /// The member that says what its layers hold; so does the target.
    source: Slot,
    /// The head when they were asked.
    head: LayerId,
    /// Layers of which that is still to be said. Each is asked for the first of them.
    occupied_of: BTreeMap<Slot, VecDeque<LayerId>>,
    /// Written since the target was in sync, or marked there.
    set: RegionSet,
    /// What the layers that may differ anywhere hold, there or here.
    occupied: BTreeMap<LayerId, RegionSet>,
}

impl Gathering {
    pub(super) fn is_complete(&self) -> bool {
        self.stamps_of.is_empty() && self.occupied_of.values().all(VecDeque::is_empty)
    }

    /// Whether the answers can't become complete without `slot`. Each member alone knows all that
    /// was missed; all are asked in case one has lost its memory.
    pub(super) fn loses(&mut self, slot: Slot) -> bool {
        self.stamps_of.remove(slot);
        slot == self.source
    }
}

impl Core {
    /// What the target has marked from a region on.
    pub(super) fn rebuild_asks_target(
        &mut self,
        now: Instant,
        target: Slot,
        number: u64,
        from: Region,
    ) {
        let purpose = Purpose::RebuildMarks(number, from);
        self.send(now, target, purpose, Request::Marked { from }, None);
    }

    pub(in super::super) fn rebuild_target_marks(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        from: Region,
        reply: Reply<()>,
    ) {
        let Some(page) = self.expect_page(now, slot, from, reply) else { return };
        let Some((target, rebuild)) = self.rebuild_numbered(number) else { return };
        rebuild.marked.add(&page.regions);
        match (page.next, &mut rebuild.stage) {
            (Some(next), _) => self.rebuild_asks_target(now, target, number, next),
            (None, RebuildPhase::Describing { marks_told, .. }) => *marks_told = true,
            (None, _) => {}
        }
    }

    pub(in super::super) fn rebuild_described(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        reply: Reply<()>,
    ) {
        let Reply::Chain(chain) = reply else { return self.lose_for(now, slot, &reply) };
        let Some((_, rebuild)) = self.rebuild_numbered(number) else { return };
        if let RebuildPhase::Describing { asked, chains, .. } = &mut rebuild.stage {
            asked.answered(slot);
            chains.insert(slot, *chain);
        }
    }

    /// Members may have joined different layers so far. Those with the same ones can stand in for
    /// each other.
    pub(super) fn rebuild_adopts(&mut self, now: Instant, target: Slot) {
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let RebuildPhase::Describing { chains, .. } = &rebuild.stage else { return };
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
        rebuild.stage = RebuildPhase::Adopting { chain: chain.clone() };
        let request = Request::AdoptChain(Box::new(chain));
        self.send(now, target, Purpose::RebuildAdopt, request, None);
    }

    pub(in super::super) fn rebuild_adopted(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let Reply::Adopted(adopted) = reply else { return self.lose_for(now, slot, &reply) };
        let before = self.ios.keys().copied().collect();
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&slot) else { return };
        let RebuildPhase::Adopting { chain } = &rebuild.stage else { return };
        // Of one that was never in sync nothing is known; else what it says of itself is.
        let adopted = if rebuild.base.is_some() {
            *adopted
        } else {
            let anywhere = chain.layers.iter().map(|layer| layer.id).collect();
            Adopted { in_the_set: Vec::new(), anywhere }
        };
        rebuild.stage = RebuildPhase::Draining { before, adopted };
        self.peer_mut(slot).state = PeerState::WriteOnly;
    }

    pub(super) fn rebuild_gathers(&mut self, now: Instant, target: Slot) {
        let (members, head, generation) = (self.live(), self.chain.head, self.generation());
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let RebuildPhase::Draining { adopted, .. } = &mut rebuild.stage else { return };
        let adopted = std::mem::take(adopted);
        let Some(source) = rebuild.sources.intersection(members).iter().next() else {
            return self.lose(now, target, "no member has the chain that it was given");
        };
        let marked = !mutation::is_on(Mutation::RebuildIgnoresTargetsMarks);
        let from_now = mutation::is_on(Mutation::DeltaFromWrongBase);
        let (number, after) = (rebuild.number, if from_now { generation } else { rebuild.base });
        let layers: VecDeque<LayerId> = adopted.anywhere.iter().copied().collect();
        rebuild.stage = RebuildPhase::Gathering(Gathering {
            adopted,
            stamps_of: members,
            after,
            source,
            head,
            occupied_of: [source, target].map(|slot| (slot, layers.clone())).into(),
            set: if marked { rebuild.marked.clone() } else { RegionSet::new() },
            occupied: BTreeMap::new(),
        });
        for slot in members.iter() {
            self.ask_stamps(now, slot, number, after, Region(0));
        }
        if let Some(layer) = layers.front() {
            self.ask_occupied(now, source, (number, *layer, Region(0)));
            self.ask_occupied(now, target, (number, *layer, Region(0)));
        }
    }

    fn ask_stamps(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        after: Option<Generation>,
        from: Region,
    ) {
        let purpose = Purpose::RebuildStamps(number, from);
        self.send(now, slot, purpose, Request::Stamps { after, from }, None);
    }

    /// Asks, for the rebuild of this number, what a layer holds from a region on.
    fn ask_occupied(&mut self, now: Instant, slot: Slot, asked: (u64, LayerId, Region)) {
        let (number, layer, from) = asked;
        let purpose = Purpose::RebuildOccupied(number, layer, from);
        self.send(now, slot, purpose, Request::Occupied { layer, from }, None);
    }

    pub(in super::super) fn rebuild_stamps(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        from: Region,
        reply: Reply<()>,
    ) {
        let Some(page) = self.expect_page(now, slot, from, reply) else { return };
        let Some((_, rebuild)) = self.rebuild_numbered(number) else { return };
        let RebuildPhase::Gathering(gathering) = &mut rebuild.stage else { return };
        gathering.set.add(&page.regions);
        match page.next {
            Some(next) => {
                let after = gathering.after;
                self.ask_stamps(now, slot, number, after, next);
            }
            None => gathering.stamps_of.remove(slot),
        }
    }

    pub(in super::super) fn rebuild_occupied(
        &mut self,
        now: Instant,
        slot: Slot,
        (number, layer, from): (u64, LayerId, Region),
        reply: Reply<()>,
    ) {
        let Some((target, _)) = self.rebuild_numbered(number) else { return };
        let page = match reply {
            // A change of the chain came first and dropped it.
            Reply::Refused(Refusal::Invalid { .. }) => RegionPage::default(),
            Reply::Refused(refusal) => {
                let reason = format!("what a layer holds can't be found out: {refusal}");
                return self.lose(now, target, &reason);
            }
            other => match self.expect_page(now, slot, from, other) {
                Some(page) => page,
                None => return,
            },
        };
        let Some((_, rebuild)) = self.rebuild_numbered(number) else { return };
        let RebuildPhase::Gathering(gathering) = &mut rebuild.stage else { return };
        if slot == target {
            rebuild.occupied.entry(layer).or_default().add(&page.regions);
        }
        gathering.occupied.entry(layer).or_default().add(&page.regions);
        let next = match page.next {
            Some(next) => Some((layer, next)),
            None => {
                let layers = gathering.occupied_of.entry(slot).or_default();
                layers.pop_front();
                layers.front().map(|layer| (*layer, Region(0)))
            }
        };
        if let Some((layer, from)) = next {
            self.ask_occupied(now, slot, (number, layer, from));
        }
    }

    /// All that will be looked at, and all that was ever written, is marked at the target first.
    pub(super) fn rebuild_marks(&mut self, now: Instant, target: Slot) {
        let size_regions = self.chain.size_bytes() / REGION_BYTES;
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let RebuildPhase::Gathering(gathering) = &mut rebuild.stage else { return };
        let Gathering { adopted, head, set, occupied, .. } = gathering;
        let mut regions: BTreeMap<LayerId, RegionSet> = BTreeMap::new();
        for layer in &adopted.in_the_set {
            regions.entry(*layer).or_default().add(set);
            // Not asked: it may hold any of them.
            rebuild.occupied.entry(*layer).or_default().add(set);
        }
        for layer in &adopted.anywhere {
            let there = occupied.remove(layer).unwrap_or_default();
            regions.entry(*layer).or_default().add(&there);
        }
        if adopted.anywhere.contains(head) {
            // Settling copies to the source what only another member held then.
            regions.entry(*head).or_default().add(set);
        }
        let mut marks = std::mem::take(set);
        for (layer, regions) in &mut regions {
            let size_bytes = rebuild.layers.get(layer).copied().unwrap_or(0);
            regions.truncate(size_bytes / REGION_BYTES);
            marks.add(regions);
        }
        marks.truncate(size_regions);
        rebuild.regions = Todo::new(regions);
        rebuild.total_bytes = rebuild.regions.len() * REGION_BYTES;
        rebuild.stage = RebuildPhase::Marking { marks, next: Some(Region(0)) };
        self.rebuild_marks_on(now, target);
    }

    /// The next of them, or on to the copying.
    fn rebuild_marks_on(&mut self, now: Instant, target: Slot) {
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let RebuildPhase::Marking { marks, next } = &mut rebuild.stage else { return };
        let page = next.map(|from| RegionPage::of(marks.from(from), MARK_REGIONS_MAX));
        match page {
            Some(page) if !page.regions.is_empty() => {
                *next = page.next;
                let request = Request::Mark { regions: page.regions };
                self.send(now, target, Purpose::RebuildMark, request, None);
            }
            _ => {
                rebuild.stage = RebuildPhase::Copying;
                rebuild.rate = Rate::new(now);
            }
        }
    }

    pub(in super::super) fn rebuild_marked(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if self.expect_done(now, slot, reply) {
            self.rebuild_marks_on(now, slot);
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
