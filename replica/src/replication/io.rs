//! One request of the frontend, from its submission to the end of its range lock.
//!
//! ```text
//! Parked ─▶ Settling ─▶ Locking ─▶ Filling ─▶ Writing ─▶ answered ─▶ released ─▶ retired
//! chain     not yet     overlap    edges of   all needed  client     by the
//! changes   equal       in flight  blocks     confirm     has it     frontend
//!                          └─────▶ Reading ──────┘
//! Flushing: one round at a time; a flush joins only a round that has not been sent.
//! ```

use std::time::Instant;

use super::action::{Action, Failure, IoId, Operation};
use super::core::{Core, LockOwner};
use super::locks::{LockId, LockMode};
use super::slots::{Slot, Slots};
use crate::mutation::{self, Mutation};
use crate::types::{BlockIndex, BlockRange};

#[derive(Debug)]
pub(super) struct Io {
    pub(super) operation: Operation,
    pub(super) stage: IoStage,
    pub(super) lock: Option<LockId>,
    /// Who must confirm before the answer.
    pub(super) needs: Slots,
    /// Sent to, not yet answered: the range stays locked for these too, since a replica that is
    /// being rebuilt must not see two overlapping writes at once either, and one that is slow to
    /// read must not see a write meanwhile.
    pub(super) unconfirmed: Slots,
    pub(super) confirmed: Slots,
    /// Whose disk had no room for it, and hasn't confirmed it since.
    pub(super) refused: Slots,
    /// Those of them that have yet to be asked again.
    pub(super) full: Slots,
    pub(super) answered: bool,
    pub(super) released: bool,
    /// A read that waited once for blocks to be repaired.
    pub(super) retried: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoStage {
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
    /// The data of a read is there; it is told when the members' leases hold.
    Leasing,
    Writing,
    Flushing,
    Answered,
}

impl Io {
    pub(super) fn new(operation: Operation) -> Self {
        Self {
            operation,
            stage: IoStage::Parked,
            lock: None,
            needs: Slots::NONE,
            unconfirmed: Slots::NONE,
            confirmed: Slots::NONE,
            refused: Slots::NONE,
            full: Slots::NONE,
            answered: false,
            released: false,
            retried: false,
        }
    }

    pub(super) fn range(&self) -> Option<BlockRange> {
        match self.operation {
            Operation::Read { range }
            | Operation::Map { range }
            | Operation::Write { range, .. }
            | Operation::Zero { range, .. } => Some(range),
            Operation::Flush => None,
        }
    }

    /// Whether it is on its way through the range lock.
    pub(super) fn is_admitted(&self) -> bool {
        !matches!(self.stage, IoStage::Parked | IoStage::Flushing)
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self.operation, Operation::Write { .. } | Operation::Zero { .. })
    }
}

/// How a request goes on without a replica.
enum AfterLoss {
    Nothing,
    /// From another one.
    ReadAgain,
    FillAgain,
    Acknowledge,
    /// It was answered, and nobody works on it any more.
    Done,
}

impl Io {
    /// `slot` answers no more. A write keeps needing it: only its removal from the set ends that.
    fn lose(&mut self, slot: Slot) -> AfterLoss {
        let owed = self.unconfirmed.contains(slot);
        self.unconfirmed.remove(slot);
        match &mut self.stage {
            IoStage::Reading { from, .. } if *from == Some(slot) => {
                *from = self.unconfirmed.iter().next(); // who was asked beside it
                AfterLoss::ReadAgain
            }
            IoStage::Filling { missing, .. } => {
                for (_, from) in missing.iter_mut().flatten() {
                    *from = from.filter(|&from| from != slot);
                }
                AfterLoss::FillAgain
            }
            IoStage::Writing if owed && mutation::is_on(Mutation::AcknowledgeBeforeRemoval) => {
                self.needs.remove(slot);
                AfterLoss::Acknowledge
            }
            _ if owed && self.answered && self.unconfirmed.is_empty() => AfterLoss::Done,
            _ => AfterLoss::Nothing,
        }
    }
}

impl Core {
    pub(super) fn io(&mut self, id: IoId) -> &mut Io {
        self.ios.get_mut(&id).expect("ids are kept until the request is retired")
    }

    // ---- on the way in ---------------------------------------------------------------------

    pub(super) fn admit(&mut self, now: Instant, id: IoId) {
        let serving = self.is_open();
        let parks = self.chain_work.parks(&self.ios[&id]);
        let io = self.io(id);
        if io.operation == Operation::Flush {
            io.stage = IoStage::Flushing;
            self.flushes.add(id);
        } else if !serving || parks {
            io.stage = IoStage::Parked;
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
        let reads = !self.io(id).is_write();
        let skips = reads && mutation::is_on(Mutation::ReadBeforeSettled);
        if !skips && self.settle.waits(range, id) {
            self.io(id).stage = IoStage::Settling;
            return;
        }
        let has_edges = matches!(self.io(id).operation,
            Operation::Write { edges, .. } if edges != [None, None]);
        if reads && mutation::is_on(Mutation::ReadOutsideLock)
            || has_edges && mutation::is_on(Mutation::EdgesReadOutsideLock)
        {
            return self.locked(now, id);
        }
        let mode = if self.io(id).is_write() { LockMode::Exclusive } else { LockMode::Shared };
        let (lock, free) = self.locks.acquire(range, mode);
        let io = self.io(id);
        io.lock = Some(lock);
        io.stage = IoStage::Locking;
        if free {
            self.locked(now, id);
        } else {
            self.lock_owners.insert(lock, LockOwner::Io(id));
        }
    }

    fn locked(&mut self, now: Instant, id: IoId) {
        let range = self.io(id).range().expect("flushes take no lock");
        if self.was_given_up(range) {
            return self.give_up(now, id);
        }
        match self.io(id).operation {
            Operation::Read { .. } | Operation::Map { .. } => {
                self.io(id).stage = IoStage::Reading { from: None, failed: Slots::NONE };
                self.send_read(now, id);
            }
            Operation::Write { edges, .. } => {
                let missing = edges.map(|edge| Some((edge?, None)));
                self.io(id).stage = IoStage::Filling { missing, failed: Slots::NONE };
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
                Some(LockOwner::Rebuild(step)) => self.rebuild_locked(now, step),
                Some(LockOwner::Repair) => self.repair_locked(now),
                None => unreachable!("a waiting lock has an owner"),
            }
        }
    }

    /// A set has become durable on all its members: others aren't needed any more.
    pub(super) fn need_only(&mut self, now: Instant, id: IoId, needed: Slots) {
        let Some(io) = self.ios.get_mut(&id) else { return };
        io.needs = io.needs.intersection(needed);
        match io.stage {
            IoStage::Writing => self.check_write(now, id),
            // These waited for a member that is gone.
            IoStage::Reading { from: None, .. } => self.send_read(now, id),
            IoStage::Filling { .. } => self.send_edges(now, id),
            _ => {}
        }
    }

    /// From here on `slot` must confirm too: the replica is about to become a member.
    pub(super) fn need_also(&mut self, slot: Slot) {
        for io in self.ios.values_mut() {
            if io.stage == IoStage::Writing && io.unconfirmed.contains(slot) {
                io.needs.insert(slot);
            }
        }
    }

    // ---- a replica goes, a replica comes ---------------------------------------------------

    pub(super) fn ios_lost(&mut self, now: Instant, slot: Slot) {
        let ids: Vec<_> = self.ios.keys().copied().collect();
        for id in ids {
            // The lock of one that is retired may wake what loses another replica, and that retires.
            let Some(io) = self.ios.get_mut(&id) else { continue };
            match io.lose(slot) {
                AfterLoss::Nothing => {}
                AfterLoss::ReadAgain => self.send_read(now, id),
                AfterLoss::FillAgain => self.send_edges(now, id),
                AfterLoss::Acknowledge => self.check_write(now, id),
                AfterLoss::Done => {
                    self.writes_in_flight -= usize::from(self.io(id).is_write());
                    self.retire_if_done(now, id);
                }
            }
        }
    }

    /// A member that was lost is back, and has kept what it confirmed: it gets what it hasn't.
    pub(super) fn resend(&mut self, now: Instant, slot: Slot) {
        let ids: Vec<_> = self.ios.keys().copied().collect();
        for id in ids {
            let Some(io) = self.ios.get_mut(&id) else { continue };
            match io.stage {
                IoStage::Reading { from: None, .. } => self.send_read(now, id),
                IoStage::Filling { .. } => self.send_edges(now, id),
                IoStage::Writing if io.needs.contains(slot) && !io.confirmed.contains(slot) => {
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
        io.stage = IoStage::Answered;
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
        self.repairs.forget_io(id);
        self.act(Action::Retire { io: id });
        if let Some(lock) = lock {
            self.unlock(now, lock);
        }
    }

    pub(super) fn retire_dropped(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.dropped) {
            self.retire_if_done(now, id);
            if self.ios.contains_key(&id) {
                self.dropped.push(id);
            }
        }
    }
}
