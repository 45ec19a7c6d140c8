//! The one trait that all frontends serve.
//!
//! A disk is a row of bytes with a durability contract; see [`Disk`]. Frontends check what a
//! client asks (alignment, bounds, read-only) before they call, so that nothing below checks
//! again. Filters are disks that wrap a disk.

mod buffer;
mod counting;
mod faulty;
mod kind;
mod memory;
mod slow;

use std::any::Any;
use std::io;
use std::rc::Rc;

pub use buffer::Buffer;
pub use counting::{Count, Counters, Counting};
pub use faulty::{FaultPlan, Faulty};
pub use kind::{PerKind, RequestKind};
pub use memory::MemoryDisk;
pub use slow::Slow;

/// Smallest unit of a request, in bytes: the logical sector of every frontend.
pub const SECTOR_BYTES: u64 = 512;
/// Unit of the volume's map and of its checksums, in bytes: the physical block.
pub const BLOCK_BYTES: u64 = 4096;

/// A run of bytes within a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    pub offset_bytes: u64,
    pub length_bytes: u64,
}

impl Extent {
    /// `None` if the end can't be expressed in 64 bits.
    pub fn new(offset_bytes: u64, length_bytes: u64) -> Option<Self> {
        offset_bytes.checked_add(length_bytes)?;
        Some(Self { offset_bytes, length_bytes })
    }

    pub fn end_bytes(self) -> u64 {
        self.offset_bytes + self.length_bytes
    }

    pub fn is_within(self, size_bytes: u64) -> bool {
        self.end_bytes() <= size_bytes
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.offset_bytes < other.end_bytes() && other.offset_bytes < self.end_bytes()
    }

    pub fn is_aligned_to(self, unit_bytes: u64) -> bool {
        self.offset_bytes.is_multiple_of(unit_bytes) && self.length_bytes.is_multiple_of(unit_bytes)
    }
}

/// How durable a write must be before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Survives a crash of processes; a power cut only after the next flush.
    Volatile,
    /// Forced unit access: survives a power cut.
    ForcedUnitAccess,
}

/// What a run of bytes holds, for clients that skip what is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    Data,
    /// Reads as zeroes.
    Zero,
}

/// Keeps a request's range from being overtaken until the answer is with the client.
///
/// A disk whose reads and writes are ordered against each other (the engine) returns its range
/// lock in here. A frontend drops it once the completion was handed over: for NBD when the reply
/// is written to the socket, for ublk when the kernel has consumed the commit. Without that, a
/// client could see a newer write and then, after a crash and a reissue, an older one.
#[must_use = "dropping it lets the next overlapping request go"]
#[derive(Default)]
pub struct Hold(#[expect(dead_code, reason = "held for its destructor")] Option<Box<dyn Any>>);

impl Hold {
    /// For disks that order nothing.
    pub fn none() -> Self {
        Self(None)
    }

    pub fn until_dropped(guard: impl Any) -> Self {
        Self(Some(Box::new(guard)))
    }
}

/// A block device.
///
/// This is the queue-local form: its futures need no `Send`, so a disk can live on one thread
/// without locks. Many requests may be in flight at once; overlapping ones complete in some order,
/// as if each were atomic. Offsets and lengths are multiples of [`SECTOR_BYTES`] and within
/// [`size_bytes`](Disk::size_bytes); the caller has checked that.
///
/// Errors are `io::Error`s with an errno that a kernel knows: `EIO` (this range can't be read or
/// written), `ENOSPC`, `EROFS`, `EOPNOTSUPP` (the disk doesn't do that at all), `ESHUTDOWN` (the
/// disk has gone and the client should connect again; the request may or may not be done).
#[expect(async_fn_in_trait, reason = "futures stay on the thread of their queue")]
pub trait Disk {
    /// Grows while in use; never shrinks.
    fn size_bytes(&self) -> u64;

    fn is_read_only(&self) -> bool {
        false
    }

    /// Fills `into`, whose length is that of `at`. On an error its content is undefined.
    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer);

    /// Writes `from`, whose length is that of `at`, and keeps or frees it: a replica that left may
    /// still be reading from it when the write is answered.
    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold>;

    /// When this returns, every write that was answered before the call survives a power cut.
    async fn flush(&self) -> io::Result<()>;

    /// Says that the content isn't needed. Afterwards the range reads as zeroes where whole blocks
    /// are covered, and as before elsewhere.
    async fn trim(&self, at: Extent) -> io::Result<Hold>;

    /// Makes the range read as zeroes, exactly.
    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold>;

    /// What the range holds: runs that cover `at` from its start without gaps.
    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>>;

    /// Grows the disk. Shrinking is `EINVAL`.
    async fn resize(&self, size_bytes: u64) -> io::Result<()>;
}

impl<D: Disk> Disk for Rc<D> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
    fn is_read_only(&self) -> bool {
        (**self).is_read_only()
    }
    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer) {
        (**self).read(at, into).await
    }
    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        (**self).write(at, from, durability).await
    }
    async fn flush(&self) -> io::Result<()> {
        (**self).flush().await
    }
    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        (**self).trim(at).await
    }
    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        (**self).write_zeroes(at, durability).await
    }
    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        (**self).extents(at).await
    }
    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        (**self).resize(size_bytes).await
    }
}
