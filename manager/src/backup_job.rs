//! Where the control plane meets the crate `ankole-backup`: the only file that calls it.
//!
//! The first two run in the manager and may attach volumes ([`Service::engage`]). The others need
//! no manager: the command line calls them in its own process.

use std::path::Path;

use crate::api::backup::{BackupView, JobProgress, RestoreRequest};
use crate::api::{ApiError, Name};
use crate::service::{JobControl, Service};

/// Told now and then, from any thread.
pub type Progress<'a> = &'a (dyn Fn(JobProgress) + Sync);

fn not_wired() -> ApiError {
    ApiError::failed("backups aren't wired into this build yet")
}

/// Backs the snapshot up; without one, makes a snapshot first.
pub fn create(
    _service: &Service,
    _control: &JobControl<'_>,
    _volume: &Name,
    _snapshot: Option<&Name>,
    _target: &str,
) -> Result<BackupView, ApiError> {
    Err(not_wired())
}

/// Makes the volume and fills it.
pub fn restore_to_volume(
    _service: &Service,
    _control: &JobControl<'_>,
    _request: &RestoreRequest,
) -> Result<BackupView, ApiError> {
    Err(not_wired())
}

/// All backups of a target, of one volume or of all.
pub fn list(_target: &str, _volume: Option<&str>) -> Result<Vec<BackupView>, ApiError> {
    Err(not_wired())
}

/// One backup, by its URL.
pub fn inspect(_url: &str) -> Result<BackupView, ApiError> {
    Err(not_wired())
}

/// Reads every block of the backup and compares it with its checksum.
pub fn verify(_url: &str, _progress: Progress<'_>) -> Result<BackupView, ApiError> {
    Err(not_wired())
}

/// Removes the backup, and the blocks that no other backup needs.
pub fn remove(_url: &str) -> Result<(), ApiError> {
    Err(not_wired())
}

/// To a raw image; the file must not exist.
pub fn restore_to_file(
    _url: &str,
    _path: &Path,
    _progress: Progress<'_>,
) -> Result<BackupView, ApiError> {
    Err(not_wired())
}
