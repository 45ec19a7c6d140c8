//! A replica that isn't in the set is filled while the volume goes on.
//!
//! ```text
//! Describing ─▶ Adopting ─▶ Draining ─▶ Copying ─▶ CatchingUp ─▶ MakingReady ─▶ Adding ─▶ member
//! the source's  takes the   writes from  layers, the  confirms what  fdatasync   the
//! chain         layers,     before are   head under   was answered   of all      arbiter
//!               empty       in           the lock     without it                 records it
//! ```
//! From `Draining` on the target takes every new write and change of the chain, so what is copied
//! under the lock is all that it lacks. Every region is compared after it was copied. From
//! `CatchingUp` on every acknowledgement needs the target too. If the target or the source is
//! lost, the rebuild is given up and begins anew. A snapshot in the middle seals the layer that was
//! being copied: it goes on as a sealed one, and the new head needs no copying.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::action::{Action, Destination, Payload, TransferId};
use super::core::{Core, LockOwner, Phase};
use super::locks::{LockId, LockMode};
use super::peer::{PeerState, Purpose};
use super::slots::Slot;
use crate::chain::index::Blocks;
use crate::message::{Reply, Request};
use crate::types::{Incarnation, LayerId, REGION_BYTES, Region};

/// Regions on their way at once: bounds memory, and what foreground I/O has to wait behind.
const WINDOW: usize = 4;

#[derive(Debug)]
pub(super) struct Rebuild {
    number: u64,
    pub(super) target: Slot,
    incarnation: Incarnation,
    source: Slot,
    stage: Stage,
    layers: VecDeque<LayerId>,
    regions: VecDeque<(LayerId, Region)>,
    running: BTreeMap<(LayerId, Region), Step>,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) started: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Describing,
    Adopting,
    /// Writes that were sent before the target took any.
    Draining(BTreeSet<super::action::IoId>),
    Counting {
        waiting: usize,
    },
    Copying,
    /// The target has yet to confirm writes that were acknowledged without it: its sync would miss
    /// them, and a flush that was answered before covers them.
    CatchingUp,
    MakingReady,
    Adding {
        asked: bool,
    },
}

/// A fetch of a rebuild that was given up: its range stays locked until the source has answered, so
/// that no write overlaps it there.
#[derive(Debug)]
pub(super) struct LateFetch {
    from: Slot,
    lock: Option<LockId>,
}

#[derive(Debug)]
struct Step {
    lock: Option<LockId>,
    transfer: Option<TransferId>,
    digest: Option<u32>,
    attempts: u8,
}

impl Core {
    pub(super) fn drive_rebuild(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        let steady = self.is_steady();
        match self.rebuild.as_mut().map(|rebuild| &mut rebuild.stage) {
            None => self.start_rebuild(now),
            Some(Stage::Draining(before)) => {
                before.retain(|io| self.ios.contains_key(io));
                if before.is_empty() {
                    self.count_regions(now);
                }
            }
            Some(Stage::Copying) => self.copy_on(now),
            Some(Stage::CatchingUp) => self.make_ready(now),
            Some(Stage::Adding { asked: false }) if steady => {
                let rebuild = self.rebuild.as_mut().expect("matched above");
                rebuild.stage = Stage::Adding { asked: true };
                let members = self.next_set();
                self.swap(members);
            }
            Some(_) => {}
        }
    }

    fn start_rebuild(&mut self, now: Instant) {
        let found = |peer: &super::peer::Peer| {
            peer.in_set.is_none() && peer.wanted && peer.welcome().is_some()
        };
        let Some(target) = self.slots_where(found).iter().next() else { return };
        let quiet = self.is_steady()
            && self.settle.is_done()
            && self.chain_work.is_idle()
            && self.promoting.is_none();
        let Some(source) = self.live().iter().next().filter(|_| quiet) else { return };
        let incarnation = self.peer(target).welcome().expect("found by it").incarnation;
        self.rebuilds += 1;
        let number = self.rebuilds;
        self.rebuild = Some(Rebuild {
            number,
            target,
            incarnation,
            source,
            stage: Stage::Describing,
            layers: VecDeque::new(),
            regions: VecDeque::new(),
            running: BTreeMap::new(),
            done_bytes: 0,
            total_bytes: 0,
            started: now,
        });
        let purpose = Purpose::RebuildDescribe(number);
        self.send(now, source, purpose, Request::DescribeChain, None);
    }

    /// The rebuild with this number, if it hasn't been given up.
    fn rebuild_numbered(&mut self, number: u64) -> Option<&mut Rebuild> {
        self.rebuild.as_mut().filter(|rebuild| rebuild.number == number)
    }

    pub(super) fn rebuild_described(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        reply: Reply<()>,
    ) {
        let Reply::Chain(chain) = reply else { return self.lose_for(now, slot, &reply) };
        let Some(rebuild) = self.rebuild_numbered(number) else { return };
        rebuild.stage = Stage::Adopting;
        rebuild.layers = chain.layers.iter().map(|layer| layer.id).collect();
        let target = rebuild.target;
        self.send(now, target, Purpose::RebuildAdopt, Request::AdoptChain(chain), None);
    }

    pub(super) fn rebuild_adopted(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if !self.expect_done(now, slot, reply) {
            return;
        }
        let before = self.ios.keys().copied().collect();
        let Some(rebuild) = &mut self.rebuild else { return };
        rebuild.stage = Stage::Draining(before);
        self.peer_mut(slot).state = PeerState::WriteOnly;
    }

    fn count_regions(&mut self, now: Instant) {
        let Some(rebuild) = &mut self.rebuild else { return };
        let (source, number) = (rebuild.source, rebuild.number);
        let layers = std::mem::take(&mut rebuild.layers);
        rebuild.stage = Stage::Counting { waiting: layers.len() };
        for layer in layers {
            let purpose = Purpose::RebuildOccupied(number, layer);
            self.send(now, source, purpose, Request::Occupied { layer }, None);
        }
    }

    pub(super) fn rebuild_occupied(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        layer: LayerId,
        reply: Reply<()>,
    ) {
        let Some(rebuild) = self.rebuild_numbered(number) else { return };
        let regions = match reply {
            Reply::Occupied(regions) => regions,
            Reply::Refused(refusal) => {
                // The chain has changed meanwhile: the source is sound, the rebuild begins anew.
                let target = rebuild.target;
                return self.lose(now, target, &format!("the rebuild's source: {refusal}"));
            }
            other => return self.lose_for(now, slot, &other),
        };
        rebuild.total_bytes += regions.len() as u64 * REGION_BYTES;
        rebuild.regions.extend(regions.into_iter().map(|region| (layer, region)));
        if let Stage::Counting { waiting } = &mut rebuild.stage {
            *waiting -= 1;
            if *waiting == 0 {
                rebuild.stage = Stage::Copying;
            }
        }
    }

    // ---- the walk --------------------------------------------------------------------------

    fn copy_on(&mut self, now: Instant) {
        while let Some(rebuild) = &mut self.rebuild {
            if rebuild.running.len() >= WINDOW {
                return;
            }
            let Some((layer, region)) = rebuild.regions.pop_front() else { break };
            let step = Step { lock: None, transfer: None, digest: None, attempts: 0 };
            rebuild.running.insert((layer, region), step);
            if layer == self.chain.head {
                let range = region.range();
                let (lock, free) = self.locks.acquire(range, LockMode::Exclusive);
                self.lock_owners.insert(lock, LockOwner::Rebuild(layer, region));
                self.rebuild_step(layer, region, |step| step.lock = Some(lock));
                if !free {
                    continue;
                }
                self.lock_owners.remove(&lock);
            }
            self.rebuild_fetch(now, layer, region);
        }
        let Some(rebuild) = &mut self.rebuild else { return };
        if rebuild.running.is_empty() {
            rebuild.stage = Stage::CatchingUp;
            let target = rebuild.target;
            self.promoting = Some(target);
            self.need_also(target);
            self.make_ready(now);
        }
    }

    fn make_ready(&mut self, now: Instant) {
        let Some(rebuild) = &mut self.rebuild else { return };
        let target = rebuild.target;
        if self.ios.values().any(|io| io.answered && io.unconfirmed.contains(target)) {
            return;
        }
        rebuild.stage = Stage::MakingReady;
        let generation = self.generation().expect("the volume was opened");
        self.send(now, target, Purpose::Ready, Request::Ready { generation }, None);
    }

    pub(super) fn rebuild_locked(&mut self, now: Instant, layer: LayerId, region: Region) {
        self.rebuild_fetch(now, layer, region);
    }

    fn rebuild_step(&mut self, layer: LayerId, region: Region, set: impl FnOnce(&mut Step)) {
        if let Some(rebuild) = &mut self.rebuild
            && let Some(step) = rebuild.running.get_mut(&(layer, region))
        {
            set(step);
        }
    }

    fn rebuild_fetch(&mut self, now: Instant, layer: LayerId, region: Region) {
        let Some(rebuild) = &self.rebuild else { return };
        let source = rebuild.source;
        let transfer = self.new_transfer();
        self.rebuild_step(layer, region, |step| {
            step.transfer = Some(transfer);
            step.digest = None;
        });
        let request = Request::Fetch { layer, region, blocks: Blocks::ALL };
        let into = Some(Destination::Transfer(transfer));
        let purpose = Purpose::RebuildFetch(layer, region, transfer);
        self.send(now, source, purpose, request, into);
    }

    pub(super) fn rebuild_fetched(
        &mut self,
        now: Instant,
        slot: Slot,
        at: (LayerId, Region),
        transfer: TransferId,
        reply: Reply<()>,
    ) {
        if let Some(late) = self.late_fetches.remove(&transfer) {
            return self.end_step(now, Some(transfer), late.lock);
        }
        let Some(rebuild) = &mut self.rebuild else { return };
        let Some(step) = rebuild.running.get_mut(&at) else { return };
        let Reply::Digest(digest) = reply else {
            // The source can't read it: repairing it from another member is not built yet.
            let target = rebuild.target;
            let lock = rebuild.running.remove(&at).and_then(|step| step.lock);
            let reason = format!("the rebuild's source failed: {reply:?}");
            if !matches!(reply, Reply::Refused(_)) {
                self.lose_for(now, slot, &reply);
            }
            self.lose(now, target, &reason);
            return self.end_step(now, Some(transfer), lock);
        };
        let target = rebuild.target;
        step.digest = Some(digest);
        let payload = Payload::Transfer(transfer);
        let request = Request::Copy { layer: at.0, region: at.1, payload };
        self.send(now, target, Purpose::RebuildCopy(at.0, at.1), request, None);
    }

    pub(super) fn rebuild_copied(
        &mut self,
        now: Instant,
        slot: Slot,
        at: (LayerId, Region),
        reply: Reply<()>,
    ) {
        let Reply::Digest(copied) = reply else { return self.lose_for(now, slot, &reply) };
        let Some(rebuild) = &mut self.rebuild else { return };
        let Some(step) = rebuild.running.get_mut(&at) else { return };
        let transfer = step.transfer.take();
        let alike = step.digest == Some(copied);
        step.attempts += 1;
        let attempts = step.attempts;
        if let Some(transfer) = transfer {
            self.act(Action::RetireTransfer { transfer });
        }
        if !alike && attempts < 3 {
            return self.rebuild_fetch(now, at.0, at.1);
        }
        if !alike {
            return self.lose(now, slot, "it doesn't keep what is copied to it");
        }
        let Some(rebuild) = &mut self.rebuild else { return };
        rebuild.done_bytes += REGION_BYTES;
        if let Some(Step { lock: Some(lock), .. }) = rebuild.running.remove(&at) {
            self.unlock(now, lock);
        }
    }

    fn end_step(&mut self, now: Instant, transfer: Option<TransferId>, lock: Option<LockId>) {
        if let Some(transfer) = transfer {
            self.act(Action::RetireTransfer { transfer });
        }
        if let Some(lock) = lock {
            self.unlock(now, lock);
        }
    }

    // ---- into the set ----------------------------------------------------------------------

    pub(super) fn rebuild_ready(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if self.expect_done(now, slot, reply)
            && let Some(rebuild) = &mut self.rebuild
        {
            rebuild.stage = Stage::Adding { asked: false };
        }
    }

    /// The incarnation of the replica that is being added.
    pub(super) fn rebuilt_incarnation(&self, slot: Slot) -> Option<Incarnation> {
        let rebuild = self.rebuild.as_ref()?;
        (rebuild.target == slot).then_some(rebuild.incarnation)
    }

    /// Whether the record now has the replica that was to be added; the rebuild is over then.
    pub(super) fn promotion_recorded(&mut self) -> bool {
        let Some(slot) = self.promoting else { return false };
        let recorded = self.peer(slot).in_set.is_some();
        if recorded {
            if self.peer(slot).is_write_only() {
                let advanced = crate::types::Generation::FIRST; // below the present one
                self.peer_mut(slot).state = PeerState::Live { advanced };
            }
            self.rebuild = None;
        }
        recorded
    }

    /// The arbiter's record is something else than was asked: ask again.
    pub(super) fn promotion_refused(&mut self) {
        if let Some(Rebuild { stage: Stage::Adding { asked }, .. }) = &mut self.rebuild {
            *asked = false;
        }
    }

    pub(super) fn rebuild_lost(&mut self, now: Instant, slot: Slot, reason: &str) {
        for (transfer, late) in std::mem::take(&mut self.late_fetches) {
            if late.from == slot {
                self.end_step(now, Some(transfer), late.lock);
            } else {
                self.late_fetches.insert(transfer, late);
            }
        }
        let Some(rebuild) = &self.rebuild else { return };
        let asked = rebuild.stage == Stage::Adding { asked: true };
        if slot != rebuild.target && slot != rebuild.source || asked {
            return; // once asked, the arbiter's answer decides what the target is
        }
        let rebuild = self.rebuild.take().expect("seen above");
        self.promoting = None;
        if slot != rebuild.target {
            // Before the locks go: what waits for them must not be sent to it.
            let reason = format!("its rebuild's source was lost: {reason}");
            self.lose(now, rebuild.target, &reason);
        }
        for (_, Step { lock, transfer, digest, .. }) in rebuild.running {
            match transfer {
                Some(transfer) if digest.is_none() && slot != rebuild.source => {
                    self.late_fetches.insert(transfer, LateFetch { from: rebuild.source, lock });
                }
                _ => self.end_step(now, transfer, lock),
            }
        }
        let needed = self.needed();
        let ids: Vec<_> = self.ios.keys().copied().collect();
        if self.is_steady() {
            for id in ids {
                self.need_only(now, id, needed);
            }
            self.flushes_need_only(needed);
        }
    }
}
