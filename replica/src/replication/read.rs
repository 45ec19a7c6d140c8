//! Reads, and the edges of blocks that are written in part: asked of one member after another until
//! one has them.

use std::time::Instant;

use super::action::{Destination, Failure, IoId, Operation};
use super::core::Core;
use super::io::IoStage;
use super::peer::Purpose;
use super::slots::Slot;
use crate::message::{Refusal, Reply, Request};
use crate::types::{BlockIndex, BlockRange};

impl Core {
    pub(super) fn send_read(&mut self, now: Instant, id: IoId) {
        let (IoStage::Reading { from: None, failed }, Some(range)) =
            (self.io(id).stage, self.io(id).range())
        else {
            return;
        };
        if self.repairs.is_undecided(range) {
            return self.complete(id, Err(Failure::Io));
        }
        let (readers, unverified) = self.readers(id, range, failed);
        if readers.is_empty() {
            self.io(id).stage = IoStage::Reading { from: None, failed };
            let nobody = !failed.is_empty() && self.set().without(failed).is_empty();
            if nobody && !self.waits_for_repair(now, id) {
                self.complete(id, Err(Failure::Io));
            }
            return; // else a member that is away may have it
        }
        let from = self.pick_reader(now, readers);
        self.io(id).stage = IoStage::Reading { from: Some(from), failed };
        self.ask_for(now, id, range, from, unverified);
        self.renew_short_leases(now, Some(from));
        if readers.len() > 1 {
            let after = self.peer(from).latencies.hedge_after();
            self.is_sooner |= self.hedges.add(now + after, id);
        }
    }

    /// Asks one member for what is read, if need be what nobody has compared. Until it answers the
    /// range stays locked.
    pub(super) fn ask_for(
        &mut self,
        now: Instant,
        id: IoId,
        range: BlockRange,
        from: Slot,
        unverified: bool,
    ) {
        self.io(id).unconfirmed.insert(from);
        let into = Some(Destination::Read(id));
        let request = match self.io(id).operation {
            Operation::Map { .. } => Request::Map { range },
            _ if unverified => Request::ReadUnverified { range },
            _ => Request::Read { range },
        };
        self.send(now, from, Purpose::Read(id), request, into);
    }

    pub(super) fn read_answered(&mut self, now: Instant, slot: Slot, id: IoId, reply: Reply<()>) {
        let Some(io) = self.ios.get_mut(&id) else { return };
        io.unconfirmed.remove(slot);
        let other = io.unconfirmed.iter().next();
        match (reply, io.stage) {
            (Reply::Data(()), IoStage::Reading { .. }) => self.tell_read(now, id),
            (reply, IoStage::Reading { mut failed, .. }) if is_unreadable(&reply) => {
                if self.note_unreadable(now, slot, id, &reply) {
                    failed.insert(slot);
                }
                self.io(id).stage = IoStage::Reading { from: other, failed };
                self.send_read(now, id);
            }
            // Another copy came first; this one counts no more.
            (Reply::Data(()), _) => self.retire_if_done(now, id),
            (reply, _) if is_unreadable(&reply) => self.retire_if_done(now, id),
            (reply, _) => {
                self.retire_if_done(now, id);
                self.lose_for(now, slot, &reply);
            }
        }
    }

    /// Asks for every edge that is on its way from nobody; with all there, the write goes out.
    pub(super) fn send_edges(&mut self, now: Instant, id: IoId) {
        let IoStage::Filling { mut missing, failed } = self.io(id).stage else { return };
        if missing == [None; 2] {
            return self.send_write(now, id);
        }
        let Some(range) = self.io(id).range() else { return };
        let mut edges = missing.iter().flatten().map(|(block, _)| BlockRange::new(*block, 1));
        if edges.any(|edge| self.repairs.is_undecided(edge)) {
            if missing.iter().flatten().all(|(_, from)| from.is_none()) {
                self.fail_write(now, id);
            }
            return;
        }
        let (readers, unverified) = self.readers(id, range, failed);
        if readers.is_empty() {
            let idle = missing.iter().flatten().all(|(_, from)| from.is_none());
            if idle && !failed.is_empty() && self.set().without(failed).is_empty() {
                self.fail_write(now, id);
            }
            return; // else the other edge's answer or `resend` goes on
        }
        for (block, from) in missing.iter_mut().flatten() {
            if from.is_none() {
                let reader = self.pick_reader(now, readers);
                *from = Some(reader);
                let range = BlockRange::new(*block, 1);
                let into = Some(Destination::Edge(id, *block));
                let purpose = Purpose::Edge(id, *block);
                let request = match unverified {
                    true => Request::ReadUnverified { range },
                    false => Request::Read { range },
                };
                self.send(now, reader, purpose, request, into);
            }
        }
        self.io(id).stage = IoStage::Filling { missing, failed };
    }

    pub(super) fn edge_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        id: IoId,
        block: BlockIndex,
        reply: Reply<()>,
    ) {
        let Some(IoStage::Filling { mut missing, mut failed }) =
            self.ios.get(&id).map(|io| io.stage)
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
        if unreadable && self.note_unreadable(now, slot, id, &reply) {
            failed.insert(slot);
        }
        self.io(id).stage = IoStage::Filling { missing, failed };
        self.send_edges(now, id);
    }
}

/// Another replica may still have the block.
fn is_unreadable(reply: &Reply<()>) -> bool {
    matches!(
        reply,
        Reply::Refused(Refusal::BadBlocks { .. } | Refusal::Io { .. } | Refusal::Unverified)
    )
}
