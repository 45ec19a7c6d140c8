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

    /// Memory of a write whose data hasn't arrived in full.
    pub fn payload_bytes(&self) -> u64 {
        match &self.state {
            State::Payload { data, .. } => data.len() as u64,
            State::Header | State::Skip { .. } => 0,
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
                let mut data = Buffer::for_data(length);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nbd::handshake::Negotiated;

    const TERMS: Terms = Terms {
        size_bytes: 1 << 30,
        is_read_only: false,
        negotiated: Negotiated { structured_replies: true, base_allocation: true },
    };

    /// What a stream means, with the data of each write.
    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Request(u64, Request, Option<Vec<u8>>),
        Refused(u64, Errno),
        Disconnect,
        OutOfStep,
    }

    /// Feeds a stream in pieces of the given lengths, then the rest.
    fn feed(stream: &[u8], pieces: &[usize]) -> Vec<Seen> {
        let mut intake = Intake::new(&[]);
        let mut seen = Vec::new();
        let mut rest = stream;
        let mut pieces = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
        loop {
            match intake.next(&TERMS, u64::MAX) {
                Ok(Progress::Event(Event::Request { cookie, request, data })) => {
                    let data = data.map(|data| data.to_vec());
                    seen.push(Seen::Request(cookie.0, request, data));
                }
                Ok(Progress::Event(Event::Refused { cookie, errno, .. })) => {
                    seen.push(Seen::Refused(cookie.0, errno));
                }
                Ok(Progress::Event(Event::Disconnect)) => {
                    seen.push(Seen::Disconnect);
                    return seen;
                }
                Ok(Progress::NeedsBytes) if rest.is_empty() => return seen,
                Ok(Progress::NeedsBytes) => {
                    let space = intake.space();
                    assert!(!space.is_empty(), "a stream that can't go on");
                    let piece = pieces.next().unwrap_or(usize::MAX).clamp(1, rest.len());
                    let piece = piece.min(space.len());
                    space[..piece].copy_from_slice(&rest[..piece]);
                    intake.received(piece);
                    rest = &rest[piece..];
                }
                Ok(Progress::NeedsRoom) => panic!("there is room"),
                Err(NotARequest) => {
                    seen.push(Seen::OutOfStep);
                    return seen;
                }
            }
        }
    }

    fn message(command: u16, cookie: u64, length_bytes: u32) -> Vec<u8> {
        let raw =
            RawRequest { flags: 0, command, cookie: Cookie(cookie), offset_bytes: 0, length_bytes };
        let mut bytes = raw.encode().to_vec();
        if command == Command::Write.to_wire() {
            bytes.extend((0..length_bytes).map(|at| (at as u64 ^ cookie) as u8));
        }
        bytes
    }

    proptest! {
        /// Where the network cuts the stream must not change what it means: data would land in
        /// the wrong request.
        #[test]
        fn cuts_in_the_stream_do_not_change_its_meaning(
            messages in proptest::collection::vec(
                (0_u16..9, prop_oneof![0_u32..3, Just(512), Just(4096), Just(300 << 10)]), 1..12),
            pieces in proptest::collection::vec(prop_oneof![1_usize..64, 1_usize..200_000], 0..40),
        ) {
            let numbered = messages.iter().zip(0..);
            let stream: Vec<u8> = numbered
                .flat_map(|(&(command, length), cookie)| message(command, cookie, length))
                .collect();
            let whole = feed(&stream, &[]);
            prop_assert_eq!(&feed(&stream, &pieces), &whole);
            // Each message is seen once, in order, up to a disconnect.
            let disconnect = messages.iter().position(|&(command, _)| command == 2);
            prop_assert_eq!(whole.len(), disconnect.map_or(messages.len(), |at| at + 1));
            for (seen, cookie) in whole.iter().zip(0..) {
                match seen {
                    Seen::Request(number, _, data) => {
                        prop_assert_eq!(*number, cookie);
                        for (&byte, at) in data.iter().flatten().zip(0_u64..) {
                            prop_assert_eq!(byte, (at ^ cookie) as u8);
                        }
                    }
                    Seen::Refused(number, _) => prop_assert_eq!(*number, cookie),
                    Seen::Disconnect => {}
                    Seen::OutOfStep => prop_assert!(false, "the stream is sound"),
                }
            }
        }
    }

    /// A refused write's data, taken for requests, would let a client's file content give orders.
    #[test]
    fn data_of_a_refused_write_is_never_read_as_a_request() {
        let mut stream = message(Command::Write.to_wire(), 1, 28);
        let payload = message(Command::Flush.to_wire(), 66, 0);
        stream[RawRequest::BYTES..].copy_from_slice(&payload);
        stream.extend(message(Command::Flush.to_wire(), 2, 0));
        let expected = [Seen::Refused(1, Errno::Invalid), Seen::Request(2, Request::Flush, None)];
        assert_eq!(feed(&stream, &[]), expected);
    }

    /// Memory is taken only when there is room for it, and the request isn't lost meanwhile.
    #[test]
    fn a_write_waits_for_room_before_it_takes_memory() {
        let mut intake = Intake::new(&message(Command::Write.to_wire(), 1, 4096));
        for _ in 0..3 {
            assert!(matches!(intake.next(&TERMS, 4095), Ok(Progress::NeedsRoom)));
        }
        let next = intake.next(&TERMS, 4096);
        assert!(matches!(next, Ok(Progress::Event(Event::Request { data: Some(_), .. }))));
        assert!(intake.is_between_requests());
    }
}
