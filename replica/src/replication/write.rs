//! Writes, from the moment at which they hold their range and are whole blocks.

use std::time::Instant;

use super::action::{Failure, IoId, Operation, PayloadRef};
use super::core::Core;
use super::io::IoStage;
use super::peer::Purpose;
use super::slots::{Slot, Slots};
use crate::message::{Refusal, Reply, Request};

impl Core {
    pub(super) fn send_write(&mut self, now: Instant, id: IoId) {
        let (needs, targets) = (self.needed(), self.writable());
        let io = self.io(id);
        io.stage = IoStage::Writing;
        io.needs = needs;
        self.note_written(now, id);
        for slot in targets.iter() {
            self.send_write_to(now, id, slot);
        }
    }

    pub(super) fn send_write_to(&mut self, now: Instant, id: IoId, slot: Slot) {
        let io = self.io(id);
        io.unconfirmed.insert(slot);
        let request = match io.operation {
            Operation::Write { range, forced, .. } => {
                Request::Write { range, forced, payload: PayloadRef::Of(id) }
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
                if io.refused.contains(slot) {
                    io.refused.remove(slot);
                    self.forget_if_unwanted(slot);
                }
                self.check_write(now, id);
            }
            Reply::Refused(Refusal::NoSpace) => {
                if self.waits_for_room(now, slot) {
                    let io = self.io(id);
                    io.refused.insert(slot);
                    io.full.insert(slot);
                }
            }
            Reply::Refused(Refusal::Io { .. } | Refusal::Failed { .. })
                if self.is_only_member(slot) =>
            {
                self.fail_write(now, id); // the last copy: the client must know
            }
            other => self.lose_for(now, slot, &other),
        }
    }

    /// Whoever is being rebuilt may have the write that its only source lacks: it begins anew.
    pub(super) fn fail_write(&mut self, now: Instant, id: IoId) {
        let others = self.io(id).unconfirmed.union(self.io(id).confirmed).without(self.live());
        self.io(id).unconfirmed = Slots::NONE;
        self.writes_in_flight -= 1;
        self.complete(id, Err(Failure::Io));
        for slot in others.intersection(self.writable()).iter() {
            self.lose(now, slot, "its source failed to write what it may have written");
        }
    }

    /// Answers the write if all who are needed have it, and ends it if all who got it have it.
    pub(super) fn check_write(&mut self, now: Instant, id: IoId) {
        let io = self.io(id);
        if io.stage == IoStage::Writing && io.needs.without(io.confirmed).is_empty() {
            if self.may_acknowledge(now) {
                self.complete(id, Ok(()));
            } else {
                self.acknowledge_later(id);
            }
        }
        let io = self.io(id);
        if io.answered && io.unconfirmed.is_empty() {
            self.writes_in_flight -= 1;
            self.retire_if_done(now, id);
        }
    }
}
