//! A real directory: ext4, XFS, or whatever there is.
//!
//! Owns the lock, the choice between io_uring and a pool of threads, and between direct and
//! buffered I/O; both are found out by trying when the directory is opened, and reported. How many
//! files are open is bounded ([`open_files`](super::open_files)). Must be opened within a `LocalSet`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::stat::{major, minor};
use nix::unistd::{Whence, lseek};

use super::error::is_no_space;
use super::open_files::{OpenFile, OpenFiles, open_files_max};
use super::storage::{FileKind, FileSystem, LockError, Storage, StorageFile};
use super::uring::Ring;

/// Mode of every file.
const OWNER_ONLY: u32 = 0o600;
const LOCK: &str = "lock";
const PROBE: &str = "probe.tmp";
/// Those with a folder for each disk in `/sys/fs`.
const DISK_FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "f2fs"];

/// How block data reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPath {
    /// io_uring, or else a pool of threads.
    pub uring: bool,
    /// Past the page cache.
    pub direct: bool,
}

/// What to use; `true` is a wish, and what the machine refuses isn't used.
#[derive(Clone, Debug)]
pub struct DirectoryOptions {
    pub uring: bool,
    pub direct: bool,
    /// Instead of the kernel's: what another boot would find.
    pub boot_id: Option<String>,
    /// Files of sealed layers are closed and opened again so that there are no more.
    pub open_files_max: usize,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self { uring: true, direct: true, boot_id: None, open_files_max: open_files_max() }
    }
}

/// One directory of the file system.
pub struct Directory {
    path: PathBuf,
    boot_id: Option<String>,
    files: Rc<OpenFiles>,
    direct: bool,
    /// Memory of a direct write starts at a multiple of this.
    memory_alignment: usize,
    ring: Option<Rc<Ring>>,
}

impl Directory {
    /// The directory must exist. Tries out what it can do.
    pub fn open(path: impl Into<PathBuf>, options: &DirectoryOptions) -> io::Result<Self> {
        let path = path.into();
        if !path.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        if let Err(error) = make_private(&path) {
            tracing::warn!(path = %path.display(), %error, "others may read what is in the volume");
        }
        let ring = match options.uring.then(Ring::new) {
            Some(Ok(ring)) => Some(Rc::new(ring)),
            Some(Err(error)) => {
                tracing::warn!(%error, "io_uring isn't allowed, a pool of threads is used");
                None
            }
            None => None,
        };
        let mut directory = Self {
            path,
            boot_id: options.boot_id.clone(),
            files: OpenFiles::new(options.open_files_max),
            direct: false,
            memory_alignment: 1,
            ring,
        };
        if options.direct {
            directory.probe_direct();
        }
        Ok(directory)
    }

    pub fn data_path(&self) -> DataPath {
        DataPath { uring: self.ring.is_some(), direct: self.direct }
    }

    fn probe_direct(&mut self) {
        let path = self.path.join(PROBE);
        let buffer = Buffer::zeroed(2 * BLOCK_BYTES as usize);
        let block = BLOCK_BYTES as usize;
        let probe = || -> io::Result<usize> {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).mode(OWNER_ONLY);
            let options = options.custom_flags(libc::O_DIRECT);
            let file = options.open(&path)?;
            file.write_all_at(&buffer[..block], 0)?;
            let loose = file.write_all_at(&buffer[512..512 + block], 0).is_ok();
            Ok(if loose { 512 } else { block })
        };
        match probe() {
            Ok(memory_alignment) => {
                self.direct = true;
                self.memory_alignment = memory_alignment;
            }
            // It got as far as to ask for room: the rest is for the worst.
            Err(error) if is_no_space(&error) => {
                self.direct = true;
                self.memory_alignment = block;
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error,
                    "direct I/O isn't possible, the page cache is used");
            }
        }
        let _ = std::fs::remove_file(path); // it may not have been made
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn open_by(
        &self,
        name: &str,
        kind: FileKind,
        options: &OpenOptions,
    ) -> io::Result<DirectoryFile> {
        let memory_alignment =
            if self.direct && kind == FileKind::Data { self.memory_alignment } else { 1 };
        let file = self.files.open(self.at(name), options, self.options(kind))?;
        Ok(DirectoryFile { file, ring: self.ring.clone(), memory_alignment })
    }

    fn options(&self, kind: FileKind) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(OWNER_ONLY);
        if self.direct && kind == FileKind::Data {
            options.custom_flags(libc::O_DIRECT);
        }
        options
    }
}

/// A directory that others can enter isn't left so, nor are the files in it: what is in a volume is
/// its owner's.
fn make_private(path: &Path) -> io::Result<()> {
    if path.metadata()?.mode() & 0o077 == 0 {
        return Ok(());
    }
    let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode));
    set(path, 0o700)?;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            set(&entry.path(), OWNER_ONLY)?;
        }
    }
    Ok(())
}

impl Storage for Directory {
    type File = DirectoryFile;
    type Lock = Flock<File>;

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&self) -> Result<Self::Lock, LockError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(OWNER_ONLY);
        let mut file = options.open(self.at(LOCK)).map_err(LockError::Io)?;
        match Flock::lock(file.try_clone().map_err(LockError::Io)?, FlockArg::LockExclusiveNonblock)
        {
            Ok(mut lock) => {
                lock.set_len(0).map_err(LockError::Io)?;
                writeln!(lock, "{}", std::process::id()).map_err(LockError::Io)?;
                Ok(lock)
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text); // only for the message
                Err(LockError::Held { pid: text.trim().parse().ok() })
            }
            Err((_, errno)) => Err(LockError::Io(errno.into())),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name()));
        let text = |name: OsString| name.to_string_lossy().into_owned();
        names.map(|name| name.map(text)).collect()
    }

    fn create(&self, name: &str, kind: FileKind) -> io::Result<DirectoryFile> {
        self.open_by(name, kind, self.options(kind).create_new(true))
    }

    fn open(&self, name: &str, kind: FileKind) -> io::Result<DirectoryFile> {
        self.open_by(name, kind, &self.options(kind))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.at(from), self.at(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.keep_removed(&self.at(name))?;
        std::fs::remove_file(self.at(name))
    }

    async fn sync_dir(&self) -> io::Result<()> {
        let directory = File::open(&self.path)?;
        on_pool(move || directory.sync_all()).await
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let disk = nix::sys::statvfs::statvfs(&self.path)?;
        Ok(Some(disk.blocks_available() * disk.fragment_size()))
    }

    fn boot_id(&self) -> io::Result<String> {
        self.boot_id.clone().map_or_else(crate::process::boot_id, Ok)
    }

    fn file_system(&self) -> io::Result<FileSystem> {
        file_system(&self.path)
    }
}

/// One open file of a [`Directory`].
pub struct DirectoryFile {
    file: OpenFile,
    ring: Option<Rc<Ring>>,
    memory_alignment: usize,
}

impl DirectoryFile {
    fn copy_of_handle(&self) -> io::Result<File> {
        self.file.get()?.try_clone()
    }
}

impl StorageFile for DirectoryFile {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.file.get()?.metadata()?.len())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.get()?.metadata()?.blocks() * 512)
    }

    fn extend(&self, length_bytes: u64) -> io::Result<()> {
        let (_running, file) = (self.file.change(), self.file.get()?);
        if file.metadata()?.len() < length_bytes { file.set_len(length_bytes) } else { Ok(()) }
    }

    fn allocate(&self, range_bytes: Range<u64>) -> io::Result<()> {
        let start = i64::try_from(range_bytes.start).map_err(io::Error::other)?;
        let length = i64::try_from(range_bytes.end).map_err(io::Error::other)? - start;
        let (_running, file) = (self.file.change(), self.file.get()?);
        match fallocate(&*file, FallocateFlags::empty(), start, length) {
            Ok(()) => Ok(()),
            Err(nix::errno::Errno::EOPNOTSUPP) => {
                static SAID: std::sync::Once = std::sync::Once::new();
                SAID.call_once(|| {
                    tracing::warn!("this file system can't reserve space: a full disk may hurt");
                });
                self.extend(range_bytes.end)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn next_data(&self, from_bytes: u64) -> io::Result<Option<Range<u64>>> {
        next_data(&*self.file.get()?, from_bytes)
    }

    fn truncate(&self, length_bytes: u64) -> io::Result<()> {
        let (_running, file) = (self.file.change(), self.file.get()?);
        if file.metadata()?.len() > length_bytes { file.set_len(length_bytes) } else { Ok(()) }
    }

    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.get()?.read_exact_at(into, offset_bytes)
    }

    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        let (_running, file) = (self.file.change(), self.file.get()?);
        file.write_all_at(from, offset_bytes)
    }

    async fn read(&self, offset_bytes: u64, into: Buffer) -> (io::Result<()>, Buffer) {
        if let Some(ring) = &self.ring {
            return match self.file.get() {
                Ok(file) => ring.read(&file, offset_bytes, into).await,
                Err(error) => (Err(error), into),
            };
        }
        let file = match self.copy_of_handle() {
            Ok(file) => file,
            Err(error) => return (Err(error), into),
        };
        let mut into = into;
        let read = move || {
            let result = file.read_exact_at(&mut into, offset_bytes);
            (result, into)
        };
        tokio::task::spawn_blocking(read).await.expect("reading doesn't panic")
    }

    async fn write(
        &self,
        offset_bytes: u64,
        from: Rc<Buffer>,
        part: Range<usize>,
    ) -> io::Result<()> {
        let _running = self.file.change();
        let aligned = part.start.is_multiple_of(self.memory_alignment);
        let Some(ring) = &self.ring else {
            let copy = Buffer::copy_of(&from[part]);
            let file = self.copy_of_handle()?;
            return on_pool(move || file.write_all_at(&copy, offset_bytes)).await;
        };
        if aligned {
            ring.write(&self.file.get()?, offset_bytes, from, part).await
        } else {
            let copy = Rc::new(Buffer::copy_of(&from[part]));
            let whole = 0..copy.len();
            ring.write(&self.file.get()?, offset_bytes, copy, whole).await
        }
    }

    async fn sync(&self) -> io::Result<()> {
        let running = self.file.sync();
        match &self.ring {
            Some(ring) => ring.sync(&self.file.get()?).await?,
            None => {
                let file = self.copy_of_handle()?;
                on_pool(move || file.sync_data()).await?;
            }
        }
        running.succeeded();
        Ok(())
    }

    fn rest(&self) {
        self.file.rest();
    }

    async fn punch(&self, range_bytes: Range<u64>) -> io::Result<()> {
        let _running = self.file.change();
        if let Some(ring) = &self.ring {
            return ring.punch(&self.file.get()?, range_bytes).await;
        }
        let file = self.copy_of_handle()?;
        on_pool(move || {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let length = (range_bytes.end - range_bytes.start) as i64;
            fallocate(&file, flags, range_bytes.start as i64, length).map_err(io::Error::from)
        })
        .await
    }
}

/// As the file system knows it, in its blocks.
pub(crate) fn next_data(file: &File, from_bytes: u64) -> io::Result<Option<Range<u64>>> {
    let from = i64::try_from(from_bytes).map_err(io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(start) => {
            let end = lseek(file, start, Whence::SeekHole)?;
            Ok(Some(start as u64..end as u64))
        }
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

async fn on_pool<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.expect("a file operation doesn't panic")
}

/// The mounted file system on which `path` lies.
///
/// Each superblock of a disk has a folder in sysfs, whose inode number no other folder gets while
/// the machine runs: mounting it once more elsewhere keeps it, unmounting and mounting it doesn't.
/// What lies on memory is gone with its superblock, so that its device tells all.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let device = path.metadata()?.dev();
    if is_volatile(path)? {
        return Ok(FileSystem { device, superblock: Some(device) });
    }
    let number = format!("{}:{}", major(device), minor(device));
    let disk = std::fs::canonicalize(Path::new("/sys/dev/block").join(number));
    let superblock = disk.ok().and_then(|disk| {
        let folder = |kind| Path::new("/sys/fs").join(kind).join(disk.file_name()?).metadata().ok();
        DISK_FILE_SYSTEMS.into_iter().find_map(folder).map(|folder| folder.ino())
    });
    Ok(FileSystem { device, superblock })
}

/// Whether `path` lies on memory, which a reboot clears.
pub fn is_volatile(path: &Path) -> io::Result<bool> {
    let kind = nix::sys::statfs::statfs(path)?.filesystem_type();
    Ok(kind == nix::sys::statfs::TMPFS_MAGIC)
}
