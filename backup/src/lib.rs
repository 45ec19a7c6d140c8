//! Backups of changed blocks, in the format of Longhorn's backupstore.
#![forbid(unsafe_code)]

pub mod block;
pub mod json;
pub mod layout;
pub mod manifest;
pub mod name;
pub mod target;
pub mod timestamp;
pub mod url;
