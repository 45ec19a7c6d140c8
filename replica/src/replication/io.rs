//! One request of the frontend, from its submission to the end of its range lock.
//!
//! ```text
//! Parked ─▶ Settling ─▶ Locking ─▶ Filling ─▶ Writing ─▶ answered ─▶ released ─▶ retired
//! chain     not yet     overlap    edges of   all needed  client     by the
//! changes   equal       in flight  blocks     confirm     has it     frontend
//!                          └─────▶ Reading ──────┘
//! Flushing: one round at a time; a flush joins only a round that has not been sent.
//! ```

use std::time::{Duration, Instant};

use super::action::{Action, Destination, Failure, IoId, Operation, Payload};
use super::core::{Core, LockOwner};
use super::locks::{LockId, LockMode};
use super::peer::{FlushFor, Purpose};
use super::slots::{Slot, Slots};
use crate::message::{Refusal, Reply, Request};
use crate::types::{BlockIndex, BlockRange};

/// Pause before a replica whose disk is full is asked again.
const FULL_DISK_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Io {
    pub(super) operation: Operation,
    pub(super) stage: Stage,
    lock: Option<LockId>,
    /// Who must confirm before the answer.
    needs: Slots,
    /// Sent to, not yet answered: the range stays locked for these too, since a replica that is
    /// being rebuilt must not see two overlapping writes at once either.
    pub(super) unconfirmed: Slots,
    confirmed: Slots,
    /// Replicas whose disk is full, and when they are asked again.
    full: Option<(Slots, Instant)>,
    pub(super) answered: bool,
    pub(super) released: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Parked,
    Settling,
    Locking,
    /// Reading the rest of blocks that are written in part: those still missing, and from whom.
    Filling {
        missing: [Option<(BlockIndex, Option<Slot>)>; 2],
        failed: Slots,
    },
    Reading {
        from: Option<Slot>,
        failed: Slots,
    },
    Writing,
    Flushing,
    Answered,
}

impl Io {
    pub(super) fn new(operation: Operation) -> Self {
        Self {
            operation,
            stage: Stage::Parked,
            lock: None,
            needs: Slots::NONE,
            unconfirmed: Slots::NONE,
            confirmed: Slots::NONE,
            full: None,
            answered: false,
            released: false,
        }
    }

    fn range(&self) -> Option<BlockRange> {
        match self.operation {
            Operation::Read { range }
            | Operation::Map { range }
            | Operation::Write { range, .. }
            | Operation::Zero { range, .. } => Some(range),
            Operation::Flush => None,
        }
    }

    fn is_write(&self) -> bool {
        matches!(self.operation, Operation::Write { .. } | Operation::Zero { .. })
    }
}

impl Core {
    fn io(&mut self, id: IoId) -> &mut Io {
        self.ios.get_mut(&id).expect("ids are kept until the request is retired")
    }

    // ---- on the way in ---------------------------------------------------------------------

    pub(super) fn admit(&mut self, now: Instant, id: IoId) {
        let serving = self.is_open();
        let parks = self.chain_work.parks_writes();
        let io = self.io(id);
        if io.operation == Operation::Flush {
            io.stage = Stage::Flushing;
            self.flushes.next.push(id);
        } else if !serving || (parks && io.is_write()) {
            io.stage = Stage::Parked;
            self.parked.push_back(id);
        } else {
            if io.is_write() {
                self.writes_in_flight += 1;
            }
            self.settle_then_lock(now, id);
        }
    }

    /// The volume has opened, or the chain has changed.
    pub(super) fn start_waiting_ios(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.parked) {
            self.admit(now, id);
        }
    }

    pub(super) fn settle_then_lock(&mut self, now: Instant, id: IoId) {
        let range = self.io(id).range().expect("flushes take no lock");
        if self.settle.waits(range, id) {
            self.io(id).stage = Stage::Settling;
            return;
        }
        let mode = if self.io(id).is_write() { LockMode::Exclusive } else { LockMode::Shared };
        let (lock, free) = self.locks.acquire(range, mode);
        let io = self.io(id);
        io.lock = Some(lock);
        io.stage = Stage::Locking;
        if free {
            self.locked(now, id);
        } else {
            self.lock_owners.insert(lock, LockOwner::Io(id));
        }
    }

    fn locked(&mut self, now: Instant, id: IoId) {
        match self.io(id).operation {
            Operation::Read { .. } | Operation::Map { .. } => {
                self.io(id).stage = Stage::Reading { from: None, failed: Slots::NONE };
                self.send_read(now, id);
            }
            Operation::Write { edges, .. } => {
                let missing = edges.map(|edge| Some((edge?, None)));
                self.io(id).stage = Stage::Filling { missing, failed: Slots::NONE };
                self.send_edges(now, id);
            }
            Operation::Zero { .. } => self.send_write(now, id),
            Operation::Flush => unreachable!("flushes take no lock"),
        }
    }

    pub(super) fn unlock(&mut self, now: Instant, lock: LockId) {
        self.lock_owners.remove(&lock);
        for granted in self.locks.release(lock) {
            match self.lock_owners.remove(&granted) {
                Some(LockOwner::Io(id)) => self.locked(now, id),
                Some(LockOwner::Rebuild(layer, region)) => {
                    self.rebuild_locked(now, layer, region);
                }
                None => unreachable!("a waiting lock has an owner"),
            }
        }
    }

    // ---- reads -----------------------------------------------------------------------------

    fn send_read(&mut self, now: Instant, id: IoId) {
        let (Stage::Reading { failed, .. }, Some(range)) = (self.io(id).stage, self.io(id).range())
        else {
            return;
        };
        let readers = self.live().without(failed);
        if readers.is_empty() {
            self.io(id).stage = Stage::Reading { from: None, failed };
            if !failed.is_empty() && self.set().without(failed).is_empty() {
                self.complete(id, Err(Failure::Io));
            }
            return; // else a member that is away may have it
        }
        let from = self.next_reader(readers);
        self.io(id).stage = Stage::Reading { from: Some(from), failed };
        let into = Some(Destination::Read(id));
        let request = match self.io(id).operation {
            Operation::Map { .. } => Request::Map { range },
            _ => Request::Read { range },
        };
        self.send(now, from, Purpose::Read(id), request, into);
    }

    pub(super) fn read_answered(&mut self, now: Instant, slot: Slot, id: IoId, reply: Reply<()>) {
        if !self.ios.contains_key(&id) {
            return;
        }
        match (reply, self.io(id).stage) {
            (Reply::Data(()), _) => self.complete(id, Ok(())),
            (reply, Stage::Reading { mut failed, .. }) if is_unreadable(&reply) => {
                failed.insert(slot);
                self.io(id).stage = Stage::Reading { from: None, failed };
                self.send_read(now, id);
            }
            (reply, _) => self.lose_for(now, slot, &reply),
        }
    }

    /// Asks for every edge that is on its way from nobody; with all there, the write goes out.
    fn send_edges(&mut self, now: Instant, id: IoId) {
        let Stage::Filling { mut missing, failed } = self.io(id).stage else { return };
        if missing == [None; 2] {
            return self.send_write(now, id);
        }
        let readers = self.live().without(failed);
        if readers.is_empty() {
            let idle = missing.iter().flatten().all(|(_, from)| from.is_none());
            if idle && !failed.is_empty() && self.set().without(failed).is_empty() {
                self.fail_write(now, id);
            }
            return; // else the other edge's answer or `resend` goes on
        }
        for (block, from) in missing.iter_mut().flatten() {
            if from.is_none() {
                let reader = self.next_reader(readers);
                *from = Some(reader);
                let range = BlockRange::new(*block, 1);
                let into = Some(Destination::Edge(id, *block));
                let purpose = Purpose::Edge(id, *block);
                self.send(now, reader, purpose, Request::Read { range }, into);
            }
        }
        self.io(id).stage = Stage::Filling { missing, failed };
    }

    pub(super) fn edge_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        id: IoId,
        block: BlockIndex,
        reply: Reply<()>,
    ) {
        let Some(Stage::Filling { mut missing, mut failed }) = self.ios.get(&id).map(|io| io.stage)
        else {
            return;
        };
        let unreadable = is_unreadable(&reply);
        if reply != Reply::Data(()) && !unreadable {
            return self.lose_for(now, slot, &reply);
        }
        for edge in &mut missing {
            if *edge == Some((block, Some(slot))) {
                *edge = unreadable.then_some((block, None));
            }
        }
        if unreadable {
            failed.insert(slot);
        }
        self.io(id).stage = Stage::Filling { missing, failed };
        self.send_edges(now, id);
    }

    // ---- writes ----------------------------------------------------------------------------

    fn send_write(&mut self, now: Instant, id: IoId) {
        let (needs, targets) = (self.needed(), self.writable());
        let io = self.io(id);
        io.stage = Stage::Writing;
        io.needs = needs;
        for slot in targets.iter() {
            self.send_write_to(now, id, slot);
        }
    }

    fn send_write_to(&mut self, now: Instant, id: IoId, slot: Slot) {
        let io = self.io(id);
        io.unconfirmed.insert(slot);
        let request = match io.operation {
            Operation::Write { range, forced, .. } => {
                Request::Write { range, forced, payload: Payload::Of(id) }
            }
            Operation::Zero { range, forced } => Request::Zero { range, forced },
            Operation::Read { .. } | Operation::Map { .. } | Operation::Flush => {
                unreachable!("only writes are in Writing")
            }
        };
        self.send(now, slot, Purpose::Write(id), request, None);
    }

    pub(super) fn write_answered(&mut self, now: Instant, slot: Slot, id: IoId, reply: Reply<()>) {
        let Some(io) = self.ios.get_mut(&id) else { return };
        match reply {
            Reply::Done => {
                io.unconfirmed.remove(slot);
                io.confirmed.insert(slot);
                self.check_write(now, id);
            }
            Reply::Refused(Refusal::NoSpace) => self.disk_is_full(now, slot, id),
            Reply::Refused(Refusal::Io { .. } | Refusal::Failed { .. })
                if self.is_only_member(slot) =>
            {
                self.fail_write(now, id); // the last copy: the client must know
            }
            other => self.lose_for(now, slot, &other),
        }
    }

    /// Rule 21: while two members remain the full one leaves; else the write waits for room.
    fn disk_is_full(&mut self, now: Instant, slot: Slot, id: IoId) {
        let io = self.io(id);
        let (mut full, _) = io.full.unwrap_or((Slots::NONE, now));
        full.insert(slot);
        io.full = Some((full, now + FULL_DISK_RETRY));
        let others = self.live().without(full);
        if others.len() >= 2 || !self.live().contains(slot) {
            self.lose(now, slot, "its disk is full");
        }
    }

    pub(super) fn retry_full_disks(&mut self, now: Instant) {
        let due = self.ios.iter().filter_map(|(id, io)| {
            let (full, at) = io.full?;
            (at <= now).then_some((*id, full))
        });
        for (id, full) in due.collect::<Vec<_>>() {
            self.io(id).full = None;
            for slot in full.intersection(self.writable()).iter() {
                self.send_write_to(now, id, slot);
            }
        }
    }

    pub(super) fn next_disk_retry(&self) -> Option<Instant> {
        self.ios.values().filter_map(|io| io.full.map(|(_, at)| at)).min()
    }

    pub(super) fn full_disks(&self) -> Slots {
        let full = self.ios.values().filter_map(|io| io.full.map(|(full, _)| full));
        full.fold(Slots::NONE, Slots::union)
    }

    /// Whoever is being rebuilt may have the write that its only source lacks: it begins anew.
    fn fail_write(&mut self, now: Instant, id: IoId) {
        let others = self.io(id).unconfirmed.union(self.io(id).confirmed).without(self.live());
        self.io(id).unconfirmed = Slots::NONE;
        self.writes_in_flight -= 1;
        self.complete(id, Err(Failure::Io));
        for slot in others.intersection(self.writable()).iter() {
            self.lose(now, slot, "its source failed to write what it may have written");
        }
    }

    /// Answers the write if all who are needed have it, and ends it if all who got it have it.
    fn check_write(&mut self, now: Instant, id: IoId) {
        let io = self.io(id);
        if io.stage == Stage::Writing && io.needs.without(io.confirmed).is_empty() {
            io.stage = Stage::Answered;
            self.complete(id, Ok(()));
        }
        let io = self.io(id);
        if io.answered && io.unconfirmed.is_empty() {
            self.writes_in_flight -= 1;
            self.retire_if_done(now, id);
        }
    }

    /// A set has become durable on all its members: others aren't needed any more.
    pub(super) fn need_only(&mut self, now: Instant, id: IoId, needed: Slots) {
        let io = self.io(id);
        io.needs = io.needs.intersection(needed);
        match io.stage {
            Stage::Writing => self.check_write(now, id),
            // These waited for a member that is gone.
            Stage::Reading { from: None, .. } => self.send_read(now, id),
            Stage::Filling { .. } => self.send_edges(now, id),
            _ => {}
        }
    }

    /// From here on `slot` must confirm too: the replica is about to become a member.
    pub(super) fn need_also(&mut self, slot: Slot) {
        for io in self.ios.values_mut() {
            if io.stage == Stage::Writing && io.unconfirmed.contains(slot) {
                io.needs.insert(slot);
            }
        }
    }

    // ---- a replica goes, a replica comes ---------------------------------------------------

    pub(super) fn ios_lost(&mut self, now: Instant, slot: Slot) {
        let ids: Vec<_> = self.ios.keys().copied().collect();
        for id in ids {
            let io = self.io(id);
            if let Some((full, _)) = &mut io.full {
                full.remove(slot);
                if full.is_empty() {
                    io.full = None;
                }
            }
            match io.stage {
                Stage::Reading { from: Some(from), failed } if from == slot => {
                    io.stage = Stage::Reading { from: None, failed };
                    self.send_read(now, id);
                }
                Stage::Filling { mut missing, failed } => {
                    for (_, from) in missing.iter_mut().flatten() {
                        *from = from.filter(|&from| from != slot);
                    }
                    io.stage = Stage::Filling { missing, failed };
                    self.send_edges(now, id);
                }
                Stage::Writing | Stage::Answered if io.unconfirmed.contains(slot) => {
                    io.unconfirmed.remove(slot);
                    if io.answered && io.unconfirmed.is_empty() {
                        self.writes_in_flight -= 1;
                        self.retire_if_done(now, id);
                    }
                }
                _ => {}
            }
        }
    }

    /// A member that was lost is back, and has kept what it confirmed: it gets what it hasn't.
    pub(super) fn resend(&mut self, now: Instant, slot: Slot) {
        let ids: Vec<_> = self.ios.keys().copied().collect();
        for id in ids {
            let io = self.io(id);
            match io.stage {
                Stage::Reading { from: None, .. } => self.send_read(now, id),
                Stage::Filling { .. } => self.send_edges(now, id),
                Stage::Writing if io.needs.contains(slot) && !io.confirmed.contains(slot) => {
                    self.send_write_to(now, id, slot);
                }
                _ => {}
            }
        }
        self.resend_flush(now, slot);
    }

    // ---- on the way out --------------------------------------------------------------------

    pub(super) fn complete(&mut self, id: IoId, result: Result<(), Failure>) {
        let io = self.io(id);
        io.stage = Stage::Answered;
        if !io.answered {
            io.answered = true;
            self.act(Action::Complete { io: id, result });
        }
    }

    pub(super) fn retire_if_done(&mut self, now: Instant, id: IoId) {
        let Some(io) = self.ios.get(&id) else { return };
        if !(io.answered && io.released && io.unconfirmed.is_empty()) {
            return;
        }
        let lock = io.lock;
        self.ios.remove(&id);
        self.act(Action::Retire { io: id });
        if let Some(lock) = lock {
            self.unlock(now, lock);
        }
    }
}

/// Another replica may still have the block.
fn is_unreadable(reply: &Reply<()>) -> bool {
    matches!(reply, Reply::Refused(Refusal::BadBlocks { .. } | Refusal::Io { .. }))
}

/// The frontend's flushes.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Not sent to anybody yet: one that comes now joins these.
    pub(super) next: Vec<IoId>,
    running: Option<Round>,
    rounds: u64,
}

#[derive(Debug)]
struct Round {
    number: u64,
    ios: Vec<IoId>,
    needs: Slots,
    failed: bool,
}

impl Core {
    /// Rule 17: covers what was acknowledged before it came; joins no round that was sent.
    pub(super) fn drive_flushes(&mut self, now: Instant) {
        let serving = self.is_open();
        if let Some(round) = &self.flushes.running {
            if !round.needs.is_empty() {
                return;
            }
            let round = self.flushes.running.take().expect("seen above");
            for id in round.ios {
                self.complete(id, if round.failed { Err(Failure::Io) } else { Ok(()) });
                self.retire_if_done(now, id);
            }
        }
        if !serving || self.flushes.next.is_empty() {
            return;
        }
        self.flushes.rounds += 1;
        let number = self.flushes.rounds;
        let round = Round {
            number,
            ios: std::mem::take(&mut self.flushes.next),
            needs: self.needed(),
            failed: false,
        };
        let targets = round.needs.intersection(self.writable());
        self.flushes.running = Some(round);
        for slot in targets.iter() {
            self.send(now, slot, Purpose::Flush(FlushFor::Round(number)), Request::Flush, None);
        }
    }

    pub(super) fn flush_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        whose: FlushFor,
        reply: Reply<()>,
    ) {
        match whose {
            FlushFor::Round(number) => {
                let only = self.is_only_member(slot);
                let Some(round) = &mut self.flushes.running else { return };
                if round.number != number {
                    return;
                }
                if reply == Reply::Done {
                    round.needs.remove(slot);
                } else if only {
                    // Rule 10: the last member is never removed; the client must know.
                    round.needs.remove(slot);
                    round.failed = true;
                } else {
                    self.lose_for(now, slot, &reply);
                }
            }
            FlushFor::Chain => self.chain_flushed(now, slot, reply),
            FlushFor::Closing => self.closing_flushed(now, slot, reply),
        }
    }

    fn resend_flush(&mut self, now: Instant, slot: Slot) {
        if let Some(round) = &self.flushes.running
            && round.needs.contains(slot)
        {
            let purpose = Purpose::Flush(FlushFor::Round(round.number));
            self.send(now, slot, purpose, Request::Flush, None);
        }
    }

    pub(super) fn flushes_need_only(&mut self, needed: Slots) {
        if let Some(round) = &mut self.flushes.running {
            round.needs = round.needs.intersection(needed);
        }
    }
}
