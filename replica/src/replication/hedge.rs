//! What the core makes of how fast each replica is ([`latency`](super::latency)): from whom it reads, when it
//! asks a second one for the same data, and when it goes on without a member that holds up the rest.
//!
//! A hedged read keeps its range locked until both have answered, so that a write never meets a read
//! that is still under way. That costs nothing: the write needs the slow one too.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::action::IoId;
use super::core::Core;
use super::io::IoStage;
use super::latency::{self, Runner};
use super::peer::{FlushFor, Purpose};
use super::slots::{Slot, Slots};
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};

/// One read in so many may be asked twice, in the long run.
const READS_PER_HEDGE: u32 = 20;
/// So many hedges may come at once, when a replica begins to hang.
const HEDGES_AT_ONCE: u32 = 64;
/// Pause between two comparisons of the members.
const SLOW_CHECK: Duration = Duration::from_millis(250);

/// Reads that may be asked of a second member, in the order in which they were sent.
#[derive(Debug)]
pub(super) struct Hedges {
    reads: VecDeque<(Instant, IoId)>,
    /// The clock looks here already.
    armed: bool,
    turn: usize,
    credit: u32,
}

impl Default for Hedges {
    fn default() -> Self {
        let credit = READS_PER_HEDGE * HEDGES_AT_ONCE;
        Self { reads: VecDeque::new(), armed: false, turn: 0, credit }
    }
}

impl Hedges {
    /// `true`: the clock has to be told.
    pub(super) fn add(&mut self, at: Instant, io: IoId) -> bool {
        self.credit = (self.credit + 1).min(READS_PER_HEDGE * HEDGES_AT_ONCE);
        self.reads.push_back((at, io));
        !std::mem::replace(&mut self.armed, true)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.reads.front().map(|(at, _)| *at)
    }

    fn may_hedge(&mut self) -> bool {
        let left = self.credit.checked_sub(READS_PER_HEDGE);
        self.credit = left.unwrap_or(self.credit);
        left.is_some()
    }
}

impl Core {
    pub(super) fn pick_reader(&mut self, now: Instant, readers: Slots) -> Slot {
        self.hedges.turn = self.hedges.turn.wrapping_add(1);
        let latency = |slot: Slot| {
            let peer = self.peer(slot);
            // Among so many there is a read, if there are any that are old.
            let oldest = peer.outstanding.values().take(8).find(|asked| is_read(&asked.purpose));
            let owed = oldest.map(|asked| now.saturating_duration_since(asked.sent));
            peer.latencies.read_latency(owed)
        };
        let is_local = |slot: Slot| self.config.local.contains(&self.peer(slot).id);
        latency::choose_reader(readers, is_local, latency, self.hedges.turn)
    }

    /// Learns from an answer that means work done.
    pub(super) fn measure(
        &mut self,
        slot: Slot,
        purpose: &Purpose,
        took: Duration,
        reply: &Reply<()>,
    ) {
        let latencies = &mut self.peer_mut(slot).latencies;
        match (purpose, reply) {
            (purpose, Reply::Done) if is_confirmation(purpose) => latencies.writes.add(took),
            (purpose, Reply::Data(())) if is_read(purpose) => latencies.reads.add(took),
            _ => {}
        }
    }

    /// Reads that take longer than almost all are asked of another member too.
    pub(super) fn hedge_reads(&mut self, now: Instant) {
        while let Some((at, id)) = self.hedges.reads.front().copied() {
            let waits = self.ios.get(&id).and_then(|io| match io.stage {
                IoStage::Reading { from: Some(from), failed } => Some((from, failed)),
                _ => None,
            });
            if waits.is_some() && at > now {
                return;
            }
            self.hedges.reads.pop_front();
            if let Some((from, failed)) = waits {
                self.hedge(now, id, from, failed);
            }
        }
        self.hedges.armed = false;
    }

    fn hedge(&mut self, now: Instant, id: IoId, from: Slot, failed: Slots) {
        let Some(range) = self.io(id).range() else { return };
        let asked = self.io(id).unconfirmed;
        let (others, unverified) = self.readers(id, range, failed.union(asked));
        if !others.is_empty() && self.hedges.may_hedge() {
            let second = self.pick_reader(now, others);
            self.io(id).stage = IoStage::Reading { from: Some(from), failed };
            self.ask_for(now, id, range, second, unverified);
        }
    }

    /// A member that has been far slower than all others holds up every write: it leaves. Never the
    /// last one.
    pub(super) fn drop_too_slow(&mut self, now: Instant) {
        if !self.is_open() || now < self.slow_check_at {
            return;
        }
        self.slow_check_at = now + SLOW_CHECK;
        let live = self.live();
        let patience = self.config.slow_patience;
        let runners = self.peers.iter_mut().filter(|peer| live.contains(peer.slot)).map(|peer| {
            let oldest = peer.outstanding.values().find(|asked| is_confirmation(&asked.purpose));
            let waiting = oldest.map(|asked| now.saturating_duration_since(asked.sent));
            Runner { slot: peer.slot, latencies: &mut peer.latencies, waiting }
        });
        let mut runners: Vec<_> = runners.collect();
        if let Some(slot) = latency::too_slow(now, &mut runners, patience)
            && !mutation::is_on(Mutation::SilentMemberKept)
        {
            self.lose(now, slot, "it is far slower than the others, and holds up all writes");
        }
    }

    pub(super) fn next_pace_check(&self) -> Option<Instant> {
        let owes = |asked: &super::peer::Asked| is_confirmation(&asked.purpose);
        let several = self.is_open() && self.live().len() > 1;
        let busy = several && self.peers.iter().any(|peer| peer.outstanding.values().any(owes));
        busy.then_some(self.slow_check_at)
    }

    // ---- long work -------------------------------------------------------------------------

    /// A replica that joins layers may need long for that, but not for the answer to a ping: one
    /// that hangs is found by what every other answer's deadline is.
    pub(super) fn ask_whether_alive(&mut self, now: Instant) {
        let after = self.config.replica_timeout / 2;
        for slot in self.all_slots() {
            let peer = self.peer(slot);
            let works = !peer.outstanding.is_empty() && !peer.owes_answer();
            if works && now >= peer.progress_at + after {
                // Its progress is counted from here.
                self.peer_mut(slot).progress_at = now;
                self.send(now, slot, Purpose::Alive, Request::Ping, None);
            }
        }
    }

    pub(super) fn next_alive_check(&self) -> Option<Instant> {
        let after = self.config.replica_timeout / 2;
        let works = |peer: &&super::peer::Peer| !peer.outstanding.is_empty() && !peer.owes_answer();
        self.peers.iter().filter(works).map(|peer| peer.progress_at + after).min()
    }
}

fn is_read(purpose: &Purpose) -> bool {
    matches!(purpose, Purpose::Read(_) | Purpose::Edge(..))
}

/// What every member is asked alike.
pub(super) fn is_confirmation(purpose: &Purpose) -> bool {
    matches!(purpose, Purpose::Write(_) | Purpose::Flush(FlushFor::Round(_)))
}
