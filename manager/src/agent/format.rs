//! Formatting a replica's directory: the one thing that the agent does to a replica's files.

use std::path::Path;

use ankole_replica::types::{Incarnation, ReplicaId};

/// Makes an empty replica in `directory`, which doesn't exist yet, and returns its new identity
/// once it is durable.
pub type Format = fn(
    directory: &Path,
    volume: &str,
    replica: &ReplicaId,
    size_bytes: u64,
) -> Result<Incarnation, FormatError>;

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FormatError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// The real one.
pub fn format(
    _directory: &Path,
    _volume: &str,
    _replica: &ReplicaId,
    _size_bytes: u64,
) -> Result<Incarnation, FormatError> {
    // Integration puts `ankole_replica::format` here.
    Err(FormatError("formatting a replica is not wired yet".into()))
}
