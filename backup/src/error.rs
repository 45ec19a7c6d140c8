//! What can go wrong with a backup, for a caller to decide on and a person to read.
//!
//! The texts name the object and the cause. What to do next depends on what the caller can do: the
//! command line says it in commands.

use std::io;
use std::path::PathBuf;

use crate::block::{BlockChecksum, DecodeError};
use crate::manifest::{BLOCKS_MAX, ManifestProblem};
use crate::name::{Name, NameError};
use crate::target::TargetError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("can't use the manifest {path}")]
    Manifest { path: String, source: ManifestProblem },

    #[error("{target} holds no backup of a volume {volume}")]
    NoSuchVolume { volume: Name, target: String },
    #[error("{target} holds no backup {backup} of volume {volume}")]
    NoSuchBackup { backup: Name, volume: Name, target: String },
    #[error("volume {volume} has a backup {backup} already")]
    BackupExists { backup: Name, volume: Name },
    #[error(
        "backup {backup} of volume {volume} isn't complete: it is being made, or its maker died \
         (whose lock ends after 150 s)"
    )]
    InProgress { backup: Name, volume: Name },
    #[error("backup {backup} of volume {volume} is a single file, which only Longhorn can restore")]
    SingleFile { backup: Name, volume: Name },

    #[error(
        "volume {volume} lies over the backing image {image}, whose bytes its backups lack; \
         Longhorn restores them, this version doesn't"
    )]
    BackingImage { volume: Name, image: String },

    #[error("volume {volume} is in use by {holder}")]
    Busy { volume: Name, holder: String },
    #[error(
        "the lock of volume {volume} was lost: it couldn't be refreshed in time; what is stored \
         already isn't uploaded again"
    )]
    LockLost { volume: Name },

    #[error(
        "volume {volume} has {size_bytes} bytes, but the target holds backups of a larger one of \
         that name ({stored_bytes} bytes)"
    )]
    Shrank { volume: Name, size_bytes: u64, stored_bytes: u64 },
    #[error(
        "volume {volume} has {size_bytes} bytes, which is no whole number of backup blocks of \
         {block_bytes} bytes; choose another block size"
    )]
    NotWholeBlocks { volume: Name, size_bytes: u64, block_bytes: u64 },
    #[error(
        "volume {volume} has {size_bytes} bytes, and a backup at most {BLOCKS_MAX} blocks of \
         {block_bytes} bytes; choose larger blocks"
    )]
    TooManyBlocks { volume: Name, size_bytes: u64, block_bytes: u64 },
    #[error("read {length_bytes} bytes at {offset_bytes} of snapshot {snapshot} of {volume}")]
    Source {
        volume: Name,
        snapshot: String,
        offset_bytes: u64,
        length_bytes: u64,
        source: io::Error,
    },

    #[error(transparent)]
    Block(#[from] Box<BadBlock>),
    #[error("{needed_bytes} bytes are to be restored into {size_bytes}")]
    SinkTooSmall { needed_bytes: u64, size_bytes: u64 },
    #[error("write {length_bytes} bytes at {offset_bytes} of what is being restored")]
    Sink { offset_bytes: u64, length_bytes: u64, source: io::Error },
    #[error("{path} exists already")]
    FileExists { path: PathBuf },
    #[error("another restore to {path} is running")]
    FileBusy { path: PathBuf },
    #[error("{action} {path}")]
    File { action: &'static str, path: PathBuf, source: io::Error },

    #[error("stopped before the end, as asked")]
    Cancelled,
}

/// A block that a backup needs and doesn't have.
#[derive(Debug, thiserror::Error)]
#[error(
    "block {checksum} at offset {offset_bytes} of volume {volume}, backup {backup}, can't be used: \
     {path}; backups without this block can be restored"
)]
pub struct BadBlock {
    pub volume: Name,
    pub backup: Name,
    pub offset_bytes: u64,
    pub checksum: BlockChecksum,
    /// Where the target keeps it.
    pub path: String,
    #[source]
    pub problem: BlockProblem,
}

#[derive(Debug, thiserror::Error)]
pub enum BlockProblem {
    #[error("the block is missing")]
    Missing,
    #[error("the block can't be read")]
    Unreadable(#[source] TargetError),
    #[error("the block is damaged")]
    Damaged(#[source] DecodeError),
}

impl BlockProblem {
    /// Whether another try may go better: the target answered with an error, not with bad bytes.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreadable(_))
    }
}
