//! The tree of files that is exported. Operations know only this trait.
//!
//! A file is named by its handle, which stays the same as long as the file exists. Everything is done as
//! the caller: the tree decides what it may do. What changes a directory says its change number before and
//! after, with nothing between.

pub mod local;
pub mod memory;

use crate::state::Claims;
use crate::wire::arguments42::SetXattr;
use crate::wire::attributes::{SetTime, Time};
use crate::wire::rpc::Caller;
use crate::wire::status::Status;
use crate::wire::types::{FileHandle, FileType, NAME_BYTES_MAX, Stability};
use std::ops::ControlFlow;
use std::sync::Arc;

pub type Result<T> = std::result::Result<T, Status>;

pub trait Tree: Send + Sync {
    /// Tells this file system from all others, wherever it is served.
    fn id(&self) -> u128;
    fn root(&self) -> FileHandle;
    /// A handle that came over the wire: is it one of ours, and is its file still there?
    fn check(&self, handle: &[u8]) -> Result<FileHandle>;
    fn attributes(&self, file: FileHandle) -> Result<Attributes>;
    fn space(&self) -> Result<Space>;
    /// Which of `wanted` the caller may do.
    fn access(&self, caller: &Caller, file: FileHandle, wanted: Access) -> Result<Access>;

    fn lookup(&self, caller: &Caller, directory: FileHandle, name: Name) -> Result<FileHandle>;
    /// `NoEnt` for the root.
    fn parent(&self, caller: &Caller, directory: FileHandle) -> Result<FileHandle>;
    /// Visits what comes after the entry with cookie `after` (0: all) until told to stop. True: it came to
    /// the end.
    fn read_directory(
        &self,
        caller: &Caller,
        directory: FileHandle,
        after: u64,
        visit: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<bool>;
    fn read_link(&self, caller: &Caller, link: FileHandle) -> Result<Vec<u8>>;

    /// A new file of a name that wasn't there.
    fn create(
        &self,
        caller: &Caller,
        directory: FileHandle,
        name: Name,
        kind: NewFile,
        mode: u32,
    ) -> Result<(FileHandle, Changed)>;
    fn remove(&self, caller: &Caller, directory: FileHandle, name: Name) -> Result<Changed>;
    fn rename(
        &self,
        caller: &Caller,
        from: (FileHandle, Name),
        to: (FileHandle, Name),
    ) -> Result<(Changed, Changed)>;
    fn link(
        &self,
        caller: &Caller,
        file: FileHandle,
        directory: FileHandle,
        name: Name,
    ) -> Result<Changed>;
    /// The size is changed by [`OpenFile::set_size`].
    fn set(&self, caller: &Caller, file: FileHandle, changes: &Change) -> Result<()>;

    /// Whether files here may have extended attributes.
    fn has_xattrs(&self) -> bool;
    fn xattr(&self, caller: &Caller, file: FileHandle, name: XattrName) -> Result<Vec<u8>>;
    fn xattr_names(&self, caller: &Caller, file: FileHandle) -> Result<Vec<Vec<u8>>>;
    /// The file's change numbers; something else may have been between.
    fn set_xattr(
        &self,
        caller: &Caller,
        file: FileHandle,
        name: XattrName,
        value: &[u8],
        when: SetXattr,
    ) -> Result<Changed>;
    fn remove_xattr(&self, caller: &Caller, file: FileHandle, name: XattrName) -> Result<Changed>;

    /// From an offset in one regular file to one in another. How many bytes were copied, which is less at the
    /// source's end; they are as a write that isn't stable.
    fn copy(
        &self,
        caller: &Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
    ) -> Result<u64>;
    /// All of it or nothing, by sharing what is on the disk; a length of zero is "to the source's end".
    fn clone_range(
        &self,
        caller: &Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        length: u64,
    ) -> Result<()>;

    /// A regular file, to be read and written; whether the caller may is asked before. The file stays as
    /// long as this does, also without a name.
    fn open(&self, file: FileHandle) -> Result<Arc<dyn OpenFile>>;

    /// Another one whenever something may be lost that was written and not committed: clients then write it
    /// again. It is taken *before* the write that it is answered with.
    fn write_verifier(&self) -> u64;

    /// The owners of clients that were remembered when the tree was opened, and what they may claim.
    fn remembered(&self) -> Vec<(Box<[u8]>, Claims)>;
    /// Durable when it returns.
    fn remember(&self, owner: &[u8], claims: Claims) -> Result<()>;
    fn forget(&self, owners: &[&[u8]]) -> Result<()>;
}

pub trait OpenFile: Send + Sync {
    /// How many bytes were read, and whether the file ends there.
    fn read(&self, caller: &Caller, offset: u64, into: &mut [u8]) -> Result<(usize, bool)>;
    /// How many bytes were written, as stable as asked for.
    fn write(
        &self,
        caller: &Caller,
        offset: u64,
        data: &[u8],
        stability: Stability,
    ) -> Result<usize>;
    /// Everything that was written is stable when it returns, and this was the write verifier then. After an
    /// error, what wasn't stable may be lost, and the verifier is another one.
    fn commit(&self) -> Result<u64>;
    fn set_size(&self, caller: &Caller, size_bytes: u64) -> Result<()>;
    /// There is room for these bytes when it returns, and the file ends behind them or later.
    fn allocate(&self, caller: &Caller, range: Range) -> Result<()>;
    /// They read as zeroes from then on; the size stays.
    fn deallocate(&self, caller: &Caller, range: Range) -> Result<()>;
    /// The first byte of such content at `offset` or behind it; a hole follows each file. `NxIo`: the file
    /// ends before.
    fn next(&self, what: Content, offset: u64) -> Result<Option<u64>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Data,
    Hole,
}

/// Bytes that a file can have, not none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

impl Range {
    pub fn new(offset: u64, length: u64) -> Result<Self> {
        let end = offset.checked_add(length).ok_or(Status::Inval)?;
        match length {
            0 => Err(Status::Inval),
            _ if end > i64::MAX as u64 => Err(Status::FBig),
            _ => Ok(Self { offset, length }),
        }
    }
}

/// The name of an extended attribute of users, without the kernel's `user.` before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrName<'a>(&'a [u8]);

impl<'a> XattrName<'a> {
    pub const PREFIX: &'static [u8] = b"user.";

    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        match bytes {
            b"" => Err(Status::Inval),
            _ if bytes.len() > NAME_BYTES_MAX - Self::PREFIX.len() => Err(Status::NameTooLong),
            _ if bytes.contains(&0) => Err(Status::BadChar),
            _ => Ok(Self(bytes)),
        }
    }

    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// One component of a path: not empty, not a dot or two, no slash or NUL, not too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        match bytes {
            b"" => Err(Status::Inval),
            b"." | b".." => Err(Status::BadName),
            _ if bytes.len() > NAME_BYTES_MAX => Err(Status::NameTooLong),
            _ if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Status::BadChar),
            _ => Ok(Self(bytes)),
        }
    }

    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFile<'a> {
    Regular,
    Directory,
    Symlink(&'a [u8]),
    /// A FIFO, socket or device (with its numbers). It is made, and never opened here.
    Special(FileType, u32, u32),
}

/// What a client may ask for with ACCESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub kind: FileType,
    pub file_id: u64,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    pub used_bytes: u64,
    pub device: (u32, u32),
    /// Another one after each change.
    pub change: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
    pub created: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub available_bytes: u64,
    pub total_files: u64,
    pub free_files: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub accessed: Option<SetTime>,
    pub modified: Option<SetTime>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A directory's change numbers around a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    pub before: u64,
    pub after: u64,
}

pub struct Entry<'a> {
    pub name: &'a [u8],
    /// Names the place after this entry; never 0, 1 or 2.
    pub cookie: u64,
    /// Looked up by the visitor only if it needs them.
    pub file: &'a dyn Fn() -> Result<(FileHandle, Attributes)>,
}
