//! One client, from the greeting to the last reply.
//!
//! A connection is one task and one loop that owns its state. Each turn takes what the socket has,
//! begins the requests in it, collects what the disk has finished, and writes all replies at once:
//! however many requests are in flight, a turn costs one receive and one send.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::handshake::{self, Handshake, Negotiated, Violation};
use super::intake::{self, Event, Intake, NotARequest};
use super::memory::{Pool, Share};
use super::reply::{Freed, Outbox, Reply, SLICES_MAX};
use super::request::Request;
use super::server::{Export, Limits};
use super::stream::Stream;
use super::wire::{Command, Cookie, Errno};
use crate::disk::{Buffer, Disk, Durability, Extent, Hold};

/// Why a connection ended, other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Handshake(#[from] Violation),
    #[error("no NBD handshake within {0:?}")]
    HandshakeTimeout(Duration),
    #[error(transparent)]
    OutOfStep(#[from] NotARequest),
    #[error("the client moved no byte for {0:?} in the middle of a message")]
    Stalled(Duration),
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// One more client, until dropped.
struct Counted<'a>(&'a Cell<u32>);

impl<'a> Counted<'a> {
    fn new(clients: &'a Cell<u32>) -> Self {
        clients.set(clients.get() + 1);
        Self(clients)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Serves one client to its end. Sets `is_established` when the handshake is done.
pub(super) async fn run<D: Disk>(
    stream: &Stream,
    export: &Export<D>,
    limits: &Limits,
    pool: &Pool,
    is_established: &Cell<bool>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    let mut stopped = pin!(async move {
        // An error means that the server is gone, which is a stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    let mut received = Vec::new();
    let agreed = tokio::select! {
        agreed = tokio::time::timeout(limits.handshake, shake_hands(stream, export, &mut received))
            => agreed.map_err(|_| ConnectionError::HandshakeTimeout(limits.handshake))??,
        () = &mut stopped => return Ok(()),
    };
    let Some(negotiated) = agreed else { return Ok(()) };
    is_established.set(true);
    transmit(stream, export, limits, pool, negotiated, &received, stopped).await
}

/// The phase after the handshake, of which `received` is left over.
pub(super) async fn transmit<D: Disk>(
    stream: &Stream,
    export: &Export<D>,
    limits: &Limits,
    pool: &Pool,
    negotiated: Negotiated,
    received: &[u8],
    stopped: Pin<&mut dyn Future<Output = ()>>,
) -> Result<(), ConnectionError> {
    let _counted = Counted::new(&export.clients);
    let perform = |cookie, request, data| {
        perform(&*export.disk, cookie, request, data, negotiated.structured_replies)
    };
    let mut transmission = Transmission {
        stream,
        export,
        limits,
        negotiated,
        perform,
        stopped: Some(stopped),
        intake: Intake::new(received),
        reading: Reading::WantsBytes,
        in_flight: FuturesUnordered::new(),
        outbox: Outbox::default(),
        requests: 0,
        memory_bytes: 0,
        share: pool.share(),
        moved_bytes: 0,
        stall: Stall::new(limits.stall),
        failure: None,
    };
    poll_fn(|cx| transmission.poll(cx)).await
}

/// `None` if the client ended the handshake. What came after its last message stays in `received`.
async fn shake_hands<D: Disk>(
    stream: &Stream,
    export: &Export<D>,
    received: &mut Vec<u8>,
) -> Result<Option<Negotiated>, ConnectionError> {
    stream.write_all(&Handshake::greeting()).await?;
    let mut handshake = Handshake::default();
    let mut reply = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let description = export.description();
        let progress = handshake.receive(received, &description, &mut reply)?;
        stream.write_all(&reply).await?;
        reply.clear();
        match progress {
            handshake::Progress::Handled { bytes } => {
                received.drain(..bytes);
            }
            handshake::Progress::Transmission { bytes, negotiated } => {
                received.drain(..bytes);
                return Ok(Some(negotiated));
            }
            handshake::Progress::Ended => return Ok(None),
            handshake::Progress::NeedsBytes => match stream.read(&mut chunk).await? {
                0 if received.is_empty() => return Ok(None),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => received.extend(&chunk[..count]),
            },
        }
    }
}

/// A reply, and the memory that is free again when it has been written.
struct Answer {
    reply: Reply,
    memory_bytes: u64,
}

/// Asks the disk. The reply takes over what the disk wants held.
async fn perform<D: Disk>(
    disk: &D,
    cookie: Cookie,
    request: Request,
    data: Option<Buffer>,
    structured: bool,
) -> Answer {
    let done = |result: io::Result<Hold>| result.map(|hold| Reply::done(cookie, hold));
    let (command, result) = match request {
        Request::Read(at) => {
            let (result, data) = disk.read(at, Buffer::for_data(at.length_bytes as usize)).await;
            let reply = result.map(|hold| Reply::data(cookie, at, data, hold, structured));
            (Command::Read, reply)
        }
        Request::Write(at, durability) => {
            let data = data.expect("the intake gives every write its data");
            (Command::Write, done(disk.write(at, data, durability).await))
        }
        Request::Flush => (Command::Flush, done(disk.flush().await.map(|()| Hold::none()))),
        Request::Trim(at, durability) => (Command::Trim, done(trim(disk, at, durability).await)),
        Request::WriteZeroes(at, durability) => {
            (Command::WriteZeroes, done(disk.write_zeroes(at, durability).await))
        }
        Request::BlockStatus { at, only_first } => {
            let runs = disk.extents(at).await;
            let reply = runs.map(|runs| Reply::status(cookie, at, runs, only_first));
            (Command::BlockStatus, reply)
        }
    };
    let reply = result.unwrap_or_else(|error| {
        tracing::debug!(?request, %error, "the disk failed an NBD request");
        Reply::error(cookie, Some(command), Errno::from(&error), structured)
    });
    Answer { reply, memory_bytes: request.memory_bytes() }
}

/// A disk's trim knows no durability, so a forced one brings its own flush.
async fn trim<D: Disk>(disk: &D, at: Extent, durability: Durability) -> io::Result<Hold> {
    let hold = disk.trim(at).await?;
    if durability == Durability::ForcedUnitAccess {
        disk.flush().await?;
    }
    Ok(hold)
}

/// The phase after the handshake. `P` begins a request, `F` is one that was begun.
struct Transmission<'a, D, P, F> {
    stream: &'a Stream,
    export: &'a Export<D>,
    limits: &'a Limits,
    negotiated: Negotiated,
    perform: P,
    /// `None` once it was seen.
    stopped: Option<Pin<&'a mut dyn Future<Output = ()>>>,
    intake: Intake,
    reading: Reading,
    in_flight: FuturesUnordered<F>,
    outbox: Outbox,
    /// Begun and not yet replied to.
    requests: usize,
    memory_bytes: u64,
    share: Share<'a>,
    /// In both directions, to see whether the client still moves.
    moved_bytes: u64,
    stall: Stall,
    /// The first thing that went wrong. What was begun is finished before the connection ends.
    failure: Option<ConnectionError>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    WantsBytes,
    /// The next request waits for others to be done.
    WantsRoom,
    /// The client has closed or broken its end, or the server stops.
    Ended,
}

impl<D, P, F> Transmission<'_, D, P, F>
where
    D: Disk,
    P: Fn(Cookie, Request, Option<Buffer>) -> F,
    F: Future<Output = Answer>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.poll_stopped(cx);
        loop {
            let mut has_moved = self.poll_receive(cx);
            let before = self.reading;
            self.begin_requests();
            has_moved |= self.reading != before; // there may be room since others gave some back
            has_moved |= self.poll_in_flight(cx);
            has_moved |= self.poll_send(cx);
            if self.reading == Reading::Ended && self.requests == 0 {
                return Poll::Ready(self.failure.take().map_or(Ok(()), Err));
            }
            if !has_moved {
                break;
            }
        }
        if self.reading == Reading::WantsRoom {
            self.share.wait(cx.waker());
        }
        let waits_for_client = !self.outbox.is_empty()
            || (self.reading == Reading::WantsBytes && !self.intake.is_between_requests());
        if self.stall.poll(cx, waits_for_client, self.moved_bytes) {
            self.fail(ConnectionError::Stalled(self.limits.stall));
            self.forget_replies();
            cx.waker().wake_by_ref(); // to go on with what is in flight, or end
        }
        Poll::Pending
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) {
        if let Some(stopped) = &mut self.stopped
            && stopped.as_mut().poll(cx).is_ready()
        {
            self.stopped = None;
            self.reading = Reading::Ended;
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> bool {
        if self.reading != Reading::WantsBytes {
            return false;
        }
        let received = match self.stream.poll_read_ready(cx) {
            Poll::Pending => return false,
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) => self.stream.try_read(self.intake.space()),
        };
        match received {
            Ok(0) if self.intake.is_between_requests() => self.reading = Reading::Ended,
            Ok(0) => self.fail(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => {
                self.intake.received(count);
                self.moved_bytes += count as u64;
            }
            // Readiness was stale and is cleared now; the next turn registers the task.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.fail(error.into()),
        }
        true
    }

    /// Begins all that has arrived, as far as there is room.
    fn begin_requests(&mut self) {
        let terms = self.export.terms(self.negotiated);
        while self.reading != Reading::Ended {
            if self.requests == self.limits.requests_max {
                self.reading = Reading::WantsRoom;
                return;
            }
            let room_bytes = match self.memory_bytes {
                0 => u64::MAX, // alone, any request fits
                taken => self.limits.memory_bytes_max.saturating_sub(taken),
            };
            let progress = self.intake.next(&terms, room_bytes.min(self.share.room_bytes()));
            match progress {
                Ok(intake::Progress::Event(event)) => self.begin(event),
                Ok(intake::Progress::NeedsBytes) => {
                    self.note_memory(); // it may be for data that is yet to come
                    self.reading = Reading::WantsBytes;
                    return;
                }
                Ok(intake::Progress::NeedsRoom) => {
                    self.reading = Reading::WantsRoom;
                    return;
                }
                Err(out_of_step) => self.fail(out_of_step.into()),
            }
        }
    }

    fn begin(&mut self, event: Event) {
        match event {
            Event::Request { cookie, request, data } => {
                self.requests += 1;
                self.memory_bytes += request.memory_bytes();
                self.note_memory();
                self.in_flight.push((self.perform)(cookie, request, data));
            }
            Event::Refused { cookie, command, errno } => {
                self.requests += 1;
                let structured = self.negotiated.structured_replies;
                self.outbox.push(Reply::error(cookie, command, errno, structured), 0);
            }
            Event::Disconnect => self.reading = Reading::Ended,
        }
    }

    /// Collects what the disk has finished.
    fn poll_in_flight(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        while let Poll::Ready(Some(answer)) = self.in_flight.poll_next_unpin(cx) {
            self.outbox.push(answer.reply, answer.memory_bytes);
            has_moved = true;
        }
        has_moved
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        while !self.outbox.is_empty() {
            let written = match self.stream.poll_write_ready(cx) {
                Poll::Pending => return has_moved,
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) => {
                    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                    let used = self.outbox.fill(&mut slices);
                    self.stream.try_write_vectored(&slices[..used])
                }
            };
            match written {
                Ok(count) => {
                    self.moved_bytes += count as u64;
                    let freed = self.outbox.advance(count);
                    self.release(freed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    self.fail(error.into());
                    self.forget_replies();
                }
            }
            has_moved = true;
        }
        has_moved
    }

    fn release(&mut self, freed: Freed) {
        self.requests -= freed.requests;
        self.memory_bytes -= freed.memory_bytes;
        self.note_memory();
    }

    fn note_memory(&mut self) {
        self.share.hold(self.memory_bytes + self.intake.payload_bytes());
    }

    /// Takes no more requests. Those that were begun are finished.
    fn fail(&mut self, failure: ConnectionError) {
        self.reading = Reading::Ended;
        self.failure.get_or_insert(failure);
    }

    fn forget_replies(&mut self) {
        let freed = self.outbox.clear();
        self.release(freed);
    }
}

/// Notices a client that hangs in the middle of a message. The timer is set once and looked at
/// when it fires, since setting it at every request would cost more than the request.
struct Stall {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// How many bytes had moved when the timer was set; `None` if it isn't set.
    moved_bytes: Option<u64>,
}

impl Stall {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(tokio::time::sleep(limit)), moved_bytes: None }
    }

    /// True if the client was waited for and moved nothing for the whole limit.
    fn poll(&mut self, cx: &mut Context<'_>, waits_for_client: bool, moved_bytes: u64) -> bool {
        if self.moved_bytes.is_none() {
            if !waits_for_client {
                return false;
            }
            self.set(moved_bytes);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if !waits_for_client {
                self.moved_bytes = None;
                return false;
            }
            if self.moved_bytes == Some(moved_bytes) {
                return true;
            }
            self.set(moved_bytes);
        }
        false
    }

    fn set(&mut self, moved_bytes: u64) {
        self.moved_bytes = Some(moved_bytes);
        self.timer.as_mut().reset(Instant::now() + self.limit);
    }
}
