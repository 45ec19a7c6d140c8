//! One regular file that is open, and attributes that are set.

use super::super::{Change, Content, OpenFile, Range, Result};
use super::Shared;
use super::inodes::Inode;
use crate::wire::attributes::{SetTime, Time};
use crate::wire::rpc::Caller;
use crate::wire::status::Status;
use crate::wire::types::Stability;
use rustix::fs::{
    AtFlags, FallocateFlags, Gid, Mode, SeekFrom, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;
use std::sync::Arc;

pub struct Opened {
    tree: Arc<Shared>,
    inode: Arc<Inode>,
}

impl Opened {
    pub fn new(tree: Arc<Shared>, inode: Arc<Inode>) -> Self {
        Self { tree, inode }
    }

    fn fallocate(&self, caller: &Caller, how: FallocateFlags, range: Range) -> Result<()> {
        let file = self.inode.writer(&self.tree)?;
        self.tree.identity.act_as(caller)?;
        rustix::fs::fallocate(file, how, range.offset, range.length)?;
        self.changed()
    }

    /// Another size, or other bytes that were no write: stable before the reply, as other metadata.
    fn changed(&self) -> Result<()> {
        self.inode.has_changed();
        if self.tree.stable_metadata {
            self.inode.sync(&self.tree)?;
        }
        Ok(())
    }
}

impl OpenFile for Opened {
    fn read(&self, _: &Caller, offset: u64, into: &mut [u8]) -> Result<(usize, bool)> {
        let file = self.inode.reader(&self.tree)?;
        let mut filled = 0;
        while filled < into.len() {
            // Beyond what a file can be, nothing is.
            match rustix::io::pread(file, &mut into[filled..], offset.saturating_add(filled as u64))
            {
                Ok(0) | Err(Errno::INVAL | Errno::OVERFLOW) => return Ok((filled, true)),
                Ok(more) => filled += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let size_bytes = rustix::fs::fstat(file)?.st_size as u64;
        Ok((filled, offset.saturating_add(filled as u64) >= size_bytes))
    }

    fn write(
        &self,
        caller: &Caller,
        offset: u64,
        data: &[u8],
        stability: Stability,
    ) -> Result<usize> {
        let file = self.inode.writer(&self.tree)?;
        // As the caller, so that quotas and the bits that a write takes away are as the kernel has them.
        self.tree.identity.act_as(caller)?;
        let mut written = 0;
        while written < data.len() {
            let at = offset.saturating_add(written as u64);
            match rustix::io::pwrite(file, &data[written..], at) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                // What was written is answered; the next request meets the error.
                Err(_) if written > 0 => break,
                Err(Errno::INVAL) => return Err(Status::FBig),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.inode.has_changed();
        if stability > Stability::Unstable {
            self.inode.sync(&self.tree)?;
        }
        Ok(written)
    }

    fn commit(&self) -> Result<u64> {
        Ok(self.inode.sync(&self.tree)?)
    }

    fn set_size(&self, caller: &Caller, size_bytes: u64) -> Result<()> {
        let file = self.inode.writer(&self.tree)?;
        self.tree.identity.act_as(caller)?;
        rustix::fs::ftruncate(file, size_bytes).map_err(|errno| match errno {
            Errno::INVAL => Status::FBig,
            _ => errno.into(),
        })?;
        self.changed()
    }

    fn allocate(&self, caller: &Caller, range: Range) -> Result<()> {
        self.fallocate(caller, FallocateFlags::empty(), range)
    }

    fn deallocate(&self, caller: &Caller, range: Range) -> Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(caller, how, range)
    }

    fn next(&self, what: Content, offset: u64) -> Result<Option<u64>> {
        let file = self.inode.reader(&self.tree)?;
        // Others may seek in it too: nobody reads from where it stands.
        let from = match what {
            Content::Data => SeekFrom::Data(offset),
            Content::Hole => SeekFrom::Hole(offset),
        };
        match rustix::fs::seek(file, from) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO | Errno::INVAL | Errno::OVERFLOW) => {
                let ends = offset >= rustix::fs::fstat(file)?.st_size as u64;
                if ends { Err(Status::NxIo) } else { Ok(None) }
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// As the caller that this thread acts as.
pub fn set(tree: &Shared, inode: &Inode, changes: &Change) -> Result<()> {
    let name = inode.proc_name();
    if changes.uid.is_some() || changes.gid.is_some() {
        // All ones means "leave it" to the kernel.
        let (uid, gid) = (changes.uid.map(uid).transpose()?, changes.gid.map(gid).transpose()?);
        rustix::fs::chownat(inode.place(), c"", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if let Some(mode) = changes.mode {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::chmodat(&tree.proc, &*name, mode, AtFlags::empty()).map_err(
            |errno| match errno {
                Errno::OPNOTSUPP => Status::AttrNotSupp, // a symlink has none of its own
                _ => errno.into(),
            },
        )?;
    }
    if changes.accessed.is_some() || changes.modified.is_some() {
        let times = Timestamps {
            last_access: timespec(changes.accessed)?,
            last_modification: timespec(changes.modified)?,
        };
        rustix::fs::utimensat(&tree.proc, &*name, &times, AtFlags::empty())?;
    }
    Ok(())
}

fn uid(raw: u32) -> Result<Uid> {
    if raw == u32::MAX { Err(Status::BadOwner) } else { Ok(Uid::from_raw(raw)) }
}

fn gid(raw: u32) -> Result<Gid> {
    if raw == u32::MAX { Err(Status::BadOwner) } else { Ok(Gid::from_raw(raw)) }
}

fn timespec(time: Option<SetTime>) -> Result<Timespec> {
    Ok(match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::To(Time { seconds, nanoseconds })) if nanoseconds < 1_000_000_000 => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
        Some(SetTime::To(_)) => return Err(Status::Inval),
    })
}
