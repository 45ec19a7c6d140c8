//! A replica's directory on a machine whose power can be cut: does what the store asks for, and
//! writes it down.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use ankole_blockdev::disk::Buffer;
use ankole_replica::store::file::{Directory, DirectoryFile};
use ankole_replica::store::storage::{FileKind, FileSystem, LockError};
use ankole_replica::store::{Storage, StorageFile};
use serde::{Deserialize, Serialize};

use crate::write_log::{Call, FileId, WriteLog};

/// Calls that only pretend: what a store without them would do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sabotage {
    /// `fdatasync` of a file says that it was done.
    pub without_sync: bool,
    /// `fsync` of the directory says so.
    pub without_dir_sync: bool,
}

/// What tells one boot of a machine from another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Boot {
    pub id: String,
}

pub struct Recording {
    directory: Directory,
    log: WriteLog,
    sabotage: Sabotage,
    boot_id: String,
    files: RefCell<BTreeMap<String, FileId>>,
    next_file: Cell<u32>,
}

impl Recording {
    /// `files` are those that were there when the log began.
    pub fn new(
        directory: Directory,
        files: BTreeMap<String, FileId>,
        log: WriteLog,
        boot: Boot,
        sabotage: Sabotage,
    ) -> Self {
        let next_file = Cell::new(files.len() as u32);
        let files = RefCell::new(files);
        Self { directory, log, sabotage, boot_id: boot.id, files, next_file }
    }

    /// Does it between its two entries in the log; a failure leaves the second one out.
    fn record<T>(&self, call: Call, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let running = self.log.begin(call);
        let done = work()?;
        self.log.end(running);
        Ok(done)
    }

    fn with(&self, inner: DirectoryFile, file: FileId) -> RecordingFile {
        let (log, without_sync) = (self.log.clone(), self.sabotage.without_sync);
        RecordingFile { inner, file, log, without_sync }
    }
}

impl Storage for Recording {
    type File = RecordingFile;
    type Lock = <Directory as Storage>::Lock;

    fn place(&self) -> String {
        self.directory.place()
    }

    fn lock(&self) -> Result<Self::Lock, LockError> {
        self.directory.lock()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.directory.list()
    }

    fn create(&self, name: &str, kind: FileKind) -> io::Result<RecordingFile> {
        let file = FileId(self.next_file.get());
        let call = Call::Create { name: name.into(), file };
        let inner = self.record(call, || self.directory.create(name, kind))?;
        self.next_file.set(file.0 + 1);
        self.files.borrow_mut().insert(name.into(), file);
        Ok(self.with(inner, file))
    }

    fn open(&self, name: &str, kind: FileKind) -> io::Result<RecordingFile> {
        let inner = self.directory.open(name, kind)?;
        let file = self.files.borrow().get(name).copied();
        let file = file.ok_or_else(|| io::Error::other("a file that isn't in the log"))?;
        Ok(self.with(inner, file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let call = Call::Rename { from: from.into(), to: to.into() };
        self.record(call, || self.directory.rename(from, to))?;
        let mut files = self.files.borrow_mut();
        if let Some(file) = files.remove(from) {
            files.insert(to.into(), file);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.record(Call::Remove { name: name.into() }, || self.directory.remove(name))?;
        self.files.borrow_mut().remove(name);
        Ok(())
    }

    async fn sync_dir(&self) -> io::Result<()> {
        if self.sabotage.without_dir_sync {
            return Ok(());
        }
        let running = self.log.begin(Call::SyncDir);
        self.directory.sync_dir().await?;
        self.log.end(running);
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        self.directory.free_bytes()
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(self.boot_id.clone())
    }

    /// Each boot mounts it once.
    fn file_system(&self) -> io::Result<FileSystem> {
        Ok(FileSystem { device: 0, superblock: Some(0) })
    }
}

pub struct RecordingFile {
    inner: DirectoryFile,
    file: FileId,
    log: WriteLog,
    without_sync: bool,
}

impl RecordingFile {
    fn record(&self, call: Call, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let running = self.log.begin(call);
        work()?;
        self.log.end(running);
        Ok(())
    }

    async fn record_awaited(
        &self,
        call: Call,
        work: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        let running = self.log.begin(call);
        work.await?;
        self.log.end(running);
        Ok(())
    }
}

impl StorageFile for RecordingFile {
    fn length_bytes(&self) -> io::Result<u64> {
        self.inner.length_bytes()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }

    fn extend(&self, length_bytes: u64) -> io::Result<()> {
        let call = Call::Extend { file: self.file, length_bytes };
        self.record(call, || self.inner.extend(length_bytes))
    }

    fn allocate(&self, range_bytes: Range<u64>) -> io::Result<()> {
        let call = Call::Extend { file: self.file, length_bytes: range_bytes.end };
        self.record(call, || self.inner.allocate(range_bytes))
    }

    fn next_data(&self, from_bytes: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(from_bytes)
    }

    /// Isn't recorded: what it gives back holds nothing, and a power cut may always undo it.
    fn truncate(&self, length_bytes: u64) -> io::Result<()> {
        self.inner.truncate(length_bytes)
    }

    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset_bytes, into)
    }

    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        let call = Call::Write { file: self.file, offset_bytes, bytes: from.into() };
        self.record(call, || self.inner.write_at(offset_bytes, from))
    }

    async fn read(&self, offset_bytes: u64, into: Buffer) -> (io::Result<()>, Buffer) {
        self.inner.read(offset_bytes, into).await
    }

    async fn write(
        &self,
        offset_bytes: u64,
        from: Rc<Buffer>,
        part: Range<usize>,
    ) -> io::Result<()> {
        let bytes = from[part.clone()].into();
        let call = Call::Write { file: self.file, offset_bytes, bytes };
        self.record_awaited(call, self.inner.write(offset_bytes, from, part)).await
    }

    async fn sync(&self) -> io::Result<()> {
        if self.without_sync {
            return Ok(());
        }
        self.record_awaited(Call::Sync { file: self.file }, self.inner.sync()).await
    }

    fn rest(&self) {
        self.inner.rest();
    }

    async fn punch(&self, range_bytes: Range<u64>) -> io::Result<()> {
        let Range { start, end } = range_bytes;
        let call = Call::Punch { file: self.file, offset_bytes: start, length_bytes: end - start };
        self.record_awaited(call, self.inner.punch(range_bytes)).await
    }
}
