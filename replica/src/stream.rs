//! Frames over a byte stream, in batches: one system call reads or writes many small frames.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use ankole_blockdev::disk::Buffer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::message::{Reply, Request};
use crate::payload::Payload;
use crate::wire::{self, Frame, HEADER_BYTES, Header, WireError};

/// Small frames are read through this much memory, in bytes.
const READ_AHEAD_BYTES: usize = 128 << 10;
/// Frames that go out with one system call.
const BATCH: usize = 64;

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

    pub async fn next_request(&mut self) -> io::Result<Option<(u64, Request<Rc<Payload>>)>> {
        let Some((header, meta, data)) = self.next_frame().await? else { return Ok(None) };
        Ok(Some((header.seq, wire::decode_request(&header, &meta, data).map_err(bad_data)?)))
    }

    pub async fn next_reply(&mut self) -> io::Result<Option<(u64, Reply<Rc<Payload>>)>> {
        let Some((header, meta, data)) = self.next_frame().await? else { return Ok(None) };
        Ok(Some((header.seq, wire::decode_reply(&header, &meta, data).map_err(bad_data)?)))
    }

    /// `None` at the end of the stream; an end within a frame is an error.
    async fn next_frame(&mut self) -> io::Result<Option<(Header, Vec<u8>, Buffer)>> {
        if self.start == self.end && !self.fill().await? {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header).await?;
        let header = Header::decode(&header).map_err(bad_data)?;
        let mut meta = vec![0; header.meta_bytes as usize];
        self.read_exact(&mut meta).await?;
        let mut data = Buffer::for_data(header.data_bytes as usize);
        self.read_exact(&mut data).await?;
        Ok(Some((header, meta, data)))
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

/// Writes frames as they come, until the queue's senders are gone or the stream fails.
pub async fn write_frames<W: AsyncWrite + Unpin>(
    mut stream: W,
    mut queue: mpsc::UnboundedReceiver<Frame>,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let parts = batch.iter().flat_map(|frame| [&frame.head[..], frame.data()]);
        let parts: VecDeque<&[u8]> = parts.filter(|part| !part.is_empty()).collect();
        write_all(&mut stream, parts).await?;
        batch.clear();
    }
    stream.shutdown().await
}

/// Writes one frame.
pub async fn write_frame<W: AsyncWrite + Unpin>(stream: &mut W, frame: &Frame) -> io::Result<()> {
    let parts = [&frame.head[..], frame.data()];
    write_all(stream, parts.into_iter().filter(|part| !part.is_empty()).collect()).await
}

async fn write_all<W: AsyncWrite + Unpin>(
    stream: &mut W,
    mut parts: VecDeque<&[u8]>,
) -> io::Result<()> {
    while !parts.is_empty() {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut written = stream.write_vectored(&slices).await?;
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
