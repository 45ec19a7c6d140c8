//! Moves the data of requests between the kernel's pages and our buffers.
//!
//! A move is a read or a write of /dev/ublkcN at its request's offset (USER_COPY). A single one is a
//! system call; several go through a ring of their own with one system call for all of them, which
//! is what makes USER_COPY cheap for small requests. Promises that the kernel knows none of the
//! buffers any more when a call returns.

#![expect(unsafe_code, reason = "a ring is given addresses")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use io_uring::{IoUring, opcode, squeue, types};

use crate::disk::Buffer;

pub(super) struct Copier {
    /// /dev/ublkcN.
    device: File,
    ring: IoUring,
}

impl Copier {
    /// `most` moves are made at once, at most.
    pub(super) fn new(device: File, most: u16) -> io::Result<Self> {
        Ok(Self { device, ring: IoUring::new(most.into())? })
    }

    /// Fills each buffer with what its request, at this offset, wants written.
    pub(super) fn take(&mut self, moves: &mut [(u64, Buffer)]) -> Vec<io::Result<()>> {
        if let [(offset, data)] = moves {
            return vec![self.device.read_exact_at(data, *offset)];
        }
        let device = types::Fd(self.device.as_raw_fd());
        let entries = moves.iter_mut().map(|(offset, data)| {
            let read = opcode::Read::new(device, data.as_mut_ptr(), length_of(data));
            (read.offset(*offset).build(), length_of(data))
        });
        // SAFETY: each entry writes to one buffer, within its length, and the buffers are borrowed
        // until `run` has seen the last of them completed.
        unsafe { run(&mut self.ring, entries) }
    }

    /// Gives each request, at this offset, what it has read.
    pub(super) fn give(&mut self, moves: &[(u64, Buffer)]) -> Vec<io::Result<()>> {
        if let [(offset, data)] = moves {
            return vec![self.device.write_all_at(data, *offset)];
        }
        let device = types::Fd(self.device.as_raw_fd());
        let entries = moves.iter().map(|(offset, data)| {
            let write = opcode::Write::new(device, data.as_ptr(), length_of(data));
            (write.offset(*offset).build(), length_of(data))
        });
        // SAFETY: as in `take`, and what the entries refer to is only read.
        unsafe { run(&mut self.ring, entries) }
    }
}

fn length_of(data: &Buffer) -> u32 {
    u32::try_from(data.len()).expect("a request's data is bounded when it is parsed")
}

/// Carries out all entries and returns when all are done: their results, by position. A move that
/// is shorter than its length is an error.
///
/// # Safety
///
/// What the entries refer to must be theirs until this returns, and they must fit the ring.
unsafe fn run(
    ring: &mut IoUring,
    entries: impl ExactSizeIterator<Item = (squeue::Entry, u32)>,
) -> Vec<io::Result<()>> {
    let mut lengths = Vec::with_capacity(entries.len());
    for (index, (entry, length)) in entries.enumerate() {
        lengths.push(length);
        // SAFETY: the caller's promise.
        let pushed = unsafe { ring.submission().push(&entry.user_data(index as u64)) };
        pushed.expect("no more moves than the ring has room for");
    }
    let mut results: Vec<_> = lengths.iter().map(|_| Ok(())).collect();
    let mut left = lengths.len();
    while left > 0 {
        if let Err(error) = ring.submit_and_wait(left) {
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => {
                    // The kernel may have some of the buffers, and no way is left to get them back.
                    tracing::error!(%error, "a ring that worked is refused");
                    std::process::abort();
                }
            }
        }
        for done in ring.completion() {
            left -= 1;
            let index = done.user_data() as usize;
            results[index] = match u32::try_from(done.result()) {
                Ok(moved) if moved == lengths[index] => Ok(()),
                Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(_) => Err(io::Error::from_raw_os_error(-done.result())),
            };
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn copier(content: &[u8]) -> Copier {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Copier::new(file, 8).unwrap()
    }

    fn buffer(byte: u8) -> Buffer {
        Buffer::copy_of(&[byte; 512])
    }

    /// A buffer that got another request's data would be wrong data with a right answer.
    #[test]
    fn each_move_goes_to_the_place_of_its_own_request() {
        let mut copier = copier(&[0; 8 * 512]);
        for count in [1, 2, 8] {
            let moves: Vec<_> = (0..count).map(|i| (i * 512, buffer(i as u8 + 1))).collect();
            assert!(copier.give(&moves).iter().all(Result::is_ok));
            let mut back: Vec<_> = (0..count).rev().map(|i| (i * 512, buffer(0))).collect();
            assert!(copier.take(&mut back).iter().all(Result::is_ok));
            for (offset, data) in back {
                assert_eq!(data[..], buffer((offset / 512) as u8 + 1)[..], "of {count}");
            }
        }
    }

    /// The driver refuses a move of a request that has ended meanwhile; the others aren't its fault.
    #[test]
    fn a_move_that_fails_fails_alone() {
        let mut copier = copier(&[7; 512]);
        let mut moves = vec![(0, buffer(0)), (512, buffer(0)), (256, buffer(0)), (0, buffer(0))];
        let results = copier.take(&mut moves);
        let failed: Vec<_> = results.iter().map(Result::is_err).collect();
        assert_eq!(failed, [false, true, true, false], "past the end, and across it");
        assert_eq!(moves[3].1[..], buffer(7)[..]);
    }
}
