//! The files that are in use or were lately, by their handles; each is open no more than once for each
//! purpose, however many clients have it open.

use super::Shared;
use crate::wire::types::{FileHandle, FileType};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub struct Inode {
    pub handle: FileHandle,
    pub kind: FileType,
    /// Opened as a mere place (`O_PATH`): nothing happens to a FIFO or a device by that.
    place: OwnedFd,
    reader: OnceLock<OwnedFd>,
    writer: OnceLock<OwnedFd>,
    /// How often it was changed by us since it was found: see [`Inode::change`].
    changes: AtomicU64,
    syncs: Syncs,
    /// Held while names in this directory change, so that nothing is between the numbers before and after.
    naming: Mutex<()>,
}

impl Inode {
    pub fn place(&self) -> BorrowedFd<'_> {
        self.place.as_fd()
    }

    /// The path of this very file under `/proc/self/fd`.
    pub fn proc_name(&self) -> CString {
        CString::new(self.place.as_raw_fd().to_string()).expect("digits have no NUL")
    }

    /// As above, for calls that know no directory to start from.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.place.as_raw_fd())
    }

    /// To read from. A regular file or a directory only, opened by the server for all callers: what each
    /// may do is asked at its OPEN.
    pub fn reader(&self, tree: &Shared) -> rustix::io::Result<BorrowedFd<'_>> {
        self.opened(&self.reader, tree, OFlags::RDONLY)
    }

    pub fn writer(&self, tree: &Shared) -> rustix::io::Result<BorrowedFd<'_>> {
        self.opened(&self.writer, tree, OFlags::WRONLY)
    }

    fn opened<'a>(
        &self,
        fd: &'a OnceLock<OwnedFd>,
        tree: &Shared,
        flags: OFlags,
    ) -> rustix::io::Result<BorrowedFd<'a>> {
        if fd.get().is_none() {
            assert!(
                matches!(self.kind, FileType::Regular | FileType::Directory),
                "nothing else is ever opened"
            );
            let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            tree.identity.act_as_server()?;
            let new = rustix::fs::openat(&tree.proc, self.proc_name(), flags, Mode::empty())?;
            let _ = fd.set(new); // or somebody else was faster
        }
        Ok(fd.get().expect("it was just set").as_fd())
    }

    /// The change number for a file whose metadata the kernel changed last at `changed_ns`.
    ///
    /// Kernels before 6.13 move that time only every few milliseconds; what we count is added, so that two
    /// changes within one tick differ. `changes` was read *before* the time: a number may then stand for an
    /// older state, which is asked for again, never for a newer one.
    pub fn change(changes: u64, changed_ns: u64) -> u64 {
        changed_ns.wrapping_add(changes)
    }

    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// After each change, before it is answered.
    pub fn has_changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// All that was written is stable when it returns, and this was the verifier then.
    ///
    /// Who waits for another's sync that began after it asked needs none of its own. An error is known to
    /// all before anybody else can find that the next sync succeeds: that one would cover what is lost.
    pub fn sync(&self, tree: &Shared) -> rustix::io::Result<u64> {
        let asked = self.syncs.asked.fetch_add(1, Ordering::AcqRel);
        let mut done = self.syncs.done.lock().unwrap_or_else(PoisonError::into_inner);
        if *done <= asked {
            let covers = self.syncs.asked.load(Ordering::Acquire);
            rustix::fs::fsync(self.writer(tree)?).inspect_err(|_| tree.may_have_lost_writes())?;
            *done = covers;
        }
        Ok(tree.write_verifier())
    }

    pub fn naming(&self) -> MutexGuard<'_, ()> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many syncs were asked for, and how many of those are done.
#[derive(Default)]
struct Syncs {
    asked: AtomicU64,
    done: Mutex<u64>,
}

/// Two generations: who was used since the last turn is in the young one. When that is full, the old one is
/// dropped, but for what is open.
pub struct Inodes {
    generation_max: usize,
    both: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<FileHandle, Arc<Inode>>,
    old: HashMap<FileHandle, Arc<Inode>>,
    /// How many of the young were there only because they are open, when it last turned.
    open: usize,
}

impl Inodes {
    /// Keeps up to twice `generation_max`, and all that are open.
    pub fn new(generation_max: usize) -> Self {
        Self { generation_max, both: Mutex::default() }
    }

    pub fn get(&self, handle: FileHandle) -> Option<Arc<Inode>> {
        let mut both = self.lock();
        if let Some(inode) = both.young.get(&handle) {
            return Some(inode.clone());
        }
        let inode = both.old.remove(&handle)?;
        self.keep(&mut both, inode.clone());
        Some(inode)
    }

    /// The inode of this handle: the one that is known, or else a new one of `place`.
    pub fn get_or_insert(&self, handle: FileHandle, kind: FileType, place: OwnedFd) -> Arc<Inode> {
        let mut both = self.lock();
        let known = both.young.get(&handle).cloned().or_else(|| both.old.remove(&handle));
        let inode = known.unwrap_or_else(|| {
            Arc::new(Inode {
                handle,
                kind,
                place,
                reader: OnceLock::new(),
                writer: OnceLock::new(),
                changes: AtomicU64::new(0),
                syncs: Syncs::default(),
                naming: Mutex::default(),
            })
        });
        self.keep(&mut both, inode.clone());
        inode
    }

    fn keep(&self, both: &mut Generations, inode: Arc<Inode>) {
        if both.young.len() >= self.generation_max + both.open {
            let young = std::mem::take(&mut both.young);
            let dropped = std::mem::replace(&mut both.old, young);
            let open = dropped.into_iter().filter(|(_, inode)| Arc::strong_count(inode) > 1);
            both.young.extend(open);
            both.open = both.young.len();
        }
        both.young.insert(inode.handle, inode);
    }

    /// Its last name is gone: what isn't open must not hold the space.
    pub fn forget(&self, handle: FileHandle) {
        let mut both = self.lock();
        for generation in [true, false] {
            let map = if generation { &mut both.young } else { &mut both.old };
            if map.get(&handle).is_some_and(|inode| Arc::strong_count(inode) == 1) {
                map.remove(&handle);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
