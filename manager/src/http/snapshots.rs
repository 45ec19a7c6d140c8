//! Snapshots of a volume.

use axum::extract::{Path, State};

use super::{Answer, Body, blocking, name};
use crate::api::snapshot::{Chain, SnapshotRequest};
use crate::service::Service;

pub(super) async fn list(
    State(service): State<Service>,
    Path(volume): Path<String>,
) -> Answer<Chain> {
    blocking(move || service.snapshots(&name(&volume)?)).await
}

pub(super) async fn create(
    State(service): State<Service>,
    Path(volume): Path<String>,
    Body(request): Body<SnapshotRequest>,
) -> Answer<Chain> {
    blocking(move || service.create_snapshot(&name(&volume)?, request)).await
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path((volume, snapshot)): Path<(String, String)>,
) -> Answer<Chain> {
    blocking(move || service.remove_snapshot(&name(&volume)?, &name(&snapshot)?)).await
}

pub(super) async fn revert(
    State(service): State<Service>,
    Path((volume, snapshot)): Path<(String, String)>,
) -> Answer<Chain> {
    blocking(move || service.revert(&name(&volume)?, &name(&snapshot)?)).await
}
