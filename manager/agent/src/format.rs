//! Formatting a replica's directory: the one thing that the agent does to a replica's files.

use std::path::Path;

use ankole_replica::server;
use ankole_replica::types::{Incarnation, ReplicaId};
use tokio::task::LocalSet;

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
    directory: &Path,
    volume: &str,
    replica: &ReplicaId,
    size_bytes: u64,
) -> Result<Incarnation, FormatError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| FormatError(error);
    // A thread of its own: the store's futures stay on one thread, and the caller may be a task.
    let (directory, volume, replica) = (directory.to_owned(), volume.to_owned(), replica.clone());
    let formatted = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let formatting = server::format(&directory, &volume, &replica, size_bytes);
        Ok(LocalSet::new().block_on(&runtime, formatting)?)
    });
    match formatted.join() {
        Ok(result) => result.map_err(failed),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
