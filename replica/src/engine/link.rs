//! One connection to one replica: a socket with two thin tasks, or a replica in this process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::Engine;
use crate::listen::{self, Address};
use crate::message::Request;
use crate::payload::Payload;
use crate::replication::{Destination, LinkId, Slot};
use crate::server::{Conversation, Peer, Replica};
use crate::store::StoreError;
use crate::stream::{FOREVER, FrameReader, Outbox, Urgency, outbox, write_frames};
use crate::wire;

/// So long nobody has to listen yet where a connection is made.
const LISTEN_PATIENCE: Duration = Duration::from_millis(80);
const LISTEN_RETRY: Duration = Duration::from_millis(5);

/// Dropping it closes the connection.
pub(super) struct Link {
    route: Rc<RefCell<Route>>,
    destinations: HashMap<u64, Destination>,
    task: JoinHandle<()>,
}

enum Route {
    Connecting,
    Socket(Outbox<()>),
    Local { engine: Engine, slot: Slot, link: LinkId, conversation: Rc<Conversation> },
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        self.route.replace(Route::Connecting);
    }
}

impl Link {
    /// Connects in the background; the engine hears of it.
    pub(super) fn connecting(engine: Engine, slot: Slot, link: LinkId, address: Address) -> Self {
        let route = Rc::new(RefCell::new(Route::Connecting));
        let task = tokio::task::spawn_local({
            let route = route.clone();
            async move {
                let reason = match address {
                    Address::Directory(path) => match engine.0.local.open(&path).await {
                        Ok(replica) => {
                            let conversation = Conversation::with(replica, Peer::SameProcess);
                            let local =
                                Route::Local { engine: engine.clone(), slot, link, conversation };
                            route.replace(local);
                            return engine.link_connected(slot, link);
                        }
                        Err(error) => error.to_string(),
                    },
                    address => match talk(&engine, slot, link, &address, &route).await {
                        Ok(()) => "it closed the connection".to_owned(),
                        Err(error) => error.to_string(),
                    },
                };
                engine.link_lost(slot, link, &reason);
            }
        });
        Self { route, destinations: HashMap::new(), task }
    }

    pub(super) fn send(
        &mut self,
        seq: u64,
        request: Request<Rc<Payload>>,
        into: Option<Destination>,
    ) {
        if let Some(into) = into {
            self.destinations.insert(seq, into);
        }
        let mut ends = false;
        match &*self.route.borrow() {
            Route::Connecting => {}
            Route::Socket(queue) => match wire::encode_request(seq, &request) {
                Ok(frame) => queue.send(frame, Urgency::of(&request), ()),
                // Messages are made so that they fit. If one doesn't, the replica isn't to blame,
                // but can't be asked: what the link has brought so far is all.
                Err(error) => {
                    tracing::error!(%error, "a request that can't be sent ends the connection");
                    ends = true;
                }
            },
            Route::Local { engine, slot, link, conversation } => {
                let (engine, conversation) = (engine.clone(), conversation.clone());
                let (slot, link) = (*slot, *link);
                tokio::task::spawn_local(async move {
                    let reply = conversation.handle(request).await;
                    engine.link_answered(slot, link, seq, reply);
                });
            }
        }
        if ends {
            self.route.replace(Route::Connecting);
        }
    }

    /// Where the data of this answer goes.
    pub(super) fn destination(&mut self, seq: u64) -> Option<Destination> {
        self.destinations.remove(&seq)
    }
}

/// A replica that is started together with its engine listens a few milliseconds later. To give up
/// at once would make an attach wait for the core's next try; to wait for longer would hold up the
/// writes of a volume whose replica was killed.
async fn connect(address: &Address) -> io::Result<(listen::Reader, listen::Writer)> {
    let deadline = Instant::now() + LISTEN_PATIENCE;
    loop {
        match listen::connect(address).await {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(LISTEN_RETRY).await;
            }
            result => return result,
        }
    }
}

/// Reads answers until the connection ends.
async fn talk(
    engine: &Engine,
    slot: Slot,
    link: LinkId,
    address: &Address,
    route: &Rc<RefCell<Route>>,
) -> io::Result<()> {
    let (reader, writer) = connect(address).await?;
    let (queue, frames) = outbox();
    route.replace(Route::Socket(queue));
    // It ends when the queue's sender goes with the route.
    tokio::task::spawn_local(write_frames(writer, frames, FOREVER));
    engine.link_connected(slot, link);
    let mut reader = FrameReader::new(reader);
    while let Some((seq, reply)) = reader.next_reply().await? {
        engine.link_answered(slot, link, seq, reply);
    }
    Ok(())
}

/// Replicas inside this process: opened once, kept over reconnections.
#[derive(Default)]
pub(super) struct LocalReplicas {
    open: Mutex<HashMap<PathBuf, Rc<Replica>>>,
}

impl LocalReplicas {
    pub(super) async fn open(&self, path: &Path) -> Result<Rc<Replica>, StoreError> {
        let mut open = self.open.lock().await;
        if let Some(replica) = open.get(path) {
            return Ok(replica.clone());
        }
        let replica = Replica::open(path).await?;
        open.insert(path.to_owned(), replica.clone());
        Ok(replica)
    }

    /// After the engine's end.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        for (_, replica) in self.open.lock().await.drain() {
            replica.close().await?;
        }
        Ok(())
    }
}
