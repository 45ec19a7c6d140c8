//! Backups of a snapshot's changed blocks, in the format of Longhorn's backupstore.
//!
//! Owns the stored format, the targets, and what is done with them: [`back_up`], [`restore()`],
//! [`inventory`] and [`prune`]. Promises that a backup which is listed as complete restores to
//! exactly the snapshot's bytes or fails with the block that is missing or damaged; that an
//! interrupted backup leaves the others as they were; and that no block is deleted which a backup
//! needs. Bytes from a target never cause a panic.
//!
//! ```text
//! Source ──changed(since)──▶ BackupPlan ──▶ transfer ──▶ Target ──▶ restore ──▶ Sink
//!   (the store)               (pure)          │            │           │      (volume, file)
//!                                        manifest, block, layout (pure)
//!                                             └── lock ────┴── prune ──┘
//! ```

#![forbid(unsafe_code)]

pub mod block;
pub mod error;
pub mod inventory;
mod json;
pub mod layout;
mod lock;
pub mod manifest;
pub mod name;
pub mod parallel;
pub mod plan;
pub mod prune;
pub mod restore;
pub mod source;
mod store;
mod surroundings;
pub mod target;
pub mod timestamp;
pub mod transfer;
pub mod url;

pub use error::Error;
pub use lock::{LockTimes, Unlocked, remove_dead_locks};
pub use name::Name;
pub use parallel::{Progress, unobserved};
pub use restore::{RestoreOptions, Sink, restore, restore_to_file};
pub use source::{Changed, Source};
pub use target::Target;
pub use transfer::{BackupReport, BackupRequest, back_up};
pub use url::{BackupUrl, TargetUrl};
