//! The frontend's requests and the bulk data of the core's messages.

use std::collections::HashMap;
use std::rc::Rc;

use ankole_blockdev::disk::{Buffer, Extent};
use tokio::sync::oneshot;

use super::State;
use crate::message::{Reply, Request};
use crate::payload::{BlockData, Payload};
use crate::replication::{self, Destination, Failure, IoId};
use crate::types::BlockIndex;

/// How a request ended: its data, if it was a read.
pub(super) type Outcome = Result<Option<Rc<Payload>>, Failure>;

#[derive(Default)]
pub(super) struct Requests {
    by_id: HashMap<IoId, Pending>,
}

#[derive(Default)]
struct Pending {
    asker: Option<oneshot::Sender<Outcome>>,
    read: Option<Rc<Payload>>,
    write: Option<Write>,
}

/// What the frontend writes, on its way to whole blocks with checksums.
pub(super) struct Write {
    pub(super) at: Extent,
    pub(super) bytes: Option<Buffer>,
    pub(super) edges: Vec<(BlockIndex, Rc<Payload>)>,
    pub(super) sealed: Option<Rc<Payload>>,
}

impl Write {
    pub(super) fn new(at: Extent, bytes: Buffer) -> Self {
        Self { at, bytes: Some(bytes), edges: Vec::new(), sealed: None }
    }

    fn seal(&mut self) -> Rc<Payload> {
        if let Some(sealed) = &self.sealed {
            return sealed.clone();
        }
        let bytes = self.bytes.take().expect("it is taken once, when it is sealed");
        let edges = std::mem::take(&mut self.edges);
        let edges = edges.iter().map(|(block, payload)| (*block, &**payload));
        let sealed = Rc::new(Payload::Blocks(BlockData::over_edges(self.at, bytes, edges)));
        self.sealed = Some(sealed.clone());
        sealed
    }
}

impl Requests {
    /// A request that was submitted; what the core already said of it is not lost.
    pub(super) fn expect(&mut self, io: IoId, write: Option<Write>) -> oneshot::Receiver<Outcome> {
        let (asker, outcome) = oneshot::channel();
        self.by_id.insert(io, Pending { asker: Some(asker), read: None, write });
        outcome
    }

    pub(super) fn complete(&mut self, io: IoId, result: Result<(), Failure>) {
        if let Some(pending) = self.by_id.get_mut(&io)
            && let Some(asker) = pending.asker.take()
        {
            let _gone = asker.send(result.map(|()| pending.read.take()));
        }
    }

    pub(super) fn retire(&mut self, io: IoId) {
        self.by_id.remove(&io);
    }

    /// After a clean end: whoever still waits is told. A fenced engine's clients are told nothing.
    pub(super) fn shut_down(&mut self) {
        for (_, pending) in self.by_id.drain() {
            if let Some(asker) = pending.asker {
                let _gone = asker.send(Err(Failure::Shutdown));
            }
        }
    }
}

impl State {
    /// The core's message with the data it refers to; `None` if nobody needs that any more.
    pub(super) fn with_data(
        &mut self,
        request: Request<replication::PayloadRef>,
    ) -> Option<Request<Rc<Payload>>> {
        request.try_map_payload(|payload| match payload {
            replication::PayloadRef::Of(io) => {
                let write = self.requests.by_id.get_mut(&io)?.write.as_mut()?;
                Some(write.seal())
            }
            replication::PayloadRef::Transfer(transfer) => self.transfers.get(&transfer)?.clone(),
        })
    }

    /// Puts an answer's data where it belongs; the core gets the rest. `None`: it doesn't fit.
    pub(super) fn take_data(
        &mut self,
        into: Option<Destination>,
        reply: Reply<Rc<Payload>>,
    ) -> Option<Reply<()>> {
        let Reply::Data(payload) = reply else { return reply.without_data() };
        match (into?, &*payload) {
            (Destination::Read(io), Payload::Blocks(_) | Payload::Map(_)) => {
                // Of two members that were asked the first counts.
                if let Some(pending) = self.requests.by_id.get_mut(&io)
                    && pending.asker.is_some()
                {
                    pending.read.get_or_insert(payload);
                }
                Some(Reply::Data(()))
            }
            (Destination::Edge(io, block), Payload::Blocks(blocks)) if blocks.sums.len() == 1 => {
                if let Some(pending) = self.requests.by_id.get_mut(&io)
                    && let Some(write) = &mut pending.write
                {
                    write.edges.push((block, payload));
                }
                Some(Reply::Data(()))
            }
            (Destination::Transfer(transfer), Payload::Patch(patch)) => {
                let digest = patch.digest;
                if let Some(wanted) = self.transfers.get_mut(&transfer) {
                    *wanted = Some(payload.clone());
                }
                Some(Reply::Digest(digest))
            }
            _ => None,
        }
    }
}
