//! What can go wrong with a store, in words for the person who has to act.

use std::fmt;
use std::io;

use crate::chain::ChainError;
use crate::types::{BlockIndex, BlockRange, LayerId};

/// Each text names the directory or file, the cause and, where there is one, the next step.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{doing} in {place}: {source}{}", hint(.source))]
    Io { doing: &'static str, place: String, source: io::Error },
    #[error("{place} is in use by {}; stop it first", holder(.pid))]
    Locked { place: String, pid: Option<u32> },
    #[error("{place} holds replica {replica} of volume {volume}; choose another directory")]
    HoldsReplica { place: String, volume: String, replica: String },
    #[error("{place} isn't empty (it has {name:?}); choose an empty directory")]
    NotEmpty { place: String, name: String },
    #[error("{place} has no replica (there is no {missing}); is it the right directory?")]
    NoReplica { place: String, missing: &'static str },
    #[error(
        "{file} in {place} has version {found}, this program reads version {known}; \
         use the program that wrote it, or a newer one"
    )]
    Version { place: String, file: String, found: u32, known: u32 },
    #[error(
        "{file} in {place} is damaged: {problem}; rebuild this replica from another one, or \
         look at it with `ankole replica inspect`"
    )]
    Damaged { place: String, file: String, problem: String },
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(
        "{place} has something else in {layer}, region {region}, than the peer that repairs it"
    )]
    NotWritten { place: String, layer: LayerId, region: u64 },
    #[error("{range} doesn't lie in {layer} with its {size_bytes} bytes")]
    OutOfRange { range: BlockRange, layer: LayerId, size_bytes: u64 },
    #[error(
        "the description of {layers} layers takes {bytes} bytes, more than the file has room for; use shorter labels"
    )]
    MetadataTooLarge { layers: usize, bytes: usize },
    /// An `fdatasync` or a write of metadata failed: what the disk holds isn't known any more.
    #[error("the replica in {place} failed for good: {reason}; replace the disk and rebuild")]
    Failed { place: String, reason: String },
}

impl StoreError {
    /// The disk is full: it can be tried again when there is room.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_no_space(source))
    }

    /// The file system has no files of that size: it never can be done.
    pub fn is_too_large(&self) -> bool {
        let is_too_large = |error: &io::Error| error.kind() == io::ErrorKind::FileTooLarge;
        matches!(self, Self::Io { source, .. } if is_too_large(source))
    }
}

pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// It says nothing of the disk.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Why a read has no answer. Never hides a block that could be read: the engine asks another
/// replica for the bad ones and repairs them.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{}", BadBlocks(.0))]
    BadBlocks(Vec<BadBlock>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A block whose bytes can't be had from this replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlock {
    pub block: BlockIndex,
    /// The layer that holds it; repair goes there.
    pub layer: LayerId,
    pub problem: BlockProblem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockProblem {
    /// The bytes on the disk don't have the checksum of what was written.
    Checksum { expected: u32, found: u32 },
    /// The disk refused to read it.
    Unreadable(String),
    /// The index page that describes it is damaged.
    Index(String),
}

struct BadBlocks<'a>(&'a [BadBlock]);

impl fmt::Display for BadBlocks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else { return f.write_str("no bad block") };
        write!(f, "block {} of {}: ", first.block.0, first.layer)?;
        match &first.problem {
            BlockProblem::Checksum { expected, found } => {
                write!(f, "its checksum is {found:08x}, {expected:08x} was written")?;
            }
            BlockProblem::Unreadable(why) => write!(f, "can't be read: {why}")?,
            BlockProblem::Index(why) => write!(f, "its index page is damaged: {why}")?,
        }
        match self.0.len() - 1 {
            0 => Ok(()),
            more => write!(f, " (and {more} more blocks)"),
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; create it first",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make it writable for this user"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room on this disk",
        _ => "",
    }
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}
