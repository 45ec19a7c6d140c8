//! One region of one layer, until it is the same at the target.
//!
//! ```text
//! Locking ─▶ Comparing ──alike─────────────────────────▶ done
//! the head   sums here    ─▶ Fetching ─▶ Copying ──alike─▶ done
//! only       and there  ▲    what       answered by
//!                       │    differs    a digest ──differs─┐
//!                       └─────── three times at most ──────┘
//! ```
//! A member that can't read a block isn't asked again for this region; the next one is. Once all
//! were asked in vain the rebuild ends, and says why.

use std::time::Instant;

use super::super::action::{Destination, PayloadRef, TransferId};
use super::super::core::{Core, LockOwner};
use super::super::fan_out::FanOut;
use super::super::locks::{LockId, LockMode};
use super::super::peer::Purpose;
use super::super::slots::{Slot, Slots};
use super::{Rebuild, RebuildPhase, Rebuilds};
use crate::chain::index::{BlockSum, Blocks};
use crate::message::{Refusal, RegionSums, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{BLOCKS_PER_REGION, LayerId, REGION_BYTES, Region};

/// A region may be copied this often before the target is blamed for what doesn't stay.
const ATTEMPTS_MAX: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct StepId(u64);

#[derive(Debug)]
pub(super) struct Step {
    pub(super) target: Slot,
    layer: LayerId,
    region: Region,
    began: Instant,
    lock: Option<LockId>,
    phase: StepPhase,
    source: Slot,
    /// Members that couldn't read it.
    failed: Slots,
    why: Option<Refusal>,
    /// Spoiled when its rebuild has ended.
    asked: FanOut,
    transfer: Option<TransferId>,
    /// What the transfer carries.
    data_bytes: u64,
    attempts: u8,
    /// The layer isn't there any more.
    gone: bool,
}

#[derive(Debug)]
enum StepPhase {
    Locking,
    Comparing { at_source: Option<RegionSums>, at_target: Option<RegionSums> },
    Fetching,
    Copying { digest: u32 },
}

impl Core {
    // ---- the walk --------------------------------------------------------------------------

    /// Begins regions of all rebuilds in turn, as many as the throttle allows.
    pub(super) fn walk(&mut self, now: Instant) {
        self.rebuilds.throttle.forget_refusal();
        if self.rebuilds.is_idle() {
            return;
        }
        if self.chain_work.is_cutting() {
            return self.put_back_locking(now);
        }
        if !self.ios.is_empty() {
            self.rebuilds.notice_foreground(now); // one that takes long is still in use
        }
        let targets = self.rebuilds.in_turn();
        for target in &targets {
            self.rebuild_catches_up(now, *target);
        }
        let mut began = true;
        while std::mem::take(&mut began) {
            for target in &targets {
                let rebuild = self.rebuilds.by_target.get(target);
                let wants = |it: &Rebuild| {
                    matches!(it.stage, RebuildPhase::Copying) && !it.regions.is_empty()
                };
                let running = self.rebuilds.steps.len();
                if rebuild.is_some_and(wants) && self.rebuilds.throttle.admits(now, running) {
                    began |= self.begin_step(now, *target);
                }
            }
        }
    }

    /// A lock that is waited for would hold up a change of the chain behind parked writes.
    fn put_back_locking(&mut self, now: Instant) {
        let locking =
            |step: &Step| matches!(step.phase, StepPhase::Locking) && step.asked.is_over();
        let steps = self.rebuilds.steps.iter().filter(|(_, step)| locking(step));
        let ids: Vec<StepId> = steps.map(|(id, _)| *id).collect();
        for id in ids {
            let Some(step) = self.rebuilds.steps.remove(&id) else { continue };
            if let Some(rebuild) = self.rebuilds.by_target.get_mut(&step.target) {
                rebuild.regions.put_back(step.layer, step.region);
            }
            self.finish_step(now, step);
        }
    }

    fn begin_step(&mut self, now: Instant, target: Slot) -> bool {
        let live = self.live();
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return false };
        if !matches!(rebuild.stage, RebuildPhase::Copying) {
            return false;
        }
        // One that isn't settled is put off: members may differ there, and all of them are needed.
        let head = self.chain.head;
        // Settling goes on by itself, and every event comes by here.
        let is_ready = |layer, region| layer != head || !self.settle.is_unsettled(region);
        let Some((layer, region)) = rebuild.regions.take(is_ready) else { return false };
        let Some(source) = self.rebuilds.throttle.next_of(rebuild.sources.intersection(live))
        else {
            rebuild.regions.put_back(layer, region);
            return false;
        };
        let id = StepId(self.rebuilds.next_step);
        self.rebuilds.next_step += 1;
        self.rebuilds.served = Some(target);
        self.rebuilds.throttle.began();
        let step = Step {
            target,
            layer,
            region,
            began: now,
            lock: None,
            phase: StepPhase::Locking,
            source,
            failed: Slots::NONE,
            why: None,
            asked: FanOut::default(),
            transfer: None,
            data_bytes: 0,
            attempts: 0,
            gone: false,
        };
        self.rebuilds.steps.insert(id, step);
        if layer == head && !mutation::is_on(Mutation::RebuildWithoutLock) {
            let (lock, free) = self.locks.acquire(region.range(), LockMode::Exclusive);
            if let Some(step) = self.rebuilds.steps.get_mut(&id) {
                step.lock = Some(lock);
            }
            if !free {
                self.lock_owners.insert(lock, LockOwner::Rebuild(id));
                return true;
            }
        }
        self.compare(now, id);
        true
    }

    pub(in super::super) fn rebuild_locked(&mut self, now: Instant, id: StepId) {
        self.compare(now, id);
    }

    fn compare(&mut self, now: Instant, id: StepId) {
        let Some(step) = self.rebuilds.steps.get_mut(&id) else { return };
        if step.failed.contains(step.source) {
            return self.ask_another(now, id); // lost while the lock was waited for
        }
        let (layer, region) = (step.layer, step.region);
        let rebuild = self.rebuilds.by_target.get(&step.target);
        let holds = rebuild.is_none_or(|rebuild| rebuild.holds(layer, region));
        let at_target = (!holds && step.attempts == 0).then(RegionSums::absent);
        let contents = at_target.is_none();
        let mut both: Slots = [step.source].into_iter().collect();
        if at_target.is_none() {
            both.insert(step.target);
        }
        step.phase = StepPhase::Comparing { at_source: None, at_target };
        step.asked.ask(both);
        let request = Request::Sums { layer, region, contents };
        self.ask(now, both, &Purpose::RebuildStep(id), &request);
    }

    pub(in super::super) fn rebuild_step_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        id: StepId,
        reply: Reply<()>,
    ) {
        let Some(step) = self.rebuilds.steps.get_mut(&id) else { return };
        step.asked.answered(slot);
        let is_gone = self.chain.layer(step.layer).is_none();
        match step.hear(slot, reply, is_gone) {
            Heard::Noted => self.go_on(now, id),
            Heard::Copied { alike } => self.copied(now, id, alike),
            Heard::Unfit(reply) => self.lose_for(now, slot, &reply),
        }
    }

    /// All who were asked have answered, or will not any more.
    pub(super) fn go_on(&mut self, now: Instant, id: StepId) {
        let Some(step) = self.rebuilds.steps.get_mut(&id) else { return };
        if !step.asked.is_over() {
            return;
        }
        if step.asked.is_spoiled() {
            return self.drop_step(now, id);
        }
        if step.gone {
            return self.step_gone(now, id);
        }
        if step.failed.contains(step.source) {
            return self.ask_another(now, id);
        }
        match &step.phase {
            StepPhase::Locking => {}
            StepPhase::Comparing { at_source: Some(there), at_target: Some(here) } => {
                let differing = differing(there, here);
                let certain = certain(there, here);
                self.compared(now, id, differing, certain);
            }
            StepPhase::Comparing { .. } | StepPhase::Fetching => {}
            StepPhase::Copying { .. } => {
                let (target, layer, region) = (step.target, step.layer, step.region);
                let Some(transfer) = step.transfer else { return };
                step.asked.ask([target].into_iter().collect());
                let request =
                    Request::Copy { layer, region, payload: PayloadRef::Transfer(transfer) };
                self.send(now, target, Purpose::RebuildStep(id), request, None);
            }
        }
    }

    fn compared(&mut self, now: Instant, id: StepId, differing: Differing, certain: bool) {
        let transfer = self.new_transfer();
        let Some(step) = self.rebuilds.steps.get_mut(&id) else { return };
        let (source, target, layer, region) = (step.source, step.target, step.layer, step.region);
        if step.attempts == 0 {
            self.rebuilds.throttle.compared();
        }
        if differing.blocks.is_empty() {
            if certain {
                // With a member's agreement a sum that was taken from the data may be trusted.
                let request = Request::Verified { layer, region };
                self.send(now, target, Purpose::Verified, request, None);
            }
            return self.step_done(now, id);
        }
        step.attempts += 1;
        step.phase = StepPhase::Fetching;
        step.transfer = Some(transfer);
        step.data_bytes = differing.data_bytes;
        step.asked.ask([source].into_iter().collect());
        self.rebuilds.throttle.moves(differing.data_bytes);
        let request = Request::Fetch { layer, region, blocks: differing.blocks };
        let into = Some(Destination::Transfer(transfer));
        self.send(now, source, Purpose::RebuildStep(id), request, into);
    }

    /// The target says what the region is now.
    fn copied(&mut self, now: Instant, id: StepId, alike: bool) {
        let Some(step) = self.rebuilds.steps.get_mut(&id) else { return };
        let (transfer, target, attempts) = (step.transfer.take(), step.target, step.attempts);
        if let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) {
            rebuild.moved_bytes += step.data_bytes;
        }
        self.retire_transfer(transfer);
        if alike {
            self.step_done(now, id);
        } else if attempts < ATTEMPTS_MAX {
            self.compare(now, id);
        } else {
            self.lose(now, target, "it doesn't keep what is copied to it");
        }
    }

    fn ask_another(&mut self, now: Instant, id: StepId) {
        let live = self.live();
        let Some(step) = self.rebuilds.steps.get_mut(&id) else { return };
        let transfer = step.transfer.take();
        self.retire_transfer(transfer);
        let Some(step) = self.rebuilds.steps.get_mut(&id) else { return };
        let Some(rebuild) = self.rebuilds.by_target.get(&step.target) else { return };
        let others = rebuild.sources.intersection(live).without(step.failed);
        if step.layer == self.chain.head && self.settle.is_unsettled(step.region) {
            let target = step.target;
            return self.lose(now, target, "a member is back that has to be compared first");
        }
        match self.rebuilds.throttle.next_of(others) {
            Some(source) => {
                step.source = source;
                self.compare(now, id);
            }
            None => {
                let why = step.why.as_ref().map(ToString::to_string).unwrap_or_default();
                let (target, layer, region) = (step.target, step.layer, step.region);
                let reason = format!(
                    "no member can read region {} of {layer} for its rebuild: {why}",
                    region.0
                );
                self.lose(now, target, &reason);
            }
        }
    }

    // ---- ends ------------------------------------------------------------------------------

    fn step_done(&mut self, now: Instant, id: StepId) {
        let Some(step) = self.rebuilds.steps.remove(&id) else { return };
        self.rebuilds.throttle.ended(now, now.saturating_duration_since(step.began));
        if let Some(rebuild) = self.rebuilds.by_target.get_mut(&step.target) {
            rebuild.region_done(now);
        }
        self.finish_step(now, step);
    }

    fn step_gone(&mut self, now: Instant, id: StepId) {
        let Some(step) = self.rebuilds.steps.remove(&id) else { return };
        if let Some(rebuild) = self.rebuilds.by_target.get_mut(&step.target) {
            rebuild.region_gone();
        }
        self.finish_step(now, step);
    }

    fn drop_step(&mut self, now: Instant, id: StepId) {
        if let Some(step) = self.rebuilds.steps.remove(&id) {
            self.finish_step(now, step);
        }
    }

    fn finish_step(&mut self, now: Instant, step: Step) {
        self.retire_transfer(step.transfer);
        if let Some(lock) = step.lock {
            self.unlock(now, lock);
        }
    }

    /// Its rebuild has ended: what was asked runs out, what wasn't goes at once.
    pub(super) fn abandon_steps(&mut self, now: Instant, target: Slot) {
        let of_target = self.rebuilds.steps.iter_mut().filter(|(_, step)| step.target == target);
        let ids: Vec<StepId> = of_target
            .map(|(id, step)| {
                step.asked.spoil();
                step.asked.lost(target);
                *id
            })
            .collect();
        for id in ids {
            self.go_on(now, id);
        }
    }
}

/// What an answer means for its step.
enum Heard {
    Noted,
    Copied { alike: bool },
    Unfit(Reply<()>),
}

impl Step {
    /// `is_gone`: the chain doesn't have the layer any more.
    fn hear(&mut self, slot: Slot, reply: Reply<()>, is_gone: bool) -> Heard {
        if self.asked.is_spoiled() {
            return Heard::Noted;
        }
        let from_source = slot == self.source && slot != self.target;
        match (&mut self.phase, reply) {
            // Source and target take part in every change; another member may have joined more.
            (StepPhase::Comparing { .. }, Reply::Refused(Refusal::Invalid { .. })) if is_gone => {
                self.gone = true;
            }
            (StepPhase::Comparing { at_source, .. }, Reply::Sums(sums)) if from_source => {
                *at_source = Some(*sums);
            }
            (StepPhase::Comparing { at_target, .. }, Reply::Sums(sums)) => *at_target = Some(*sums),
            (StepPhase::Comparing { .. } | StepPhase::Fetching, Reply::Refused(refusal))
                if from_source && !matches!(refusal, Refusal::Failed { .. }) =>
            {
                self.failed.insert(slot);
                self.why = Some(refusal);
            }
            (StepPhase::Fetching, Reply::Digest(digest)) => {
                self.phase = StepPhase::Copying { digest };
            }
            (StepPhase::Copying { digest }, Reply::Digest(copied)) => {
                return Heard::Copied { alike: *digest == copied };
            }
            (_, reply) => return Heard::Unfit(reply),
        }
        Heard::Noted
    }
}

impl Rebuilds {
    /// Nothing comes from `slot` any more. Returns the steps that waited for it.
    pub(super) fn expect_no_more_of(&mut self, slot: Slot) -> Vec<StepId> {
        let mut held_up = Vec::new();
        for (id, step) in &mut self.steps {
            if slot == step.source {
                step.failed.insert(slot);
            }
            if step.asked.lost(slot) {
                held_up.push(*id);
            }
        }
        held_up
    }
}

struct Differing {
    blocks: Blocks,
    /// Of those that hold data at the source.
    data_bytes: u64,
}

fn differing(there: &RegionSums, here: &RegionSums) -> Differing {
    let mut blocks = Blocks::NONE;
    let mut data_bytes = 0;
    for slot in 0..BLOCKS_PER_REGION as usize {
        if !there.is_like(slot, here) {
            blocks.put(slot, true);
            let has_data = matches!(there.blocks[slot], BlockSum::Data { .. });
            data_bytes += if has_data { REGION_BYTES / BLOCKS_PER_REGION } else { 0 };
        }
    }
    Differing { blocks, data_bytes }
}

/// The target doubts sums of which the source is sure.
fn certain(there: &RegionSums, here: &RegionSums) -> bool {
    let doubted = here.blocks.iter().any(|sum| sum.is_unverified());
    doubted && !there.blocks.iter().any(|sum| sum.is_unverified())
}
