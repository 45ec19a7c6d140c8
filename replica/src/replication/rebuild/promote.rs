//! Into the set, in the order of the rules: (1) all is compared; (2) from here on every
//! acknowledgement and flush needs the target too; (3) everything it has is durable; (4) the
//! arbiter records it, asked until it answers; (5) `Advance` on all, and reads may go to it.
//!
//! One at a time: each is a change of the record. If the target fails before (4) was asked for,
//! nothing has happened. After that the arbiter's answer decides: a target that it recorded is a
//! member that has failed, and leaves like one.

use std::time::Instant;

use super::super::core::Core;
use super::super::epoch::Confirmed;
use super::super::peer::{PeerState, Purpose};
use super::super::slots::Slot;
use super::RebuildPhase;
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{Generation, Incarnation};

impl Core {
    /// Steps 1 and 2.
    pub(super) fn rebuild_catches_up(&mut self, now: Instant, target: Slot) {
        let busy = self.rebuilds.steps.values().any(|step| step.target == target);
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        let copied =
            matches!(rebuild.stage, RebuildPhase::Copying) && rebuild.regions.is_empty() && !busy;
        if !copied || self.promoting.is_some() {
            return;
        }
        rebuild.stage = RebuildPhase::CatchingUp;
        self.promoting = Some(target);
        self.need_also(target);
        self.rebuild_makes_ready(now, target);
    }

    /// Step 3. Writes that were acknowledged without it are confirmed first, or the sync would
    /// miss them.
    pub(super) fn rebuild_makes_ready(&mut self, now: Instant, target: Slot) {
        let lacks = |io: &super::super::io::Io| io.answered && io.unconfirmed.contains(target);
        if self.ios.values().any(lacks) {
            return;
        }
        let generation = self.generation().expect("the volume was opened");
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        if mutation::is_on(Mutation::PromotionUnflushed) {
            rebuild.stage = RebuildPhase::Adding { asked: false };
            return;
        }
        rebuild.stage = RebuildPhase::MakingReady;
        let begun = self.epochs.newest();
        let request = Request::Ready { generation, begun };
        self.send(now, target, Purpose::Ready(begun), request, None);
    }

    pub(in super::super) fn rebuild_ready(
        &mut self,
        now: Instant,
        slot: Slot,
        begun: u64,
        reply: Reply<()>,
    ) {
        if !self.expect_done(now, slot, reply) {
            return;
        }
        let peer = self.peer_mut(slot);
        peer.confirmed = Confirmed::made_ready(begun, peer.greeted);
        if let Some(rebuild) = self.rebuilds.by_target.get_mut(&slot) {
            rebuild.stage = RebuildPhase::Adding { asked: false };
        }
    }

    /// Step 4.
    pub(super) fn rebuild_is_added(&mut self, target: Slot) {
        if !self.is_steady() {
            return;
        }
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { return };
        rebuild.stage = RebuildPhase::Adding { asked: true };
        let members = self.next_set();
        self.swap(members);
    }

    /// The incarnation of the replica that is being added.
    pub(in super::super) fn rebuilt_incarnation(&self, slot: Slot) -> Option<Incarnation> {
        self.rebuilds.by_target.get(&slot).map(|rebuild| rebuild.incarnation)
    }

    /// Whether the record now has the replica that was to be added; the rebuild is over then, and
    /// step 5 follows.
    pub(in super::super) fn promotion_recorded(&mut self) -> bool {
        let Some(slot) = self.promoting else { return false };
        let recorded = self.peer(slot).in_set.is_some();
        if recorded {
            if self.peer(slot).is_write_only() {
                let advanced = Generation::FIRST; // below the present one
                self.peer_mut(slot).state = PeerState::Live { advanced };
            }
            self.rebuilds.forget(slot);
            self.schedule_joins();
        }
        recorded
    }

    /// The arbiter's record is something else than was asked: ask again, if there is still
    /// somebody to be added.
    pub(in super::super) fn promotion_refused(&mut self, now: Instant) {
        let Some(slot) = self.promoting else { return };
        let is_there = self.peer(slot).is_write_only();
        let Some(rebuild) = self.rebuilds.by_target.get_mut(&slot) else { return };
        if let RebuildPhase::Adding { asked } = &mut rebuild.stage {
            *asked = false;
            if !is_there {
                self.end_rebuild(now, slot);
            }
        }
    }
}
