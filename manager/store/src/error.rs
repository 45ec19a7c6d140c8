//! What can go wrong, by what the caller can do about it.

use ankole_api::ApiError;
use ankole_api::error::chain;
use ankole_api::object::Kind;

use crate::{OBJECT_BYTES_MAX, OBJECTS_BYTES_MAX};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{kind} {name} doesn't exist")]
    NotFound { kind: Kind, name: String },
    #[error("{kind} {name} exists already")]
    Exists { kind: Kind, name: String },
    /// Read it again: it has another version by now, or is another one of that name.
    #[error("{kind} {name} was changed by somebody else")]
    Conflict { kind: Kind, name: String },
    #[error("{kind} {name} can't be written: {why}")]
    Invalid { kind: Kind, name: String, why: &'static str },
    #[error("{kind} {name} has {size_bytes} bytes; it may have {OBJECT_BYTES_MAX}")]
    TooLarge { kind: Kind, name: String, size_bytes: usize },
    #[error("{kind} {name}: the store has {OBJECTS_BYTES_MAX} bytes of objects; delete some")]
    Full { kind: Kind, name: String },
    /// It is kept as it is. Written by another version, or by hand.
    #[error("{kind} {name} in the store can't be read: {why}")]
    Unreadable { kind: Kind, name: String, why: String },
    /// Try again later.
    #[error("nothing was written: {why}")]
    Unavailable { why: String },
    /// It may become true at any time until it can be read; so read it before you write again.
    #[error("it isn't known whether it was written: {why}")]
    OutcomeUnknown { why: String },
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = chain(&error);
        match error {
            StoreError::NotFound { kind, name } => {
                let noun = if kind.name == "BackupTarget" { "target" } else { "volume" };
                Self::not_found(format!("{noun} {name} doesn't exist"))
                    .next(format!("ankole {noun} ls shows what there is"))
            }
            StoreError::Exists { .. } => Self::conflict(message).next("choose another name"),
            StoreError::Conflict { .. } => Self::conflict(message).next("try again"),
            _ => Self::failed(message).next("look at the disk of the data folder, and at the log"),
        }
    }
}
