//! One LUN: its commands are carried out by workers, and collected by tgtd's own thread.
//!
//! ```text
//! tgtd's thread   submit ─▶ tasks ─▶ worker ─▶ nbd::Client ─▶ engine
//!                 collect ◀─ bell ◀─ done ◀──────┘
//! ```
//! Promises that each command is answered once, also when a worker panics; and that tgtd's thread
//! never waits for the engine.

#![expect(unsafe_code, reason = "buffers of tgtd")]
#![allow(clippy::mut_from_ref, reason = "an area is no part of its task")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use crate::layout::{Area, Cmd};
use crate::nbd::{Client, Request};
use crate::scsi::{Range, Sense, Work, sense_of};

/// As many commands of a LUN are under way; an initiator has 32 of a session by default.
const WORKERS: usize = 32;
/// What tgtd is told nothing else of, and the unit of what an engine is asked for.
const DISK_BLOCK_BYTES: usize = 512;
/// Unit of a volume's map: what is discarded is forgotten in whole ones.
const VOLUME_BLOCK_BYTES: u64 = 4096;
/// The longest range of one discard or zeroing, a multiple of any block.
const RANGE_BYTES_MAX: u32 = 1 << 30;
/// Of the bytes that are repeated over a range.
const REPEAT_BYTES: usize = 1 << 20;
/// INTERNAL TARGET FAILURE
const BROKEN: Sense = Sense { key: 0x04, code: 0x4400 };

pub struct Task {
    pub cmd: Cmd,
    pub work: Work,
    pub sent: Area,
    pub wanted: Area,
}

impl Task {
    fn areas(&self) -> (&[u8], &mut [u8]) {
        // SAFETY: a worker has this task, and nobody else; tgtd keeps the areas until the command
        // is said to be done, which comes later. They are two buffers.
        unsafe { (self.sent.bytes(), self.wanted.bytes_mut()) }
    }
}

pub struct Done {
    pub cmd: Cmd,
    pub result: Result<(), Sense>,
}

pub struct Unit {
    path: PathBuf,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    size_bytes: u64,
}

struct Shared {
    client: Client,
    queue: Mutex<Queue>,
    more: Condvar,
    done: Mutex<Vec<Done>>,
    /// A counter that tgtd's thread polls.
    bell: File,
    /// Written by what may not run beside others.
    alone: RwLock<()>,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    is_closing: bool,
}

impl Unit {
    /// `bell` is an eventfd.
    pub fn open(socket: &Path, bell: File) -> io::Result<Self> {
        let (client, size_bytes) = Client::connect(socket)?;
        let shared = Arc::new(Shared {
            client,
            queue: Mutex::default(),
            more: Condvar::new(),
            done: Mutex::default(),
            bell,
            alone: RwLock::new(()),
        });
        let mut unit = Self { path: socket.to_owned(), shared, workers: Vec::new(), size_bytes };
        for _ in 0..WORKERS {
            let shared = unit.shared.clone();
            unit.workers.push(crate::thread::spawn("ankole-lun", move || shared.work())?);
        }
        Ok(unit)
    }

    /// The engine's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub fn bell(&self) -> &File {
        &self.shared.bell
    }

    pub fn submit(&self, task: Task) {
        lock(&self.shared.queue).tasks.push_back(task);
        self.shared.more.notify_one();
    }

    /// Answers a command that isn't to be begun, as if a worker had done it.
    pub fn refuse(&self, cmd: Cmd, sense: Sense) {
        self.shared.finish(Done { cmd, result: Err(sense) });
    }

    /// What is done since the bell rang; silences it.
    pub fn collect(&self) -> Vec<Done> {
        let _ = (&self.shared.bell).read(&mut [0; 8]); // the counter, however high it is
        std::mem::take(&mut lock(&self.shared.done))
    }
}

impl Drop for Unit {
    /// Waits for what is under way; what isn't begun is forgotten, as is all that is done.
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.is_closing = true;
        queue.tasks.clear();
        drop(queue);
        self.shared.more.notify_all();
        self.shared.client.close();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Body of a worker.
    fn work(&self) {
        while let Some(task) = self.next() {
            let cmd = task.cmd;
            let result =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.perform(&task)));
            let result = result.unwrap_or(Err(BROKEN));
            self.finish(Done { cmd, result });
        }
    }

    fn finish(&self, done: Done) {
        lock(&self.done).push(done);
        let _ = (&self.bell).write(&1_u64.to_ne_bytes());
    }

    fn next(&self) -> Option<Task> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.is_closing {
                return None;
            }
            if let Some(task) = queue.tasks.pop_front() {
                return Some(task);
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn perform(&self, task: &Task) -> Result<(), Sense> {
        let ends_within_block = !task.sent.length_bytes().is_multiple_of(DISK_BLOCK_BYTES);
        if task.work.is_exclusive() || ends_within_block {
            let _alone = self.alone.write().unwrap_or_else(PoisonError::into_inner);
            self.carry_out(task)
        } else {
            let _beside_others = self.alone.read().unwrap_or_else(PoisonError::into_inner);
            self.carry_out(task)
        }
    }

    fn carry_out(&self, task: &Task) -> Result<(), Sense> {
        let (sent, wanted) = task.areas();
        match &task.work {
            Work::Nothing => Ok(()),
            Work::Read { offset, length } => {
                let into = wanted.get_mut(..*length).ok_or(Sense::INVALID_FIELD)?;
                self.read(*offset, into)
            }
            Work::Write { offset, forced } => self.write(*offset, sent, *forced),
            Work::WriteAndVerify { offset } => {
                self.write(*offset, sent, true)?;
                self.compare(*offset, sent)
            }
            Work::Flush => self.ask(Request::Flush, true),
            Work::Discard(ranges) => ranges.iter().try_for_each(|range| self.discard(*range)),
            Work::Zero(range) => self.zero(*range),
            Work::Repeat(range) => self.repeat(*range, sent),
            Work::Compare { offset } => self.compare(*offset, sent),
            Work::CompareAndWrite { offset, half } => {
                let (expected, new) = sent.split_at_checked(*half).ok_or(Sense::INVALID_FIELD)?;
                self.compare(*offset, expected)?;
                self.write(*offset, new, false)
            }
            Work::Or { offset } => {
                let mut there = vec![0; sent.len()];
                self.read(*offset, &mut there)?;
                there.iter_mut().zip(sent).for_each(|(there, sent)| *there |= sent);
                self.write(*offset, &there, false)
            }
        }
    }

    fn ask(&self, request: Request<'_>, is_write: bool) -> Result<(), Sense> {
        self.client.call(request).map_err(|errno| sense_of(errno, is_write))
    }

    /// An initiator may want less than whole blocks, and send less.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Sense> {
        let whole = into.len() - into.len() % DISK_BLOCK_BYTES;
        let (blocks, rest) = into.split_at_mut(whole);
        if !blocks.is_empty() {
            self.ask(Request::Read { offset, into: blocks }, false)?;
        }
        if !rest.is_empty() {
            let mut last = [0; DISK_BLOCK_BYTES];
            let offset = offset + whole as u64;
            self.ask(Request::Read { offset, into: &mut last }, false)?;
            rest.copy_from_slice(&last[..rest.len()]);
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8], forced: bool) -> Result<(), Sense> {
        let (blocks, rest) = from.split_at(from.len() - from.len() % DISK_BLOCK_BYTES);
        if !blocks.is_empty() {
            self.ask(Request::Write { offset, from: blocks, forced }, true)?;
        }
        if !rest.is_empty() {
            let mut last = [0; DISK_BLOCK_BYTES];
            let offset = offset + blocks.len() as u64;
            self.ask(Request::Read { offset, into: &mut last }, true)?;
            last[..rest.len()].copy_from_slice(rest);
            self.ask(Request::Write { offset, from: &last, forced }, true)?;
        }
        Ok(())
    }

    fn zero(&self, range: Range) -> Result<(), Sense> {
        let mut pieces = pieces(range);
        pieces.try_for_each(|(offset, length)| self.ask(Request::Zero { offset, length }, true))
    }

    /// tgtd says that what is unmapped reads as zeroes (LBPRZ; SBC-4, 6.6.4): a volume promises that
    /// for whole blocks only, so the rest is written.
    fn discard(&self, range: Range) -> Result<(), Sense> {
        let [before, whole, after] = parts(range);
        self.zero(before)?;
        pieces(whole)
            .try_for_each(|(offset, length)| self.ask(Request::Discard { offset, length }, true))?;
        self.zero(after)
    }

    fn compare(&self, offset: u64, expected: &[u8]) -> Result<(), Sense> {
        let mut there = vec![0; expected.len()];
        self.read(offset, &mut there)?;
        if there == expected { Ok(()) } else { Err(Sense::MISCOMPARE) }
    }

    fn repeat(&self, range: Range, block: &[u8]) -> Result<(), Sense> {
        let whole = REPEAT_BYTES / block.len() * block.len();
        let many = block.repeat(whole / block.len());
        let mut left = range;
        while left.length > 0 {
            let length = left.length.min(many.len() as u64);
            self.write(left.offset, &many[..length as usize], false)?;
            left = Range { offset: left.offset + length, length: left.length - length };
        }
        Ok(())
    }
}

/// What lies before, in and after whole blocks of the volume; each may be empty.
fn parts(range: Range) -> [Range; 3] {
    let (start, end) = (range.offset, range.offset + range.length);
    let first = start.next_multiple_of(VOLUME_BLOCK_BYTES).min(end);
    let last = (end - end % VOLUME_BLOCK_BYTES).max(first);
    [(start, first), (first, last), (last, end)]
        .map(|(from, to)| Range { offset: from, length: to - from })
}

/// In requests whose length fits.
fn pieces(range: Range) -> impl Iterator<Item = (u64, u32)> {
    let mut left = range;
    std::iter::from_fn(move || {
        let length = u32::try_from(left.length).unwrap_or(u32::MAX).min(RANGE_BYTES_MAX);
        let offset = left.offset;
        left =
            Range { offset: offset + u64::from(length), length: left.length - u64::from(length) };
        (length > 0).then_some((offset, length))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first block of 512 bytes that was unmapped alone still held its data.
    #[test]
    fn parts_of_blocks_are_not_left_to_a_discard() {
        let lengths = |offset, length| parts(Range { offset, length }).map(|part| part.length);
        assert_eq!(lengths(0, 512), [0, 0, 512]);
        assert_eq!(lengths(4096, 8192), [0, 8192, 0]);
        assert_eq!(lengths(3584, 8192), [512, 4096, 3584]);
        assert_eq!(lengths(512, 4096), [3584, 0, 512]);
        assert_eq!(lengths(512, 0), [0, 0, 0]);
    }
}
