//! Cuts the client's byte stream into requests. Pure: the shell only fills the memory it is given.
//!
//! ```text
//!            header of a read, flush, …                ┌──▶ Event::Request
//! Header ──┬───────────────────────────────────────────┤
//!    ▲     ├─ write, data in the read buffer (copied) ─┘
//!    │     ├─ write, data yet to come ──▶ Payload: received into the request's own memory
//!    │     └─ write that is refused ────▶ Skip: its data is counted, not kept
//!    └──────────────────────────────────────┘
//! ```
//!
//! Memory for a write's data is allocated only when the caller has room for it, and never more
//! than [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX).

use super::request::{Request, Terms};
use super::wire::{Command, Cookie, Errno, RawRequest};
use crate::disk::Buffer;

/// Size of the read buffer: one receive takes 31 writes of 4 KiB or thousands of reads.
pub const READ_BUFFER_BYTES: usize = 128 << 10;

/// What the client sent.
#[derive(Debug)]
pub enum Event {
    /// With the data if it is a write.
    Request { cookie: Cookie, request: Request, data: Option<Buffer> },
    /// Wants this error as its answer.
    Refused { cookie: Cookie, command: Option<Command>, errno: Errno },
    /// The client says that it will send no more.
    Disconnect,
}

/// What can be taken from the bytes received so far.
#[derive(Debug)]
pub enum Progress {
    Event(Event),
    NeedsBytes,
    /// The next request needs more memory than the caller has left.
    NeedsRoom,
}

/// The stream is out of step, so nothing after this can be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("received bytes that aren't an NBD request")]
pub struct NotARequest;

/// See the module.
pub struct Intake {
    buffer: Box<[u8]>,
    /// Received and not yet taken: `buffer[start..end]`.
    start: usize,
    end: usize,
    state: State,
}

enum State {
    Header,
    Payload { cookie: Cookie, request: Request, data: Buffer, filled: usize },
    Skip { cookie: Cookie, errno: Errno, bytes_left: u64 },
}

impl Intake {
    /// Begins with what was received together with the last message of the handshake.
    pub fn new(already_received: &[u8]) -> Self {
        let mut buffer = vec![0; READ_BUFFER_BYTES.max(already_received.len())].into_boxed_slice();
        buffer[..already_received.len()].copy_from_slice(already_received);
        Self { buffer, start: 0, end: already_received.len(), state: State::Header }
    }

    /// Where the next bytes of the stream belong; never empty after `next` said `NeedsBytes`.
    /// [`received`](Self::received) must follow with the number of bytes stored.
    pub fn space(&mut self) -> &mut [u8] {
        if let State::Payload { data, filled, .. } = &mut self.state {
            return &mut data[*filled..];
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < RawRequest::BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    pub fn received(&mut self, count: usize) {
        match &mut self.state {
            State::Payload { filled, .. } => *filled += count,
            State::Header | State::Skip { .. } => self.end += count,
        }
    }

    /// Whether the stream may end here without cutting a request.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.state, State::Header) && self.start == self.end
    }

    /// The next request. `room_bytes` is the memory that it may take.
    pub fn next(&mut self, terms: &Terms, room_bytes: u64) -> Result<Progress, NotARequest> {
        match &mut self.state {
            State::Header => self.next_header(terms, room_bytes),
            State::Payload { data, filled, .. } if *filled < data.len() => Ok(Progress::NeedsBytes),
            State::Payload { .. } => Ok(Progress::Event(self.finish_payload())),
            State::Skip { cookie, errno, bytes_left } => {
                let here = (self.end - self.start) as u64;
                let skipped = here.min(*bytes_left);
                self.start += skipped as usize;
                *bytes_left -= skipped;
                if *bytes_left > 0 {
                    return Ok(Progress::NeedsBytes);
                }
                let (cookie, errno, command) = (*cookie, *errno, Some(Command::Write));
                self.state = State::Header;
                Ok(Progress::Event(Event::Refused { cookie, command, errno }))
            }
        }
    }

    fn next_header(&mut self, terms: &Terms, room_bytes: u64) -> Result<Progress, NotARequest> {
        let pending = &self.buffer[self.start..self.end];
        let Some((header, after)) = pending.split_first_chunk() else {
            return Ok(Progress::NeedsBytes);
        };
        let raw = RawRequest::decode(header).ok_or(NotARequest)?;
        let cookie = raw.cookie;
        let command = Command::from_wire(raw.command);
        if command == Some(Command::Disconnect) {
            self.start = self.end;
            return Ok(Progress::Event(Event::Disconnect));
        }
        match (Request::parse(&raw, terms), command) {
            (Err(errno), Some(Command::Write)) => {
                self.start += RawRequest::BYTES;
                self.state = State::Skip { cookie, errno, bytes_left: raw.length_bytes.into() };
                self.next(terms, room_bytes)
            }
            (Err(errno), _) => {
                self.start += RawRequest::BYTES;
                Ok(Progress::Event(Event::Refused { cookie, command, errno }))
            }
            (Ok(request), _) if request.memory_bytes() > room_bytes => Ok(Progress::NeedsRoom),
            (Ok(request @ Request::Write(at, _)), _) => {
                let length = at.length_bytes as usize;
                if let Some(data) = after.get(..length) {
                    let data = Some(Buffer::copy_of(data));
                    self.start += RawRequest::BYTES + length;
                    return Ok(Progress::Event(Event::Request { cookie, request, data }));
                }
                let mut data = Buffer::zeroed(length);
                let filled = after.len();
                data[..filled].copy_from_slice(after);
                self.start = self.end;
                self.state = State::Payload { cookie, request, data, filled };
                Ok(Progress::NeedsBytes)
            }
            (Ok(request), _) => {
                self.start += RawRequest::BYTES;
                Ok(Progress::Event(Event::Request { cookie, request, data: None }))
            }
        }
    }

    fn finish_payload(&mut self) -> Event {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Payload { cookie, request, data, .. } => {
                Event::Request { cookie, request, data: Some(data) }
            }
            State::Header | State::Skip { .. } => unreachable!("called with a complete payload"),
        }
    }
}
