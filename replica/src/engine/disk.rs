//! The engine as the disk that the frontends serve.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use ankole_blockdev::disk::{Allocation, BLOCK_BYTES, Buffer, Disk, Durability, Extent, Hold};

use super::Engine;
use super::requests::{Outcome, Write};
use crate::payload::Payload;
use crate::replication::{Failure, IoId, Job, Operation};
use crate::types::{BlockIndex, BlockRange, VOLUME_BYTES_MAX, VOLUME_UNIT_BYTES};

/// Blocks in one message of zeroes: bounds how long a replica works on it.
const ZERO_BLOCKS_MAX: u64 = (1 << 30) / BLOCK_BYTES;
/// The most data that goes out in one message, in bytes. A write isn't cut: its range stays locked
/// as a whole until the client has the answer, since it may be issued again (rule 11).
const PART_BYTES_MAX: u64 = 32 << 20;
/// The most data of one answer, in bytes: a lease may hang on what waits behind it.
const READ_BYTES_MAX: u64 = 2 << 20;

/// Gives the range back when the client has its answer.
struct Release {
    engine: Engine,
    io: IoId,
}

impl Drop for Release {
    fn drop(&mut self) {
        // Within an event the state is borrowed; no event drops a completion, so it isn't here.
        self.engine.with(|state, now| state.core.release(now, self.io));
    }
}

impl Engine {
    /// Submits an operation and waits for its answer.
    async fn run(&self, operation: Operation, write: Option<Write>) -> (Outcome, Release) {
        let (io, outcome) = {
            let mut state = self.0.state.borrow_mut();
            let io = state.core.submit(Instant::now(), operation);
            (io, state.requests.expect(io, write))
        };
        let release = Release { engine: self.clone(), io };
        self.with(|_, _| ()); // carries out what the submission led to
        let outcome = match outcome.await {
            Ok(outcome) => outcome,
            Err(_) => std::future::pending().await, // fenced: nothing is answered any more
        };
        (outcome, release)
    }

    /// In parts, if it is very long. Each is given back before the next is asked for: whoever holds
    /// one range while it waits for another may wait for ever, since the range lock is fair.
    async fn zero(&self, range: BlockRange, durability: Durability) -> io::Result<Hold> {
        let forced = durability == Durability::ForcedUnitAccess;
        let mut first = range.first;
        loop {
            let count = (range.end().0 - first.0).min(ZERO_BLOCKS_MAX);
            let part = BlockRange::new(first, count);
            let (outcome, release) = self.run(Operation::Zero { range: part, forced }, None).await;
            self.counted(outcome, |counts| counts.written_bytes += part.length_bytes())?;
            first = part.end();
            if first == range.end() {
                return Ok(Hold::until_dropped(release));
            }
        }
    }

    async fn write_bytes(
        &self,
        at: Extent,
        from: Buffer,
        durability: Durability,
    ) -> io::Result<Hold> {
        let range = BlockRange::covering(at);
        let forced = durability == Durability::ForcedUnitAccess;
        let operation = Operation::Write { range, edges: edges(at, range), forced };
        let (outcome, release) = self.run(operation, Some(Write::new(at, from))).await;
        self.counted(outcome, |counts| {
            counts.writes += 1;
            counts.written_bytes += at.length_bytes;
        })?;
        Ok(Hold::until_dropped(release))
    }

    fn counted(
        &self,
        outcome: Outcome,
        count: impl FnOnce(&mut crate::admin::RequestCounts),
    ) -> io::Result<Option<Rc<Payload>>> {
        let mut counts = self.0.counts.get();
        match &outcome {
            Ok(_) => count(&mut counts),
            Err(_) => counts.failed += 1,
        }
        self.0.counts.set(counts);
        outcome.map_err(|failure| {
            io::Error::from_raw_os_error(match failure {
                Failure::Io => libc::EIO,
                Failure::NoSpace => libc::ENOSPC,
                Failure::Shutdown => libc::ESHUTDOWN,
            })
        })
    }
}

/// The blocks at either end of which only a part is written.
fn edges(at: Extent, range: BlockRange) -> [Option<BlockIndex>; 2] {
    let last = BlockIndex(range.end().0 - 1);
    let starts_within = !at.offset_bytes.is_multiple_of(BLOCK_BYTES);
    let ends_within = !at.end_bytes().is_multiple_of(BLOCK_BYTES);
    match (starts_within, ends_within) {
        (true, true) if range.first == last => [Some(last), None],
        (starts, ends) => [starts.then_some(range.first), ends.then_some(last)],
    }
}

impl Disk for Engine {
    fn size_bytes(&self) -> u64 {
        *self.0.size_bytes.borrow()
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only.get()
    }

    async fn read(&self, at: Extent, mut into: Buffer) -> (io::Result<Hold>, Buffer) {
        let mut held = None;
        let mut done = 0;
        while done < at.length_bytes {
            drop(held.take()); // see `zero`
            let length_bytes = (at.length_bytes - done).min(READ_BYTES_MAX);
            let part = Extent { offset_bytes: at.offset_bytes + done, length_bytes };
            let range = BlockRange::covering(part);
            let (outcome, release) = self.run(Operation::Read { range }, None).await;
            let is_first = done == 0;
            let read = self.counted(outcome, |counts| {
                counts.reads += u64::from(is_first);
                counts.read_bytes += length_bytes;
            });
            let payload = match read {
                Ok(payload) => payload,
                Err(error) => return (Err(error), into),
            };
            let Some(Payload::Blocks(blocks)) = payload.as_deref() else {
                return (Err(io::Error::from_raw_os_error(libc::EIO)), into);
            };
            if blocks.data.len() as u64 != range.length_bytes() {
                return (Err(io::Error::from_raw_os_error(libc::EIO)), into);
            }
            let skip = (part.offset_bytes - range.first.offset_bytes()) as usize;
            let length = length_bytes as usize;
            into[done as usize..][..length].copy_from_slice(&blocks.data[skip..][..length]);
            held = Some(release);
            done += length_bytes;
        }
        (Ok(Hold::until_dropped(held)), into)
    }

    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        self.write_bytes(at, from, durability).await
    }

    async fn flush(&self) -> io::Result<()> {
        let (outcome, _release) = self.run(Operation::Flush, None).await;
        self.counted(outcome, |counts| counts.flushes += 1).map(|_| ())
    }

    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        match BlockRange::within(at) {
            Some(range) => self.zero(range, Durability::Volatile).await,
            None => Ok(Hold::none()), // no whole block: nothing to give back
        }
    }

    /// Whole blocks cost no data. Anything else is a write of zeroes, so that one lock covers all of
    /// it, as far as one message goes; a longer one is several writes.
    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        if at.is_aligned_to(BLOCK_BYTES)
            && let Some(whole) = BlockRange::within(at)
        {
            return self.zero(whole, durability).await;
        }
        let mut rest = at;
        loop {
            let length_bytes = rest.length_bytes.min(PART_BYTES_MAX);
            let part = Extent { length_bytes, ..rest };
            let zeroes = Buffer::zeroed(length_bytes as usize);
            let hold = self.write_bytes(part, zeroes, durability).await?;
            rest = Extent {
                offset_bytes: part.end_bytes(),
                length_bytes: rest.length_bytes - length_bytes,
            };
            if rest.length_bytes == 0 {
                return Ok(hold);
            }
        }
    }

    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        let range = BlockRange::covering(at);
        let (outcome, _release) = self.run(Operation::Map { range }, None).await;
        let payload = self.counted(outcome, |_| ())?;
        let Some(Payload::Map(runs)) = payload.as_deref() else {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        };
        let mut extents = Vec::with_capacity(runs.len());
        let mut start = at.offset_bytes;
        let mut block = range.first;
        for run in runs {
            block = BlockIndex(block.0.saturating_add(run.blocks));
            let end = block.offset_bytes().min(at.end_bytes());
            let part = Extent { offset_bytes: start, length_bytes: end.saturating_sub(start) };
            if part.length_bytes == 0 {
                break;
            }
            extents.push((part, run.allocation));
            start = end;
        }
        Ok(extents)
    }

    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        let grows = size_bytes >= self.size_bytes();
        if !grows || size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(VOLUME_UNIT_BYTES)
        {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.run_job(Job::Expand { size_bytes }).await.map_err(io::Error::other)
    }
}
