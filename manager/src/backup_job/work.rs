//! The work of a job: knows the volume by its sockets alone, and no manager.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use ankole_backup::inventory::{self, BackupDetails};
use ankole_backup::plan::BackupMode;
use ankole_backup::{self as backup, RestoreOptions, Source};
use ankole_replica::admin::{Answer, EngineStatus, Request};

use super::next::{self, About, Step, refused};
use super::sink::VolumeSink;
use super::source::{PAUSE, ROUNDS, SnapshotSource};
use super::{backup_name, job_progress, listing, open, open_backup};
use crate::agent::admin::{self, AdminError};
use crate::api::backup::{BackupView, JobProgress};
use crate::api::job::{BackupWork, VolumeAccess, Work};
use crate::api::snapshot::SnapshotStatus;
use crate::api::{ApiError, Name};

/// Blocks of 2 MiB in work at a time, where a replica or an engine is at the other end.
const WORKERS: usize = 4;
/// The engine settles, drains and flushes first.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// Who lets it work; asked by any of its threads.
pub trait Observer: Sync {
    fn progress(&self, progress: JobProgress);
    /// What is stored already isn't uploaded again by the next one.
    fn is_stopping(&self) -> bool;
}

pub fn run(
    volume: &VolumeAccess,
    work: &Work,
    observer: &dyn Observer,
) -> Result<BackupView, ApiError> {
    match work {
        Work::BackUp(work) => back_up(volume, work, observer),
        Work::Restore { url } => restore(volume, url, observer),
    }
}

/// Backs the snapshot up; without one, makes a snapshot first.
pub(super) fn back_up(
    volume: &VolumeAccess,
    work: &BackupWork,
    observer: &dyn Observer,
) -> Result<BackupView, ApiError> {
    let (url, target) = open(&work.target)?; // before a snapshot is made for it
    let found = match &work.snapshot {
        Some(name) => find_snapshot(volume, name, observer)?,
        None => ensure_snapshot(volume, &work.backup, observer)?,
    };
    let snapshot = found.name.clone();
    let source = SnapshotSource::new(volume, observer, found);
    let request = backup::BackupRequest {
        mode: if work.full { BackupMode::Full } else { BackupMode::Incremental },
        workers: WORKERS,
        ..backup::BackupRequest::new(backup_name(&work.backup)?)
    };
    match backup::back_up(&*target, &source, &request, &|progress| watch(observer, progress)) {
        Ok(report) => {
            let volume = backup_name(source.volume())?;
            let backup = backup_name(&report.manifest.name)?;
            let (manifest, size_bytes) = (report.manifest, source.size_bytes());
            let details = BackupDetails { manifest, size_bytes, backing_image: None };
            Ok(listing::complete(&url, &volume, &backup, details))
        }
        Err(error) => {
            let mut error = refused(About::Target(&url), &error);
            if work.snapshot.is_none() {
                let left = next::snapshot_left(&volume.name, &snapshot, &url, work.full);
                let steps = error.next.into_iter().chain([left]);
                error.next = Some(steps.collect::<Vec<_>>().join("; "));
            }
            Err(error)
        }
    }
}

/// Fills the volume with the backup. What an attempt before has written is the same.
pub(super) fn restore(
    volume: &VolumeAccess,
    url: &str,
    observer: &dyn Observer,
) -> Result<BackupView, ApiError> {
    let (url, target) = open_backup(url)?;
    let refused = |error| refused(About::Backup(&url), &error);
    let details = inventory::inspect(&*target, &url.volume, &url.backup).map_err(refused)?;
    details.refuse_backing_image().map_err(refused)?;
    let sink = VolumeSink::open(&volume.nbd, status(volume, observer)?.size_bytes)?;
    let options = RestoreOptions { workers: WORKERS, ..RestoreOptions::default() };
    let on_progress = |progress| watch(observer, progress);
    backup::restore(&*target, &url.volume, &url.backup, &sink, &options, &on_progress)
        .map_err(refused)?;
    Ok(listing::complete(&url.target, &url.volume, &url.backup, details))
}

fn find_snapshot(
    volume: &VolumeAccess,
    name: &Name,
    observer: &dyn Observer,
) -> Result<SnapshotStatus, ApiError> {
    snapshot(volume, name, observer)?.ok_or_else(|| {
        ApiError::not_found(format!("volume {} has no snapshot {name}", volume.name))
            .next(Step::ListSnapshots { volume: volume.name.to_string() }.to_string())
    })
}

/// One that an attempt before has made is taken, also by an engine that died before it could say so.
fn ensure_snapshot(
    volume: &VolumeAccess,
    name: &Name,
    observer: &dyn Observer,
) -> Result<SnapshotStatus, ApiError> {
    if let Some(found) = snapshot(volume, name, observer)? {
        return Ok(found);
    }
    let request = Request::Snapshot { name: name.to_string(), labels: Default::default() };
    let asked = ask(volume, &request, SNAPSHOT_TIMEOUT, observer);
    match (snapshot(volume, name, observer)?, asked) {
        (Some(found), _) => Ok(found),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => find_snapshot(volume, name, observer),
    }
}

fn snapshot(
    volume: &VolumeAccess,
    name: &Name,
    observer: &dyn Observer,
) -> Result<Option<SnapshotStatus>, ApiError> {
    let snapshots = status(volume, observer)?.snapshots;
    Ok(snapshots.into_iter().find(|snapshot| snapshot.name == **name))
}

fn status(volume: &VolumeAccess, observer: &dyn Observer) -> Result<Box<EngineStatus>, ApiError> {
    match ask(volume, &Request::Status, STATUS_TIMEOUT, observer)? {
        Answer::Status(status) => Ok(status),
        _ => Err(about(volume, ApiError::failed("the engine has no status"))),
    }
}

/// Also of the successor, if the engine is being replaced.
fn ask(
    volume: &VolumeAccess,
    request: &Request,
    timeout: Duration,
    observer: &dyn Observer,
) -> Result<Answer, ApiError> {
    let mut rounds = 1..ROUNDS;
    loop {
        match admin::ask(&volume.admin, request, timeout) {
            Err(AdminError::NoAnswer(error))
                if !is_late(&error) && !observer.is_stopping() && rounds.next().is_some() =>
            {
                std::thread::sleep(PAUSE);
            }
            answer => return answer.map_err(|error| about(volume, error.into())),
        }
    }
}

/// It is there, and has had its time.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn about(volume: &VolumeAccess, error: ApiError) -> ApiError {
    let next =
        error.next.or_else(|| Some(Step::AskWhy { volume: volume.name.to_string() }.to_string()));
    ApiError { message: format!("volume {}: {}", volume.name, error.message), next, ..error }
}

fn watch(observer: &dyn Observer, progress: backup::Progress) -> ControlFlow<()> {
    observer.progress(job_progress(progress));
    if observer.is_stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
