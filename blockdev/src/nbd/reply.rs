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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    fn at(length_bytes: u64) -> Extent {
        Extent { offset_bytes: 0, length_bytes }
    }

    fn bytes(reply: &Reply) -> Vec<u8> {
        [reply.header(), reply.payload()].concat()
    }

    struct Held(Rc<Cell<u64>>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    proptest! {
        /// A socket takes as much as it likes. Bytes must come once and in order, and a hold must
        /// end with the last byte of its reply, not before.
        #[test]
        fn replies_leave_whole_and_in_order_however_the_socket_cuts_them(
            lengths in proptest::collection::vec(0_usize..5000, 1..150),
            mut cuts in proptest::collection::vec(1_usize..20_000, 1..50),
        ) {
            let released = Rc::new(Cell::new(0));
            let mut outbox = Outbox::default();
            let (mut expected, mut ends) = (Vec::new(), Vec::new());
            for (&length, number) in lengths.iter().zip(0_u64..) {
                let data = Buffer::copy_of(&vec![number as u8; length]);
                let hold = Hold::until_dropped(Held(released.clone()));
                let reply = Reply::data(Cookie(number), at(512), data, hold, number % 2 == 0);
                expected.extend(bytes(&reply));
                ends.push(expected.len());
                outbox.push(reply, length as u64);
            }
            let (mut sent, mut freed_bytes) = (Vec::<u8>::new(), 0);
            cuts.push(usize::MAX);
            let mut cuts = cuts.into_iter().cycle();
            while !outbox.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let used = outbox.fill(&mut slices);
                let offered: Vec<u8> =
                    slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
                prop_assert!(!offered.is_empty());
                let taken = cuts.next().map_or(1, |cut| cut.min(offered.len()));
                sent.extend(&offered[..taken]);
                freed_bytes += outbox.advance(taken).memory_bytes;
                let complete = ends.iter().filter(|&&end| end <= sent.len()).count() as u64;
                prop_assert_eq!(released.get(), complete);
            }
            prop_assert!(sent == expected);
            prop_assert_eq!(freed_bytes, lengths.iter().sum::<usize>() as u64);
        }
    }

    fn status(at: Extent, runs: &[(u64, u64, Allocation)], only_first: bool) -> Vec<(u32, u32)> {
        let runs = runs.iter().map(|&(offset_bytes, length_bytes, allocation)| {
            (Extent { offset_bytes, length_bytes }, allocation)
        });
        let reply = Reply::status(Cookie(1), at, runs, only_first);
        let words: Vec<u32> = reply.payload().chunks_exact(4).map(word).collect();
        words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }

    fn word(bytes: &[u8]) -> u32 {
        u32::from_be_bytes(bytes.try_into().expect("four bytes"))
    }

    /// A hole told where there is data makes a sparse copy lose it.
    #[test]
    fn runs_are_cut_to_what_was_asked_and_joined_where_alike() {
        use Allocation::{Data, Zero};
        let at = Extent { offset_bytes: 4096, length_bytes: 16384 };
        let runs = [(0, 8192, Data), (8192, 4096, Zero), (12288, 4096, Zero), (16384, 65536, Data)];
        assert_eq!(status(at, &runs, false), [(4096, 0), (8192, 3), (4096, 0)]);
        assert_eq!(status(at, &runs, true), [(4096, 0)]);
        assert_eq!(status(at, &runs[1..], false), [(16384, 0)], "the start isn't told");
        assert_eq!(status(at, &[runs[0], runs[2]], false), [(4096, 0)], "a gap ends what is known");
        assert_eq!(status(at, &[], false), [(16384, 0)]);
    }

    /// As drawn in the protocol, byte by byte.
    #[test]
    fn replies_look_as_the_protocol_draws_them() {
        let cookie = Cookie(0x0102_0304_0506_0708);
        let tail = [1, 2, 3, 4, 5, 6, 7, 8];
        let done = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &tail].concat();
        assert_eq!(bytes(&Reply::done(cookie, Hold::none())), done);
        let write = Some(Command::Write);
        let refused = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28][..], &tail].concat();
        assert_eq!(bytes(&Reply::error(cookie, write, Errno::NoSpace, true)), refused);
        let read = Some(Command::Read);
        let failed =
            [&[0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1][..], &tail, &[0, 0, 0, 6, 0, 0, 0, 5, 0, 0]];
        assert_eq!(bytes(&Reply::error(cookie, read, Errno::Io, true)), failed.concat());
        let place = Extent { offset_bytes: 512, length_bytes: 2 };
        let data = Reply::data(cookie, place, Buffer::copy_of(&[8, 9]), Hold::none(), true);
        let chunk = [
            &[0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1][..],
            &tail,
            &[0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 2, 0, 8, 9],
        ];
        assert_eq!(bytes(&data), chunk.concat());
    }
}
