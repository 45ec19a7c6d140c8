//! Where backups are kept.
//!
//! [`Target`] is the little that the rest needs, chosen so that an object store can offer it: whole
//! objects put in one call, no rename, no append, no lock. Keys are relative, with `/` between
//! their parts; see [`layout`](crate::layout).

mod directory;
mod memory;

use std::io;
use std::time::SystemTime;

pub use directory::DirectoryTarget;
pub use memory::MemoryTarget;

/// A place that keeps objects under keys.
///
/// May be used by many threads at once, and by other processes and machines at the same time.
pub trait Target: Send + Sync {
    /// As the user wrote it; begins what [`BackupUrl`](crate::url::BackupUrl) prints.
    fn url(&self) -> &str;

    /// Says, for messages, where the object is: what a user can give to `ls` or a browser.
    fn locate(&self, key: &str) -> String;

    /// Names of what lies directly in `folder`, objects and folders, in any order; in the target
    /// itself if `folder` is empty. A folder that doesn't exist is empty. Objects that are still
    /// being written aren't listed.
    fn children(&self, folder: &str) -> Result<Vec<String>, TargetError>;

    /// Keys of all objects in `folder` and its folders, in any order; otherwise like
    /// [`children`](Target::children).
    fn objects_below(&self, folder: &str) -> Result<Vec<String>, TargetError>;

    /// Keys of what writers that died have left in `folder` and its folders, and what writers are
    /// writing now. An object store has none.
    fn unfinished_below(&self, folder: &str) -> Result<Vec<String>, TargetError> {
        let _ = folder;
        Ok(Vec::new())
    }

    /// The object's bytes from its beginning, however many there are.
    fn open(&self, key: &str) -> Result<Box<dyn io::Read + Send>, TargetError>;

    /// The whole object; [`TargetError::TooBig`] if it has more than `bytes_max`.
    fn read(&self, key: &str, bytes_max: u64) -> Result<Vec<u8>, TargetError>;

    /// Puts the object, replacing one of the same key. A reader sees the old or the new one, never
    /// a part, also after a power cut.
    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), TargetError>;

    /// When this returns, everything that was written and deleted through this target before
    /// survives a power cut.
    fn flush(&self) -> Result<(), TargetError>;

    /// Bytes of the object; `None` if there is none.
    fn object_bytes(&self, key: &str) -> Result<Option<u64>, TargetError>;

    fn exists(&self, key: &str) -> Result<bool, TargetError> {
        Ok(self.object_bytes(key)?.is_some())
    }

    /// Removes the object. One that isn't there is no error.
    fn delete(&self, key: &str) -> Result<(), TargetError>;

    /// When the object was written last, by the target's clock.
    fn modified(&self, key: &str) -> Result<SystemTime, TargetError>;
}

/// What was being done when a target failed: a word for the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Open,
    List,
    Read,
    Write,
    Delete,
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::List => "list",
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{access} {path}: it doesn't exist")]
    NotFound { access: Access, path: String },
    #[error(
        "{path} is no directory that exists; create or mount it first \
         (it isn't created for you, because a missing one is often a missing mount)"
    )]
    NoDirectory { path: String },
    #[error(
        "{access} {path}: the target is full; free some space and run it again: \
         what is stored already isn't uploaded again"
    )]
    Full { access: Access, path: String, source: io::Error },
    #[error("{access} {path}: not allowed; check its owner, its mode, and that it isn't read-only")]
    Denied { access: Access, path: String, source: io::Error },
    #[error("{path} has more than the {bytes_max} bytes that such an object can have")]
    TooBig { path: String, bytes_max: u64 },
    #[error(
        "{access} {path}: it is {found}; an object has a plain file, in folders that are no links"
    )]
    NotPlain { access: Access, path: String, found: &'static str },
    #[error("{access} {path}")]
    Other { access: Access, path: String, source: io::Error },
}

impl TargetError {
    /// Sorts an error of the operating system by what a caller can do about it.
    pub fn from_io(access: Access, path: String, source: io::Error) -> Self {
        use io::ErrorKind::*;
        match source.kind() {
            NotFound => Self::NotFound { access, path },
            StorageFull | QuotaExceeded => Self::Full { access, path, source },
            PermissionDenied | ReadOnlyFilesystem => Self::Denied { access, path, source },
            _ => Self::Other { access, path, source },
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// `None` for an object that doesn't exist.
pub fn found<T>(result: Result<T, TargetError>) -> Result<Option<T>, TargetError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
