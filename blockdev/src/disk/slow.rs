//! A disk that takes its time.

use std::io;
use std::time::Duration;

use super::{Allocation, Buffer, Disk, Durability, Extent, Hold, PerKind, RequestKind};

/// Waits before it passes a request on to `inner`; a delay of zero doesn't wait. Requests wait at
/// the same time, as on a disk with a long queue. Needs tokio's clock.
pub struct Slow<D> {
    inner: D,
    delays: PerKind<Duration>,
}

impl<D: Disk> Slow<D> {
    pub fn new(inner: D, delays: PerKind<Duration>) -> Self {
        Self { inner, delays }
    }

    async fn delay(&self, kind: RequestKind) {
        if !self.delays[kind].is_zero() {
            tokio::time::sleep(self.delays[kind]).await;
        }
    }
}

impl<D: Disk> Disk for Slow<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer) {
        self.delay(RequestKind::Read).await;
        self.inner.read(at, into).await
    }

    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        self.delay(RequestKind::Write).await;
        self.inner.write(at, from, durability).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.delay(RequestKind::Flush).await;
        self.inner.flush().await
    }

    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        self.delay(RequestKind::Trim).await;
        self.inner.trim(at).await
    }

    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        self.delay(RequestKind::WriteZeroes).await;
        self.inner.write_zeroes(at, durability).await
    }

    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        self.delay(RequestKind::Extents).await;
        self.inner.extents(at).await
    }

    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        self.delay(RequestKind::Resize).await;
        self.inner.resize(size_bytes).await
    }
}
