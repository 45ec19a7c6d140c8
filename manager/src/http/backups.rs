//! Backups, restores, and the jobs that do them.

use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::{Answer, Body, blocking};
use crate::api::ApiError;
use crate::api::backup::{BackupRequest, BackupView, Job, RestoreRequest};
use crate::backup_job;
use crate::service::Service;

#[derive(Deserialize)]
pub(super) struct Which {
    target: Option<String>,
    volume: Option<String>,
}

pub(super) async fn list(
    State(service): State<Service>,
    Query(which): Query<Which>,
) -> Answer<Vec<BackupView>> {
    blocking(move || {
        let target = service.target_url(which.target.as_deref())?;
        Ok(backup_job::list(&target, which.volume.as_deref())?.backups)
    })
    .await
}

pub(super) async fn create(
    State(service): State<Service>,
    Body(request): Body<BackupRequest>,
) -> Answer<Job> {
    blocking(move || service.create_backup(request)).await
}

pub(super) async fn restore(
    State(service): State<Service>,
    Body(request): Body<RestoreRequest>,
) -> Answer<Job> {
    blocking(move || service.restore_backup(request)).await
}

pub(super) async fn job(State(service): State<Service>, Path(id): Path<String>) -> Answer<Job> {
    blocking(move || {
        let id = id.parse().map_err(|_| ApiError::invalid(format!("{id} isn't a job's number")))?;
        service.job(id)
    })
    .await
}
