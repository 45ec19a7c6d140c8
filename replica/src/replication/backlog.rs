//! What replicas owe: a rebuild's target is given up for it, and people are told whom writes wait for.
//!
//! A write is acknowledged without a replica that is being rebuilt, but until that has confirmed it
//! too, its data is in memory and its range is locked. One that hardly runs would take memory without
//! limit, and set the speed of every block that is written again and of every snapshot. So its rebuild
//! ends, as when its link breaks, and begins again after a pause that grows; what it misses meanwhile
//! is marked, and found by its stamps. One that is about to be added is needed like a member, and
//! is treated like one.

use std::time::{Duration, Instant};

use super::core::Core;
use super::hedge::is_confirmation;
use super::peer::{FlushFor, Peer, PeerState, Purpose};
use super::slots::Slot;
use crate::mutation::{self, Mutation};

/// Before a rebuild that was paused begins again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A write that isn't confirmed for so long is worth a word.
const SLOW_IS_TOLD: Duration = Duration::from_secs(1);

impl Core {
    /// Whose rebuild may be paused.
    fn is_target(&self, peer: &Peer) -> bool {
        peer.is_write_only() && self.promoting != Some(peer.slot)
    }

    /// A target may owe so many bytes and no more, at the end of each turn. Tells whether one was
    /// given up.
    pub(super) fn bound_backlogs(&mut self, now: Instant) -> bool {
        let is_bounded = !mutation::is_on(Mutation::BacklogUnbounded);
        let bound = if is_bounded { self.config.backlog_bytes } else { u64::MAX };
        let too_much = |peer: &Peer| peer.owed_bytes > bound && self.is_target(peer);
        let given_up = self.slots_where(too_much);
        for slot in given_up.iter() {
            self.pause_rebuild(now, slot);
        }
        !given_up.is_empty()
    }

    /// A target holds up others for so long and no longer, unless the members are as slow.
    pub(super) fn bound_delays(&mut self, now: Instant) {
        self.look_who_is_slow(now);
        let patience = self.config.slow_patience;
        let late = |sent: Option<Instant>| sent.is_some_and(|sent| now >= sent + patience);
        let live = self.live();
        let slow =
            self.slots_where(|peer| live.contains(peer.slot) && late(peer.oldest(is_confirmation)));
        if !slow.is_empty() {
            return;
        }
        let holds_up = |peer: &Peer| self.is_target(peer) && late(peer.oldest(holds_up_others));
        for slot in self.slots_where(holds_up).iter() {
            self.pause_rebuild(now, slot);
        }
    }

    pub(super) fn next_delay_check(&self) -> Option<Instant> {
        if !self.slow.is_empty() && self.is_open() {
            return Some(self.slow_check_at); // until people are told that it is over
        }
        let targets = self.peers.iter().filter(|peer| self.is_target(peer));
        let oldest = targets.filter_map(|peer| peer.oldest(holds_up_others)).min()?;
        // If the members are as slow, it is looked at again when they are.
        Some((oldest + self.config.slow_patience).max(self.slow_check_at))
    }

    fn pause_rebuild(&mut self, now: Instant, slot: Slot) {
        let before = self.peer(slot).pause;
        let pause = before.map_or(PAUSE_MIN, |before| PAUSE_MAX.min(2 * before));
        let reason = "its rebuild is paused: it can't keep up with what is written";
        self.lose(now, slot, reason);
        let peer = self.peer_mut(slot);
        peer.pause = Some(pause);
        peer.state = PeerState::Down { retry_at: now + pause };
    }

    /// What people are told of who is slow, as it is now.
    pub fn look_who_is_slow(&mut self, now: Instant) {
        let live = self.live();
        let told = |peer: &Peer| {
            let oldest = peer.oldest(is_confirmation).filter(|_| live.contains(peer.slot));
            oldest.is_some_and(|sent| now >= sent + SLOW_IS_TOLD)
        };
        self.slow = self.slots_where(told);
    }

    /// In words, for people.
    pub(super) fn slow_waits_for(&self) -> Option<String> {
        let slow = self.slow.intersection(self.live());
        let names = (!slow.is_empty()).then(|| self.names(slow))?;
        Some(format!("writes wait for {names}: no confirmation for a second or more"))
    }
}

/// Whether a range is locked, or new writes are held, until the answer comes.
fn holds_up_others(purpose: &Purpose) -> bool {
    let flush = Purpose::Flush(FlushFor::Chain);
    matches!(purpose, Purpose::Write(_) | Purpose::RebuildStep(_) | Purpose::Chain)
        || *purpose == flush
}
