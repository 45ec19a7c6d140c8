//! Backup targets.

use axum::extract::{Path, State};

use super::{Answer, Body, blocking, name};
use crate::api::target::{BackupTarget, TargetRequest};
use crate::service::Service;

pub(super) async fn list(State(service): State<Service>) -> Answer<Vec<BackupTarget>> {
    blocking(move || service.targets()).await
}

pub(super) async fn add(
    State(service): State<Service>,
    Path(target): Path<String>,
    Body(request): Body<TargetRequest>,
) -> Answer<BackupTarget> {
    blocking(move || service.add_target(name(&target)?, request.url)).await
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path(target): Path<String>,
) -> Answer<()> {
    blocking(move || service.remove_target(&name(&target)?)).await
}
