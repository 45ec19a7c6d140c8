//! Full disks (rule 21): who leaves the set for want of room, and what waits for it.
//!
//! Owns which disks are full, since when, and when they are asked again. Promises that a member
//! leaves for want of room only while two others remain, and that what waits for room holds up
//! nothing that may give it back: a removal of snapshots and its joins go on beside the writes that
//! wait, what would take room is refused, and a detach gives those writes up. What may never happen:
//! that a range whose write was given up is read by this engine again. Members may differ there;
//! the marks stay, and the next engine makes them alike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::action::{Failure, IoId};
use super::closing::Closing;
use super::core::{Core, Phase};
use super::io::IoStage;
use super::peer::PeerState;
use super::slots::{Slot, Slots};
use crate::mutation::{self, Mutation};
use crate::types::{BlockRange, Region, ReplicaId};

/// Pause before a disk that was full is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// Pause before a replica is rebuilt again whose disk was too full for it.
const REBUILD_RETRY: Duration = Duration::from_secs(10);

/// In words, the same wherever it is told.
pub fn waits_for_room(replica: &ReplicaId) -> String {
    format!("replica {replica}: its disk is full, writes wait for room there")
}

#[derive(Debug, Default)]
pub(super) struct Room {
    /// When each disk that something waits for is asked again.
    full: BTreeMap<Slot, Instant>,
    given_up: BTreeSet<Region>,
}

impl Core {
    /// Rule 21: whether `slot`, whose disk is full, stays, and what it refused waits for room. One
    /// that is being rebuilt goes, and comes back when there may be room.
    pub(super) fn waits_for_room(&mut self, now: Instant, slot: Slot) -> bool {
        let others = self.live().without(self.full_disks()).without([slot].into_iter().collect());
        let is_member = self.peer(slot).in_set.is_some() && self.writable().contains(slot);
        let leaves = others.len() >= 2 || mutation::is_on(Mutation::FullMemberLeaves);
        if leaves || !is_member {
            self.lose_for_room(now, slot);
            return false;
        }
        self.room.full.entry(slot).or_insert(now + RETRY);
        self.is_sooner = true;
        true
    }

    pub(super) fn lose_for_room(&mut self, now: Instant, slot: Slot) {
        if self.peer(slot).in_set.is_some() {
            return self.lose(now, slot, "its disk is full");
        }
        self.lose(now, slot, "its disk is full: its rebuild waits for room there");
        self.peer_mut(slot).state = PeerState::Down { retry_at: now + REBUILD_RETRY };
    }

    /// Members whose disk has no room for what waits for it.
    pub(super) fn full_disks(&self) -> Slots {
        self.room.full.keys().copied().collect()
    }

    pub(super) fn next_look_for_room(&self) -> Option<Instant> {
        self.room.full.values().min().copied()
    }

    pub(super) fn look_for_room(&mut self, now: Instant) {
        let due = self.room.full.iter().filter(|(_, at)| **at <= now);
        for slot in due.map(|(slot, _)| *slot).collect::<Vec<_>>() {
            self.forget_if_unwanted(slot);
            let Some(at) = self.room.full.get_mut(&slot) else { continue };
            *at = now + RETRY;
            self.settle.look_for_room(slot);
            let waiting = self.ios.iter_mut().filter(|(_, io)| io.full.contains(slot));
            let waiting: Vec<IoId> = waiting.map(|(id, _)| *id).collect();
            for id in waiting {
                self.io(id).full.remove(slot);
                self.send_write_to(now, id, slot);
            }
        }
    }

    /// The disk has taken a write that it had refused, or what was refused is gone.
    pub(super) fn forget_if_unwanted(&mut self, slot: Slot) {
        let waits = self.ios.values().any(|io| io.refused.contains(slot));
        if !waits && self.settle.full_disk() != Some(slot) {
            self.room.full.remove(&slot);
        }
    }

    pub(super) fn room_lost(&mut self, slot: Slot) {
        self.room.full.remove(&slot);
        for io in self.ios.values_mut() {
            io.full.remove(slot);
            io.refused.remove(slot);
        }
    }

    /// Why what takes room on all disks can't be done now.
    pub(super) fn lacks_room(&self) -> Option<String> {
        let full = self.room_waits_for();
        let remedy = "free some space there, or remove snapshots";
        (!full.is_empty()).then(|| format!("{}; {remedy}", full.join("; ")))
    }

    pub(super) fn room_waits_for(&self) -> Vec<String> {
        let full = self.full_disks();
        full.iter().map(|slot| waits_for_room(&self.peer(slot).id)).collect()
    }

    // ---- the end ---------------------------------------------------------------------------

    /// Whoever detaches doesn't wait for room: writes that do get an error.
    pub(super) fn give_up_for_room(&mut self, now: Instant) {
        let draining = matches!(self.phase, Phase::Closing(Closing::Draining));
        if !draining || self.room.full.is_empty() {
            return;
        }
        let settles_no_more = self.settle.full_disk().is_some();
        let ids: Vec<IoId> = self.ios.keys().copied().collect();
        for id in ids {
            let Some(io) = self.ios.get(&id) else { continue };
            match io.stage {
                // Whoever has not refused has yet to answer.
                IoStage::Writing if !io.full.is_empty() && io.unconfirmed == io.full => {
                    self.give_up(now, id);
                }
                IoStage::Settling if settles_no_more => {
                    self.settle.forget(id);
                    self.give_up(now, id);
                }
                _ => {}
            }
        }
    }

    /// It was waiting behind a write that was given up, on a range that members may hold
    /// differently now.
    pub(super) fn was_given_up(&self, range: BlockRange) -> bool {
        range.regions().any(|region| self.room.given_up.contains(&region))
    }

    pub(super) fn give_up(&mut self, now: Instant, id: IoId) {
        let io = self.io(id);
        if io.is_write() {
            let range = io.range().expect("a write has a range");
            (io.unconfirmed, io.full) = (Slots::NONE, Slots::NONE);
            let refused = std::mem::replace(&mut io.refused, Slots::NONE);
            self.writes_in_flight -= 1;
            self.room.given_up.extend(range.regions());
            refused.iter().for_each(|slot| self.forget_if_unwanted(slot));
        }
        self.complete(id, Err(Failure::NoSpace));
        self.retire_if_done(now, id);
    }

    /// Marks must stay for the next engine.
    pub(super) fn has_given_up(&self) -> bool {
        !self.room.given_up.is_empty()
    }
}
