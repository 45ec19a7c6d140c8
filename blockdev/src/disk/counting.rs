//! A disk that counts what passes through it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use super::{Allocation, Buffer, Disk, Durability, Extent, Hold, PerKind, RequestKind};

/// What was asked of a disk so far. Requests count when they arrive, whatever becomes of them.
#[derive(Debug, Default)]
pub struct Counters {
    counts: Cell<PerKind<Count>>,
    forced: Cell<u64>,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub requests: u64,
    /// Sum of the lengths; zero for flush and resize, which have none.
    pub bytes: u64,
}

impl Counters {
    pub fn of(&self, kind: RequestKind) -> Count {
        self.counts.get()[kind]
    }

    /// Requests with [`Durability::ForcedUnitAccess`].
    pub fn forced_unit_access(&self) -> u64 {
        self.forced.get()
    }

    fn count(&self, kind: RequestKind, bytes: u64) {
        let mut counts = self.counts.get();
        counts[kind].requests += 1;
        counts[kind].bytes += bytes;
        self.counts.set(counts);
    }

    fn count_durability(&self, durability: Durability) {
        if durability == Durability::ForcedUnitAccess {
            self.forced.set(self.forced.get() + 1);
        }
    }
}

/// Passes everything on to `inner`, and counts it.
pub struct Counting<D> {
    inner: D,
    counters: Rc<Counters>,
}

impl<D: Disk> Counting<D> {
    pub fn new(inner: D) -> Self {
        Self { inner, counters: Rc::default() }
    }

    /// A handle that stays valid after the disk was moved into a server.
    pub fn counters(&self) -> Rc<Counters> {
        self.counters.clone()
    }
}

impl<D: Disk> Disk for Counting<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer) {
        self.counters.count(RequestKind::Read, at.length_bytes);
        self.inner.read(at, into).await
    }

    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        self.counters.count(RequestKind::Write, at.length_bytes);
        self.counters.count_durability(durability);
        self.inner.write(at, from, durability).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.counters.count(RequestKind::Flush, 0);
        self.inner.flush().await
    }

    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        self.counters.count(RequestKind::Trim, at.length_bytes);
        self.inner.trim(at).await
    }

    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        self.counters.count(RequestKind::WriteZeroes, at.length_bytes);
        self.counters.count_durability(durability);
        self.inner.write_zeroes(at, durability).await
    }

    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        self.counters.count(RequestKind::Extents, at.length_bytes);
        self.inner.extents(at).await
    }

    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        self.counters.count(RequestKind::Resize, 0);
        self.inner.resize(size_bytes).await
    }
}
