//! A replica's sockets: takes connections, and bounds what each may hold.
//!
//! Promises that a client which doesn't read its answers, or sends half of its requests, costs this
//! process a bounded number of bytes and nobody else any time: what a request and its answer take is
//! counted before there is memory for it, until the answer has *left*. An engine has a budget of its
//! own; all readers share one, and whoever takes no byte of an answer for [`STALL`] is disconnected.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ankole_blockdev::accept::next_client;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{Conversation, Peer, Replica};
use crate::listen::{Address, Listener};
use crate::message::Request;
use crate::payload::Payload;
use crate::store::Storage;
use crate::stream::{FrameReader, Urgency, outbox, write_frames};
use crate::types::{BLOCK_BYTES, REGION_BYTES};
use crate::wire;

/// Requests of one connection that aren't answered; more wait in the socket.
const IN_FLIGHT_MAX: usize = 1024;
/// What the requests of an engine and their answers may take, in bytes. One that takes more is
/// alone.
const ENGINE_BYTES_MAX: usize = 32 << 20;
/// The same of all readers together.
const READERS_BYTES_MAX: usize = 32 << 20;
/// The longest request of a connection that isn't an engine's, in bytes: readers only ask.
const QUESTION_BYTES_MAX: usize = 64 << 10;
/// What is reserved for an answer that is a list.
const LIST_BYTES: u64 = 1 << 20;
/// A client that has answers to take and takes no byte for so long is disconnected.
const STALL: Duration = Duration::from_secs(30);
/// After the end what still runs gets so long.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Serves a replica until `stop` resolves, and what was asked by then is answered. Connections are
/// independent; one that sends garbage is closed and said so.
pub async fn serve<S: Storage>(
    replica: Rc<Replica<S>>,
    address: &Address,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = Listener::bind(address).await?;
    info!(%address, "replica serves");
    let readers = Arc::new(Semaphore::new(READERS_BYTES_MAX));
    let (ending, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_ended) = connections.join_next() => {}
            (reader, writer, process) = next_client(address, || listener.accept()) => {
                let peer = process.map_or(Peer::Unknown, Peer::Process);
                let conversation = Conversation::with(replica.clone(), peer);
                let (room, ending) = (Room::new(readers.clone()), ending.subscribe());
                connections.spawn_local(async move {
                    if let Err(error) = converse(conversation, room, reader, writer, ending).await {
                        warn!(%error, "connection closed");
                    }
                });
            }
        }
    }
    drop(listener);
    ending.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(END_PATIENCE, all_ended).await.is_err() {
        warn!(connections = connections.len(), "what was asked takes long; it isn't waited for");
    }
    Ok(())
}

async fn converse<S: Storage>(
    conversation: Rc<Conversation<S>>,
    room: Room,
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin + 'static,
    mut ending: watch::Receiver<bool>,
) -> io::Result<()> {
    let (replies, queue) = outbox();
    let mut writing = tokio::task::spawn_local(write_frames(writer, queue, STALL));
    let mut frames = FrameReader::new(reader);
    let end = loop {
        let next = tokio::select! {
            next = room.next_request(&mut frames, conversation.is_engines()) => next,
            // An engine that asks for nothing learns so that it has a successor.
            () = conversation.superseded() => {
                writing.abort();
                return Ok(());
            },
            written = &mut writing => break written.unwrap_or(Ok(())),
            _ = ending.wait_for(|ending| *ending) => {
                // It ends when all that runs has been answered.
                drop(replies);
                return writing.await.unwrap_or(Ok(()));
            }
        };
        let (seq, request, held) = match next {
            Ok(Some(next)) => next,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let (conversation, replies) = (conversation.clone(), replies.clone());
        tokio::task::spawn_local(async move {
            let urgency = Urgency::of(&request);
            let reply = conversation.handle(request).await;
            replies.send(wire::encode_reply(seq, &reply), urgency, held);
        });
    };
    if end.as_ref().err().is_none_or(is_closed) {
        conversation.closed_by_peer();
    }
    drop(replies);
    // What is in flight ends on its own; a client that reads no more must not keep its answers.
    writing.abort();
    end
}

/// A killed process leaves half a frame, or answers that it hasn't read.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// What one connection may hold.
struct Room {
    places: Arc<Semaphore>,
    engine: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

/// Given back when the answer has left.
struct Held {
    _place: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Room {
    fn new(readers: Arc<Semaphore>) -> Self {
        let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        Self { places, engine: Arc::new(Semaphore::new(ENGINE_BYTES_MAX)), readers }
    }

    /// The next request, as soon as there is room for it and for its answer.
    async fn next_request(
        &self,
        frames: &mut FrameReader<impl AsyncRead + Unpin>,
        is_engines: bool,
    ) -> io::Result<Option<(u64, Request<Rc<Payload>>, Held)>> {
        let place = take(&self.places, 1).await;
        let Some(header) = frames.next_header().await? else { return Ok(None) };
        if !is_engines {
            if header.body_bytes() > QUESTION_BYTES_MAX {
                let message = "it isn't an engine's, and sends more than a question";
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // Nothing is held while one waits for the others' answers to leave.
            let (seq, request) = frames.request(header).await?;
            let bytes = take(&self.readers, answer_bytes(&request).min(READERS_BYTES_MAX)).await;
            return Ok(Some((seq, request, Held { _place: place, _bytes: bytes })));
        }
        let asked_bytes = header.body_bytes().min(ENGINE_BYTES_MAX);
        let mut bytes = take(&self.engine, asked_bytes).await;
        let (seq, request) = frames.request(header).await?;
        let answer_bytes = answer_bytes(&request).min(ENGINE_BYTES_MAX - asked_bytes);
        bytes.merge(take(&self.engine, answer_bytes).await);
        Ok(Some((seq, request, Held { _place: place, _bytes: bytes })))
    }
}

async fn take(budget: &Arc<Semaphore>, count: usize) -> OwnedSemaphorePermit {
    let count = u32::try_from(count).expect("budgets are small");
    budget.clone().acquire_many_owned(count).await.expect("it is never closed")
}

/// What the answer takes while it is made and until it has left, about.
fn answer_bytes<P>(request: &Request<P>) -> usize {
    let bytes = match request {
        Request::Read { range }
        | Request::ReadUnverified { range }
        | Request::ReadSnapshot { range, .. } => range.length_bytes(),
        Request::Fetch { blocks, .. } => blocks.count() * BLOCK_BYTES,
        Request::Sums { contents: true, .. } => REGION_BYTES,
        Request::Write { .. }
        | Request::Zero { .. }
        | Request::Copy { .. }
        | Request::Repair { .. }
        | Request::Flush
        | Request::Ping => 0,
        _ => LIST_BYTES,
    };
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use ankole_blockdev::disk::Buffer;

    use super::*;
    use crate::payload::BlockData;
    use crate::stream::write_frame;
    use crate::types::{BlockIndex, BlockRange, LayerId};

    const READ_BYTES: u64 = 4 << 20;

    /// 64 answers of 32 MiB that nobody read took a replica to 1.6 GiB.
    #[tokio::test(flavor = "current_thread")]
    async fn answers_that_no_reader_takes_are_not_even_made_beyond_the_readers_bytes() {
        let readers = Arc::new(Semaphore::new(READERS_BYTES_MAX));
        let room = Room::new(readers.clone());
        let range = BlockRange::new(BlockIndex(0), READ_BYTES / BLOCK_BYTES);
        let ask = Request::ReadSnapshot { layer: LayerId(1), range };
        let mut stream = Vec::new();
        for seq in 1..=64 {
            let frame = wire::encode_request(seq, &ask).expect("it fits");
            write_frame(&mut stream, &frame).await.expect("to memory");
        }
        let mut frames = FrameReader::new(&stream[..]);
        let mut held = Vec::new();
        let mut next = Box::pin(async {
            while let Ok(Some((_, _, one))) = room.next_request(&mut frames, false).await {
                held.push(one);
            }
        });
        let mut context = Context::from_waker(Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending(), "the rest waits in the socket");
        drop(next);
        assert_eq!(held.len() as u64, READERS_BYTES_MAX as u64 / READ_BYTES);
        held.pop();
        assert_eq!(readers.available_permits() as u64, READ_BYTES, "one has left");
    }

    /// A write's data had its memory as soon as its header was there.
    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_that_is_not_an_engines_can_not_send_data() {
        let data = Buffer::zeroed(QUESTION_BYTES_MAX + BLOCK_BYTES as usize);
        let data = BlockData::from_client(data);
        let range = BlockRange::new(BlockIndex(0), data.sums.len() as u64);
        let payload = Rc::new(Payload::Blocks(data));
        let write = Request::Write { range, forced: false, payload };
        let frame = wire::encode_request(1, &write).expect("it fits");
        let mut frames = FrameReader::new(&frame.head[..]);
        let room = Room::new(Arc::new(Semaphore::new(READERS_BYTES_MAX)));
        let refused = room.next_request(&mut frames, false).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("more than a question")));
    }
}
