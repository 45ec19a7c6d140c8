//! A directory of this machine and what is below it on the same file system.
//!
//! Files are reached by the kernel's handles, which outlive renames and restarts; that needs root. Without
//! it, files are known from when they were looked up, for as long as this process has room for them.
//!
//! Never: a name that leaves the tree (each is one component, no symlink is followed, no mount crossed); a
//! FIFO or device opened; anything done with more rights than the caller has.

mod copy;
mod file;
mod handles;
mod identity;
mod inodes;
mod records;
mod sole;
mod stat;
mod tree;
mod xattr;

use super::*;
use handles::{KernelHandle, Seal};
use identity::Identity;
use inodes::{Inode, Inodes};
use records::{HIDDEN, Records};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;
pub use sole::Holder;
use sole::{Refused, Sole};
use stat::{changed_ns, device, kind, statx};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What an entry's cookie is above the kernel's: 0, 1 and 2 mean something else in the protocol.
const COOKIE_ABOVE: u64 = 3;
const ENTRIES_BUFFER_BYTES: usize = 16 * 1024;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Names and attributes are on the disk before the reply, as the protocol wants it. Otherwise the last
    /// seconds of them can be lost with the machine; data that was committed never.
    pub stable_metadata: bool,
    /// How many files are kept at hand that nobody has open.
    pub files_at_hand: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { stable_metadata: true, files_at_hand: 4096 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("export {}: {}", path.display(), taken(holder.as_ref()))]
    Taken { path: PathBuf, holder: Option<Holder> },
    #[error("export {}: {step}", path.display())]
    Failed { path: PathBuf, step: &'static str, source: std::io::Error },
}

fn taken(holder: Option<&Holder>) -> String {
    match holder {
        Some(Holder { pid, command }) => {
            format!("process {pid} ({command}) serves it, or has locked it")
        }
        None => "a process that can't be seen from here serves it, or has locked it".into(),
    }
}

pub struct LocalTree {
    shared: Arc<Shared>,
    root: Arc<Inode>,
    records: Records,
    inodes: Inodes,
    seal: Seal,
    /// Whether a file can be found by its handle alone.
    by_handle: bool,
    device: (u32, u32),
    has_xattrs: bool,
    /// Given up last.
    _sole: Sole,
}

/// What open files need of the tree.
struct Shared {
    /// `/proc/self/fd`: through it a place becomes a file that can be read, by no name at all.
    proc: OwnedFd,
    identity: Identity,
    write_verifier: AtomicU64,
    stable_metadata: bool,
}

impl Shared {
    fn write_verifier(&self) -> u64 {
        self.write_verifier.load(Ordering::SeqCst)
    }

    fn may_have_lost_writes(&self) {
        self.write_verifier.fetch_add(1, Ordering::SeqCst);
    }
}

impl LocalTree {
    pub fn open(path: &Path, options: Options) -> std::result::Result<Self, OpenError> {
        let failed = |step| {
            move |errno: Errno| OpenError::Failed { path: path.into(), step, source: errno.into() }
        };
        let identity = Identity::of_this_process();
        identity.act_as_server().map_err(failed("act as root"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open it"))?;
        let sole = Sole::of(root.as_fd()).map_err(|refused| match refused {
            Refused::Taken(holder) => OpenError::Taken { path: path.into(), holder },
            Refused::Failed(errno) => failed("lock it for this server alone")(errno),
        })?;
        let proc = rustix::fs::open("/proc/self/fd", flags, Mode::empty())
            .map_err(failed("open /proc/self/fd; is /proc mounted?"))?;
        let records =
            Records::open(root.as_fd()).map_err(failed("keep the share's own files in it"))?;
        let seal = Seal::new(&records.key);
        let kernel = KernelHandle::of(root.as_fd(), c"")
            .map_err(failed("its file system has no file handles"))?;
        let by_handle = kernel.open(root.as_fd(), OFlags::PATH).is_ok();
        if !by_handle {
            tracing::warn!(
                "not root: files are the server's user's, handles end with this process"
            );
        }
        let stat = statx(root.as_fd(), c"").map_err(failed("look at it"))?;
        // Without handles to find them again, files have to stay.
        let inodes = Inodes::new(if by_handle { options.files_at_hand } else { usize::MAX / 4 });
        let root = inodes.get_or_insert(seal.seal(&kernel), FileType::Directory, root);
        Ok(Self {
            shared: Arc::new(Shared {
                proc,
                identity,
                write_verifier: AtomicU64::new(random()),
                stable_metadata: options.stable_metadata,
            }),
            has_xattrs: xattr::are_there(&root),
            root,
            records,
            inodes,
            seal,
            by_handle,
            device: device(&stat),
            _sole: sole,
        })
    }

    fn inode(&self, handle: FileHandle) -> Result<Arc<Inode>> {
        if let Some(inode) = self.inodes.get(handle) {
            return Ok(inode);
        }
        let kernel = self.seal.unseal(handle).ok_or(Status::BadHandle)?;
        if !self.by_handle {
            return Err(Status::Stale);
        }
        self.shared.identity.act_as_server()?;
        let place = kernel.open(self.root.place(), OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = statx(place.as_fd(), c"")?;
        if stat.stx_nlink == 0 {
            return Err(Status::Stale);
        }
        Ok(self.inodes.get_or_insert(handle, kind(&stat)?, place))
    }

    fn directory(&self, handle: FileHandle) -> Result<Arc<Inode>> {
        let inode = self.inode(handle)?;
        match inode.kind {
            FileType::Directory => Ok(inode),
            FileType::Symlink => Err(Status::Symlink),
            _ => Err(Status::NotDir),
        }
    }

    fn regular(&self, handle: FileHandle) -> Result<Arc<Inode>> {
        let inode = self.inode(handle)?;
        match inode.kind {
            FileType::Regular => Ok(inode),
            FileType::Directory => Err(Status::IsDir),
            FileType::Symlink => Err(Status::Symlink),
            _ => Err(Status::Inval),
        }
    }

    /// The file of this name, as the caller that this thread acts as.
    fn at(&self, directory: &Inode, name: &CStr) -> Result<Arc<Inode>> {
        let place = rustix::fs::openat2(
            directory.place(),
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS,
        )
        .map_err(|errno| if errno == Errno::XDEV { Status::NoEnt } else { errno.into() })?;
        self.found(place)
    }

    fn found(&self, place: OwnedFd) -> Result<Arc<Inode>> {
        let handle = self.seal.seal(&KernelHandle::of(place.as_fd(), c"")?);
        if let Some(inode) = self.inodes.get(handle) {
            return Ok(inode);
        }
        let kind = kind(&statx(place.as_fd(), c"")?)?;
        Ok(self.inodes.get_or_insert(handle, kind, place))
    }

    fn is_hidden(&self, directory: FileHandle, name: &[u8]) -> bool {
        directory == self.root.handle && name == HIDDEN
    }

    /// A name for a call to the kernel, if it isn't one of our own.
    fn name(&self, directory: FileHandle, name: Name) -> Result<CString> {
        if self.is_hidden(directory, name.as_bytes()) {
            return Err(Status::NoEnt);
        }
        CString::new(name.as_bytes()).map_err(|_| Status::BadChar)
    }

    fn new_name(&self, directory: FileHandle, name: Name) -> Result<CString> {
        if self.is_hidden(directory, name.as_bytes()) {
            return Err(Status::Access);
        }
        CString::new(name.as_bytes()).map_err(|_| Status::BadChar)
    }

    /// Changes names in a directory, with its change numbers before and after.
    fn change_names<T>(
        &self,
        directory: &Inode,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Changed)> {
        let _naming = directory.naming();
        let before = self.change_number(directory)?;
        let done = change()?;
        directory.has_changed();
        Ok((done, Changed { before, after: self.change_number(directory)? }))
    }

    /// Changes what a file says of itself.
    fn change_file(
        &self,
        caller: &Caller,
        file: FileHandle,
        change: impl FnOnce(&Inode) -> Result<()>,
    ) -> Result<Changed> {
        let inode = self.inode(file)?;
        self.shared.identity.act_as(caller)?;
        let before = self.change_number(&inode)?;
        change(&inode)?;
        inode.has_changed();
        let after = self.change_number(&inode)?;
        self.settle_file(&inode)?;
        Ok(Changed { before, after })
    }

    fn change_number(&self, inode: &Inode) -> Result<u64> {
        let changes = inode.changes();
        Ok(Inode::change(changes, changed_ns(&statx(inode.place(), c"")?)))
    }

    /// The names in this directory are on the disk when it returns, if that was asked for. The file system
    /// commits for all who wait at once.
    fn settle(&self, directory: &Inode) -> Result<()> {
        if !self.shared.stable_metadata {
            return Ok(());
        }
        Ok(rustix::fs::fsync(directory.reader(&self.shared)?)?)
    }

    /// What has no name any more must not hold its space here. What has another one stays known, and with it
    /// how often it was changed.
    fn lost_a_name(&self, inode: Arc<Inode>) -> Result<()> {
        inode.has_changed();
        let links = statx(inode.place(), c"")?.stx_nlink;
        let handle = inode.handle;
        drop(inode);
        if links == 0 {
            self.inodes.forget(handle);
        }
        Ok(())
    }

    /// As [`Self::settle`], for what a file says of itself.
    fn settle_file(&self, inode: &Inode) -> Result<()> {
        if !self.shared.stable_metadata {
            return Ok(());
        }
        let readable = matches!(inode.kind, FileType::Regular | FileType::Directory)
            .then(|| inode.reader(&self.shared).ok());
        match readable.flatten() {
            Some(file) => rustix::fs::fsync(file),
            // It can't be opened: the whole file system is made stable.
            None => rustix::fs::syncfs(self.root.reader(&self.shared)?),
        }
        .inspect_err(|_| self.shared.may_have_lost_writes())?;
        Ok(())
    }

    /// What an entry of a directory is, without opening it.
    fn entry(&self, directory: BorrowedFd, name: &CStr) -> Result<(FileHandle, Attributes)> {
        let handle = self.seal.seal(&KernelHandle::of(directory, name)?);
        let changes = self.inodes.get(handle).map_or(0, |inode| inode.changes());
        let stat = statx(directory, name)?;
        if device(&stat) != self.device {
            return Err(Status::NoEnt);
        }
        Ok((handle, stat::attributes(&stat, changes)?))
    }

    fn make(&self, place: BorrowedFd, name: &CStr, kind: NewFile, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match kind {
            NewFile::Regular => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(place, name, flags, mode)?;
            }
            NewFile::Directory => rustix::fs::mkdirat(place, name, mode)?,
            NewFile::Symlink(to) => {
                let to = CString::new(to).map_err(|_| Status::Inval)?;
                rustix::fs::symlinkat(&*to, place, name)?;
            }
            NewFile::Special(kind, major, minor) => {
                let kind = match kind {
                    FileType::Fifo => rustix::fs::FileType::Fifo,
                    FileType::Socket => rustix::fs::FileType::Socket,
                    FileType::BlockDevice => rustix::fs::FileType::BlockDevice,
                    FileType::CharacterDevice => rustix::fs::FileType::CharacterDevice,
                    _ => return Err(Status::BadType),
                };
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(place, name, kind, mode, device)?;
            }
        }
        Ok(())
    }
}

/// Another one in each life of the server.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id())
}
