//! Replies, and the row of those that wait to be written. Pure.
//!
//! A read is answered without copying its data: header and data are two pieces of one vectored
//! write. A reply that was written whole is dropped, and with it the disk's [`Hold`]: the range
//! stays locked until then.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::handshake::BASE_ALLOCATION_ID;
use super::wire::{
    Command, Cookie, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, state,
};
use crate::disk::{Allocation, Buffer, Extent, Hold};

/// Pieces given to one vectored write. More don't help: the kernel takes 64 replies at once
/// before the socket is full.
pub const SLICES_MAX: usize = 128;

const HEADER_BYTES_MAX: usize = 28;

/// One reply, ready to be written.
pub struct Reply {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    payload: Payload,
    _hold: Hold,
}

enum Payload {
    None,
    Data(Buffer),
    Status(Box<[u8]>),
}

/// Writes the fields of a header one after the other.
struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    length: usize,
}

impl Header {
    fn new() -> Self {
        Self { bytes: [0; HEADER_BYTES_MAX], length: 0 }
    }

    fn simple(cookie: Cookie, errno: u32) -> Self {
        Self::new()
            .with(SIMPLE_REPLY_MAGIC.to_be_bytes())
            .with(errno.to_be_bytes())
            .with(cookie.0.to_be_bytes())
    }

    /// Every structured reply of ours is one chunk, and so the last one.
    fn chunk(cookie: Cookie, kind: u16, payload_bytes: usize) -> Self {
        let length = u32::try_from(payload_bytes).expect("payloads are limited to 32 MiB");
        Self::new()
            .with(STRUCTURED_REPLY_MAGIC.to_be_bytes())
            .with(chunk::FLAG_DONE.to_be_bytes())
            .with(kind.to_be_bytes())
            .with(cookie.0.to_be_bytes())
            .with(length.to_be_bytes())
    }

    fn with<const N: usize>(mut self, field: [u8; N]) -> Self {
        self.bytes[self.length..self.length + N].copy_from_slice(&field);
        self.length += N;
        self
    }

    fn reply(self, payload: Payload, hold: Hold) -> Reply {
        let header_bytes = self.length as u8; // at most HEADER_BYTES_MAX
        Reply { header: self.bytes, header_bytes, payload, _hold: hold }
    }
}

impl Reply {
    /// Answers a read with its data.
    pub fn data(cookie: Cookie, at: Extent, data: Buffer, hold: Hold, structured: bool) -> Self {
        let header = match structured {
            true => Header::chunk(cookie, chunk::OFFSET_DATA, data.len() + 8)
                .with(at.offset_bytes.to_be_bytes()),
            false => Header::simple(cookie, 0),
        };
        header.reply(Payload::Data(data), hold)
    }

    /// Answers anything but a read or a block status. A simple reply is allowed there even when
    /// structured ones were agreed on, and is the shorter one.
    pub fn done(cookie: Cookie, hold: Hold) -> Self {
        Header::simple(cookie, 0).reply(Payload::None, hold)
    }

    pub fn error(cookie: Cookie, command: Option<Command>, errno: Errno, structured: bool) -> Self {
        let must_be_structured = matches!(command, Some(Command::Read | Command::BlockStatus));
        let header = match structured && must_be_structured {
            true => Header::chunk(cookie, chunk::ERROR, 6)
                .with(errno.to_wire().to_be_bytes())
                .with(0_u16.to_be_bytes()), // no text: the client has the errno
            false => Header::simple(cookie, errno.to_wire()),
        };
        header.reply(Payload::None, Hold::none())
    }

    /// Answers a block status with the runs that a disk told of `at`. Neighbours alike become one.
    /// If the disk told nothing of the start, all counts as data, which is always true enough.
    pub fn status(
        cookie: Cookie,
        at: Extent,
        runs: impl IntoIterator<Item = (Extent, Allocation)>,
        only_first: bool,
    ) -> Self {
        let mut descriptors: Vec<(u64, Allocation)> = Vec::new();
        let mut covered = at.offset_bytes;
        for (run, allocation) in runs {
            let end = run.end_bytes().min(at.end_bytes());
            if run.offset_bytes > covered || end <= covered {
                break;
            }
            let length_bytes = end - covered;
            covered = end;
            match descriptors.last_mut() {
                Some((length, same)) if *same == allocation => *length += length_bytes,
                Some(_) if only_first => break,
                _ => descriptors.push((length_bytes, allocation)),
            }
        }
        if descriptors.is_empty() {
            descriptors.push((at.length_bytes, Allocation::Data));
        }
        let mut payload = Vec::with_capacity(descriptors.len() * 8);
        for (length_bytes, allocation) in descriptors {
            let length = u32::try_from(length_bytes).expect("not longer than a request may be");
            let flags = match allocation {
                Allocation::Data => 0,
                Allocation::Zero => state::HOLE | state::ZERO,
            };
            payload.extend(length.to_be_bytes());
            payload.extend(flags.to_be_bytes());
        }
        Header::chunk(cookie, chunk::BLOCK_STATUS, payload.len() + 4)
            .with(BASE_ALLOCATION_ID.to_be_bytes())
            .reply(Payload::Status(payload.into()), Hold::none())
    }

    fn header(&self) -> &[u8] {
        &self.header[..usize::from(self.header_bytes)]
    }

    fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::None => &[],
            Payload::Data(data) => data,
            Payload::Status(descriptors) => descriptors,
        }
    }

    /// Length on the wire.
    pub fn len_bytes(&self) -> usize {
        self.header().len() + self.payload().len()
    }
}

/// Replies in the order in which they will be written.
#[derive(Default)]
pub struct Outbox {
    /// With the memory that is free again once the reply has been written.
    replies: VecDeque<(Reply, u64)>,
    /// Bytes of the first reply that were written already.
    written: usize,
}

/// What was given back by replies that left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    pub requests: usize,
    pub memory_bytes: u64,
}

impl Outbox {
    pub fn push(&mut self, reply: Reply, memory_bytes: u64) {
        self.replies.push_back((reply, memory_bytes));
    }

    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Fills `slices` with what comes next on the wire, and returns how many it used.
    pub fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut skip = self.written;
        let mut used = 0;
        let pieces = self.replies.iter().flat_map(|(reply, _)| [reply.header(), reply.payload()]);
        for piece in pieces {
            let rest = &piece[skip.min(piece.len())..];
            skip -= piece.len() - rest.len();
            if rest.is_empty() {
                continue;
            }
            if used == SLICES_MAX {
                break;
            }
            slices[used] = IoSlice::new(rest);
            used += 1;
        }
        used
    }

    /// Takes note that `count` more bytes were written; drops the replies that are complete.
    pub fn advance(&mut self, count: usize) -> Freed {
        self.written += count;
        let mut freed = Freed::default();
        while let Some((reply, memory_bytes)) = self.replies.front() {
            if self.written < reply.len_bytes() {
                break;
            }
            self.written -= reply.len_bytes();
            freed.requests += 1;
            freed.memory_bytes += memory_bytes;
            self.replies.pop_front();
        }
        freed
    }

    /// Forgets everything: the client is gone.
    pub fn clear(&mut self) -> Freed {
        let memory_bytes = self.replies.iter().map(|(_, bytes)| bytes).sum();
        let freed = Freed { requests: self.replies.len(), memory_bytes };
        *self = Self::default();
        freed
    }
}
