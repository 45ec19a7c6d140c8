//! Frames over a byte stream, in batches: one system call reads or writes many small frames.
//!
//! What holds a lease is never behind more than one batch: pings and their answers go out before
//! whatever else waits, and a batch ends with the frame that makes it long.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use ankole_blockdev::disk::Buffer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::message::{Reply, Request};
use crate::payload::Payload;
use crate::wire::{self, Frame, HEADER_BYTES, Header, WireError};

/// Small frames are read through this much memory, in bytes.
const READ_AHEAD_BYTES: usize = 128 << 10;
/// Frames that go out with one system call: at most so many, and none after so many bytes.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 1 << 20;

/// For streams whose other end is watched by somebody else.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Reads frames. Bulk data goes straight into aligned memory of its own.
pub struct FrameReader<R> {
    stream: R,
    ahead: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, ahead: vec![0; READ_AHEAD_BYTES], start: 0, end: 0 }
    }

    pub async fn next_reply(&mut self) -> io::Result<Option<(u64, Reply<Rc<Payload>>)>> {
        let Some(header) = self.next_header().await? else { return Ok(None) };
        let (meta, data) = self.body(&header).await?;
        Ok(Some((header.seq, wire::decode_reply(&header, &meta, data).map_err(bad_data)?)))
    }

    /// Takes no memory yet for what follows it. `None` at the end of the stream; an end within a
    /// frame is an error.
    pub async fn next_header(&mut self) -> io::Result<Option<Header>> {
        if self.start == self.end && !self.fill().await? {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header).await?;
        Header::decode(&header).map(Some).map_err(bad_data)
    }

    /// The request that begins with this header.
    pub async fn request(&mut self, header: Header) -> io::Result<(u64, Request<Rc<Payload>>)> {
        let (meta, data) = self.body(&header).await?;
        Ok((header.seq, wire::decode_request(&header, &meta, data).map_err(bad_data)?))
    }

    async fn body(&mut self, header: &Header) -> io::Result<(Vec<u8>, Buffer)> {
        let mut meta = vec![0; header.meta_bytes as usize];
        self.read_exact(&mut meta).await?;
        let mut data = Buffer::for_data(header.data_bytes as usize);
        self.read_exact(&mut data).await?;
        Ok((meta, data))
    }

    async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            if self.start == self.end {
                if into.len() - done >= READ_AHEAD_BYTES {
                    self.stream.read_exact(&mut into[done..]).await?;
                    return Ok(());
                }
                if !self.fill().await? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            let count = (into.len() - done).min(self.end - self.start);
            into[done..done + count].copy_from_slice(&self.ahead[self.start..self.start + count]);
            self.start += count;
            done += count;
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<bool> {
        self.start = 0;
        self.end = self.stream.read(&mut self.ahead).await?;
        Ok(self.end > 0)
    }
}

/// Whether a frame may wait behind others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A lease hangs on it. It is small, and its place among others means nothing.
    First,
    InTurn,
}

impl Urgency {
    /// Of a request, and of its answer.
    pub fn of<P>(request: &Request<P>) -> Self {
        if matches!(request, Request::Ping) { Self::First } else { Self::InTurn }
    }
}

/// A frame, and what is given back when it has left.
struct Queued<Held> {
    frame: Frame,
    _held: Held,
}

/// Where frames wait for their stream. Not bounded itself: `Held` is what bounds it.
pub struct Outbox<Held> {
    first: mpsc::UnboundedSender<Queued<Held>>,
    in_turn: mpsc::UnboundedSender<Queued<Held>>,
}

impl<Held> Clone for Outbox<Held> {
    fn clone(&self) -> Self {
        Self { first: self.first.clone(), in_turn: self.in_turn.clone() }
    }
}

impl<Held> Outbox<Held> {
    /// `held` is dropped when the frame has left, or the stream is gone.
    pub fn send(&self, frame: Frame, urgency: Urgency, held: Held) {
        let queue = match urgency {
            Urgency::First => &self.first,
            Urgency::InTurn => &self.in_turn,
        };
        let _gone = queue.send(Queued { frame, _held: held });
    }
}

/// The other end of an [`Outbox`].
pub struct Outgoing<Held> {
    first: mpsc::UnboundedReceiver<Queued<Held>>,
    in_turn: mpsc::UnboundedReceiver<Queued<Held>>,
}

pub fn outbox<Held>() -> (Outbox<Held>, Outgoing<Held>) {
    let (first, to_first) = mpsc::unbounded_channel();
    let (in_turn, to_in_turn) = mpsc::unbounded_channel();
    (Outbox { first, in_turn }, Outgoing { first: to_first, in_turn: to_in_turn })
}

impl<Held> Outgoing<Held> {
    /// Waits for the next frames; `false` if there will be none.
    async fn next_batch(&mut self, batch: &mut Vec<Queued<Held>>) -> bool {
        let next = tokio::select! {
            biased;
            Some(next) = self.first.recv() => next,
            Some(next) = self.in_turn.recv() => next,
            else => return false,
        };
        let mut bytes = next.frame.length_bytes();
        batch.push(next);
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(next) = self.first.try_recv().or_else(|_| self.in_turn.try_recv()) else {
                break;
            };
            bytes += next.frame.length_bytes();
            batch.push(next);
        }
        true
    }
}

/// Writes frames as they come, until the outbox is gone, or the stream fails or takes no byte for
/// `stall`.
pub async fn write_frames<W: AsyncWrite + Unpin, Held>(
    mut stream: W,
    mut queue: Outgoing<Held>,
    stall: Duration,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.next_batch(&mut batch).await {
        let parts = batch.iter().flat_map(|it| [&it.frame.head[..], it.frame.data()]);
        let parts: VecDeque<&[u8]> = parts.filter(|part| !part.is_empty()).collect();
        write_all(&mut stream, parts, stall).await?;
        batch.clear();
    }
    stream.shutdown().await
}

/// Writes one frame.
pub async fn write_frame<W: AsyncWrite + Unpin>(stream: &mut W, frame: &Frame) -> io::Result<()> {
    let parts = [&frame.head[..], frame.data()];
    write_all(stream, parts.into_iter().filter(|part| !part.is_empty()).collect(), FOREVER).await
}

async fn write_all<W: AsyncWrite + Unpin>(
    stream: &mut W,
    mut parts: VecDeque<&[u8]>,
    stall: Duration,
) -> io::Result<()> {
    while !parts.is_empty() {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written = tokio::time::timeout(stall, stream.write_vectored(&slices)).await;
        let Ok(written) = written else {
            let message = format!("the other end took no byte for {} s", stall.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        };
        let mut written = written?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = parts.front_mut() {
            if written < first.len() {
                *first = &first[written..];
                break;
            }
            written -= first.len();
            parts.pop_front();
        }
    }
    Ok(())
}

fn bad_data(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::message::Request;
    use crate::payload::BlockData;
    use crate::types::{BLOCK_BYTES, BlockIndex, BlockRange};

    const WRITE_BYTES: usize = 1 << 20;

    fn write(seq: u64) -> Frame {
        let payload = Payload::Blocks(BlockData::from_client(Buffer::zeroed(WRITE_BYTES)));
        let range = BlockRange::new(BlockIndex(0), WRITE_BYTES as u64 / BLOCK_BYTES);
        let payload = Rc::new(payload);
        wire::encode_request(seq, &Request::Write { range, forced: false, payload })
            .expect("it fits")
    }

    /// It stood behind all of them, and the lease ran out.
    #[tokio::test(flavor = "current_thread")]
    async fn a_ping_waits_for_one_batch_of_data_and_not_for_all_that_is_queued() {
        let (outbox, queue) = outbox();
        for seq in 1..=32 {
            outbox.send(write(seq), Urgency::InTurn, ());
        }
        let (near, far) = tokio::io::duplex(4096);
        let test = async {
            tokio::task::spawn_local(write_frames(near, queue, FOREVER));
            let mut reader = FrameReader::new(far);
            let mut seen = Vec::new();
            while let Some(header) = reader.next_header().await.expect("a frame") {
                if seen.is_empty() {
                    let ping = wire::encode_request(99, &Request::Ping).expect("it fits");
                    outbox.send(ping, Urgency::First, ());
                }
                seen.push(reader.request(header).await.expect("a request").0);
                if seen.contains(&99) {
                    break;
                }
            }
            assert_eq!(seen, [1, 99]);
        };
        LocalSet::new().run_until(test).await;
    }

    /// What bounds a queue was given back when a frame was put into it, and not when it had left.
    #[tokio::test(flavor = "current_thread")]
    async fn what_a_frame_holds_is_given_back_when_it_has_left() {
        let (outbox, queue) = outbox();
        let held = Rc::new(());
        outbox.send(write(1), Urgency::InTurn, held.clone());
        outbox.send(write(2), Urgency::InTurn, held.clone());
        let (near, far) = tokio::io::duplex(4096);
        let test = async {
            tokio::task::spawn_local(write_frames(near, queue, FOREVER));
            let mut reader = FrameReader::new(far);
            for left in [3, 2] {
                let header = reader.next_header().await.expect("a frame").expect("a frame");
                assert_eq!(Rc::strong_count(&held), left, "with the test's own");
                reader.request(header).await.expect("a request");
            }
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_that_takes_nothing_is_given_up() {
        let (outbox, queue) = outbox();
        outbox.send(write(1), Urgency::InTurn, ());
        let (near, _far) = tokio::io::duplex(4096);
        let ended = write_frames(near, queue, Duration::from_millis(1)).await;
        assert_eq!(ended.expect_err("it is full").kind(), io::ErrorKind::TimedOut);
    }
}
