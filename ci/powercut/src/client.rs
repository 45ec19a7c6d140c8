//! A client of a volume: several requests at once, each written down before it is asked for and
//! when it was answered.
//!
//! What it reads while it works is judged at once. A request that fails is a finding: nothing that
//! happens to the replicas of a healthy volume is the client's business.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent, SECTOR_BYTES};
use ankole_replica::store::crash::Random;
use anyhow::{Context, bail};
use tokio::sync::RwLock;

use crate::admin;
use crate::oracle::{History, SnapshotId, sectors_of};
use crate::sector::fill;
use crate::workload::{self, Request};

/// Requests in flight.
const WORKERS: u64 = 6;
/// A request without an answer by then is a finding.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Snapshots that are there at once; more would only make every check slower.
const SNAPSHOTS_MAX: usize = 4;

pub struct Client<D> {
    disk: D,
    admin: PathBuf,
    history: Rc<RefCell<History>>,
    /// Held exclusively by what must be alone.
    running: RwLock<()>,
    snapshots: RefCell<Vec<(SnapshotId, String)>>,
    snapshots_made: Cell<u32>,
    requests_left: Cell<u64>,
    stopped: Cell<bool>,
}

impl<D: Disk + 'static> Client<D> {
    /// Who makes `requests` requests; `admin` is the engine's admin socket.
    pub fn new(disk: D, admin: PathBuf, history: Rc<RefCell<History>>, requests: u64) -> Rc<Self> {
        Rc::new(Self {
            disk,
            admin,
            history,
            running: RwLock::new(()),
            snapshots: RefCell::default(),
            snapshots_made: Cell::new(0),
            requests_left: Cell::new(requests),
            stopped: Cell::new(false),
        })
    }

    /// Makes its requests, decided by `random`. Within a `LocalSet`.
    pub async fn work(self: &Rc<Self>, random: &mut Random) -> anyhow::Result<()> {
        let workers = (0..WORKERS).map(|_| {
            let (client, mut random) = (self.clone(), Random::new(random.number()));
            tokio::task::spawn_local(async move {
                let done = client.work_alone(&mut random).await;
                client.stopped.set(client.stopped.get() || done.is_err());
                done
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.context("a worker panicked")??;
        }
        Ok(())
    }

    /// Returns when so many more requests have begun, or no more come.
    pub async fn until_requests_made(&self, count: u64) {
        let until = self.requests_left.get().saturating_sub(count);
        while self.requests_left.get() > until && !self.stopped.get() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Lets what is in flight end, and makes no more requests.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    async fn work_alone(&self, random: &mut Random) -> anyhow::Result<()> {
        while !self.stopped.get() && self.requests_left.get() > 0 {
            self.requests_left.set(self.requests_left.get() - 1);
            let request = workload::next(random, self.disk.size_bytes());
            let done = tokio::time::timeout(PATIENCE, self.make_in_turn(request)).await;
            let done = done.unwrap_or_else(|_| bail!("no answer for {PATIENCE:?}"));
            done.with_context(|| format!("{request:?}"))?;
        }
        Ok(())
    }

    async fn make_in_turn(&self, request: Request) -> anyhow::Result<()> {
        if request == (Request::Snapshot { alone: true }) {
            let _alone = self.running.write().await;
            return self.make_snapshot().await;
        }
        let _with_others = self.running.read().await;
        self.make(request).await
    }

    async fn make(&self, request: Request) -> anyhow::Result<()> {
        match request {
            Request::Write(at, durability) => self.write(at, durability).await,
            Request::WriteZeroes(at, durability) => {
                let id = self.history.borrow_mut().ask_write(at, durability, true);
                let _hold = self.disk.write_zeroes(at, durability).await?;
                self.history.borrow_mut().answer_write(id);
                Ok(())
            }
            Request::Trim(at) => {
                let id = self.history.borrow_mut().ask_write(at, Durability::Volatile, true);
                let _hold = self.disk.trim(at).await?;
                self.history.borrow_mut().answer_write(id);
                Ok(())
            }
            Request::Read(at) => self.read(at).await,
            Request::Flush => {
                let id = self.history.borrow_mut().ask_flush();
                self.disk.flush().await?;
                self.history.borrow_mut().answer_flush(id);
                Ok(())
            }
            Request::Snapshot { .. } => self.make_snapshot().await,
            Request::RemoveSnapshot => self.remove_snapshot().await,
        }
    }

    async fn write(&self, at: Extent, durability: Durability) -> anyhow::Result<()> {
        let mut buffer = Buffer::zeroed(at.length_bytes as usize);
        let id = {
            let mut history = self.history.borrow_mut();
            let id = history.ask_write(at, durability, false);
            let pieces = buffer.chunks_exact_mut(SECTOR_BYTES as usize);
            for (sector, into) in sectors_of(at).zip(pieces) {
                fill(history.run(), sector, id, into);
            }
            id
        };
        let _hold = self.disk.write(at, buffer, durability).await?;
        self.history.borrow_mut().answer_write(id);
        Ok(())
    }

    async fn read(&self, at: Extent) -> anyhow::Result<()> {
        let asked = self.history.borrow().now();
        let (result, buffer) = self.disk.read(at, Buffer::zeroed(at.length_bytes as usize)).await;
        let _hold = result?;
        let wrong = self.history.borrow().check_read(asked, at, &buffer);
        if let Some(first) = wrong.first() {
            bail!("a read got what it may not: {first} ({} sectors are wrong)", wrong.len());
        }
        Ok(())
    }

    async fn make_snapshot(&self) -> anyhow::Result<()> {
        if self.snapshots.borrow().len() >= SNAPSHOTS_MAX {
            return self.remove_snapshot().await;
        }
        self.snapshots_made.set(self.snapshots_made.get() + 1);
        let name = format!("s{}", self.snapshots_made.get());
        let id = self.history.borrow_mut().ask_snapshot(&name);
        admin::snapshot(&self.admin, &name).await?;
        self.history.borrow_mut().answer_snapshot(id);
        self.snapshots.borrow_mut().push((id, name));
        Ok(())
    }

    async fn remove_snapshot(&self) -> anyhow::Result<()> {
        let oldest = {
            let mut snapshots = self.snapshots.borrow_mut();
            if snapshots.is_empty() {
                return Ok(());
            }
            snapshots.remove(0)
        };
        self.history.borrow_mut().ask_removal(oldest.0);
        admin::remove_snapshot(&self.admin, &oldest.1).await
    }
}

/// All bytes of a volume, as its client sees them.
pub async fn read_all(disk: &impl Disk) -> anyhow::Result<Vec<u8>> {
    const PIECE_BYTES: u64 = 1 << 20;
    let size_bytes = disk.size_bytes();
    let mut bytes = Vec::with_capacity(size_bytes as usize);
    for offset_bytes in (0..size_bytes).step_by(PIECE_BYTES as usize) {
        let length_bytes = PIECE_BYTES.min(size_bytes - offset_bytes);
        let into = Buffer::zeroed(length_bytes as usize);
        let (result, buffer) = disk.read(Extent { offset_bytes, length_bytes }, into).await;
        let _hold = result.with_context(|| format!("read at byte {offset_bytes}"))?;
        bytes.extend_from_slice(&buffer);
    }
    Ok(bytes)
}
