//! What the store needs of a disk: one directory with files, and what tells a crash from a kill.
//!
//! [`Directory`](super::file::Directory) is the real one, [`Disk`](super::crash::Disk) the
//! simulated one of the tests. Small metadata is read and written at once (it hits the page
//! cache); block data, syncs and punching are awaited. Futures start working when first polled;
//! one that is dropped leaves its operation running and its buffer alive.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use ankole_blockdev::disk::Buffer;
use serde::{Deserialize, Serialize};

/// How a file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Small pieces through the page cache.
    Metadata,
    /// Whole aligned blocks, past the page cache where the file system can.
    Data,
}

#[derive(Debug)]
pub enum LockError {
    /// Another process has it; its pid, if it left one.
    Held {
        pid: Option<u32>,
    },
    Io(io::Error),
}

/// One directory.
pub trait Storage: 'static {
    type File: StorageFile;
    /// Held as long as the directory is in use.
    type Lock: 'static;

    /// For error texts: the directory's path.
    fn place(&self) -> String;
    fn lock(&self) -> Result<Self::Lock, LockError>;
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a file that isn't there yet.
    fn create(&self, name: &str, kind: FileKind) -> io::Result<Self::File>;
    fn open(&self, name: &str, kind: FileKind) -> io::Result<Self::File>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes what was created, renamed and removed durable.
    fn sync_dir(&self) -> impl Future<Output = io::Result<()>>;

    /// What the disk has free; `None`: it can't be told.
    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Changes with every boot of the machine.
    fn boot_id(&self) -> io::Result<String>;
    /// The mounted file system on which the directory lies.
    fn file_system(&self) -> io::Result<FileSystem>;
}

/// A mounted file system. Bind mounts and containers see the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// `st_dev`.
    pub device: u64,
    /// A number that this superblock in memory has, and no other one of this boot. `None`: it
    /// can't be told.
    pub superblock: Option<u64>,
}

/// One open file.
pub trait StorageFile: 'static {
    fn length_bytes(&self) -> io::Result<u64>;
    /// What it takes on the disk.
    fn allocated_bytes(&self) -> io::Result<u64>;
    /// Makes it longer without taking space.
    fn extend(&self, length_bytes: u64) -> io::Result<()>;
    /// Takes the space of a range, so that writing into it can't run out of it; makes the file
    /// longer if the range ends behind it.
    fn allocate(&self, range_bytes: Range<u64>) -> io::Result<()>;
    /// Makes it longer and takes all of its space.
    fn preallocate(&self, length_bytes: u64) -> io::Result<()> {
        self.allocate(0..length_bytes)
    }
    /// Makes it shorter, and gives back what was behind its new end.
    fn truncate(&self, length_bytes: u64) -> io::Result<()>;
    /// The first range from `from_bytes` on that may hold something; all before it are zeroes.
    /// `None`: zeroes to the end. What was allocated and never written is zeroes.
    fn next_data(&self, from_bytes: u64) -> io::Result<Option<Range<u64>>>;
    /// Fills `into`, or fails with `UnexpectedEof`.
    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()>;

    /// Fills `into`, whose length is whole blocks.
    fn read(
        &self,
        offset_bytes: u64,
        into: Buffer,
    ) -> impl Future<Output = (io::Result<()>, Buffer)>;
    /// Writes `part` of `from`, which is whole blocks of the file.
    fn write(
        &self,
        offset_bytes: u64,
        from: Rc<Buffer>,
        part: Range<usize>,
    ) -> impl Future<Output = io::Result<()>>;
    /// Makes everything that was written durable.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;
    /// Nothing is left unsynced by whoever had it open before, and it is one of many: it may be
    /// closed while it isn't used. What is written through it keeps it open until that is synced.
    fn rest(&self) {}
    /// Frees a range, which then reads as zeroes.
    fn punch(&self, range_bytes: Range<u64>) -> impl Future<Output = io::Result<()>>;
}
