//! A write load that knows what it was promised.
//!
//! Every block has a version; its content is made of its number and version, so no two blocks and
//! no two versions are alike. A version counts from the moment its write was acknowledged. Reads
//! run among the writes, and at the end everything is read back: each block must hold exactly the
//! version that was acknowledged last.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ankole_api::ApiError;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel::{Channel, on_volume};
use super::random::Random;
use super::report::Progress;
use super::trouble::{Result, Trouble, failed};

const BLOCK_BYTES: usize = 16 << 10;
const QUEUE_DEPTH: usize = 8;
/// A flush after so many requests.
const FLUSH_EVERY: u64 = 256;
/// So long, and so many requests, before the kill and after it.
const PHASE: Duration = Duration::from_millis(1500);
const PHASE_REQUESTS: u64 = 200;
/// What is changed at one place, between backups.
const RUN_BLOCKS: usize = (1 << 20) / BLOCK_BYTES;

/// A process that is going to be killed; no other can be hit.
pub(super) struct Victim(OwnedFd);

impl Victim {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let opened = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        match opened {
            Some(Ok(pidfd)) => Ok(Self(pidfd)),
            _ => Err(ApiError::failed("the process that shall be killed isn't there").into()),
        }
    }
}

/// What a load saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) bytes: u64,
    pub(super) requests: u64,
    pub(super) longest_before: Duration,
    /// The longest that a request took which ended after the kill.
    pub(super) longest_after: Duration,
    pub(super) reconnects: u32,
    pub(super) killed: Option<Instant>,
}

pub(super) struct Load {
    /// Where the region begins in its channel.
    base_bytes: u64,
    seed: u64,
    blocks: RefCell<Vec<Block>>,
    random: RefCell<Random>,
}

#[derive(Clone, Default)]
struct Block {
    /// Acknowledged; 0 is what was there before, zeroes.
    version: u64,
    /// A request is in flight: what a read would find isn't decided.
    is_busy: bool,
}

impl Load {
    pub(super) fn new(base_bytes: u64, length_bytes: u64, seed: u64) -> Self {
        let blocks = vec![Block::default(); length_bytes as usize / BLOCK_BYTES];
        let random = RefCell::new(Random::new(seed));
        Self { base_bytes, seed, blocks: RefCell::new(blocks), random }
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.blocks.borrow().len() * BLOCK_BYTES) as u64
    }

    /// Reads and writes, kills the process in the middle, and goes on for a while.
    pub(super) async fn run(
        &self,
        channel: &Channel,
        victim: Victim,
        progress: &Progress<'_>,
    ) -> Result<Seen> {
        let round = Round {
            load: self,
            channel,
            progress,
            begun: Instant::now(),
            killed: Cell::default(),
            since_kill: Cell::default(),
            seen: Cell::default(),
        };
        let workers = future::try_join_all((0..QUEUE_DEPTH).map(|_| round.work()));
        future::try_join(workers, round.kill(victim)).await?;
        channel.flush().await.map_err(|error| on_volume("flush", 0, &error))?;
        Ok(Seen {
            reconnects: channel.reconnects(),
            killed: round.killed.get(),
            ..round.seen.get()
        })
    }

    /// Every block holds the version that was acknowledged last.
    pub(super) async fn read_back(&self, channel: &Channel, progress: &Progress<'_>) -> Result<()> {
        let reads = stream::iter(0..self.blocks.borrow().len()).map(|block| async move {
            self.read(channel, block).await?;
            progress.advance(BLOCK_BYTES as u64)
        });
        reads.buffer_unordered(QUEUE_DEPTH).try_for_each(async |()| Ok(())).await
    }

    /// Writes about `bytes` anew, in pieces spread over the region.
    pub(super) async fn change(
        &self,
        channel: &Channel,
        bytes: u64,
        progress: &Progress<'_>,
    ) -> Result<u64> {
        let count = self.blocks.borrow().len();
        let wanted = (bytes as usize / BLOCK_BYTES).clamp(1, count);
        let runs = wanted.div_ceil(RUN_BLOCKS);
        let mut changed = 0;
        for run in 0..runs {
            let start = run * count / runs;
            for block in start..start + RUN_BLOCKS.min(wanted - run * RUN_BLOCKS) {
                self.write(channel, block).await?;
                progress.advance(BLOCK_BYTES as u64)?;
                changed += BLOCK_BYTES as u64;
            }
        }
        channel.flush().await.map_err(|error| on_volume("flush", 0, &error))?;
        Ok(changed)
    }

    /// What was acknowledged, to where it lies in the volume.
    pub(super) fn write_to(&self, image: &Path) -> Result<()> {
        let file = File::options().write(true).open(image).map_err(failed("open", image))?;
        for (number, block) in self.blocks.borrow().iter().enumerate() {
            if block.version > 0 {
                file.write_all_at(&self.content(number, block.version), self.offset(number))
                    .map_err(failed("write", image))?;
            }
        }
        Ok(())
    }

    fn offset(&self, block: usize) -> u64 {
        self.base_bytes + (block * BLOCK_BYTES) as u64
    }

    /// Says in its first bytes what it is, for the message about one that is wrong.
    fn content(&self, block: usize, version: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_BYTES];
        if version > 0 {
            Random::derived(self.seed, block as u64, version).fill(&mut bytes);
            bytes[..8].copy_from_slice(&(block as u64).to_le_bytes());
            bytes[8..16].copy_from_slice(&version.to_le_bytes());
        }
        bytes
    }

    async fn write(&self, channel: &Channel, block: usize) -> Result<()> {
        let version = self.blocks.borrow()[block].version + 1;
        let (at, content) = (self.offset(block), self.content(block, version));
        channel.write(at, &content).await.map_err(|error| on_volume("write", at, &error))?;
        self.blocks.borrow_mut()[block].version = version;
        Ok(())
    }

    async fn read(&self, channel: &Channel, block: usize) -> Result<()> {
        let at = self.offset(block);
        let version = self.blocks.borrow()[block].version;
        let read = channel.read(at, BLOCK_BYTES).await;
        let data = read.map_err(|error| on_volume("read", at, &error))?;
        if data[..] == self.content(block, version)[..] {
            return Ok(());
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| data[at + byte]));
        let (found_block, found_version) = (number(0), number(8));
        Err(Trouble::Mismatch(format!(
            "block {block} of the load was acknowledged in version {version}; what was read looks \
             like version {found_version} of block {found_block}"
        )))
    }
}

/// One run of the load.
struct Round<'a> {
    load: &'a Load,
    channel: &'a Channel,
    progress: &'a Progress<'a>,
    begun: Instant,
    killed: Cell<Option<Instant>>,
    /// Requests that began after the kill and have ended.
    since_kill: Cell<u64>,
    seen: Cell<Seen>,
}

impl Round<'_> {
    async fn work(&self) -> Result<()> {
        while !self.is_over() {
            let (block, is_read) = self.choose();
            let begun = Instant::now();
            let outcome = if is_read {
                self.load.read(self.channel, block).await
            } else {
                self.load.write(self.channel, block).await
            };
            self.load.blocks.borrow_mut()[block].is_busy = false;
            outcome?;
            self.note(begun);
            if self.seen.get().requests.is_multiple_of(FLUSH_EVERY) {
                let begun = Instant::now();
                let flushed = self.channel.flush().await;
                flushed.map_err(|error| on_volume("flush", 0, &error))?;
                self.note(begun);
            }
            self.progress.advance(BLOCK_BYTES as u64)?;
        }
        Ok(())
    }

    /// A block that no other request is about, and whether it shall be read.
    fn choose(&self) -> (usize, bool) {
        let mut random = self.load.random.borrow_mut();
        let mut blocks = self.load.blocks.borrow_mut();
        let count = blocks.len() as u64;
        // There are many more blocks than requests in flight.
        let mut block = random.below(count) as usize;
        while blocks[block].is_busy {
            block = random.below(count) as usize;
        }
        blocks[block].is_busy = true;
        (block, random.below(4) == 0)
    }

    fn note(&self, begun: Instant) {
        let mut seen = self.seen.get();
        seen.requests += 1;
        seen.bytes += BLOCK_BYTES as u64;
        let longest = match self.killed.get() {
            None => &mut seen.longest_before,
            Some(_) => &mut seen.longest_after,
        };
        *longest = begun.elapsed().max(*longest);
        self.seen.set(seen);
        if self.killed.get().is_some_and(|killed| begun > killed) {
            self.since_kill.set(self.since_kill.get() + 1);
        }
    }

    fn is_over(&self) -> bool {
        self.since_kill.get() >= PHASE_REQUESTS
            && self.killed.get().is_some_and(|killed| killed.elapsed() >= PHASE)
    }

    async fn kill(&self, victim: Victim) -> Result<()> {
        while self.begun.elapsed() < PHASE || self.seen.get().requests < PHASE_REQUESTS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let sent = pidfd_send_signal(&victim.0, Signal::KILL);
        sent.map_err(|error| ApiError::failed(format!("kill the process: {error}")))?;
        self.killed.set(Some(Instant::now()));
        Ok(())
    }
}
