//! Reads, and the edges of blocks that are written in part: asked of one member after another until
//! one has them.

use std::time::Instant;

use super::action::{Destination, Failure, IoId, Operation};
use super::core::Core;
use super::io::Stage;
use super::peer::Purpose;
use super::slots::Slot;
use crate::message::{Refusal, Reply, Request};
use crate::types::{BlockIndex, BlockRange};

impl Core {
    pub(super) fn send_read(&mut self, now: Instant, id: IoId) {
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
    pub(super) fn send_edges(&mut self, now: Instant, id: IoId) {
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
}

/// Another replica may still have the block.
fn is_unreadable(reply: &Reply<()>) -> bool {
    matches!(reply, Reply::Refused(Refusal::BadBlocks { .. } | Refusal::Io { .. }))
}
