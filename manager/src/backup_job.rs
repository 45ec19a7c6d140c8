//! Where the control plane meets the crate `ankole-backup`: only this module calls it.
//!
//! What works on an attached volume is in [`work`], and has a process of its own
//! (`crate::roles::job`). The others need no volume: the command line calls them in its own process.
//!
//! ```text
//! back up  replicas ──ReplicaReader──▶ SnapshotSource ──▶ target
//! restore  target ──▶ VolumeSink ──NBD──▶ engine
//! ```

mod listing;
mod next;
mod sink;
mod source;
pub mod work;

use std::ops::ControlFlow;
use std::path::Path;

use ankole_backup::inventory::{self, Volumes};
use ankole_backup::prune::{self, Collected};
use ankole_backup::{self as backup, BackupUrl, LockTimes, RestoreOptions, Target, TargetUrl};

pub use self::listing::{inspect, list};
use self::next::{About, Step, refused};
use crate::api::ApiError;
use crate::api::backup::{BackupView, JobProgress};
use crate::api::error::chain;

/// Bad blocks that an error names; their number is told too.
const BAD_BLOCKS_NAMED: usize = 3;

/// Told now and then, from any thread.
pub type Progress<'a> = &'a (dyn Fn(JobProgress) + Sync);

/// The size of the volume that the backup is restored to; an error if it can't be restored.
pub fn restored_bytes(url: &str) -> Result<u64, ApiError> {
    let (url, target) = open_backup(url)?;
    let refused = |error| refused(About::Backup(&url), &error);
    let details = inventory::inspect(&*target, &url.volume, &url.backup).map_err(refused)?;
    details.refuse_backing_image().map_err(refused)?;
    Ok(details.size_bytes)
}

/// Reads every block of the backup and compares it with its checksum.
pub fn verify(url: &str, progress: Progress<'_>) -> Result<BackupView, ApiError> {
    let backup = inspect(url)?;
    let (url, target) = open_backup(url)?;
    let options = RestoreOptions::default();
    let on_progress = |now| show(progress, now);
    let report = inventory::verify(&*target, &url.volume, &url.backup, &options, &on_progress)
        .map_err(|error| refused(About::Backup(&url), &error))?;
    if report.bad_blocks.is_empty() {
        return Ok(backup);
    }
    let named = report.bad_blocks.iter().take(BAD_BLOCKS_NAMED).map(|bad| {
        let problem = chain(&bad.problem);
        format!("at offset {} {}: {problem}", bad.offset_bytes, bad.path)
    });
    let (bad, all) = (report.bad_blocks.len(), report.blocks);
    let named = named.collect::<Vec<_>>().join("; ");
    let (volume, target) = (url.volume.to_string(), url.target.to_string());
    let again = Step::StoreAgain { volume, target };
    let cause = if bad > BAD_BLOCKS_NAMED { "the first are " } else { "" };
    Err(ApiError::failed(format!(
        "backup {}: {bad} of {all} blocks are bad: {cause}{named}",
        url.backup
    ))
    .next(format!("look at the target's disk; {again}")))
}

/// Removes the backup, complete or not, and the blocks that no other backup needs. Gives what a
/// person should know about blocks that stay.
pub fn remove(url: &str) -> Result<Option<String>, ApiError> {
    let (url, target) = open_backup(url)?;
    let collected = prune::delete_backup(&*target, &url.volume, &url.backup, LockTimes::default())
        .map_err(|error| refused(About::Backup(&url), &error))?;
    Ok(match collected {
        Collected::Blocks { .. } => None,
        Collected::Nothing(why) => {
            let why = next::why_kept(&url.target, &url.volume, &why);
            Some(format!("volume {}: no blocks removed yet: {why}", url.volume))
        }
    })
}

/// Removes the blocks that no backup needs: what interrupted backups have left. Gives what was done
/// for each volume, in a line or an error.
pub fn prune(
    target: &str,
    volume: Option<&str>,
) -> Result<Vec<Result<String, ApiError>>, ApiError> {
    let (url, target) = open(target)?;
    let refused = |error| refused(About::Target(&url), &error);
    let mut outcomes = Vec::new();
    let volumes = match volume {
        Some(volume) => vec![backup_name(volume)?],
        None => {
            let Volumes { names, problems } = inventory::volumes(&*target).map_err(refused)?;
            outcomes.extend(problems.into_iter().map(|problem| Err(refused(problem))));
            names
        }
    };
    let prune_one = |volume: backup::Name| {
        let collected = prune::prune(&*target, &volume, LockTimes::default()).map_err(refused)?;
        Ok(match collected {
            Collected::Blocks { deleted, kept } => {
                format!("volume {volume}: {deleted} blocks removed, {kept} are needed")
            }
            Collected::Nothing(why) => {
                let why = next::why_kept(&url, &volume, &why);
                format!("volume {volume}: nothing removed: {why}")
            }
        })
    };
    outcomes.extend(volumes.into_iter().map(prune_one));
    Ok(outcomes)
}

/// Removes the locks of a volume whose holders died, after watching them for as long as a living
/// one may stay silent. Gives a line for each.
pub fn unlock(target: &str, volume: &str) -> Result<Vec<String>, ApiError> {
    let (url, target) = open(target)?;
    let volume = backup_name(volume)?;
    let unlocked = backup::remove_dead_locks(&*target, &volume, LockTimes::default())
        .map_err(|error| refused(About::Target(&url), &error))?;
    let removed = unlocked.removed.iter().map(|path| format!("{path}: removed"));
    let alive = unlocked.alive.iter().map(|path| format!("{path}: its holder lives; it stays"));
    Ok(removed.chain(alive).collect())
}

/// Whether backups can be put there.
pub fn look_at_target(target: &str) -> Result<(), ApiError> {
    let (url, target) = open(target)?;
    let around = inventory::look_around(&*target);
    let around = around.map_err(|error| refused(About::Target(&url), &error))?;
    if let Some(elsewhere) = listing::misplaced(&url, &around.place) {
        return Err(ApiError::invalid(elsewhere));
    }
    inventory::try_to_write(&*target).map_err(|error| {
        refused(About::Target(&url), &error)
            .next("choose another place; what can only be read needs no name: give its URL to backup ls and restore")
    })
}

/// To a raw image; the file must not exist.
pub fn restore_to_file(
    url: &str,
    path: &Path,
    progress: Progress<'_>,
) -> Result<BackupView, ApiError> {
    let backup = inspect(url)?;
    let (url, target) = open_backup(url)?;
    let options = RestoreOptions::default();
    let on_progress = |now| show(progress, now);
    let (volume, name) = (&url.volume, &url.backup);
    backup::restore_to_file(&*target, volume, name, path, false, &options, &on_progress)
        .map_err(|error| refused(About::Backup(&url), &error))?;
    Ok(backup)
}

fn open(target: &str) -> Result<(TargetUrl, Box<dyn Target>), ApiError> {
    let url: TargetUrl = target.parse().map_err(|error| invalid(&error))?;
    let target = url.open().map_err(|error| failed(&error))?;
    Ok((url, target))
}

fn open_backup(url: &str) -> Result<(BackupUrl, Box<dyn Target>), ApiError> {
    let url: BackupUrl = url.parse().map_err(|error| invalid(&error))?;
    let target = url.target.open().map_err(|error| failed(&error))?;
    Ok((url, target))
}

fn show(progress: Progress<'_>, now: backup::Progress) -> ControlFlow<()> {
    progress(job_progress(now));
    ControlFlow::Continue(())
}

fn job_progress(progress: backup::Progress) -> JobProgress {
    JobProgress { done_bytes: progress.bytes_done, total_bytes: progress.bytes_total }
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    ApiError::failed(chain(error))
}

fn backup_name(name: &str) -> Result<backup::Name, ApiError> {
    name.parse().map_err(|error: backup::name::NameError| invalid(&error))
}

fn invalid(error: &dyn std::error::Error) -> ApiError {
    ApiError::invalid(chain(error))
}
